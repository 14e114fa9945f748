package qcow2

import (
	"context"
	"syscall"

	"blockd/blockgraph"
)

// Room for tables. L2 tables and refcount structures change in memory and are
// written by a later write-back (writeback.go), where nobody is left whom a lack of
// space could be told. So whoever needs a new one makes sure first that the storage
// has room for it: zeroes are written to its clusters, with nothing held and before
// anything refers to them. A full disk thus fails the request that wanted the table,
// and leaves no trace.
//
// As with what is not in memory, the operation under the lock fails with an error
// that says what is missing, Driver.fetch makes it, and the operation is tried again.

// missingTable is the error of an operation under the lock that needs an L2 table of
// the active L1 table alone, at this L1 index: there is none, or others share it.
type missingTable int64

func (missingTable) Error() string { return "qcow2: an L2 table is to be made" }

// missingCounts is the error of an operation under the lock that needs a refcount
// block where there is none. at is the cluster that it is to take.
type missingCounts struct{ index, at int64 }

func (missingCounts) Error() string { return "qcow2: a refcount block is to be made" }

// shortRefTable is the error of an operation under the lock that needs a refcount
// table with more entries than this.
type shortRefTable int

func (shortRefTable) Error() string { return "qcow2: the refcount table is to grow" }

// roomKey says what is being made: a table, by its kind and index.
type roomKey struct {
	kind  metadataKind
	index int64
}

// makeOnce runs f, which makes something, unless somebody else does already: then it
// waits for him. Whatever becomes of that, who still misses it tries again.
func (d *Driver) makeOnce(ctx context.Context, kind metadataKind, index int64, f func() error) error {
	key := roomKey{kind, index}
	d.mu.Lock()
	if l := d.making[key]; l != nil {
		d.mu.Unlock()
		return waitMade(ctx, l)
	}
	l := &loading{done: make(chan struct{})}
	d.making[key] = l
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		delete(d.making, key)
		d.mu.Unlock()
		close(l.done)
	}()
	return f()
}

