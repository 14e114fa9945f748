package monitor

import (
	"blockd/blockgraph"
	"blockd/qapi"
	"blockd/qmp"
)

// The history of the graph, as clients see it (package blockgraph keeps it).

func (m *Monitor) registerHistory(r *qmp.Registry) {
	read := qmp.CommandOptions{Unstable: true, ReadOnly: true}
	qmp.Register(r, "x-query-graph-history", read, m.queryGraphHistory)
	qmp.Register(r, "x-graph-subscribe", read, m.graphSubscribe)
	qmp.RegisterEvent[qapi.GraphChanged](r, graphChanged)
}

const graphChanged = "GRAPH_CHANGED"

func (m *Monitor) queryGraphHistory(_ *qmp.Context, a *qapi.XQueryGraphHistoryArg) (*qapi.GraphHistory, error) {
	var since uint64
	if a.Since != nil {
		since = *a.Since
	}
	var h qapi.GraphHistory
	var steps []*blockgraph.Step
	m.loop.Do(func() {
		past := m.graph.History()
		h.Instance, h.Last, h.First = past.Instance(), past.Last(), past.First()
		if a.Instance != nil && *a.Instance != h.Instance {
			since = 0
		}
		steps, h.Complete = past.Since(since)
	})
	if a.Instance != nil && *a.Instance != h.Instance {
		h.Complete = false // its steps are another daemon's
	}
	h.Steps = make([]qapi.GraphStep, len(steps))
	for i, s := range steps {
		h.Steps[i] = graphStep(s)
	}
	return &h, nil
}

func (m *Monitor) graphSubscribe(c *qmp.Context, a *qapi.XGraphSubscribeArg) (*qapi.GraphSubscription, error) {
	var s qapi.GraphSubscription
	m.loop.Do(func() {
		c.Subscribe(graphChanged, a.Enable == nil || *a.Enable)
		s.Instance, s.Last = m.graph.History().Instance(), m.graph.History().Last()
	})
	return &s, nil
}

// TellStep sends GRAPH_CHANGED to those who asked for it. On the loop.
//
//blockd:global loop
func (m *Monitor) TellStep(hub *qmp.Hub, s *blockgraph.Step) {
	hub.EmitSubscribed(graphChanged, func() any {
		return &qapi.GraphChanged{Instance: m.graph.History().Instance(), Step: graphStep(s)}
	})
}

//blockd:any
func graphStep(s *blockgraph.Step) qapi.GraphStep {
	step := qapi.GraphStep{
		Number:    s.Number,
		Timestamp: qapi.GraphStepTime{Seconds: s.At.Unix(), Microseconds: int64(s.At.Nanosecond()) / 1000},
		Cause:     graphCause(s.Cause),
		Changes:   make([]qapi.GraphChange, len(s.Changes)),
	}
	for i := range s.Changes {
		step.Changes[i] = graphChange(&s.Changes[i])
	}
	return step
}

//blockd:any
func graphCause(c blockgraph.Cause) qapi.GraphCause {
	var request *uint64
	if c.Request != 0 {
		request = &c.Request
	}
	switch {
	case c.Job != "":
		return qapi.GraphCause{Type: qapi.GraphCauseTypeJob, Job: &qapi.GraphCauseJob{Job: c.Job, Request: request}}
	case c.Option != "":
		return qapi.GraphCause{Type: qapi.GraphCauseTypeOption, Option: &qapi.GraphCauseOption{Option: c.Option}}
	case c.Shutdown:
		return qapi.GraphCause{Type: qapi.GraphCauseTypeShutdown}
	}
	command := &qapi.GraphCauseCommand{Command: c.Command, Request: request}
	if c.HasID {
		command.ID = &c.ID
	}
	return qapi.GraphCause{Type: qapi.GraphCauseTypeCommand, Command: command}
}

//blockd:any
func graphChange(c *blockgraph.Change) qapi.GraphChange {
	g := qapi.GraphChange{Type: qapi.GraphChangeType(c.Kind)}
	edge := qapi.GraphChangeEdge{Name: c.Name, Child: c.Child}
	if c.Node != "" {
		edge.ParentNode = &c.Node
	} else {
		edge.ParentRoot = &c.Root
	}
	var job *string
	if c.Job != "" {
		job = &c.Job
		edge.Job = job
	}
	perms := qapi.GraphChangePermissions{Perm: permList(c.Perm), SharedPerm: permList(c.Shared)}
	old := qapi.GraphChangeOldPermissions{OldPerm: permList(c.OldPerm), OldSharedPerm: permList(c.OldShared)}
	switch c.Kind {
	case blockgraph.NodeAdded, blockgraph.NodeRemoved:
		g.Node = &qapi.GraphChangeNode{NodeName: c.Node, Driver: c.Driver}
	case blockgraph.RootAdded, blockgraph.RootRemoved:
		g.Root = &qapi.GraphChangeRoot{Root: c.Root, Job: job, Label: optional(c.Label)}
	case blockgraph.Linked:
		g.Linked = &qapi.GraphChangeLink{GraphChangeEdge: edge, GraphChangePermissions: perms}
	case blockgraph.Unlinked:
		g.Unlinked = &qapi.GraphChangeUnlink{GraphChangeEdge: edge, GraphChangeOldPermissions: old}
	case blockgraph.Relinked:
		g.Relinked = &qapi.GraphChangeRelink{GraphChangeEdge: edge, OldChild: c.OldChild, GraphChangePermissions: perms, GraphChangeOldPermissions: old}
	case blockgraph.PermsChanged:
		g.Permissions = &qapi.GraphChangePerms{GraphChangeEdge: edge, GraphChangePermissions: perms, GraphChangeOldPermissions: old}
	}
	return g
}
