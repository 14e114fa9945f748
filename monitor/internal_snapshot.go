package monitor

import (
	"blockd/blockgraph"
	"blockd/clock"
	"blockd/qapi"
	"blockd/qmp"
)

// The commands for snapshots that are kept within an image. What the field has of
// them takes and removes them; going back to one is blockd's own. The texts are
// the field's.

func (m *Monitor) registerInternalSnapshots(r *qmp.Registry) {
	qmp.Register(r, "blockdev-snapshot-internal-sync", qmp.CommandOptions{}, func(c *qmp.Context, a *qapi.BlockdevSnapshotInternal) (struct{}, error) {
		return struct{}{}, m.runActions(c, "blockdev-snapshot-internal-sync", []action{&internalSnapshot{*a}})
	})
	qmp.Register(r, "blockdev-snapshot-delete-internal-sync", qmp.CommandOptions{}, func(c *qmp.Context, a *qapi.InternalSnapshotArg) (info qapi.SnapshotInfo, err error) {
		err = m.update(c, "blockdev-snapshot-delete-internal-sync", func(tx *blockgraph.Tx) error {
			info, err = deleteSnapshot(tx, a)
			return err
		})
		return info, err
	})
	qmp.Register(r, "x-blockdev-snapshot-revert", qmp.CommandOptions{Unstable: true}, func(c *qmp.Context, a *qapi.InternalSnapshotArg) (struct{}, error) {
		return struct{}{}, m.runActions(c, "x-blockdev-snapshot-revert", []action{&snapshotRevert{*a}})
	})
}

// writableSnapshots returns the node that keeps the snapshots of a device that may
// be written.
func writableSnapshots(tx *blockgraph.Tx, n *blockgraph.Node, device string) (*blockgraph.Node, blockgraph.InternalSnapshotter, error) {
	if tx.State(n).ReadOnly {
		return nil, nil, qapi.Errorf("Device '%s' is read only", device)
	}
	below, s := tx.SnapshotNode(n)
	if below == nil || tx.State(n).Inactive || tx.State(below).ReadOnly || tx.State(below).Inactive {
		return nil, nil, qapi.Errorf("Block format '%s' used by device '%s' does not support internal snapshots", n.Type().Name, device)
	}
	return below, s, nil
}

// internalSnapshot takes one.
type internalSnapshot struct{ qapi.BlockdevSnapshotInternal }

func (s *internalSnapshot) kind() string { return "blockdev-snapshot-internal-sync" }

func (s *internalSnapshot) source(tx *blockgraph.Tx) *blockgraph.Node { return tx.Find(s.Device) }

func (s *internalSnapshot) prepare(tx *blockgraph.Tx) error {
	n, err := findRoot(tx, s.Device)
	if err != nil {
		return err
	}
	if err := tx.CheckBlocked(n, blockgraph.OpInternalSnap); err != nil {
		return err
	}
	below, list, err := writableSnapshots(tx, n, s.Device)
	if err != nil {
		return err
	}
	if s.Name == "" {
		return qapi.Errorf("Name is empty")
	}
	if findSnapshot(list.InternalSnapshots(), nil, &s.Name) != nil {
		return qapi.Errorf("Snapshot with name '%s' already exists on device '%s'", s.Name, s.Device)
	}
	if err := tx.CreateSnapshot(below, s.Name, clock.Real().Now()); err != nil {
		return qapi.Errorf("Failed to create snapshot '%s' on device '%s': %s", s.Name, s.Device, blockgraph.Strerror(err))
	}
	return nil
}

// findSnapshot returns the first with that id and name, of which one may be nil,
// or nil.
func findSnapshot(list []qapi.SnapshotInfo, id, name *string) *qapi.SnapshotInfo {
	for i := range list {
		if s := &list[i]; (id == nil || s.ID == *id) && (name == nil || s.Name == *name) {
			return s
		}
	}
	return nil
}

// namedSnapshot finds the snapshot that a command means.
func namedSnapshot(tx *blockgraph.Tx, n *blockgraph.Node, a *qapi.InternalSnapshotArg) (*blockgraph.Node, blockgraph.InternalSnapshotter, *qapi.SnapshotInfo, error) {
	below, s := tx.SnapshotNode(n)
	if below == nil {
		return nil, nil, nil, qapi.Errorf("Failed to get a snapshot list: Operation not supported")
	}
	info := findSnapshot(s.InternalSnapshots(), a.ID, a.Name)
	if info == nil {
		return nil, nil, nil, qapi.Errorf("Snapshot with id '%s' and name '%s' does not exist on device '%s'", orNull(a.ID), orNull(a.Name), a.Device)
	}
	return below, s, info, nil
}

func orNull(s *string) string {
	if s == nil {
		return "null"
	}
	return *s
}

func deleteSnapshot(tx *blockgraph.Tx, a *qapi.InternalSnapshotArg) (qapi.SnapshotInfo, error) {
	n, err := findRoot(tx, a.Device)
	if err != nil {
		return qapi.SnapshotInfo{}, err
	}
	if a.ID == nil && a.Name == nil {
		return qapi.SnapshotInfo{}, qapi.Errorf("Name or id must be provided")
	}
	if err := tx.CheckBlocked(n, blockgraph.OpInternalSnapDel); err != nil {
		return qapi.SnapshotInfo{}, err
	}
	below, s, info, err := namedSnapshot(tx, n, a)
	if err != nil {
		return qapi.SnapshotInfo{}, err
	}
	if tx.State(below).Inactive {
		return qapi.SnapshotInfo{}, qapi.Errorf("Failed to remove snapshot from snapshot list: Operation not permitted")
	}
	if err := tx.Drain(below); err != nil {
		return qapi.SnapshotInfo{}, err
	}
	return *info, s.DeleteSnapshot(tx.Context(), a.ID, a.Name)
}

// snapshotRevert goes back to one.
type snapshotRevert struct{ qapi.InternalSnapshotArg }

func (s *snapshotRevert) kind() string { return "x-blockdev-snapshot-revert" }

func (s *snapshotRevert) source(tx *blockgraph.Tx) *blockgraph.Node { return tx.Find(s.Device) }

func (s *snapshotRevert) prepare(tx *blockgraph.Tx) error {
	n, err := findRoot(tx, s.Device)
	if err != nil {
		return err
	}
	if s.ID == nil && s.Name == nil {
		return qapi.Errorf("Name or id must be provided")
	}
	if err := tx.CheckBlocked(n, blockgraph.OpInternalSnap); err != nil {
		return err
	}
	below, _, err := writableSnapshots(tx, n, s.Device)
	if err != nil {
		return err
	}
	if _, _, _, err := namedSnapshot(tx, n, &s.InternalSnapshotArg); err != nil {
		return err
	}
	return tx.RevertSnapshot(below, s.ID, s.Name)
}