// waitMade waits until something has been made, or could not be.
func waitMade(ctx context.Context, l *loading) error {
	select {
	case <-l.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// writeRoom writes zeroes over n clusters of the file that nothing refers to.
func (d *Driver) writeRoom(ctx context.Context, first, n int64, event string) error {
	return d.writeRoomBytes(ctx, first<<d.h.clusterBits, n<<d.h.clusterBits, event)
}

func (d *Driver) writeRoomBytes(ctx context.Context, off, n int64, event string) error {
	f := d.file()
	f.DebugEvent(event)
	for n > 0 {
		var v blockgraph.IOVec
		appendZeroes(&v, min(n, 1<<20))
		if err := f.WriteV(ctx, off, &v, 0); err != nil {
			return err
		}
		off += v.Len()
		n -= v.Len()
	}
	return nil
}

// makeTable gives the active L1 table an L2 table of its own at an index: an empty
// one, or a copy of the one that it shares. It does nothing where there is one by now.
func (d *Driver) makeTable(ctx context.Context, table int64) error {
	return d.makeOnce(ctx, kindActiveL2, table, func() error {
		cluster, entry, err := d.placeTable(ctx, table)
		if err == nil && cluster >= 0 {
			err = d.writeRoom(ctx, cluster, 1, "l2_alloc_write")
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.unsharing, table)
		if cluster < 0 {
			return err
		}
		t := d.l1.Load()
		switch {
		case err != nil || d.broken.Load() || table >= int64(len(t.entries)) || t.entries[table].Load() != entry:
			d.release(cluster, 1)
		case entry&l1OffsetMask == 0:
			d.newTable(t, table, cluster)
		case d.wholeTable(t, table) < 0:
			d.replaceTable(t, table, cluster, discardAlways)
		default: // a compaction has let go of it
			d.release(cluster, 1)
		}
		return err
	})
}

// placeTable allocates a cluster for an L2 table at an index, and returns the L1
// entry that it is to replace. All of the present table is in memory then, and stays.
// -1: there is nothing to replace, or an error.
func (d *Driver) placeTable(ctx context.Context, table int64) (cluster int64, entry uint64, err error) {
	for {
		d.mu.Lock()
		cluster, entry, err = d.tryPlaceTable(table)
		d.unlock()
		if err == nil {
			return cluster, entry, nil
		}
		if err = d.fetch(ctx, err); err != nil {
			return -1, 0, err
		}
	}
}

// tryPlaceTable is placeTable with Driver.mu held.
//
// +checklocks:d.mu
func (d *Driver) tryPlaceTable(table int64) (cluster int64, entry uint64, err error) {
	if d.broken.Load() {
		return -1, 0, syscall.EIO
	}
	t := d.l1.Load()
	if table >= int64(len(t.entries)) {
		return -1, 0, nil
	}
	entry = t.entries[table].Load()
	old := int64(entry & l1OffsetMask)
	switch {
	case old == 0:
	case entry&flagCopied != 0:
		return -1, 0, nil
	case old&(d.h.clusterSize-1) != 0:
		return -1, 0, d.corrupt(true, -1, -1, "L2 table offset %#x unaligned (L1 index: %#x)", old, table)
	default:
		d.unsharing[table] = struct{}{} // what is loaded so far stays
		if i := d.wholeTable(t, table); i >= 0 {
			return -1, 0, missingSlice{table, i}
		}
	}
	if cluster, _, err = d.allocate(1, forTable); err != nil {
		return -1, 0, err
	}
	if old != 0 {
		d.passed("l2_alloc_cow_read")
	}
	return cluster, entry, nil
}

// makeRefBlock makes a refcount block at cluster at, in its own range or in that of
// a block that there is. It does nothing where there is one by now, or where the
// cluster is not free any more.
func (d *Driver) makeRefBlock(ctx context.Context, index, at int64) error {
	return d.makeOnce(ctx, kindRefBlock, index, func() error {
		d.mu.Lock()
		taken, err := d.takeForBlock(index, at)
		d.unlock()
		if !taken || err != nil {
			return err
		}
		d.file().DebugEvent("refblock_alloc")
		err = d.writeRoom(ctx, at, 1, "refblock_alloc_write")
		d.mu.Lock()
		defer d.mu.Unlock()
		if err == nil && d.needsBlock(index) && d.checkLimit(at+1) == nil {
			d.newRefBlock(index, at)
		} else if at>>d.refs.blockBits != index {
			d.release(at, 1)
		}
		return err
	})
}

// needsBlock tells whether there is no refcount block at an index of the table.
// Driver.mu is held.
func (d *Driver) needsBlock(index int64) bool {
	return index < int64(len(d.refs.table)) && d.refs.table[index] == 0
}

// takeForBlock sees to it that nobody else takes cluster at before it has become the
// refcount block of an index: another block counts it, or nobody can count it before
// there is that one. Driver.mu is held.
//
// +checklocks:d.mu
func (d *Driver) takeForBlock(index, at int64) (taken bool, err error) {
	r := &d.refs
	if d.broken.Load() {
		return false, syscall.EIO
	}
	// Where one of these does not hold the search for free clusters finds another.
	if !d.needsBlock(index) || d.reserved.has(at) || d.checkLimit(at+1) != nil {
		return false, nil
	}
	home, i := r.blocks[at>>r.blockBits], at&(1<<r.blockBits-1)
	counted := at>>r.blockBits != index
	if counted && (home == nil || refAt(home.data, r.order, i) != 0) {
		return false, nil
	}
	if err := d.checkUnclaimed(at, 1, forRefBlock); err != nil {
		return false, err
	}
	if counted {
		d.setRef(home, i, 1)
	}
	return true, nil
}

// growRefTable gives the refcount table more than n entries.
func (d *Driver) growRefTable(ctx context.Context, n int) error {
	return d.makeOnce(ctx, kindRefTable, 0, func() error {
		d.mu.Lock()
		g, err := d.planRefTable()
		same := len(d.refs.table) == n
		d.mu.Unlock()
		switch {
		case d.broken.Load():
			return syscall.EIO
		case err != nil:
			return d.fetch(ctx, err) // it may be a reservation
		case !same:
			return nil
		}
		if err := d.writeRoom(ctx, g.first, g.clusters, "reftable_grow"); err != nil {
			return err
		}
		if err := d.writeRoom(ctx, g.first+g.clusters, g.blocks, "refblock_alloc_write_blocks"); err != nil {
			return err
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		if len(d.refs.table) == n && d.checkLimit(g.first+g.clusters+g.blocks) == nil {
			d.moveRefTable(g)
		}
		return nil
	})
}

// freedRoom tells, once for a request, whether err was a lack of space and there are
// free clusters that it has not tried: such as are given up only now, and for runs of
// clusters those that lie before where runs are looked for.
func (d *Driver) freedRoom(ctx context.Context, err error, once *bool) bool {
	if *once || !noSpace(err) {
		return false
	}
	*once = true
	d.mu.Lock()
	r := &d.refs
	pending, passed := d.frees.count > 0, r.hint[0] < r.hint[1]
	d.mu.Unlock()
	if pending && (d.writeBack(ctx) != nil || d.reclaim(ctx) != nil) {
		return false
	}
	d.mu.Lock()
	r.hint[1], r.passed = min(r.hint[0], r.hint[1]), 0
	d.mu.Unlock()
	return pending || passed
}
