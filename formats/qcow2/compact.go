package qcow2

import (
	"context"
	"syscall"

	"blockd/blockgraph"
	"blockd/ioengine"
)

// Compacting an image that may be in use: what lies beyond the clusters that
// the image would need without gaps moves to the lowest free ones, in the order
// of the disk, and the file is cut behind the last cluster in use; what is free
// before is punched out.
//
// A cluster of the disk moves only if nobody else refers to it. Nobody reads or
// writes the disk there meanwhile (the range is locked); its content is copied
// to a new cluster, the L2 entry is changed in memory, and the old one is freed.
// That is what an allocating write does, with the same order on disk: content
// and count before the mapping, the mapping before the old cluster is used for
// anything else. L2 tables, refcount blocks, the refcount table and the active
// L1 table move likewise, without a lock: they are written whole at their new
// place.
//
// What stays where it is: clusters that snapshots share, compressed ones,
// snapshots' own tables, bitmaps, a LUKS header. The file ends behind them.

const (
	// moveBytes is how much of the disk is locked at a time, if clusters are not
	// larger.
	moveBytes = 256 << 10
	// punchClusters is how many free clusters are reserved at a time.
	punchClusters = 16384
	// drainTries is how often the requests that may still use moved clusters are
	// waited for before the file is cut where it can be.
	drainTries = 8
)

// compaction is one that goes on.
type compaction struct {
	*steps
	d    *Driver
	lock blockgraph.RangeLocker
	res  blockgraph.CompactResult
	left int64 // bytes of work
	// target is where the file would end without gaps, in clusters.
	target int64
	// full: nothing is free before the target any more.
	full bool
}

// StartCompact implements blockgraph.Compacter.
func (d *Driver) StartCompact(o blockgraph.CompactOptions) (blockgraph.Compaction, error) {
	if d.readOnly.Load() || d.broken.Load() {
		return nil, syscall.EIO
	}
	if !d.care.CompareAndSwap(false, true) {
		return nil, syscall.EBUSY
	}
	c := &compaction{d: d, lock: o.Lock}
	c.steps = newSteps(func(*steps) error { return c.run() })
	return c, nil
}

// Step implements blockgraph.Compaction.
func (c *compaction) Step(ctx context.Context, n int64) (did int64, more bool, err error) {
	return c.step(ctx, n)
}

// Remaining implements blockgraph.Compaction.
func (c *compaction) Remaining() int64 { return c.left }

// Result implements blockgraph.Compaction.
func (c *compaction) Result() blockgraph.CompactResult { return c.res }

// Close implements blockgraph.Compaction.
func (c *compaction) Close() {
	c.stop()
	c.d.care.Store(false)
}

// rest counts work, and lets others in where the step has done enough.
func (c *compaction) rest(n int64) error {
	c.left = max(c.left-n, 0)
	return c.spend(n)
}

func (c *compaction) run() error {
	d := c.d
	c.res.FileSizeBefore = d.file().Size()
	if err := d.settle(c.ctx); err != nil {
		return err
	}
	used, end, err := c.count(0)
	if err != nil {
		return err
	}
	c.target = used
	d.mu.Lock()
	d.refs.hint[0] = 0 // look for space from the beginning
	d.mu.Unlock()
	cb := d.h.clusterBits
	c.left = max(end-used, 0)<<cb + int64(len(d.l1.Load().entries))*(1<<d.h.l2Bits<<d.h.l2EntryBits)
	for _, move := range []func() error{c.moveDisk, c.moveBlocks, c.moveRefTable, c.moveL1} {
		if err := move(); err != nil {
			return err
		}
	}
	for tries := 0; tries < drainTries && (tries == 0 || d.pendingFrees()); tries++ {
		if err := d.settle(c.ctx); err != nil {
			return err
		}
		if err := c.pause(); err != nil {
			return err
		}
	}
	if c.res.Unmovable, end, err = c.count(c.target); err != nil {
		return err
	}
	if err := c.cut(end); err != nil {
		return err
	}
	c.left = 0
	if err := c.punch(); err != nil {
		return err
	}
	c.res.FileSizeAfter = d.file().Size()
	return nil
}

// count returns how many clusters from first on are in use, and the end of the
// last one.
func (c *compaction) count(first int64) (used, end int64, err error) {
	end = first
	err = c.eachBlock(func(b *refBlock, from int64) {
		perBlock := int64(1) << c.d.refs.blockBits
		if int64(b.free) == perBlock {
			return
		}
		for i := max(first-from, 0); i < perBlock; i++ {
			if refAt(b.data, c.d.refs.order, i) != 0 {
				used++
				end = from + i + 1
			}
		}
	})
	return used, end, err
}

