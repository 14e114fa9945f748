package qcow2

import (
	"context"
	"syscall"

	"blockd/blockgraph"
)

// WriteV writes v at byte off. Data plane.
func (d *Driver) WriteV(ctx context.Context, off int64, v *blockgraph.IOVec, flags blockgraph.Flags) error {
	if d.broken.Load() {
		return syscall.EIO
	}
	if flags&blockgraph.Compressed != 0 && d.crypt == nil {
		return d.writeCompressed(ctx, off, v, flags)
	}
	onlyUnallocated := flags&blockgraph.OnlyUnallocated != 0
	n := v.Len()
	freed := false
	for pos := int64(0); pos < n; {
		done := int64(0)
		var err error
		if !onlyUnallocated {
			done, err = d.writeMapped(ctx, off+pos, v, pos)
		}
		if err == nil && done == 0 {
			done, err = d.writeUnmapped(ctx, off+pos, v, pos, onlyUnallocated)
		}
		if err != nil && !d.freedRoom(ctx, err, &freed) {
			return err
		}
		pos += done
	}
	return nil
}

// writeMapped writes the front of v's bytes from pos on as far as they are
// mapped to clusters that may be overwritten, and returns how many they were.
func (d *Driver) writeMapped(ctx context.Context, off int64, v *blockgraph.IOVec, pos int64) (int64, error) {
	p := d.epochs.pin()
	defer p.unpin()
	m, err := d.lookup(ctx, off, v.Len()-pos, true)
	if err != nil || m.kind != data || m.word&flagCopied == 0 {
		return 0, err
	}
	if err := d.writeGuest(ctx, off, m.host, v.Slice(pos, m.n), false); err != nil {
		return 0, err
	}
	return m.n, nil
}

// allocation is a run of guest clusters that get (or already have) contiguous
// places in the file.
type allocation struct {
	claim *claim
	slice *slice
	entry int64 // index of the first in the slice
	n     int64 // clusters
	host  int64 // first cluster in the file
	fresh bool  // nobody ever wrote there: reads as zeroes
	reuse bool  // zeroAlloc: the places are the guest clusters' own already
	old   []l2Entry
	// from and to are the guest bytes that are written, with what is copied
	// around the request's; bytes is how many are the request's.
	from, to, bytes int64
	// reserve: nothing is written, the place is for later.
	reserve bool
}

// writeUnmapped does the front of the bytes of v from pos on: it allocates
// clusters for a run of them, or finds that there is nothing to allocate. It
// returns how many bytes are done; 0 tells to look again.
func (d *Driver) writeUnmapped(ctx context.Context, off int64, v *blockgraph.IOVec, pos int64, onlyUnallocated bool) (int64, error) {
	d.file().DebugEvent("cluster_alloc")
	a, skip, err := d.beginAllocation(ctx, off, v.Len()-pos, onlyUnallocated)
	if err != nil || a == nil {
		return skip, err
	}
	n := a.bytes
	err = d.fill(ctx, a, off, v, pos, n)
	crowded := d.endAllocation(a, err)
	if err != nil {
		return 0, err
	}
	if crowded {
		// A failure is the next flush's to report; nothing is lost by it.
		_ = d.writeBack(ctx)
	}
	return n, nil
}

// beginAllocation allocates for the front of bytes [off, off+n) and claims the
// clusters. Without an allocation it returns how many bytes need none.
func (d *Driver) beginAllocation(ctx context.Context, off, n int64, onlyUnallocated bool) (*allocation, int64, error) {
	for {
		d.mu.Lock()
		a, skip, wait, err := d.tryAllocation(off, n, onlyUnallocated)
		d.unlock()
		if wait != nil {
			if err := wait.wait(ctx); err != nil {
				return nil, 0, err
			}
			if !onlyUnallocated {
				return nil, 0, nil // most likely it is mapped now
			}
			continue
		}
		if err == nil {
			return a, skip, nil
		}
		if err := d.fetch(ctx, err); err != nil {
			return nil, 0, err
		}
	}
}

