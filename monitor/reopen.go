package monitor

import (
	"blockd/blockgraph"
	"blockd/qapi"
	"blockd/qmp"
)

func (m *Monitor) registerReopen(r *qmp.Registry) {
	qmp.Register(r, "blockdev-reopen", qmp.CommandOptions{}, m.blockdevReopen)
	qmp.Register(r, "x-blockdev-change", qmp.CommandOptions{Unstable: true}, m.blockdevChange)
}

func (m *Monitor) blockdevReopen(c *qmp.Context, a *qapi.BlockdevReopenArg) (struct{}, error) {
	return struct{}{}, m.update(c, "blockdev-reopen", func(tx *blockgraph.Tx) error { return reopenNodes(tx, a) })
}

func reopenNodes(tx *blockgraph.Tx, a *qapi.BlockdevReopenArg) error {
	list := make([]*qapi.BlockdevOptions, len(a.Options))
	for i := range a.Options {
		list[i] = &a.Options[i]
	}
	return tx.Reopen(list)
}

// blockdevChange adds a child to a node or removes one, where the node's driver
// has a changing number of them.
func (m *Monitor) blockdevChange(c *qmp.Context, a *qapi.XBlockdevChangeArg) (struct{}, error) {
	return struct{}{}, m.update(c, "x-blockdev-change", func(tx *blockgraph.Tx) error {
		parent, err := findNode(tx, a.Parent)
		if err != nil {
			return err
		}
		switch {
		case a.Child != nil && a.Node != nil:
			return qapi.Errorf("The parameters child and node are in conflict")
		case a.Child != nil:
			return removeChild(tx, parent, *a.Child)
		case a.Node != nil:
			return addChild(tx, parent, *a.Node)
		default:
			return qapi.Errorf("Either child or node must be specified")
		}
	})
}

func addChild(tx *blockgraph.Tx, parent *blockgraph.Node, name string) error {
	n, err := tx.FindNode(name)
	if err != nil {
		return err
	}
	d, ok := parent.Driver().(blockgraph.ChildChanger)
	if !ok {
		return qapi.Errorf("The node %s does not support adding a child", parent.Name())
	}
	if len(tx.Parents(n)) > 0 {
		return qapi.Errorf("The node %s already has a parent", name)
	}
	return d.AddChild(tx, n)
}

func removeChild(tx *blockgraph.Tx, parent *blockgraph.Node, name string) error {
	var child *blockgraph.Edge
	for _, e := range tx.State(parent).Edges {
		if e.Name() == name {
			child = e
		}
	}
	if child == nil {
		return qapi.Errorf("Node '%s' does not have child '%s'", parent.Name(), name)
	}
	d, ok := parent.Driver().(blockgraph.ChildChanger)
	if !ok {
		return qapi.Errorf("The node %s does not support removing a child", parent.Name())
	}
	return d.RemoveChild(tx, child)
}
