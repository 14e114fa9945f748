package monitor

import (
	"blockd/blockgraph"
	"blockd/qapi"
	"blockd/qmp"
)

func (m *Monitor) registerActive(r *qmp.Registry) {
	qmp.Register(r, "blockdev-set-active", qmp.CommandOptions{}, m.setActive)
}

// setActive hands an image over, or takes it: one node with what is below, or
// all.
func (m *Monitor) setActive(c *qmp.Context, a *qapi.BlockdevSetActiveArg) (struct{}, error) {
	return struct{}{}, m.update(c, "blockdev-set-active", func(tx *blockgraph.Tx) error {
		if a.NodeName == nil {
			return setAllActive(tx, m.nodes(), a.Active)
		}
		n := tx.Find(*a.NodeName)
		if n == nil {
			return qapi.Errorf("Failed to find node with node-name='%s'", *a.NodeName)
		}
		if a.Active {
			return tx.Activate(n)
		}
		if tx.HasActiveParent(n) {
			return qapi.Errorf("Node has active parent node")
		}
		return inactivating("node", tx.Inactivate(n))
	})
}

func setAllActive(tx *blockgraph.Tx, nodes []*blockgraph.Node, active bool) error {
	if active {
		return tx.Activate(nodes...)
	}
	return inactivating("all nodes", tx.Inactivate(nodes...))
}

// inactivating gives an error of Inactivate the field's text.
func inactivating(what string, err error) error {
	if err == nil {
		return nil
	}
	return qapi.Errorf("Failed to inactivate %s: %s", what, blockgraph.Strerror(err))
}