// tryAllocation is beginAllocation with Driver.mu held.
//
// +checklocks:d.mu
func (d *Driver) tryAllocation(off, n int64, onlyUnallocated bool) (a *allocation, skip int64, wait *claim, err error) {
	cb := d.h.clusterBits
	first, end := off>>cb, (off+n-1)>>cb+1
	if c := d.claimed(first, end); c != nil {
		if c.from <= first {
			return nil, 0, c, nil
		}
		end = c.from
	}
	p := d.position(off)
	limit := off + n
	if onlyUnallocated && !d.hasNoTable(p) {
		// The table is there and belongs to nobody else, or must be read to
		// tell; do not copy one for nothing.
		s := d.l1.Load().cached(p.table, p.index)
		if s == nil {
			return nil, 0, nil, missingSlice{p.table, p.index}
		}
		has, to := d.allocatedRun(s, p.entry, off, min(limit, end<<cb))
		if has {
			return nil, to - off, nil, nil
		}
		limit = to
		end = min(end, (limit-1)>>cb+1)
	}
	s, err := d.writable(p)
	if err != nil {
		return nil, 0, nil, err
	}
	end = min(end, first+s.len()-p.entry)
	e := s.load(p.entry)
	if d.h.strays(e) && d.h.owns(e) {
		what := "Data"
		if e.word&flagZero != 0 {
			what = "Preallocated zero"
		}
		return nil, 0, nil, d.corrupt(true, -1, -1, "%s cluster offset %#x unaligned (guest offset: %#x)", what, e.word&l2OffsetMask, off)
	}
	if err := d.checkEntry(e, s, p.entry); err != nil {
		return nil, 0, nil, err
	}
	a = &allocation{slice: s, entry: p.entry}
	h := d.h
	switch placed := h.hasPlace(e); {
	case placed && h.owns(e) && h.kindOf(e, h.subcluster(off)) == data:
		return nil, 0, nil, nil // mapped meanwhile
	case placed && h.owns(e):
		a.reuse = true
		a.host = int64(e.word&l2OffsetMask) >> cb
		for a.n = 1; first+a.n < end && h.continues(s.load(p.entry+a.n), a.host+a.n); a.n++ {
		}
		if err := d.checkGuestOverlap(a.host<<cb, a.n<<cb); err != nil {
			return nil, 0, nil, err
		}
		d.retake(first, a.n)
	default:
		for a.n = 1; first+a.n < end && d.needsPlace(s.load(p.entry+a.n), onlyUnallocated); a.n++ {
		}
		if a.host, a.n, a.fresh, err = d.allocateGuest(first, a.n); err != nil {
			return nil, 0, nil, err
		}
	}
	a.old = make([]l2Entry, a.n)
	for i := range a.old {
		a.old[i] = s.load(p.entry + int64(i))
	}
	a.bytes = min(limit, (first+a.n)<<cb) - off
	a.from, a.to = d.copyBounds(a, off, off+a.bytes)
	a.claim = d.claim(first, first+a.n)
	s.pins++
	return a, 0, nil, nil
}

// allocatedRun tells whether guest byte off, whose cluster has entry i of the
// slice, is allocated here, and how far, at most up to limit, that is so.
// Driver.mu is held.
func (d *Driver) allocatedRun(s *slice, i, off, limit int64) (has bool, to int64) {
	h := d.h
	for to = off; to < limit && i < s.len(); i++ {
		e := s.load(i)
		for cluster := to >> h.clusterBits; to < limit && to>>h.clusterBits == cluster; {
			sc := h.subcluster(to)
			k := h.kindOf(e, sc)
			is := k != unallocated && k != unallocatedAlloc
			if to == off {
				has = is
			} else if is != has {
				return has, to
			}
			to = min(to&^(h.clusterSize-1)+(sc+h.sameKind(e, k, sc))<<h.subclusterShift, limit)
		}
	}
	return has, to
}

// hasNoTable tells whether a position has no L2 table. Driver.mu is
// held.
func (d *Driver) hasNoTable(p position) bool {
	return d.l1.Load().entries[p.table].Load()&l1OffsetMask == 0
}

