package qcow2

import "math"

// The tables of the image, as a check goes through them (inspect.go).

// walkRefTable counts references to refcount blocks.
func (c *inspection) walkRefTable() error {
	d, v := c.d, c.v
	if c.flagsFix {
		return nil
	}
	c.checkRefTable()
	for {
		d.mu.Lock()
		from := v.blocks
		end := min(from+inspectPiece, int64(len(d.refs.table)))
		v.blocks = end
		for i := from; i < end; i++ {
			size := d.file().Size()
			if d.freshBlock(i) {
				size = maxHostOffset // the file may not reach there yet
			}
			off, sound := d.h.judgeRefTableEntry(i, d.refs.table[i], size, c.corruption)
			switch {
			case !sound:
				c.broken = true
				continue
			case off == 0:
				continue
			}
			v.refer(off, d.h.clusterSize, 1)
			if k := d.meta.at(off, d.h.clusterSize, ^kindRefBlock); k != 0 {
				c.broken = true
				c.corruption("refcount block %d at %#x overlaps with %s", i, off, k)
			}
		}
		more := end < int64(len(d.refs.table))
		d.mu.Unlock()
		if !more {
			return nil
		}
		if err := c.rest((end - from) * 8); err != nil {
			return err
		}
	}
}

// checkRefTable holds that the refcount table lies within the file, and over
// nothing else that is few.
func (c *inspection) checkRefTable() {
	d := c.d
	d.mu.Lock()
	what := c.refTableFault()
	at := d.refs.tableOffset
	d.mu.Unlock()
	if what != "" {
		c.broken = true
		c.corruption("refcount table at %#x %s", at, what)
	}
}

// refTableFault is what is wrong with the refcount table, or "". Driver.mu is held.
func (c *inspection) refTableFault() string {
	d, r := c.d, &c.d.refs
	at, n := r.tableOffset, int64(len(r.table))*8
	switch {
	case r.damaged != "":
		return r.damaged
	case r.moved: // in memory it is newer than on disk
	case !c.inside(at, n):
		return "is outside image"
	case d.meta.at(at, n, ^kindRefTable) != 0:
		return "is used for something else, too"
	}
	return ""
}

// walkActive counts what the active L1 table refers to.
func (c *inspection) walkActive() error {
	d, v := c.d, c.v
	for {
		d.mu.Lock()
		t := d.l1.Load()
		table := v.tables
		for table < int64(len(t.entries)) && t.entries[table].Load() == 0 {
			table++
		}
		if table == int64(len(t.entries)) {
			// The L1 table may become longer: what comes lies before the position.
			v.tables, v.slices = math.MaxInt64, position{table: math.MaxInt64}
			d.mu.Unlock()
			return nil
		}
		entry := t.entries[table].Load()
		v.tables, v.slices = table+1, position{table: table}
		off := int64(entry & l1OffsetMask)
		readable := c.enterTable(table, entry, true)
		d.mu.Unlock()
		if readable && off != 0 {
			if err := c.walkTable(table); err != nil {
				return err
			}
		}
		d.mu.Lock()
		v.slices = position{table: table + 1}
		d.mu.Unlock()
		if err := c.rest(1); err != nil {
			return err
		}
	}
}

// enterTable counts the reference of an L1 entry, and tells whether its table
// can be read. Driver.mu is held.
func (c *inspection) enterTable(table int64, entry uint64, active bool) bool {
	h := c.d.h
	off, aligned := h.judgeL1Entry(entry, c.corruption)
	if off == 0 {
		return false
	}
	_, fresh := c.d.newTables[table] // the file may not reach there yet
	switch {
	case c.flagsFix:
	case fresh:
		c.v.refer(off, h.clusterSize, 1)
	default:
		c.refer(off, h.clusterSize)
	}
	if active && (!fresh || c.v.has(off>>h.clusterBits)) {
		c.checkFlag(entry, off, true, func() {
			t := c.d.l1.Load()
			t.entries[table].Store(entry ^ flagCopied)
			c.d.dirtyL1.add(table*l1EntrySize, (table+1)*l1EntrySize)
		})
	}
	return aligned && (fresh || c.inside(off, h.clusterSize))
}

