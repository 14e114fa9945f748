package qcow2

import (
	"maps"
	"slices"

	"blockd/blockgraph"
)

// The end of the check of a window (inspect.go): which clusters have the wrong
// count, and what is done about them.

// judge finds the clusters of the window whose count is not the number of their
// references.
func (c *inspection) judge() error {
	todo, err := c.suspects()
	if err != nil {
		return err
	}
	c.found = make([]uint64, len(todo))
	for round := 0; round < inspectRounds && !noBits(todo); round++ {
		if err := c.barrier(); err != nil {
			return err
		}
		if err := c.d.bitmaps.ahead.Lock(c.ctx); err != nil {
			return err
		}
		c.judgeUntouched(todo)
		c.d.bitmaps.ahead.Unlock()
	}
	return nil
}

func noBits(w []uint64) bool {
	for _, x := range w {
		if x != 0 {
			return false
		}
	}
	return true
}

// suspects returns the clusters whose count is not the number of references in
// the view, or that are touched, or that have references that are not in the
// view.
func (c *inspection) suspects() ([]uint64, error) {
	d, v := c.d, c.v
	n := v.end - v.first
	todo := make([]uint64, (n+63)/64)
	d.mu.Lock()
	v.touched = make([]uint64, len(todo))
	d.mu.Unlock()
	const piece = 64 << 10
	for from := int64(0); from < n; from += piece {
		d.mu.Lock()
		for i := from; i < min(from+piece, n); i++ {
			if v.diff[i] != 0 {
				setBit(todo, i)
			}
		}
		d.mu.Unlock()
		if err := c.rest(1); err != nil {
			return nil, err
		}
	}
	if err := d.bitmaps.ahead.Lock(c.ctx); err != nil {
		return nil, err
	}
	defer d.bitmaps.ahead.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	for i, w := range v.touched {
		todo[i] |= w
	}
	c.besides(func(first, n int64) {
		for cl := max(first, v.first); cl < min(first+n, v.end); cl++ {
			setBit(todo, cl-v.first)
		}
	})
	for _, e := range d.refs.table {
		if cl := int64(e&refTableMask) >> d.h.clusterBits; e != 0 && v.has(cl) {
			setBit(todo, cl-v.first)
		}
	}
	return todo, nil
}

// besides calls f for every run of clusters that has a reference which is not
// in the view. The turn of the bitmaps and Driver.mu are held.
//
// +checklocksignore
func (c *inspection) besides(f func(first, n int64)) {
	d := c.d
	h := d.h
	bytes := func(off, n int64) {
		if off >= 0 && n > 0 && c.inside(off, n) {
			first := off >> h.clusterBits
			f(first, (off+n-1)>>h.clusterBits-first+1)
		}
	}
	bytes(0, h.clusterSize)
	// These may have grown in memory only, past the end of the file.
	t := d.l1.Load()
	if n := h.clusters(int64(len(t.entries)) * l1EntrySize); n > 0 {
		f(t.offset>>h.clusterBits, n)
	}
	f(d.refs.tableOffset>>h.clusterBits, h.clusters(int64(len(d.refs.table))*8))
	if d.crypt != nil {
		bytes(int64(d.crypt.at.offset), int64(d.crypt.at.length))
	}
	snapshots := d.snapshots.Load()
	bytes(snapshots.at.from, snapshots.at.to-snapshots.at.from)
	for _, s := range snapshots.list {
		if s.l1Offset&uint64(h.clusterSize-1) == 0 && s.l1Offset < maxHostOffset && s.l1Size <= maxL1Size/l1EntrySize {
			bytes(int64(s.l1Offset), int64(s.l1Size)*l1EntrySize)
		}
	}
	b := &d.bitmaps
	bytes(b.at.from, b.at.to-b.at.from)
	for _, e := range b.dir {
		bytes(e.tableOffset, e.tableSize*8)
		for _, w := range e.table {
			if off := int64(w & l2OffsetMask); off != 0 {
				bytes(off, h.clusterSize)
			}
		}
	}
	pending := func(list []extent) {
		for _, x := range list {
			if !x.kept {
				f(x.first, x.n)
			}
		}
	}
	pending(d.frees.unmapped)
	pending(d.frees.durable)
	pending(d.frees.draining)
	pending(d.frees.dropping)
	if d.writing != nil {
		pending(d.writing.unmapped)
	}
}

// barrier waits until every cluster that was allocated before is mapped or given
// back. From before that on, what is touched is noted; what was touched earlier
// and has been judged already is not repaired.
func (c *inspection) barrier() error {
	d := c.d
	d.mu.Lock()
	for i, w := range c.v.touched {
		c.found[i] &^= w // what was found of it holds no more
	}
	clear(c.v.touched)
	claims, making := slices.Clone(d.claims), slices.Collect(maps.Values(d.making))
	d.mu.Unlock()
	for _, x := range claims {
		if err := x.wait(c.ctx); err != nil {
			return err
		}
	}
	for _, l := range making {
		if err := waitMade(c.ctx, l); err != nil {
			return err
		}
	}
	// Those who write bitmaps, too.
	if err := d.bitmaps.ahead.Lock(c.ctx); err != nil {
		return err
	}
	d.bitmaps.ahead.Unlock()
	return c.ctx.Err()
}

