package qcow2

import (
	"context"
	"syscall"

	"blockd/blockgraph"
)

// ShowSnapshot implements blockgraph.SnapshotShower: the snapshot's L1 table takes
// the place of the active one, in memory only. The length of the disk stays, as
// in the field: what the snapshot does not have of it is unallocated.
func (d *Driver) ShowSnapshot(ctx context.Context, id, name *string) error {
	if !d.readOnly.Load() {
		return blockgraph.Errorf(syscall.EINVAL, "Device is not readonly")
	}
	list := d.snapshots.Load().list
	i := findSnapshot(list, id, name)
	if i < 0 {
		return blockgraph.Errorf(syscall.ENOENT, "Can't find snapshot")
	}
	words, err := d.snapshotL1(ctx, &list[i])
	if err != nil {
		return err
	}
	need := int64(d.h.l1Entries(uint64(d.size.Load())))
	next := newL1Table(int64(list[i].l1Offset), max(need, int64(len(words))))
	for k, e := range words {
		next.entries[k].Store(e & l1OffsetMask)
	}
	d.forgetTables(d.sliceBits, nil)
	d.l1.Store(next)
	return nil
}