// freshBlock tells whether the refcount block with that index is in memory only.
// Driver.mu is held.
func (d *Driver) freshBlock(index int64) bool {
	b := d.refs.blocks[index]
	return b != nil && b.fresh
}

// inside tells whether bytes [off, off+n) are in the file, whose last cluster may be
// short.
func (c *inspection) inside(off, n int64) bool {
	return off >= 0 && off+n-c.d.file().Size() < c.d.h.clusterSize
}

// refer counts a reference to bytes [off, off+n). Driver.mu is held, or nobody
// changes them.
func (c *inspection) refer(off, n int64) {
	if n <= 0 {
		return
	}
	if !c.inside(off, n) {
		c.corruption("counting reference for region exceeding the end of the file by one cluster or more: offset 0x%x size 0x%x", off, n)
		return
	}
	c.v.refer(off, n, 1)
}

// single tells whether the count of the cluster at off is 1, if this window
// knows. Driver.mu is held.
func (c *inspection) single(off int64) (single, known bool) {
	if cl := off >> c.d.h.clusterBits; c.v.has(cl) {
		return c.v.isSingle(cl), true
	}
	// What lies past the end of the file has no count, and is known at once; what
	// has come to it since the beginning is left out.
	return false, c.first && off >= c.d.file().Size()
}

// wrongFlag tells whether the copied flag of an active entry does not fit the
// count of the cluster at off. Driver.mu is held.
func (c *inspection) wrongFlag(entry uint64, off int64, table bool) bool {
	single, known := c.single(off)
	if c.d.h.external && !table {
		single, known = true, c.first // nothing else refers to a data file
	}
	return known && single != (entry&flagCopied != 0)
}

// checkFlag compares the copied flag of an active entry, of the L1 table or of
// an L2 table, with the count of the cluster at off; where they differ, toggle
// changes it. Driver.mu is held.
func (c *inspection) checkFlag(entry uint64, off int64, table bool, toggle func()) {
	if !c.wrongFlag(entry, off, table) {
		return
	}
	if c.flagsFix {
		toggle()
		c.res.CorruptionsFixed++
		return
	}
	c.flags++
	c.message("ERROR OFLAG_COPIED data cluster: entry=%x", entry)
}

// walkTable counts what an active L2 table refers to.
func (c *inspection) walkTable(table int64) error {
	d, v := c.d, c.v
	var next int64 // where a cluster would follow on the one before
	for index := range d.slicesPerTable() {
		tmp := (*slice)(nil)
		for i := int64(0); i < 1<<d.sliceBits; {
			d.mu.Lock()
			t := d.l1.Load()
			if table >= int64(len(t.entries)) || t.entries[table].Load()&l1OffsetMask == 0 {
				d.mu.Unlock()
				return nil // dropped meanwhile
			}
			entry := t.entries[table].Load()
			s := t.peek(table, index)
			switch {
			case s != nil:
			case c.flagsFix && tmp != nil && !v.changed && !c.wrongFlags(tmp, i):
				s = tmp
			case c.flagsFix && tmp != nil && !v.changed:
				d.mu.Unlock()
				if _, err := d.loadSlice(c.ctx, table, index); err != nil {
					return err
				}
				continue
			case tmp != nil && !v.changed:
				s = tmp
			default:
				v.readSlice, v.changed = position{table: table, index: index}, false
				d.mu.Unlock()
				tmp = d.newSlice(table, index)
				if err := d.readSlice(c.ctx, entry, tmp); err != nil {
					return err
				}
				continue
			}
			end := min(i+inspectPiece, s.len())
			var wait *claim
			if c.flagsFix {
				first := table<<d.h.l2Bits + index<<d.sliceBits
				if wait = d.claimed(first+i, first+end); wait != nil {
					d.mu.Unlock()
					if err := wait.wait(c.ctx); err != nil {
						return err
					}
					continue
				}
			}
			for ; i < end; i++ {
				next = c.walkEntry(s, i, next, true)
			}
			v.slices.index, v.slices.entry = index, i
			d.mu.Unlock()
			if err := c.rest(inspectPiece << d.h.l2EntryBits); err != nil {
				return err
			}
		}
		d.mu.Lock()
		v.slices.index, v.slices.entry = index+1, 0
		v.readSlice.table = -1
		d.mu.Unlock()
	}
	return nil
}

