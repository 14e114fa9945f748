package qcow2

import (
	"context"
	"syscall"

	"blockd/blockgraph"
	"blockd/qapi"
)

// Truncate changes the length of the disk. Growing is safe with requests in
// flight, unless it preallocates: that sets the length of the file, and could cut
// off what they write past its end meanwhile. Preallocating and shrinking are
// called with none. A grown range reads as zeroes, even where a backing file has
// data. Control plane, on a worker.
func (d *Driver) Truncate(ctx context.Context, size int64, exact bool, prealloc qapi.PreallocMode, zeroed bool) error {
	old := d.size.Load()
	if prealloc == "" {
		prealloc = qapi.PreallocModeOff
	}
	if b := d.ch.backing(); b != nil && b.Size() > old {
		zeroed = true // a longer backing file must not come to show
	}
	switch {
	case size%sector != 0:
		return blockgraph.Errorf(syscall.EINVAL, "The new size must be a multiple of %d", sector)
	case len(d.snapshots.Load().list) > 0 && d.h.version < 3:
		return blockgraph.Errorf(syscall.ENOTSUP, "Can't resize a v2 image which has snapshots")
	case d.broken.Load():
		return syscall.EIO
	case size < old && prealloc != qapi.PreallocModeOff:
		return blockgraph.Errorf(syscall.EINVAL, "Preallocation can't be used for shrinking an image")
	case size < old:
		return d.shrink(ctx, size, old, exact)
	case size > old:
		return d.grow(ctx, size, old, exact, prealloc, zeroed)
	}
	return nil
}

// grow makes what lies between the old end and the new one ready, and only
// then changes the size.
func (d *Driver) grow(ctx context.Context, size, old int64, exact bool, prealloc qapi.PreallocMode, zeroed bool) error {
	if err := d.growL1(ctx, int64(d.h.l1Entries(uint64(size)))); err != nil {
		return blockgraph.Errorf(blockgraph.Errno(err), "Failed to grow the L1 table: %s", blockgraph.Strerror(err))
	}
	stale := int64(0)
	if d.h.external {
		if d.h.raw && prealloc == qapi.PreallocModeOff {
			prealloc = qapi.PreallocModeMetadata
		}
		stale = d.dataFile().Size()
		if err := d.resizeData(ctx, size, exact, prealloc == qapi.PreallocModeOff, prealloc); err != nil {
			return err
		}
	}
	if err := d.clearBeyond(ctx, old, size, zeroed); err != nil {
		return blockgraph.Errorf(blockgraph.Errno(err), "Failed to zero out the new area: %s", blockgraph.Strerror(err))
	}
	if prealloc != qapi.PreallocModeOff {
		if err := d.preallocate(ctx, old, size, stale, prealloc); err != nil {
			return err
		}
	}
	return d.setSize(ctx, size)
}

// setSize writes the size to the header, after everything that it needs.
func (d *Driver) setSize(ctx context.Context, size int64) error {
	if done, err := d.setSizeWithBitmaps(ctx, size); done {
		switch {
		case err == errBitmapOfNothing:
			return err
		case err != nil:
			return blockgraph.Errorf(blockgraph.Errno(err), "Failed to update the image size: %s", blockgraph.Strerror(err))
		}
		d.size.Store(size)
		return nil
	}
	d.mu.Lock()
	before := d.nextSize
	d.nextSize = size
	d.mu.Unlock()
	if err := d.writeBack(ctx); err != nil {
		d.mu.Lock()
		d.nextSize = before
		d.mu.Unlock()
		return blockgraph.Errorf(blockgraph.Errno(err), "Failed to update the image size: %s", blockgraph.Strerror(err))
	}
	d.size.Store(size)
	return nil
}

// growL1 gives the L1 table at least n entries. It is moved in memory; the
// next write-back writes it and then its place. There is room for it by then.
func (d *Driver) growL1(ctx context.Context, n int64) error {
	if n > maxL1Size/l1EntrySize {
		return syscall.EFBIG
	}
	d.file().DebugEvent("l1_grow_alloc_table")
	freed := false
	for {
		done := false
		err := d.makeOnce(ctx, kindActiveL1, 0, func() (err error) {
			done, err = d.tryGrowL1(ctx, n)
			return err
		})
		if done {
			return nil
		}
		if err = d.fetch(ctx, err); err != nil && !d.freedRoom(ctx, err, &freed) {
			return err
		}
	}
}

// tryGrowL1 is growL1, where nothing is missing. Nobody else gives the table a place
// (makeOnce).
func (d *Driver) tryGrowL1(ctx context.Context, n int64) (done bool, err error) {
	d.mu.Lock()
	t := d.l1.Load()
	old := int64(len(t.entries))
	if n <= old {
		d.mu.Unlock()
		return true, nil
	}
	first, clusters := int64(-1), d.h.clusters(n*l1EntrySize)
	if old == 0 || clusters != d.h.clusters(old*l1EntrySize) {
		first, _, err = d.allocate(clusters, forOther)
	}
	d.unlock()
	if err != nil {
		return false, err
	}
	if first < 0 {
		// It fits where it is. What lies behind the table in its last cluster is
		// undefined and is written before the header counts it.
		end := (old*l1EntrySize + sector - 1) &^ (sector - 1)
		err = d.writeRoomBytes(ctx, t.offset+end, (n*l1EntrySize+sector-1)&^(sector-1)-end, "l1_grow_write_table")
	} else {
		err = d.writeRoom(ctx, first, clusters, "l1_grow_write_table")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case err != nil && first >= 0:
		d.release(first, clusters)
	case err != nil:
	case first < 0:
		d.replaceL1(d.l1.Load(), t.offset, n)
	default:
		d.replaceL1(d.l1.Load(), first<<d.h.clusterBits, n)
		if old > 0 {
			d.free(t.offset>>d.h.clusterBits, d.h.clusters(old*l1EntrySize), discardOther)
		}
	}
	return err == nil, err
}