// eachBlock calls f for each refcount block with the cluster that it begins
// with. Driver.mu is held during a call, not between two.
func (c *compaction) eachBlock(f func(b *refBlock, from int64)) error {
	d := c.d
	for index := int64(0); ; {
		d.mu.Lock()
		if index >= int64(len(d.refs.table)) {
			d.mu.Unlock()
			return nil
		}
		b, err := d.refBlockAt(index)
		if err == nil {
			if b != nil {
				f(b, index<<d.refs.blockBits)
			}
			index++
		}
		d.mu.Unlock()
		if err != nil {
			if err := d.fetch(c.ctx, err); err != nil {
				return err
			}
			continue
		}
		if b != nil {
			if err := c.spend(1); err != nil {
				return err
			}
		}
	}
}

// moveDisk moves clusters of the disk, and L2 tables.
func (c *compaction) moveDisk() error {
	d := c.d
	for table := int64(0); !c.full; table++ {
		t := d.l1.Load()
		if table >= int64(len(t.entries)) {
			return nil
		}
		entry := t.entries[table].Load()
		if entry&l1OffsetMask == 0 {
			continue
		}
		for index := int64(0); index < d.slicesPerTable() && !c.full; index++ {
			if err := c.moveSlice(table, index); err != nil {
				return err
			}
		}
		if err := c.moveTable(table); err != nil {
			return err
		}
		if err := c.rest(1); err != nil {
			return err
		}
	}
	return nil
}

// retry does what needs Driver.mu until nothing is missing any more. That may take
// more refcount blocks at once than a guest's request does, so that their cache
// grows with each try: else one that is loaded might always push out another.
func (c *compaction) retry(f func() error) error {
	d := c.d
	r := &d.refs
	for tries := 1; ; tries++ {
		d.mu.Lock()
		err := f()
		crowded := err == nil && d.pressed()
		if _, missing := err.(missingBlock); missing {
			r.capacity = max(r.capacity, len(r.dirty)+min(tries, minRefBlocks))
		}
		d.unlock()
		if err != nil {
			if err := d.fetch(c.ctx, err); err != nil {
				return err
			}
			continue
		}
		if crowded {
			return d.writeBack(c.ctx)
		}
		return nil
	}
}

// moveSlice moves the clusters that a slice of an L2 table refers to.
func (c *compaction) moveSlice(table, index int64) error {
	d := c.d
	bits := d.sliceBits
	for i := int64(0); ; {
		// The slice may be read past the cache: what it says is looked at again
		// before anything is moved.
		t := d.l1.Load()
		if table >= int64(len(t.entries)) || bits != d.sliceBits {
			return nil // the image has changed between two steps
		}
		entry := t.entries[table].Load()
		if entry&l1OffsetMask == 0 || entry&flagCopied == 0 {
			return nil
		}
		s := t.peek(table, index)
		if s == nil {
			s = d.newSlice(table, index)
			if err := d.readSlice(c.ctx, entry, s); err != nil {
				return err
			}
		}
		for i < s.len() && !c.movable(s.load(i)) {
			i++
		}
		n := int64(0)
		for i+n < s.len() && n < max(1, int64(moveBytes)>>d.h.clusterBits) && c.movable(s.load(i+n)) {
			n++
		}
		if n == 0 || c.full {
			return c.rest(s.len() << d.h.l2EntryBits)
		}
		done, err := c.moveRun(table, index, i, n)
		if err != nil {
			return err
		}
		i += done
	}
}

// movable tells whether an entry's cluster may and should be moved.
func (c *compaction) movable(e l2Entry) bool {
	h := c.d.h
	return !h.external && h.hasPlace(e) && e.word&flagCopied != 0 &&
		e.word&l2OffsetMask&uint64(h.clusterSize-1) == 0 && int64(e.word&l2OffsetMask)>>h.clusterBits >= c.target
}

// stored tells whether any part of a cluster that is not compressed has content
// at its place.
func (h *header) stored(e l2Entry) bool {
	if h.extended {
		return uint32(e.bitmap) != 0
	}
	return h.kindOf(e, 0) == data
}

// move is clusters of the disk on their way.
type move struct {
	slice *slice
	entry int64
	claim *claim
	old   []l2Entry
	host  []int64 // new clusters
}

