package qcow2

import (
	"context"
	"encoding/binary"
	"log/slog"
	"syscall"
	"time"

	"blockd/blockgraph"
	"blockd/qapi"
)

// Making and removing internal snapshots. Each is one write of the header's
// first sector, which switches to another snapshot table; all that the new one
// needs is durable before, and what only the old one needed is given up after.
// In between counts are too high rather than too low:
//
//	create  count every reference twice, clear the copied flags, write a copy
//	        of the L1 table and the new snapshot table; switch
//	delete  write the new snapshot table; switch; drop the references, set the
//	        copied flags that fit again
//
// snapshotcounts.go has what a crash in between means. All of it runs on a worker
// with the graph token held and no request in flight.

// InternalSnapshots lists the image's snapshots, the oldest first. Any goroutine.
func (d *Driver) InternalSnapshots() []qapi.SnapshotInfo {
	return snapshotInfo(d.snapshots.Load().list)
}

// CreateSnapshot keeps what the disk holds as a snapshot of that name, made at
// at, and returns its id. A name that is longer than the field's limit is cut, as
// in the field. Errors: EFBIG for too many, EINVAL where a count would not fit its
// width. After an error the image is as it was, but for leaks where the storage
// has failed.
func (d *Driver) CreateSnapshot(ctx context.Context, name string, at time.Time) (id string, err error) {
	if err := d.canChangeSnapshots(); err != nil {
		return "", err
	}
	old := d.snapshots.Load()
	if len(old.list) >= maxSnapshots {
		return "", syscall.EFBIG
	}
	ns := at.UnixNano()
	s := snapshot{
		id: nextSnapshotID(old.list), name: name[:min(len(name), maxSnapshotName)],
		dateSec: uint32(ns / 1e9), dateNsec: uint32(ns % 1e9), vmClock: uint64(ns),
		diskSize: uint64(d.size.Load()), icount: noIcount,
	}
	if err := d.beginUncounted(ctx); err != nil {
		return "", err
	}
	next := append(old.list[:len(old.list):len(old.list)], s)
	fresh, known, err := d.addSnapshot(ctx, next)
	if err == nil {
		d.giveUp(d.extentOf(old.at)...)
		if err := d.endUncounted(ctx); err != nil {
			// The snapshot is there, and counts are no lower than they should be.
			slog.Warn("qcow2: an image with a new snapshot keeps its dirty bit", "file", fileName(d.file()), "error", err)
		}
		return s.id, nil
	}
	if !known {
		return "", err // nobody knows which table the disk has
	}
	d.giveUp(fresh...)
	return "", d.recount(ctx, err)
}

// addSnapshot brings the last snapshot of next to the image. On an error it
// returns the new clusters, and whether it is known that the disk refers to
// none.
func (d *Driver) addSnapshot(ctx context.Context, next []snapshot) (fresh []extent, known bool, err error) {
	s := &next[len(next)-1]
	l1 := d.activeL1()
	if s.l1Size = uint32(len(l1)); len(l1) > 0 {
		x, err := d.writeFresh(ctx, encodeL1(l1))
		fresh = append(fresh, x)
		if err != nil {
			return fresh, true, err
		}
		s.l1Offset = uint64(x.first) << d.h.clusterBits
	}
	if err := d.addReferences(ctx, l1); err != nil {
		return fresh, true, err
	}
	more, known, err := d.switchSnapshots(ctx, next, false)
	return append(fresh, more...), known, err
}

// DeleteSnapshot removes the first snapshot with that id and name, of which one
// may be nil. Where an error comes after the snapshot has gone, clusters are
// leaked. The texts are the field's.
func (d *Driver) DeleteSnapshot(ctx context.Context, id, name *string) error {
	if err := d.canChangeSnapshots(); err != nil {
		return blockgraph.Errorf(blockgraph.Errno(err), "Failed to remove snapshot from snapshot list: %s", blockgraph.Strerror(err))
	}
	old := d.snapshots.Load()
	i := findSnapshot(old.list, id, name)
	if i < 0 {
		return blockgraph.Errorf(syscall.ENOENT, "Can't find the snapshot")
	}
	s := old.list[i]
	l1, err := d.snapshotL1(ctx, &s)
	if err != nil {
		return err
	}
	next := append(old.list[:i:i], old.list[i+1:]...)
	err = d.settle(ctx)
	if err == nil {
		var fresh []extent
		var known bool
		d.uncounted++
		if fresh, known, err = d.switchSnapshots(ctx, next, d.h.version >= 3); err != nil && known {
			d.uncounted--
			d.giveUp(fresh...)
		}
	}
	if err != nil {
		return blockgraph.Errorf(blockgraph.Errno(err), "Failed to remove snapshot from snapshot list: %s", blockgraph.Strerror(err))
	}
	d.giveUp(d.extentOf(old.at)...)
	at := place{from: int64(s.l1Offset), to: int64(s.l1Offset) + int64(s.l1Size)*l1EntrySize}
	if err := d.dropTable(ctx, l1, at); err != nil {
		return blockgraph.Errorf(blockgraph.Errno(err), "Failed to free the cluster and L1 table: %s", blockgraph.Strerror(err))
	}
	return nil
}