// replaceL1 puts a copy of the L1 table with n entries at another place.
// Driver.mu is held.
//
// +checklocks:d.mu
func (d *Driver) replaceL1(t *l1Table, offset, n int64) {
	next := newL1Table(offset, n)
	for i := range t.entries {
		next.entries[i].Store(t.entries[i].Load())
		next.dirs[i].Store(t.dirs[i].Load())
	}
	d.l1.Store(next)
	d.l1Moved = true
	d.meta.setPlaces(kindActiveL1, place{offset, offset + n*l1EntrySize, kindActiveL1})
}

// clearBeyond sees to it that nothing shows that an earlier, longer image left
// behind the old end, nor with zeroed what a backing file has there.
func (d *Driver) clearBeyond(ctx context.Context, old, size int64, zeroed bool) error {
	cs := d.h.clusterSize
	edge := min((old+cs-1)&^(cs-1), size)
	backed := d.ch.backing() != nil
	if d.h.raw {
		// What is there already comes to show, as whoever reads the file sees it.
		if !zeroed {
			return nil
		}
		if err := d.zeroGuest(ctx, old, old, size-old); err != nil {
			return err
		}
	}
	for at := old; at < edge && !d.h.raw; {
		m, err := d.lookup(ctx, at, edge-at, false)
		if err != nil {
			return err
		}
		hole := m.kind == unallocated || m.kind == unallocatedAlloc
		if m.kind == data || m.kind == compressed || hole && backed && zeroed {
			var v blockgraph.IOVec
			appendZeroes(&v, m.n)
			if err := d.WriteV(ctx, at, &v, 0); err != nil {
				return err
			}
		}
		at += m.n
	}
	clear := l2Entry{}
	if zeroed && backed && !d.h.raw {
		switch {
		case d.h.version < 3:
			return d.zeroByWriting(ctx, edge, size)
		case d.h.extended:
			clear.bitmap = allZero
		default:
			clear.word = flagZero
		}
	}
	return d.remap(ctx, d.h.clusters(edge), d.h.clusters(size), unmapping{kind: discardAlways}, func(l2Entry) (l2Entry, error) {
		return clear, nil
	})
}

// zeroByWriting writes zeroes over [from, to), for images without zero
// clusters.
func (d *Driver) zeroByWriting(ctx context.Context, from, to int64) error {
	for from < to {
		var v blockgraph.IOVec
		n := min(to-from, 1<<20)
		appendZeroes(&v, n)
		if err := d.WriteV(ctx, from, &v, 0); err != nil {
			return err
		}
		from += n
	}
	return nil
}

// shrink changes the size first, so that at no time a mapping is gone whose
// data the disk still has, and then frees what lies past the end.
func (d *Driver) shrink(ctx context.Context, size, old int64, exact bool) error {
	if err := d.setSize(ctx, size); err != nil {
		return err
	}
	err := d.remap(ctx, d.h.clusters(size), d.h.clusters(old), unmapping{kind: discardAlways}, func(l2Entry) (l2Entry, error) { return l2Entry{}, nil })
	if err == nil {
		d.file().DebugEvent("l1_shrink_write_table")
		d.file().DebugEvent("l1_shrink_free_l2_clusters")
		d.dropTables(int64(d.h.l1Entries(uint64(size))))
		err = d.settle(ctx)
	}
	if err == nil {
		d.cutTail(ctx)
	}
	if err == nil && d.h.external {
		err = d.resizeData(ctx, size, exact, true, qapi.PreallocModeOff)
	}
	if err != nil {
		return blockgraph.Errorf(blockgraph.Errno(err), "Failed to discard cropped clusters: %s", blockgraph.Strerror(err))
	}
	return nil
}

// dropTables frees the L2 tables from L1 index from on, which are empty or
// belong to snapshots, too.
func (d *Driver) dropTables(from int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	t := d.l1.Load()
	for i := from; i < int64(len(t.entries)); i++ {
		off := int64(t.entries[i].Load() & l1OffsetMask)
		if off == 0 {
			continue
		}
		d.forget(t, i)
		delete(d.newTables, i)
		d.tableChanged(i, t.entries[i].Load(), 0)
		t.entries[i].Store(0)
		d.dirtyL1.add(i*l1EntrySize, (i+1)*l1EntrySize)
		d.meta.remove(off >> d.h.clusterBits)
		d.free(off>>d.h.clusterBits, 1, discardAlways)
	}
}
