package qcow2

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync/atomic"

	"blockd/ioengine"
)

// The cache of L2 tables. Its unit is the slice, a power of two of a table's
// entries (the field's l2-cache-entry-size). A slice is in one of these
// states:
//
//	absent   not in its table's directory
//	loading  in Driver.loads; whoever needs it waits there
//	clean    in the directory
//	dirty    in the directory and in sliceCache.dirty
//	writing  in the directory and in Driver.writing: a copy is on its way to
//	         the disk, so that it may change meanwhile, but not go
//
// The directory is read without a lock, and entries are read and written
// atomically: a lookup of a cached mapping touches nothing that others write.
// A slice found through the directory may be evicted right afterwards; its
// entries are then what they were at that moment, which a request that began
// before may use.

const (
	l1OffsetMask = 0x00fffffffffffe00
	flagCopied   = 1 << 63

	l1EntrySize = 8
)

// l1Table is the active L1 table. Entries change under Driver.mu only; the
// table itself is replaced when it grows.
type l1Table struct {
	offset  int64 // bytes
	entries []atomic.Uint64
	dirs    []atomic.Pointer[directory] // cached slices, by L1 index
}

// directory holds the cached slices of one L2 table.
type directory []atomic.Pointer[slice]

// slice is a part of an L2 table in memory.
type slice struct {
	table int64 // L1 index
	index int64 // of the slice in its table
	sliceWords
	used atomic.Bool // since the clock's hand passed

	// Guarded by Driver.mu.
	pins  int // requests that will change entries
	dirty pieces
}

// missingSlice is the error of an operation under the lock that needs a slice
// in memory; see Driver.fetch.
type missingSlice struct{ table, index int64 }

func (m missingSlice) Error() string {
	return fmt.Sprintf("slice %d of L2 table %d is not in memory", m.index, m.table)
}

// sliceCache is guarded by Driver.mu.
type sliceCache struct {
	ring     []*slice // all slices in memory, for the clock that evicts
	hand     int
	capacity int // slices
	loads    map[missingSlice]*loading
	dirty    map[*slice]struct{}
}

// newL1Table returns a table of n entries.
func newL1Table(offset, n int64) *l1Table {
	return &l1Table{offset: offset, entries: make([]atomic.Uint64, n), dirs: make([]atomic.Pointer[directory], n)}
}

// peek returns the slice if it is in memory.
func (t *l1Table) peek(table, index int64) *slice {
	dir := t.dirs[table].Load()
	if dir == nil {
		return nil
	}
	return (*dir)[index].Load()
}

// cached is peek for who uses the slice, which is to stay for a while then.
func (t *l1Table) cached(table, index int64) *slice {
	s := t.peek(table, index)
	if s != nil && !s.used.Load() {
		s.used.Store(true)
	}
	return s
}

// insert puts a slice into the directory. Driver.mu is held.
//
// +checklocks:d.mu
func (d *Driver) insert(t *l1Table, s *slice) {
	dir := t.dirs[s.table].Load()
	if dir == nil {
		m := make(directory, 1<<(d.h.l2Bits-d.sliceBits))
		dir = &m
		t.dirs[s.table].Store(dir)
	}
	(*dir)[s.index].Store(s)
	d.cache.ring = append(d.cache.ring, s)
}

func (d *Driver) newSlice(table, index int64) *slice {
	s := &slice{table: table, index: index}
	s.wide = d.h.extended
	s.words = make([]atomic.Uint64, 1<<(d.sliceBits+d.h.l2EntryBits-3))
	s.used.Store(true)
	return s
}

// sliceOffset returns where a slice lies in the file, in bytes, by the L1
// entry of its table.
func (d *Driver) sliceOffset(l1Entry uint64, index int64) int64 {
	return int64(l1Entry&l1OffsetMask) + index<<(d.sliceBits+d.h.l2EntryBits)
}

// loadSlice brings a slice into memory and returns it; nil when the table does
// not exist. Driver.mu is not held. Where nothing clean is left to evict it writes
// back, so a write-back must not wait for it.
func (d *Driver) loadSlice(ctx context.Context, table, index int64) (*slice, error) {
	s, crowded, err := d.bringSlice(ctx, table, index)
	if crowded {
		// Let the next one evict. A failure is the next flush's to report; nothing
		// is lost.
		_ = d.writeBack(ctx)
	}
	return s, err
}

