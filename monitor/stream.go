package monitor

import (
	"blockd/blockgraph"
	"blockd/jobs/stream"
	"blockd/qapi"
	"blockd/qmp"
)

func (m *Monitor) registerStream(r *qmp.Registry) {
	qmp.Register(r, "block-stream", qmp.CommandOptions{}, m.blockStream)
}

func (m *Monitor) blockStream(c *qmp.Context, a *qapi.BlockStreamArg) (struct{}, error) {
	if err := stream.Check(a); err != nil {
		return struct{}{}, err
	}
	return struct{}{}, m.update(c, "block-stream", func(tx *blockgraph.Tx) error {
		top, err := findNode(tx, a.Device)
		if err != nil {
			return err
		}
		_, err = stream.Prepare(tx, m.jobs, top, a)
		return err
	})
}
