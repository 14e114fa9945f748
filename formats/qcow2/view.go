package qcow2

import (
	"math"
)

// A view is what a check knows of the references to a window of the image's
// clusters, while guests go on allocating and freeing: for each cluster the
// number of references that were found minus its count.
//
// It is filled by going through the counts and then through the tables, each
// from its beginning to its end. What lies before the present position is kept
// right by those who change it, under Driver.mu; what lies behind is met as it
// is by then. So at the end the view is exact, though at no moment the image
// stood still, and nothing had to be copied: the place in memory where the
// metadata changes is its own copy-on-write view.
//
// Not in it are references by what is few and long (the header, the L1 tables,
// the refcount table, snapshots, bitmaps), and clusters that are about to be
// freed; a check adds them as they stand when it judges a cluster.

// view's fields are guarded by Driver.mu.
type view struct {
	clusterBits uint32
	first, end  int64    // clusters of the window
	diff        []int32  // references minus count, within limits
	single      []uint64 // bits: the count is 1

	// Positions: what lies before is in diff.
	counts int64 // cluster
	blocks int64 // entry of the refcount table
	tables int64 // L1 entry, for the L2 table itself
	slices position

	// touched are the clusters whose count or references have changed; nil
	// while nobody wants to know.
	touched []uint64

	// What is being read from the file with the lock given up: changed tells
	// that it was changed meanwhile.
	readBlock int64 // index, or -1
	readSlice position
	changed   bool
}

// maxCounted bounds counts and references in a view: beyond they are all the
// same, and never what the other side says in a sound image.
const maxCounted = 1 << 30

func newView(h *header, first, end int64) *view {
	words := (end - first + 63) / 64
	return &view{
		clusterBits: h.clusterBits, first: first, end: end,
		diff: make([]int32, end-first), single: make([]uint64, words),
		counts: first, readBlock: -1, readSlice: position{table: -1},
	}
}

func (v *view) has(cluster int64) bool { return cluster >= v.first && cluster < v.end }

func (v *view) touch(cluster int64) {
	if v.touched != nil {
		setBit(v.touched, cluster-v.first)
	}
}

func (v *view) isSingle(cluster int64) bool { return bit(v.single, cluster-v.first) }

func setBit(w []uint64, i int64)   { w[i/64] |= 1 << (i % 64) }
func clearBit(w []uint64, i int64) { w[i/64] &^= 1 << (i % 64) }
func bit(w []uint64, i int64) bool { return w[i/64]&(1<<(i%64)) != 0 }

// add adds n references to a cluster of the window.
func (v *view) add(cluster int64, n int32) {
	d := &v.diff[cluster-v.first]
	if *d < math.MaxInt32 && *d > math.MinInt32 { // at the limits it stays
		*d += n
	}
	v.touch(cluster)
}

// refer adds n references to the clusters of bytes [off, off+length) of the
// file.
func (v *view) refer(off, length int64, n int32) {
	if off < 0 || length <= 0 {
		return
	}
	from, to := max(off>>v.clusterBits, v.first), min((off+length-1)>>v.clusterBits+1, v.end)
	for c := from; c < to; c++ {
		v.add(c, n)
	}
}

// setCount notes that a cluster's count changes.
func (v *view) setCount(cluster int64, old, count uint64) {
	if !v.has(cluster) || cluster >= v.counts {
		return
	}
	v.add(cluster, int32(min(old, maxCounted))-int32(min(count, maxCounted)))
	if i := cluster - v.first; count == 1 {
		setBit(v.single, i)
	} else {
		clearBit(v.single, i)
	}
}

// before tells whether entry i of a slice lies before the position.
func (v *view) before(table, index, i int64) bool {
	p := v.slices
	switch {
	case table != p.table:
		return table < p.table
	case index != p.index:
		return index < p.index
	}
	return i < p.entry
}

// The hooks: called by whoever changes metadata in memory. Driver.mu is held.

// countChanged is for a cluster's count.
func (d *Driver) countChanged(b *refBlock, i int64, old, count uint64) {
	v := d.view
	if v == nil {
		return
	}
	if b.index == v.readBlock {
		v.changed = true
	}
	v.setCount(b.index<<d.refs.blockBits+i, old, count)
}

// entryChanged is for an entry of an L2 table.
func (d *Driver) entryChanged(s *slice, i int64, old, entry l2Entry) {
	v := d.view
	if v == nil {
		return
	}
	if s.table == v.readSlice.table && s.index == v.readSlice.index {
		v.changed = true
	}
	if !v.before(s.table, s.index, i) {
		return
	}
	off, n := d.h.placeOf(old)
	v.refer(off, n, -1)
	off, n = d.h.placeOf(entry)
	v.refer(off, n, 1)
}

// tableChanged is for an entry of the L1 table.
func (d *Driver) tableChanged(table int64, old, entry uint64) {
	v := d.view
	if v == nil {
		return
	}
	if table == v.readSlice.table {
		v.changed = true // what is being read may be gone
	}
	if table >= v.tables {
		return
	}
	for _, e := range [...]struct {
		entry uint64
		n     int32
	}{{old, -1}, {entry, 1}} {
		if off := int64(e.entry & l1OffsetMask); off != 0 {
			v.refer(off, d.h.clusterSize, e.n)
		}
	}
}

// blockChanged is for an entry of the refcount table.
func (d *Driver) blockChanged(index int64, old, entry uint64) {
	v := d.view
	if v == nil || index >= v.blocks {
		return
	}
	if off := int64(old & refTableMask); off != 0 {
		v.refer(off, d.h.clusterSize, -1)
	}
	if off := int64(entry & refTableMask); off != 0 {
		v.refer(off, d.h.clusterSize, 1)
	}
}

// freesChanged is for clusters that are to be freed.
func (d *Driver) freesChanged(first, n int64) {
	v := d.view
	if v == nil || v.touched == nil {
		return
	}
	for c := max(first, v.first); c < min(first+n, v.end); c++ {
		v.touch(c)
	}
}

// placeOf returns the bytes of the image file that an L2 entry refers to; none:
// a length of 0.
func (h *header) placeOf(e l2Entry) (off, n int64) {
	switch {
	case e.word&flagCompressed != 0:
		return h.compressedExtent(e.word)
	case h.hasPlace(e) && !h.external:
		return int64(e.word & l2OffsetMask), h.clusterSize
	}
	return 0, 0
}