// needsPlace tells whether writing to a cluster with this entry needs a new
// place in the file.
func (d *Driver) needsPlace(e l2Entry, onlyUnallocated bool) bool {
	switch {
	case onlyUnallocated:
		return d.h.blank(e)
	case d.h.hasPlace(e):
		return !d.h.owns(e) && e.word&l2OffsetMask&uint64(d.h.clusterSize-1) == 0
	case d.h.external && e.word&flagCompressed != 0:
		return false
	default:
		return d.h.kindOf(e, 0) != invalid && (e.word&flagZero == 0 || d.h.version >= 3 || e.word&flagCompressed != 0)
	}
}

// continues tells whether a cluster with this entry has the given place, and
// writing there needs no other but a change of the entry.
func (h *header) continues(e l2Entry, host int64) bool {
	k := h.kindOf(e, 0)
	return h.hasPlace(e) && h.owns(e) && int64(e.word&l2OffsetMask) == host<<h.clusterBits && k != invalid && (h.extended || k == zeroAlloc)
}

// allocateGuest finds places for at most n guest clusters from first on. fresh:
// they read as zeroes. Driver.mu is held.
//
// +checklocks:d.mu
func (d *Driver) allocateGuest(first, n int64) (host, got int64, fresh bool, err error) {
	d.retake(first, n)
	if d.h.external {
		return first, n, false, nil
	}
	untouched := d.refs.untouched
	host, got, err = d.allocate(n, forGuest)
	return host, got, host >= untouched && d.freshReadsZero(), err
}

// endAllocation maps the clusters, or gives them back after an error. It tells
// whether so much has changed in memory that a write-back is due.
func (d *Driver) endAllocation(a *allocation, err error) (crowded bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err == nil {
		for i, old := range a.old {
			d.setEntry(a.slice, a.entry+int64(i), d.mapped(a, int64(i)))
			if !a.reuse {
				d.freeEntry(old, discardOther)
			}
		}
	} else if !a.reuse && !d.h.external {
		d.release(a.host, a.n)
	}
	a.slice.pins--
	d.unclaim(a.claim)
	return d.pressed()
}

// maxDirtyCounts is how many bytes of changed refcount blocks may be in memory.
const maxDirtyCounts = 16 << 20

// pressed tells whether a write-back is due to bound what is held in memory.
// Driver.mu is held.
//
// +checklocks:d.mu
func (d *Driver) pressed() bool {
	over := len(d.cache.ring) > d.cache.capacity && d.evictSlices()
	if int64(len(d.refs.ring)) > int64(d.refs.capacity) {
		d.evictRefBlocks()
		over = over || int64(len(d.refs.dirty))<<d.h.clusterBits > maxDirtyCounts
	}
	return over || d.frees.count > maxPendingFrees && len(d.frees.unmapped) > 0
}

// freeEntry drops the references that an L2 entry held. Driver.mu is held.
//
// +checklocks:d.mu
func (d *Driver) freeEntry(entry l2Entry, why discardKind) {
	switch {
	case d.h.hasPlace(entry) && d.h.external:
		cluster := int64(entry.word&l2OffsetMask) >> d.h.clusterBits
		d.dropSpace(cluster, cluster, 1, why)
	case d.h.hasPlace(entry):
		host := int64(entry.word & l2OffsetMask)
		if d.h.strays(entry) {
			d.corrupt(false, -1, -1, "Cannot free unaligned cluster %#x", host)
			return
		}
		d.free(host>>d.h.clusterBits, 1, why)
	case entry.word&flagCompressed != 0:
		off, n := d.h.compressedExtent(entry.word)
		first := off >> d.h.clusterBits
		last := (off + n - 1) >> d.h.clusterBits
		for c := first; c <= last; c++ {
			d.free(c, 1, why)
		}
	}
}

// fill writes the new content of an allocation: the request's n bytes at off
// and, of the first and last cluster, what lies around them.
func (d *Driver) fill(ctx context.Context, a *allocation, off int64, v *blockgraph.IOVec, pos, n int64) error {
	shift := (a.host - a.claim.from) << d.h.clusterBits // from guest to host bytes
	if off == a.from && off+n == a.to {
		return d.writeGuest(ctx, off, off+shift, v.Slice(pos, n), false)
	}
	w, err := d.around(ctx, a, off, v, pos, n)
	if err != nil {
		return err
	}
	defer w.release()
	return d.writeGuest(ctx, w.off, w.off+shift, &w.v, w.copied)
}
