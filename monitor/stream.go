package monitor

import (
	"blockd/blockgraph"
	"blockd/jobs/stream"
	"blockd/qapi"
	"blockd/qmp"
)

func (m *Monitor) registerStream(r *qmp.Registry) {
	qmp.Register(r, "block-stream", qmp.CommandOptions{}, func(c *qmp.Context, a *qapi.BlockStreamArg) (struct{}, error) {
		if err := stream.Check(a); err != nil {
			return struct{}{}, err
		}
		return struct{}{}, m.update(c, "block-stream", (&blockStream{m, a}).prepare)
	})
}

// blockStream starts a stream.
type blockStream struct {
	m *Monitor
	a *qapi.BlockStreamArg
}

func (s *blockStream) kind() string { return string(qapi.TransactionActionKindXBlockStream) }

func (s *blockStream) source(tx *blockgraph.Tx) *blockgraph.Node { return sourceNode(tx, s.a.Device) }

func (s *blockStream) prepare(tx *blockgraph.Tx) error {
	if err := stream.Check(s.a); err != nil {
		return err
	}
	top, err := findNode(tx, s.a.Device)
	if err != nil {
		return err
	}
	a := *s.a
	a.JobID = jobID(tx, a.JobID, top)
	_, err = stream.Prepare(tx, s.m.jobs, top, &a)
	return err
}