// dropTable gives up an L1 table that the disk knows no more, with all that it
// referred to, and brings counts and flags in order.
func (d *Driver) dropTable(ctx context.Context, l1 []uint64, at place) error {
	if err := d.dropReferences(ctx, l1); err != nil {
		return err
	}
	for _, x := range d.extentOf(at) {
		x.kind = discardSnapshot
		d.giveUp(x)
	}
	if err := d.settle(ctx); err != nil {
		return err
	}
	if err := d.fitFlags(ctx); err != nil {
		return err
	}
	return d.endUncounted(ctx)
}

// switchSnapshots makes next the image's snapshots, after everything that has
// changed before, and sets the dirty bit in the same moment if so asked. On an
// error it returns the new clusters, and whether it is known that the disk
// refers to none.
func (d *Driver) switchSnapshots(ctx context.Context, next []snapshot, dirty bool) (fresh []extent, known bool, err error) {
	raw, err := encodeSnapshots(next)
	if err != nil {
		return nil, true, err
	}
	at := place{kind: kindSnapshotTable}
	if len(next) > 0 {
		x, err := d.writeFresh(ctx, raw)
		fresh = []extent{x}
		if err != nil {
			return fresh, true, err
		}
		at.from = x.first << d.h.clusterBits
		at.to = at.from + int64(len(raw))
	}
	if err := d.writeBack(ctx); err != nil {
		return fresh, true, err
	}
	inactive, err := d.inactiveTables(ctx, d.options(), next)
	if err != nil {
		return fresh, true, err
	}
	err = d.updateHeader(ctx, func(b []byte) {
		binary.BigEndian.PutUint32(b[fieldSnapshots:], uint32(len(next)))
		binary.BigEndian.PutUint64(b[fieldSnapshotsAt:], uint64(at.from))
		if dirty {
			setDirtyBit(b)
		}
	})
	if err == nil {
		err = d.file().Flush(ctx)
	}
	if err != nil {
		return fresh, false, err
	}
	d.snapshots.Store(&snapshotList{next, at})
	d.meta.setPlaces(kindSnapshotTable, at)
	d.meta.setPlaces(kindInactiveL1, l1Places(next)...)
	d.meta.setPlaces(kindInactiveL2, inactive...)
	return nil, true, nil
}

// snapshotL1 reads a snapshot's L1 table.
func (d *Driver) snapshotL1(ctx context.Context, s *snapshot) ([]uint64, error) {
	if err := d.h.checkTable(s.l1Offset, uint64(s.l1Size), l1EntrySize, maxL1Size, "Snapshot L1 table"); err != nil {
		return nil, err
	}
	if s.l1Offset >= maxHostOffset {
		return nil, errHeader("Snapshot L1 table offset invalid")
	}
	raw, err := tableAt(ctx, d.file(), int64(s.l1Offset), int64(s.l1Size)*l1EntrySize)
	if err != nil {
		return nil, err
	}
	words := make([]uint64, len(raw)/l1EntrySize)
	for i := range words {
		words[i] = binary.BigEndian.Uint64(raw[i*l1EntrySize:])
	}
	return words, nil
}

// encodeL1 returns a table as it stands in the image, without the copied flags,
// which only the active one has.
func encodeL1(l1 []uint64) []byte {
	b := make([]byte, 0, len(l1)*l1EntrySize)
	for _, e := range l1 {
		b = binary.BigEndian.AppendUint64(b, e&l1OffsetMask)
	}
	return b
}

// extentOf returns the clusters of a place, if it is not empty.
func (d *Driver) extentOf(p place) []extent {
	if p.to <= p.from {
		return nil
	}
	return []extent{{first: p.from >> d.h.clusterBits, n: d.h.clusters(p.to - p.from), kind: discardOther}}
}

func (d *Driver) canChangeSnapshots() error {
	switch {
	case d.readOnly.Load():
		return syscall.EPERM
	case d.broken.Load():
		return syscall.EIO
	case d.h.external:
		return syscall.ENOTSUP // what lies outside has no counts
	}
	return nil
}
