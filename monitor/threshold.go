package monitor

import (
	"blockd/blockgraph"
	"blockd/qapi"
	"blockd/qmp"
)

func (m *Monitor) registerThreshold(r *qmp.Registry) {
	qmp.Register(r, "block-set-write-threshold", qmp.CommandOptions{}, m.setWriteThreshold)
	qmp.RegisterEvent[qapi.BlockWriteThreshold](r, "BLOCK_WRITE_THRESHOLD")
}

func (m *Monitor) setWriteThreshold(_ *qmp.Context, a *qapi.BlockSetWriteThresholdArg) (struct{}, error) {
	var n *blockgraph.Node
	m.loop.Do(func() { n = m.graph.Node(a.NodeName) })
	if n == nil {
		return struct{}{}, qapi.Errorf("Device '%s' not found", a.NodeName)
	}
	n.SetWriteThreshold(a.WriteThreshold)
	return struct{}{}, nil
}
