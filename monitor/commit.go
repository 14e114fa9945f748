package monitor

import (
	"blockd/blockgraph"
	"blockd/jobs/commit"
	"blockd/jobs/mirror"
	"blockd/qapi"
	"blockd/qmp"
)

func (m *Monitor) registerCommit(r *qmp.Registry) {
	qmp.Register(r, "block-commit", qmp.CommandOptions{}, func(c *qmp.Context, a *qapi.BlockCommitArg) (struct{}, error) {
		return struct{}{}, m.update(c, "block-commit", (&blockCommit{m, a}).prepare)
	})
}

// blockCommit starts a commit.
type blockCommit struct {
	m *Monitor
	a *qapi.BlockCommitArg
}

func (c *blockCommit) kind() string { return string(qapi.TransactionActionKindXBlockCommit) }

func (c *blockCommit) source(tx *blockgraph.Tx) *blockgraph.Node { return sourceNode(tx, c.a.Device) }

func (c *blockCommit) prepare(tx *blockgraph.Tx) error {
	// The class of this error comes before all others: clients tell from it
	// what a daemon can do.
	device, err := findNode(tx, c.a.Device)
	if err != nil {
		return qapi.ClassErrorf(qapi.DeviceNotFound, "Device '%s' not found", c.a.Device)
	}
	if !isRoot(tx, device) {
		return qapi.Errorf("Need a root block node")
	}
	a := *c.a
	a.JobID = jobID(tx, a.JobID, device)
	r, err := commit.Find(tx, device, &a)
	if err != nil {
		return err
	}
	if r.Active {
		_, err = mirror.NewActiveCommit(tx, mirror.ActiveCommit{
			Jobs: c.m.jobs, Top: r.Top, Base: r.Base, JobID: a.JobID, Speed: a.Speed, OnError: a.OnError,
			FilterNodeName: a.FilterNodeName, AutoFinalize: a.AutoFinalize, AutoDismiss: a.AutoDismiss,
		})
		return err
	}
	_, err = commit.Prepare(tx, c.m.jobs, r, &a)
	return err
}

// isRoot tells whether a node is no part of another one, and no job works on it.
func isRoot(tx *blockgraph.Tx, n *blockgraph.Node) bool {
	for _, e := range tx.Parents(n) {
		if r := e.Root(); r == nil || r.Job() != "" {
			return false
		}
	}
	return true
}
