package qcow2

import (
	"context"
	"encoding/binary"
	"syscall"

	"blockd/ioengine"
)

// Write-back brings changed metadata to disk, in an order that leaves a
// consistent image wherever it is cut off:
//
//	0  take a copy of everything that has changed; changes that come later
//	   belong to the next write-back
//	1  write refcount blocks, and the L2 tables that no L1 entry on disk
//	   refers to yet
//	2  where the refcount table changed: flush, write the changed part; where
//	   it moved: write it whole, flush, write its place to the header
//	3  flush: data, counts and new tables are durable
//	4  write the other L2 tables and the L1 entries; a moved L1 table is
//	   written whole
//	5  flush
//	6  write and flush header fields: the place of the L1 table, the size
//	7  what was unmapped before 0 is free now (free.go)
//
// Without changes nothing but one flush is left. An error puts back what is
// not known to be durable. Guest flushes that arrive while a write-back runs
// share the next one.

// batch is the callers that share one write-back.
type batch struct {
	lead chan struct{} // capacity 1: the receiver runs the batch
	done chan struct{}
	err  error

	callers int // who has joined; under Driver.flushMu
}

func newBatch() *batch {
	return &batch{lead: make(chan struct{}, 1), done: make(chan struct{})}
}

// Flush makes completed writes durable. Data plane.
func (d *Driver) Flush(ctx context.Context) error {
	if d.readOnly.Load() {
		return nil
	}
	return d.writeBack(ctx)
}

// writeBack runs a write-back that begins after the call, or joins one.
func (d *Driver) writeBack(ctx context.Context) error {
	d.flushMu.Lock()
	b := d.nextBatch
	if b == nil {
		b = newBatch()
		d.nextBatch = b
	}
	b.callers++
	if !d.flushing {
		d.flushing = true
		b.lead <- struct{}{}
	}
	d.flushMu.Unlock()
	select {
	case <-b.done:
		return b.err
	case <-ctx.Done():
		// The others still need a leader if it was to be this one.
		d.background.start(func() {
			select {
			case <-b.done:
			case <-b.lead:
				d.runBatch(context.WithoutCancel(ctx), b)
			}
		})
		return ctx.Err()
	case <-b.lead:
	}
	d.runBatch(context.WithoutCancel(ctx), b)
	return b.err
}

func (d *Driver) runBatch(ctx context.Context, b *batch) {
	d.flushMu.Lock()
	d.nextBatch = nil
	d.flushMu.Unlock()
	b.err = d.writeBackOnce(ctx)
	if b.err == nil {
		// Counts that cannot be dropped now are dropped after a later
		// write-back; the flush itself has succeeded.
		_ = d.reclaim(ctx)
	}
	close(b.done)
	d.flushMu.Lock()
	if d.nextBatch != nil {
		d.nextBatch.lead <- struct{}{}
	} else {
		d.flushing = false
	}
	d.flushMu.Unlock()
}

// write is a piece of a table to be written.
type write struct {
	off   int64
	buf   *ioengine.Buffer
	kind  metadataKind
	event string // fault point
}

// copied is what one write-back writes.
type copied struct {
	blocks    map[*refBlock]pieces
	slices    map[*slice]pieces
	early     []write // phase 1
	table     []write // phase 2
	tableSet  pieces
	moved     bool
	late      []write // phase 4
	l1        pieces
	l1Moved   bool
	newTables []int64
	header    headerFields
	setHeader bool
	unmapped  []extent
}

// headerFields are those that phases 2 and 6 write.
type headerFields struct {
	refTableOffset   int64
	refTableClusters uint32
	l1Offset         int64
	l1Size           uint32
	size             int64
}

// writeBackOnce does one write-back. Only the batch's leader calls it.
func (d *Driver) writeBackOnce(ctx context.Context) error {
	d.mu.Lock()
	if d.broken.Load() {
		d.mu.Unlock()
		return syscall.EIO
	}
	c := d.takeChanges()
	d.writing = c
	d.mu.Unlock()
	f := d.file()
	if c == nil {
		f.DebugEvent("flush_to_disk")
		return d.flushAll(ctx)
	}
	defer c.release()
	if err := d.writeCounts(ctx, f, c); err != nil {
		d.putBack(c, true)
		return err
	}
	d.countsWritten(c)
	if err := d.writeMappings(ctx, f, c); err != nil {
		d.putBack(c, false)
		return err
	}
	d.mu.Lock()
	d.writing = nil
	d.frees.durable = append(d.frees.durable, c.unmapped...)
	if t := d.l1.Load(); c.l1Moved && t.offset == c.header.l1Offset && len(t.entries) == int(c.header.l1Size) {
		d.l1Moved = false
	}
	d.diskFields = c.header
	d.mu.Unlock()
	return nil
}

