package monitor

import (
	"blockd/blockgraph"
	"blockd/jobs/amend"
	"blockd/qapi"
	"blockd/qmp"
)

func (m *Monitor) registerAmend(r *qmp.Registry) {
	qmp.Register(r, "x-blockdev-amend", qmp.CommandOptions{Unstable: true}, func(c *qmp.Context, a *qapi.XBlockdevAmendArg) (struct{}, error) {
		return struct{}{}, m.update(c, "x-blockdev-amend", func(tx *blockgraph.Tx) error {
			n, err := tx.LookUp(nil, &a.NodeName)
			if err != nil {
				return err
			}
			return amend.Prepare(tx, m.jobs, n, a)
		})
	})
}