// bringSlice is loadSlice without the write-back: crowded tells that one is due.
func (d *Driver) bringSlice(ctx context.Context, table, index int64) (s *slice, crowded bool, err error) {
	key := missingSlice{table, index}
	for {
		d.mu.Lock()
		t := d.l1.Load()
		entry := t.entries[table].Load()
		if entry&l1OffsetMask == 0 {
			d.mu.Unlock()
			return nil, false, nil
		}
		if s := t.cached(table, index); s != nil {
			d.mu.Unlock()
			return s, false, nil
		}
		if l := d.cache.loads[key]; l != nil {
			d.mu.Unlock()
			if err := waitLoading(ctx, l); err != nil {
				return nil, false, err
			}
			continue
		}
		l := &loading{done: make(chan struct{})}
		d.cache.loads[key] = l
		d.mu.Unlock()

		s := d.newSlice(table, index)
		err := d.readSlice(ctx, entry, s)

		d.mu.Lock()
		delete(d.cache.loads, key)
		crowded := false
		if err == nil {
			crowded = d.evictSlices()
			d.insert(d.l1.Load(), s)
		}
		l.err = err
		d.mu.Unlock()
		close(l.done)
		if err != nil {
			return nil, false, err
		}
		return s, crowded, nil
	}
}

func (d *Driver) readSlice(ctx context.Context, entry uint64, s *slice) error {
	table := int64(entry & l1OffsetMask)
	if table&(d.h.clusterSize-1) != 0 {
		return d.corrupt(true, -1, -1, "L2 table offset %#x unaligned (L1 index: %#x)", table, s.table)
	}
	d.counted.l2Misses.Add(1)
	f := d.file()
	f.DebugEvent("l2_load")
	buf := ioengine.Bounce(len(s.words) * 8)
	defer buf.Release()
	b := buf.Bytes()
	if err := readAt(ctx, f, d.sliceOffset(entry, s.index), b); err != nil {
		return err
	}
	for i := range s.words {
		s.words[i].Store(binary.BigEndian.Uint64(b[i*8:]))
	}
	return nil
}

// evictSlices makes room for one more slice. It tells whether the cache is
// full of slices that cannot go before a write-back. Driver.mu is held.
//
// +checklocks:d.mu
func (d *Driver) evictSlices() (crowded bool) {
	c := &d.cache
	if len(c.ring) < c.capacity {
		return false
	}
	t := d.l1.Load()
	for tries := 2 * len(c.ring); len(c.ring) >= c.capacity && tries > 0; tries-- {
		if c.hand >= len(c.ring) {
			c.hand = 0
		}
		s := c.ring[c.hand]
		if s.used.Load() || !d.mayEvict(s) {
			s.used.Store(false)
			c.hand++
			continue
		}
		(*t.dirs[s.table].Load())[s.index].Store(nil)
		c.ring[c.hand] = c.ring[len(c.ring)-1]
		c.ring = c.ring[:len(c.ring)-1]
	}
	return len(c.ring) >= c.capacity && len(c.dirty) > 0
}

// mayEvict tells whether a slice need not stay in memory. Driver.mu is held.
//
// +checklocks:d.mu
func (d *Driver) mayEvict(s *slice) bool {
	_, dirty := d.cache.dirty[s]
	return !dirty && s.pins == 0 && !d.keepsTable(s.table) && !d.busyWriting(s, nil)
}

// forget takes all slices of a table out of the cache. Driver.mu is held and
// none of them is pinned.
//
// +checklocks:d.mu
func (d *Driver) forget(t *l1Table, table int64) {
	c := &d.cache
	kept := c.ring[:0]
	for _, s := range c.ring {
		if s.table == table {
			delete(c.dirty, s)
			continue
		}
		kept = append(kept, s)
	}
	clear(c.ring[len(kept):])
	c.ring = kept
	t.dirs[table].Store(nil)
}

// setEntry changes an entry of a slice that is in the cache. Driver.mu is
// held.
//
// +checklocks:d.mu
func (d *Driver) setEntry(s *slice, i int64, v l2Entry) {
	if s.load(i) == v {
		return
	}
	d.entryChanged(s, i, s.load(i), v)
	s.store(i, v)
	s.dirty.add(i<<d.h.l2EntryBits, (i+1)<<d.h.l2EntryBits)
	d.cache.dirty[s] = struct{}{}
}