// takeChanges copies what has changed, and nil when nothing has. Driver.mu is
// held.
//
// +checklocks:d.mu
func (d *Driver) takeChanges() *copied {
	r := &d.refs
	fields := headerFields{r.tableOffset, uint32(int64(len(r.table)) * 8 >> d.h.clusterBits), d.l1.Load().offset, uint32(len(d.l1.Load().entries)), d.nextSize}
	if len(r.dirty) == 0 && len(d.cache.dirty) == 0 && r.tableDirty.empty() && !r.moved && d.dirtyL1.empty() &&
		!d.l1Moved && len(d.frees.unmapped) == 0 && fields == d.diskFields {
		return nil
	}
	c := &copied{
		blocks: make(map[*refBlock]pieces, len(r.dirty)), slices: make(map[*slice]pieces, len(d.cache.dirty)),
		moved: r.moved, l1Moved: d.l1Moved, header: fields,
		setHeader: fields.l1Offset != d.diskFields.l1Offset || fields.l1Size != d.diskFields.l1Size || fields.size != d.diskFields.size,
	}
	for b := range r.dirty {
		set := b.dirty.take()
		c.blocks[b] = set
		set.runs(d.h.clusterSize, func(from, to int64) {
			w := newWrite(b.off+from, to-from, kindRefBlock, "refblock_update_part")
			copy(w.buf.Bytes(), b.data[from:to])
			c.early = append(c.early, w)
		})
		delete(r.dirty, b)
	}
	c.tableSet = r.tableDirty.take()
	set, event := c.tableSet, "refblock_alloc_hookup"
	if r.moved {
		set, event = nil, "refblock_alloc_write_table"
		set.add(0, int64(len(r.table))*8)
	}
	set.runs(int64(len(r.table))*8, func(from, to int64) {
		w := newWrite(r.tableOffset+from, to-from, kindRefTable, event)
		for i := from; i < to; i += 8 {
			binary.BigEndian.PutUint64(w.buf.Bytes()[i-from:], r.table[i/8])
		}
		c.table = append(c.table, w)
	})
	d.takeSlices(c)
	d.takeL1(c)
	c.unmapped, d.frees.unmapped = d.frees.unmapped, nil
	return c
}

func (d *Driver) takeSlices(c *copied) {
	t := d.l1.Load()
	for s := range d.cache.dirty {
		set := s.dirty.take()
		c.slices[s] = set
		_, early := d.newTables[s.table]
		base := d.sliceOffset(t.entries[s.table].Load(), s.index)
		set.runs(int64(len(s.words))*8, func(from, to int64) {
			w := newWrite(base+from, to-from, kindActiveL2, "l2_update")
			for i := from; i < to; i += 8 {
				binary.BigEndian.PutUint64(w.buf.Bytes()[i-from:], s.words[i/8].Load())
			}
			if early {
				c.early = append(c.early, w)
			} else {
				c.late = append(c.late, w)
			}
		})
		delete(d.cache.dirty, s)
	}
}

func (d *Driver) takeL1(c *copied) {
	t := d.l1.Load()
	c.l1 = d.dirtyL1.take()
	for i := range d.newTables {
		c.newTables = append(c.newTables, i)
	}
	set, event := c.l1, "l1_update"
	size := int64(len(t.entries)) * l1EntrySize
	if d.l1Moved {
		set, event = nil, "l1_grow_write_table"
		set.add(0, size)
	}
	set.runs(size, func(from, to int64) {
		// Whole sectors, of which the last may go past the table but not past
		// its cluster.
		end := (to + sector - 1) &^ (sector - 1)
		w := newWrite(t.offset+from, end-from, kindActiveL1, event)
		clear(w.buf.Bytes())
		for i := from; i < to; i += l1EntrySize {
			binary.BigEndian.PutUint64(w.buf.Bytes()[i-from:], t.entries[i/l1EntrySize].Load())
		}
		c.late = append(c.late, w)
	})
}

func newWrite(off, n int64, kind metadataKind, event string) write {
	return write{off, ioengine.Bounce(int(n)), kind, event}
}

