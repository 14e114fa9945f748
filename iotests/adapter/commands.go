package main

import (
	"blockd/blockgraph"
	"blockd/qapi"
	"blockd/qmp"
)

// This file has the commands about the machine as a whole.

type shutdownEvent struct {
	Guest  bool   `qapi:"guest"`
	Reason string `qapi:"reason"`
}

type statusInfo struct {
	Running    bool   `qapi:"running"`
	Singlestep bool   `qapi:"singlestep"`
	Status     string `qapi:"status"`
}

func (m *machine) registerMachine(r *qmp.Registry) {
	qmp.RegisterEvent[shutdownEvent](r, "SHUTDOWN")
	qmp.RegisterEvent[shutdownEvent](r, "RESET")
	qmp.RegisterEvent[struct{}](r, "STOP")
	qmp.RegisterEvent[struct{}](r, "RESUME")
	qmp.Register(r, "stop", qmp.CommandOptions{}, func(c *qmp.Context, _ *qapi.Empty) (qapi.Empty, error) {
		m.emit("STOP", nil)
		return qapi.Empty{}, m.drainAll(c, "stop")
	})
	qmp.Register(r, "cont", qmp.CommandOptions{}, func(c *qmp.Context, _ *qapi.Empty) (qapi.Empty, error) {
		m.emit("RESUME", nil)
		return qapi.Empty{}, nil
	})
	qmp.Register(r, "query-status", qmp.CommandOptions{ReadOnly: true}, func(c *qmp.Context, _ *qapi.Empty) (*statusInfo, error) {
		return &statusInfo{Running: true, Status: "running"}, nil
	})
	qmp.Register(r, "system_reset", qmp.CommandOptions{}, func(c *qmp.Context, _ *qapi.Empty) (qapi.Empty, error) {
		if err := m.drainAll(c, "system_reset"); err != nil {
			return qapi.Empty{}, err
		}
		if err := m.devices.reset(c); err != nil {
			return qapi.Empty{}, err
		}
		m.emit("RESET", &shutdownEvent{Reason: "host-qmp-system-reset"})
		return qapi.Empty{}, nil
	})
}

// drainAll waits until nothing is in flight in any node.
func (m *machine) drainAll(c *qmp.Context, command string) error {
	return m.update(c, command, func(tx *blockgraph.Tx) error { return tx.Drain(m.nodes()...) })
}

// nodes returns all nodes as of now.
func (m *machine) nodes() []*blockgraph.Node {
	var nodes []*blockgraph.Node
	m.daemon.Loop.Do(func() { nodes = m.graph.Nodes() })
	return nodes
}
