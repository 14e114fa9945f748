package monitor

import (
	"blockd/blockgraph"
	"blockd/jobs"
	"blockd/jobs/upkeep"
	"blockd/qapi"
	"blockd/qmp"
)

func (m *Monitor) registerUpkeep(r *qmp.Registry) {
	qmp.Register(r, "x-blockdev-check", qmp.CommandOptions{Unstable: true}, func(c *qmp.Context, a *qapi.XBlockdevCheckArg) (struct{}, error) {
		return struct{}{}, m.upkeep(c, "x-blockdev-check", a.NodeName, func(tx *blockgraph.Tx, n *blockgraph.Node) (*jobs.Job, error) {
			return upkeep.PrepareCheck(tx, m.jobs, n, a)
		})
	})
	qmp.Register(r, "x-blockdev-compact", qmp.CommandOptions{Unstable: true}, func(c *qmp.Context, a *qapi.XBlockdevCompactArg) (struct{}, error) {
		return struct{}{}, m.upkeep(c, "x-blockdev-compact", a.NodeName, func(tx *blockgraph.Tx, n *blockgraph.Node) (*jobs.Job, error) {
			return upkeep.PrepareCompact(tx, m.jobs, n, a)
		})
	})
}

// upkeep starts a job that looks after a node.
func (m *Monitor) upkeep(c *qmp.Context, command, node string, prepare func(tx *blockgraph.Tx, n *blockgraph.Node) (*jobs.Job, error)) error {
	return m.update(c, command, func(tx *blockgraph.Tx) error {
		n, err := tx.LookUp(nil, &node)
		if err != nil {
			return err
		}
		_, err = prepare(tx, n)
		return err
	})
}