// busyWriting tells whether a table in memory is newer than on disk because a
// write-back has not come to it yet. Driver.mu is held.
//
// +checklocks:d.mu
func (d *Driver) busyWriting(s *slice, b *refBlock) bool {
	if d.writing == nil {
		return false
	}
	_, slice := d.writing.slices[s]
	_, block := d.writing.blocks[b]
	return slice || block
}

// countsWritten notes that phases 1 to 3 are done, and that L1 entries are
// about to be written: from here on their tables count as known to the disk,
// whatever becomes of the writes.
func (d *Driver) countsWritten(c *copied) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for b := range c.blocks {
		b.fresh = false
	}
	if c.moved && d.refs.tableOffset == c.header.refTableOffset {
		d.refs.moved = false
	}
	for _, i := range c.newTables {
		delete(d.newTables, i)
	}
	d.diskFields.refTableOffset = c.header.refTableOffset
	d.diskFields.refTableClusters = c.header.refTableClusters
}

// putBack marks as changed again what a failed write-back may not have made
// durable.
func (d *Driver) putBack(c *copied, counts bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.writing = nil
	if c.setHeader {
		d.diskFields.size = -1 // unknown: write the header again
	}
	r := &d.refs
	if counts {
		for b, set := range c.blocks {
			b.dirty.merge(set)
			r.dirty[b] = struct{}{}
		}
		r.tableDirty.merge(c.tableSet)
	}
	for s, set := range c.slices {
		s.dirty.merge(set)
		d.cache.dirty[s] = struct{}{}
	}
	d.dirtyL1.merge(c.l1)
	d.frees.unmapped = append(c.unmapped, d.frees.unmapped...)
}

func (c *copied) release() {
	for _, list := range [][]write{c.early, c.table, c.late} {
		for _, w := range list {
			w.buf.Release()
		}
	}
}

// writeCounts does phases 1 to 3.
func (d *Driver) writeCounts(ctx context.Context, f storage, c *copied) error {
	for _, w := range c.early {
		if err := d.writeTable(ctx, f, w); err != nil {
			return err
		}
	}
	if len(c.table) > 0 {
		if err := f.Flush(ctx); err != nil {
			return err
		}
		for _, w := range c.table {
			if err := d.writeTable(ctx, f, w); err != nil {
				return err
			}
		}
	}
	if c.moved {
		if err := f.Flush(ctx); err != nil {
			return err
		}
		f.DebugEvent("refblock_alloc_switch_table")
		err := d.updateHeader(ctx, func(b []byte) {
			be := binary.BigEndian
			be.PutUint64(b[fieldRefTableOffset:], uint64(c.header.refTableOffset))
			be.PutUint32(b[fieldRefTableSize:], c.header.refTableClusters)
		})
		if err != nil {
			return err
		}
	}
	if len(c.early) == 0 && len(c.table) == 0 && len(c.late) == 0 && !c.setHeader {
		return nil // phase 5 will do
	}
	if len(c.late) == 0 {
		f.DebugEvent("flush_to_disk") // all metadata is written
	}
	return d.flushAll(ctx)
}

// writeMappings does phases 4 to 6.
func (d *Driver) writeMappings(ctx context.Context, f storage, c *copied) error {
	for _, w := range c.late {
		if err := d.writeTable(ctx, f, w); err != nil {
			return err
		}
	}
	if once := len(c.early) == 0 && len(c.table) == 0 && !c.setHeader; len(c.late) > 0 || once {
		f.DebugEvent("flush_to_disk")
		flush := f.Flush
		if once && len(c.late) == 0 {
			flush = d.flushAll // there was no phase 3
		}
		if err := flush(ctx); err != nil {
			return err
		}
	}
	if !c.setHeader {
		return nil
	}
	if c.l1Moved {
		f.DebugEvent("l1_grow_activate_table")
	}
	err := d.updateHeader(ctx, func(b []byte) {
		be := binary.BigEndian
		be.PutUint32(b[fieldL1Size:], c.header.l1Size)
		be.PutUint64(b[fieldL1Offset:], uint64(c.header.l1Offset))
		be.PutUint64(b[fieldSize:], uint64(c.header.size))
	})
	if err != nil {
		return err
	}
	return f.Flush(ctx)
}

func (d *Driver) writeTable(ctx context.Context, f storage, w write) error {
	b := w.buf.Bytes()
	if err := d.checkOverlap(w.off, int64(len(b)), w.kind); err != nil {
		return err
	}
	f.DebugEvent(w.event)
	return writeAt(ctx, f, w.off, b)
}