// moveRun moves the front of n clusters of the disk, and returns how many are
// dealt with: at least one, which stays if it is no longer movable.
func (c *compaction) moveRun(table, index, i, n int64) (done int64, err error) {
	d := c.d
	first := table<<d.h.l2Bits + index<<d.sliceBits + i
	unlock, err := c.lock(c.ctx, first<<d.h.clusterBits, n<<d.h.clusterBits)
	if err != nil {
		return 0, err
	}
	var m *move
	err = c.retry(func() (err error) {
		m, err = c.tryMove(table, index, i, first, n)
		return err
	})
	done = 1
	if m != nil {
		done = int64(len(m.old))
		err = c.copyClusters(m, first)
		d.mu.Lock()
		c.endMove(m, err)
		crowded := d.pressed()
		d.mu.Unlock()
		if err == nil && crowded {
			err = d.writeBack(c.ctx)
		}
	}
	unlock()
	if err != nil {
		return 0, err
	}
	return done, c.rest(done << d.h.clusterBits)
}

// tryMove finds new places for clusters at the front of n of the disk and claims
// them; nil: the first is not to be moved. Driver.mu is held, and the range of the disk.
//
// +checklocksignore
func (c *compaction) tryMove(table, index, i, first, n int64) (*move, error) {
	d := c.d
	if d.broken.Load() {
		return nil, syscall.EIO
	}
	t := d.l1.Load()
	if table >= int64(len(t.entries)) || t.entries[table].Load()&flagCopied == 0 || d.claimed(first, first+n) != nil {
		return nil, nil
	}
	s := t.cached(table, index)
	if s == nil {
		return nil, missingSlice{table, index}
	}
	m := &move{slice: s, entry: i}
	for k := range n {
		e := s.load(i + k)
		if !c.movable(e) {
			break
		}
		count, err := d.refcount(int64(e.word&l2OffsetMask) >> d.h.clusterBits)
		host := int64(-1)
		if err == nil && count == 1 { // else the flag is wrong: a check's business
			host, err = c.place(1)
		}
		if err != nil && k == 0 {
			return nil, err
		}
		if err != nil || host < 0 {
			break // the others have their turn next
		}
		m.old = append(m.old, e)
		m.host = append(m.host, host)
	}
	if len(m.old) == 0 {
		return nil, nil
	}
	m.claim = d.claim(first, first+int64(len(m.old)))
	s.pins++
	return m, nil
}

// place allocates the lowest n free clusters that lie together, and returns the
// first, or -1 where there are none before the target. Driver.mu is held.
func (c *compaction) place(n int64) (int64, error) {
	d := c.d
	if n > 1 {
		d.refs.hint[1], d.refs.passed = 0, 0
	}
	first, _, err := d.allocate(n, forOther)
	if noSpace(err) {
		c.full = c.full || n == 1
		return -1, nil
	}
	if err != nil {
		return 0, err
	}
	if first+n > c.target {
		c.full = c.full || n == 1
		d.release(first, n)
		return -1, nil
	}
	return first, nil
}

// copyClusters copies the content of what moves.
func (c *compaction) copyClusters(m *move, first int64) error {
	d := c.d
	cb, cs := d.h.clusterBits, d.h.clusterSize
	place := func(k int) int64 { return int64(m.old[k].word & l2OffsetMask) }
	for k := 0; k < len(m.old); {
		if !d.h.stored(m.old[k]) {
			k++ // its place is undefined
			continue
		}
		n := 1
		for k+n < len(m.old) && d.h.stored(m.old[k+n]) && place(k+n) == place(k)+int64(n)*cs && m.host[k+n] == m.host[k]+int64(n) {
			n++
		}
		off := (first + int64(k)) << cb
		buf := ioengine.Bounce(n << cb)
		d.file().DebugEvent("cow_read")
		v := blockgraph.MakeIOVec(buf.Bytes())
		err := d.readGuest(c.ctx, off, place(k), v)
		if err == nil {
			err = d.writeGuest(c.ctx, off, m.host[k]<<cb, v, true)
		}
		buf.Release()
		if err != nil {
			return err
		}
		k += n
	}
	return nil
}

// endMove maps clusters to their new places, or gives these back after an error.
// Driver.mu is held.
//
// +checklocksignore
func (c *compaction) endMove(m *move, err error) {
	d := c.d
	for k, e := range m.old {
		if err != nil {
			d.release(m.host[k], 1)
			continue
		}
		d.setEntry(m.slice, m.entry+int64(k), l2Entry{e.word&^l2OffsetMask | uint64(m.host[k])<<d.h.clusterBits, e.bitmap})
		d.free(int64(e.word&l2OffsetMask)>>d.h.clusterBits, 1, discardNever)
		c.res.Moved++
	}
	m.slice.pins--
	d.unclaim(m.claim)
}
