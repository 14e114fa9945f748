package monitor

import (
	"blockd/blockgraph"
	"blockd/qapi"
	"blockd/qmp"
)

func (m *Monitor) registerNodes(r *qmp.Registry) {
	qmp.Register(r, "blockdev-add", qmp.CommandOptions{}, m.blockdevAdd)
	qmp.Register(r, "blockdev-del", qmp.CommandOptions{}, m.blockdevDel)
	qmp.Register(r, "block_resize", qmp.CommandOptions{}, m.blockResize)
}

func (m *Monitor) blockdevAdd(c *qmp.Context, o *qapi.BlockdevOptions) (struct{}, error) {
	return struct{}{}, m.AddNode(c, o)
}

func addNode(tx *blockgraph.Tx, o *qapi.BlockdevOptions) error {
	if o.NodeName == nil {
		return qapi.Errorf("'node-name' must be specified for the root node")
	}
	n, err := tx.Open(o)
	if err != nil {
		return err
	}
	tx.SetMonitorOwned(n, true)
	return nil
}

func (m *Monitor) blockdevDel(c *qmp.Context, a *qapi.BlockdevDelArg) (struct{}, error) {
	return struct{}{}, m.update(c, "blockdev-del", func(tx *blockgraph.Tx) error { return deleteNode(tx, a.NodeName) })
}

func deleteNode(tx *blockgraph.Tx, name string) error {
	n := tx.Find(name)
	if n == nil {
		return qapi.Errorf("Failed to find node with node-name='%s'", name)
	}
	users := tx.Parents(n)
	for _, e := range users {
		if r := e.Root(); r != nil && r.Job() == "" {
			return qapi.Errorf("Node %s is in use", n.Name())
		}
	}
	if err := tx.CheckBlocked(n, blockgraph.OpDriveDel); err != nil {
		return err
	}
	if !tx.MonitorOwned(n) {
		return qapi.Errorf("Node %s is not owned by the monitor", n.Name())
	}
	if len(users) > 0 {
		return qapi.Errorf("Block device %s is in use", n.Name())
	}
	tx.Delete(n)
	return nil
}

func (m *Monitor) blockResize(c *qmp.Context, a *qapi.BlockResizeArg) (struct{}, error) {
	return struct{}{}, m.update(c, "block_resize", func(tx *blockgraph.Tx) error {
		n, err := tx.LookUp(a.Device, a.NodeName)
		if err != nil {
			return err
		}
		if a.Size < 0 {
			return qapi.Errorf("Parameter 'size' expects a >0 size")
		}
		if err := tx.CheckBlocked(n, blockgraph.OpResize); err != nil {
			return err
		}
		return tx.Resize(n, a.Size, false, qapi.PreallocModeOff)
	})
}

// findNode looks a node up as commands with one name for both a device and a
// node do.
func findNode(tx *blockgraph.Tx, name string) (*blockgraph.Node, error) {
	return tx.LookUp(&name, &name)
}

// sourceNode is findNode for action.source.
func sourceNode(tx *blockgraph.Tx, name string) *blockgraph.Node {
	n, _ := findNode(tx, name)
	return n
}