// judgeUntouched judges what nothing has touched since the barrier, and leaves
// the rest in todo. The turn of the bitmaps is held.
func (c *inspection) judgeUntouched(todo []uint64) {
	d, v := c.d, c.v
	d.mu.Lock()
	defer d.mu.Unlock()
	more := map[int64]int32{}
	c.besides(func(first, n int64) {
		for cl := max(first, v.first); cl < min(first+n, v.end); cl++ {
			if bit(todo, cl-v.first) {
				more[cl]++
			}
		}
	})
	for w := range todo {
		for i := int64(w) * 64; todo[w] != 0 && i < int64(w+1)*64; i++ {
			if !bit(todo, i) || bit(v.touched, i) {
				continue
			}
			clearBit(todo, i)
			cl := v.first + i
			// From here on the view has all of the cluster's references.
			n := v.diff[i] + more[cl]
			if n != 0 {
				c.mismatch(cl, n)
			}
			if n != 0 || more[cl] != 0 || d.meta.at(cl<<d.h.clusterBits, d.h.clusterSize, kindRefBlock) != 0 {
				c.checkBlockPlace(cl, n)
			}
		}
	}
}

// mismatch notes that a cluster has n references more than its count says.
// Driver.mu is held.
func (c *inspection) mismatch(cl int64, n int32) {
	setBit(c.found, cl-c.v.first)
	if d := n - c.v.diff[cl-c.v.first]; d != 0 {
		c.extra[cl] = d
	}
	if n > 0 {
		c.win.Corruptions++
		c.message("ERROR cluster %d has %d references more than its refcount", cl, n)
		c.win.ImageEnd = max(c.win.ImageEnd, (cl+1)<<c.d.h.clusterBits)
	} else {
		c.win.Leaks++
		c.message("Leaked cluster %d has %d references less than its refcount", cl, -n)
	}
}

// checkBlockPlace holds that a refcount block or the refcount table has its
// cluster to itself; n is references less the count. Driver.mu is held.
func (c *inspection) checkBlockPlace(cl int64, n int32) {
	d := c.d
	kind := d.meta.at(cl<<d.h.clusterBits, d.h.clusterSize, kindRefBlock|kindRefTable)
	if kind == 0 {
		return
	}
	switch high := c.high[cl]; {
	case n == 0 && c.v.isSingle(cl):
		return
	case n == 0, n > 1, n > 0 && c.v.isSingle(cl), high > 0 && high+int64(n) > 1:
	default:
		return // one reference, and a count that does not fit
	}
	c.win.Corruptions++
	c.broken = true
	c.message("ERROR %s at cluster %d is used for something else, too", kind, cl)
}

// repair makes the counts that were found wrong right, as far as that is wanted
// and nothing has touched the clusters since.
func (c *inspection) repair() error {
	if c.fix == blockgraph.CheckFixNone || c.flagsFix || c.found == nil || noBits(c.found) {
		return nil
	}
	if c.broken {
		c.win.CheckErrors++
		c.message("ERROR need to rebuild refcount structures")
		return nil
	}
	d, v := c.d, c.v
	for i, n := int64(0), v.end-v.first; i < n; {
		d.mu.Lock()
		var err error
		for steps := 0; i < n && steps < inspectPiece && err == nil; i++ {
			if c.found[i/64] == 0 {
				i |= 63
			} else if bit(c.found, i) && !bit(v.touched, i) {
				err = c.repairCluster(v.first + i)
				steps++
			}
		}
		crowded := d.pressed()
		d.mu.Unlock()
		if err != nil {
			i--
			if err := d.fetch(c.ctx, err); err != nil {
				return err
			}
			continue
		}
		if crowded {
			if err := d.writeBack(c.ctx); err != nil {
				return err
			}
		}
		if err := c.rest(1); err == errShape {
			return nil // what is left is found again
		} else if err != nil {
			return err
		}
	}
	return nil
}

// repairCluster makes the count of a cluster fit its references, whose number is
// known. Driver.mu is held.
func (c *inspection) repairCluster(cl int64) error {
	d, v := c.d, c.v
	r := &d.refs
	i := cl - v.first
	if v.diff[i] >= maxCounted || v.diff[i] <= -maxCounted {
		c.lost = c.lost || c.fix == blockgraph.CheckFixAll // a count that cannot be: the block is none
		return nil
	}
	n := int64(v.diff[i]) + int64(c.extra[cl])
	if n > 0 && c.fix != blockgraph.CheckFixAll || n < 0 && c.keepLeaks || n == 0 {
		return nil
	}
	b, err := d.refBlockAt(cl >> r.blockBits)
	if err != nil {
		return err
	}
	if b == nil {
		if at := c.placeOfBlock(cl >> r.blockBits); at >= 0 {
			return missingCounts{cl >> r.blockBits, at}
		}
		c.lost = c.lost || c.fix == blockgraph.CheckFixAll
		return nil
	}
	k := cl & (1<<r.blockBits - 1)
	want := uint64(int64(refAt(b.data, r.order, k)) + n)
	if want > maxRef(r.order) {
		return nil
	}
	d.setRef(b, k, want)
	if want == 0 {
		d.becameFree(cl)
	}
	clearBit(c.found, i)
	if n < 0 {
		c.res.LeaksFixed++
		c.win.Leaks--
	} else {
		c.res.CorruptionsFixed++
		c.win.Corruptions--
	}
	return nil
}

// placeOfBlock finds a cluster for a refcount block that is not there, in its own
// range, that nothing refers to; -1: there is none. Driver.mu is held.
func (c *inspection) placeOfBlock(index int64) int64 {
	d, v := c.d, c.v
	if index >= int64(len(d.refs.table)) {
		return -1
	}
	from := index << d.refs.blockBits
	for at := from; at < from+1<<d.refs.blockBits; at++ {
		if i := at - v.first; at >= c.limit || v.has(at) && v.diff[i] == 0 && !bit(c.found, i) && !bit(v.touched, i) {
			if d.checkLimit(at+1) != nil || d.meta.at(at<<d.h.clusterBits, d.h.clusterSize, ^metadataKind(0)) != 0 {
				continue
			}
			return at
		}
	}
	return -1
}
