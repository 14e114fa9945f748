package qcow2

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"syscall"
)

// Repair of an image with the dirty bit: whoever wrote it last kept refcounts
// in memory (lazy refcounts) and was cut off. The mappings are right; counts
// and copied flags are made to fit them.

// repairDirty repairs and clears the dirty bit. Nothing else uses the driver
// yet.
func (d *Driver) repairDirty(ctx context.Context) error {
	err := d.repairCounts(ctx)
	if err == nil {
		err = d.clearFeatures(ctx, incompatDirty)
	}
	return err
}

// clearMarks clears what says that an image needs to be repaired, durably, where
// it was opened for that.
func (d *Driver) clearMarks(ctx context.Context) error {
	if !d.marked {
		return nil
	}
	err := d.settle(ctx)
	if err == nil {
		err = d.clearFeatures(ctx, incompatDirty|incompatCorrupt)
	}
	if err == nil {
		d.marked = false
	}
	return err
}

// clearFeatures clears incompatible features in the header, durably.
func (d *Driver) clearFeatures(ctx context.Context, bits uint64) error {
	err := d.updateHeader(ctx, func(b []byte) {
		be := binary.BigEndian
		be.PutUint64(b[fieldIncompatible:], be.Uint64(b[fieldIncompatible:])&^bits)
	})
	if err == nil {
		err = d.file().Flush(ctx)
	}
	return err
}

// errLost tells that refcount structures are to be made anew (rebuild.go).
var errLost = errors.New("qcow2: refcount structures are lost")

// repairCounts makes counts and copied flags fit the mappings, as they are on
// disk, durably. No request is in flight, and nothing in memory differs.
func (d *Driver) repairCounts(ctx context.Context) error {
	c, err := check(ctx, d.file())
	if err != nil {
		return err
	}
	if err := d.repairFound(ctx, c); err != errLost {
		return err
	}
	slog.Warn("qcow2: refcount structures are lost and made anew", "file", fileName(d.file()))
	if err := d.rebuildRefcounts(ctx); err != nil {
		return err
	}
	if c, err = check(ctx, d.file()); err != nil {
		return err
	}
	if err = d.repairFound(ctx, c); err == errLost {
		return syscall.EIO
	}
	return err
}

// repairFound repairs what a check has found. With errLost nothing on disk has
// changed.
func (d *Driver) repairFound(ctx context.Context, c *checker) error {
	if c.brokenRC {
		return errLost
	}
	final := map[int64]uint64{}
	c.mismatches(func(cluster int64, stored, counted uint64) { final[cluster] = counted })
	// Without knowing bitmaps that are out of force, their clusters look
	// leaked: they keep their counts.
	keepLeaks := d.ext.outdatedBitmaps()
	for cluster, n := range final {
		if n > maxRef(d.refs.order) {
			return syscall.EIO
		}
		if keepLeaks && n < c.storedCount(cluster) {
			delete(final, cluster)
		}
	}
	for cluster, n := range final {
		if err := d.repairCount(ctx, c, cluster, n); err != nil {
			return err
		}
		d.mu.Lock()
		held := int64(len(d.refs.dirty)) << d.h.clusterBits
		d.mu.Unlock()
		if held > maxCheckMemory {
			return syscall.ENOMEM
		}
	}
	count := func(cluster int64) uint64 {
		if n, ok := final[cluster]; ok {
			return n
		}
		return c.storedCount(cluster)
	}
	var flagErr error
	err := c.wrongFlags(func(table, entry int64, old uint64) {
		if flagErr == nil {
			flagErr = d.repairFlag(ctx, table, entry, ^old&flagCopied)
		}
	}, count)
	if err == nil {
		err = flagErr
	}
	if err == nil {
		err = d.settle(ctx)
	}
	return err
}

// repairCount sets the count of one cluster. A block that is missing is made
// at a cluster of its own range that nothing refers to.
func (d *Driver) repairCount(ctx context.Context, c *checker, cluster int64, n uint64) error {
	r := &d.refs
	index := cluster >> r.blockBits
	if index >= int64(len(r.table)) {
		return errLost
	}
	for {
		d.mu.Lock()
		b, err := d.refBlockAt(index)
		if err == nil && b == nil {
			at := index << r.blockBits
			for at>>r.blockBits == index && c.count(at) != 0 {
				at++
			}
			if at>>r.blockBits != index {
				d.mu.Unlock()
				return errLost
			}
			err = missingCounts{index, at}
		}
		if err == nil {
			d.setRef(b, cluster&(1<<r.blockBits-1), n)
		}
		d.mu.Unlock()
		if err == nil {
			return nil
		}
		if err := d.fetch(ctx, err); err != nil {
			return err
		}
	}
}

// repairFlag gives an entry another copied flag on disk. What is in memory may
// have it already, after a write that failed and yet was done.
func (d *Driver) repairFlag(ctx context.Context, table, entry int64, flag uint64) error {
	t := d.l1.Load()
	if entry < 0 {
		d.mu.Lock()
		t.entries[table].Store(t.entries[table].Load()&^flagCopied | flag)
		d.dirtyL1.add(table*l1EntrySize, (table+1)*l1EntrySize)
		d.mu.Unlock()
		return nil
	}
	index := entry >> d.sliceBits
	i := entry & (1<<d.sliceBits - 1)
	for {
		d.mu.Lock()
		if s := t.cached(table, index); s != nil {
			e := s.load(i)
			e.word = e.word&^flagCopied | flag
			d.setEntry(s, i, e)
			s.dirty.add(i<<d.h.l2EntryBits, (i+1)<<d.h.l2EntryBits)
			d.cache.dirty[s] = struct{}{}
			d.mu.Unlock()
			return nil
		}
		d.mu.Unlock()
		if _, err := d.loadSlice(ctx, table, index); err != nil {
			return err
		}
	}
}