// wrongFlags tells whether a flag of the slice's next entries is to be changed.
func (c *inspection) wrongFlags(s *slice, from int64) bool {
	for i := from; i < min(from+inspectPiece, s.len()); i++ {
		e := s.load(i)
		if !c.d.h.hasPlace(e) {
			continue
		}
		if c.wrongFlag(e.word, int64(e.word&l2OffsetMask), false) {
			return true
		}
	}
	return false
}

// walkEntry counts what an L2 entry refers to, and returns where the next
// cluster would have to lie not to be fragmented. Driver.mu is held, or the
// table is a snapshot's.
func (c *inspection) walkEntry(s *slice, i int64, next int64, active bool) int64 {
	h := c.d.h
	e := s.load(i)
	at, n := h.judgeL2Entry(e, c.corruption)
	if e.word&flagCompressed != 0 {
		if !c.flagsFix {
			c.refer(at, n)
		}
		if !c.flagsFix && n > 0 && active && c.first {
			c.win.Allocated++
			c.win.Compressed++
			c.win.Fragmented++ // by nature
		}
		return next
	}
	if !h.hasPlace(e) {
		return next
	}
	off := int64(e.word & l2OffsetMask)
	if active {
		c.checkFlag(e.word, off, false, func() { c.toggle(s, i, e) })
	}
	if c.flagsFix {
		return next
	}
	if active && c.first {
		c.win.Allocated++
		if next != 0 && off != next {
			c.win.Fragmented++
		}
		next = off + h.clusterSize
	}
	c.refer(at, n)
	return next
}

// toggle changes the copied flag of an entry. Driver.mu is held.
//
// +checklocksignore
func (c *inspection) toggle(s *slice, i int64, e l2Entry) {
	c.d.setEntry(s, i, l2Entry{e.word ^ flagCopied, e.bitmap})
}

// walkSnapshot counts what a snapshot's L1 table refers to. Neither it nor its
// L2 tables change while the snapshot is there.
func (c *inspection) walkSnapshot(sn snapshot) error {
	d := c.d
	h := d.h
	if sn.l1Offset&uint64(h.clusterSize-1) != 0 {
		c.corruption("snapshot %s (%s) l1_offset=%#x: L1 table is not cluster aligned; snapshot table entry corrupted", sn.id, sn.name, sn.l1Offset)
		return nil
	}
	if sn.l1Size > maxL1Size/l1EntrySize || sn.l1Offset >= maxHostOffset {
		c.corruption("snapshot %s (%s) l1_size=%#x: L1 table is too large; snapshot table entry corrupted", sn.id, sn.name, sn.l1Size)
		return nil
	}
	words, err := d.snapshotL1(c.ctx, &sn)
	if err != nil {
		return err
	}
	for _, e := range words {
		if e == 0 {
			continue
		}
		d.mu.Lock()
		readable := c.enterTable(-1, e, false)
		d.mu.Unlock()
		if !readable || e&l1OffsetMask == 0 {
			continue
		}
		for index := range d.slicesPerTable() {
			s := d.newSlice(-1, index)
			if err := d.readSlice(c.ctx, e, s); err != nil {
				return err
			}
			for i := int64(0); i < s.len(); i += inspectPiece {
				d.mu.Lock()
				for j := i; j < min(i+inspectPiece, s.len()); j++ {
					c.walkEntry(s, j, 0, false)
				}
				d.mu.Unlock()
			}
			if err := c.rest(s.len() << d.h.l2EntryBits); err != nil {
				return err
			}
		}
	}
	return nil
}
