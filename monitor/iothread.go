package monitor

import (
	"blockd/blockgraph"
	"blockd/qapi"
	"blockd/qmp"
)

func (m *Monitor) registerIothread(r *qmp.Registry) {
	qmp.Register(r, "x-blockdev-set-iothread", qmp.CommandOptions{Unstable: true}, m.setIothread)
}

// setIothread says which thread a node belongs to.
func (m *Monitor) setIothread(c *qmp.Context, a *qapi.XBlockdevSetIothreadArg) (struct{}, error) {
	return struct{}{}, m.update(c, "x-blockdev-set-iothread", func(tx *blockgraph.Tx) error {
		n := tx.Find(a.NodeName)
		if n == nil {
			return qapi.Errorf("Failed to find node with node-name='%s'", a.NodeName)
		}
		if !isTrue(a.Force) {
			for _, e := range tx.Parents(n) {
				if r := e.Root(); r != nil && r.Job() == "" {
					return qapi.Errorf("Node %s is associated with a BlockBackend and could be in use (use force=true to override this check)", a.NodeName)
				}
			}
		}
		if a.Iothread.Name == nil {
			return tx.SetIothread(n, nil)
		}
		var release func()
		ok := false
		if m.Iothread != nil {
			release, ok = m.Iothread(*a.Iothread.Name)
		}
		if !ok {
			return qapi.Errorf("Cannot find iothread %s", *a.Iothread.Name)
		}
		return tx.SetIothread(n, tx.UseIothread(*a.Iothread.Name, release))
	})
}
