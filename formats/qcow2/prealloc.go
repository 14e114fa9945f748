package qcow2

import (
	"context"
	"math"

	"blockd/blockgraph"
	"blockd/qapi"
)

// preallocate maps all clusters of bytes [from, to), which read as zeroes, to
// places at the end of the file (the field's modes metadata, falloc, full).
// What is allocated already stays. An external data file has the right length
// already, and up to byte stale it has another content.
func (d *Driver) preallocate(ctx context.Context, from, to, stale int64, mode qapi.PreallocMode) error {
	cb := d.h.clusterBits
	first, end := from>>cb, d.h.clusters(to)
	for first < end {
		var a *allocation
		d.mu.Lock()
		done, err := int64(0), error(nil)
		a, done, err = d.tryPreallocate(first, end)
		d.unlock()
		if err != nil {
			if err := d.fetch(ctx, err); err != nil {
				return blockgraph.Errorf(blockgraph.Errno(err), "Failed to allocate data clusters: %s", blockgraph.Strerror(err))
			}
			continue
		}
		first += done
		if a == nil {
			continue
		}
		if d.h.external {
			err = d.clearStale(ctx, a, stale)
		} else {
			err = d.extend(ctx, a, mode)
		}
		crowded := d.endAllocation(a, err)
		if err != nil {
			return blockgraph.Errorf(blockgraph.Errno(err), "Failed to resize underlying file: %s", blockgraph.Strerror(err))
		}
		if crowded {
			if err := d.writeBack(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// tryPreallocate allocates for the front of clusters [first, end), at the end
// of the file, and returns how many clusters are dealt with. Driver.mu is
// held; nobody else maps these clusters, except the last one of the old size.
//
// +checklocks:d.mu
func (d *Driver) tryPreallocate(first, end int64) (*allocation, int64, error) {
	p := d.position(first << d.h.clusterBits)
	s, err := d.writable(p)
	if err != nil {
		return nil, 0, err
	}
	end = min(end, first+s.len()-p.entry)
	if !d.h.reservable(s.load(p.entry)) || d.claimed(first, first+1) != nil {
		return nil, 1, nil
	}
	a := &allocation{slice: s, entry: p.entry, n: 1}
	for first+a.n < end && d.h.reservable(s.load(p.entry+a.n)) {
		a.n++
	}
	// With subclusters they stay what they are, and have a place for later; where
	// what lies there is no zeroes to the guest, as in an encrypted image, they are
	// marked as zeroes.
	f := d.dataFile()
	a.reserve = !d.h.raw && (d.h.extended || d.h.version >= 3 && (d.crypt != nil || f.Grows() && !f.FreshZero()))
	r := &d.refs
	if d.file().Grows() && !d.h.external {
		r.hint[1] = max(r.hint[1], r.untouched)
		if a.n == 1 {
			r.hint[0] = max(r.hint[0], r.untouched)
		}
	}
	if a.host, a.n, a.fresh, err = d.allocateGuest(first, a.n); err != nil {
		return nil, 0, err
	}
	a.old = make([]l2Entry, a.n)
	for i := range a.old {
		a.old[i] = s.load(p.entry + int64(i))
	}
	a.claim = d.claim(first, first+a.n)
	s.pins++
	return a, a.n, nil
}

// reservable tells whether preallocation gives a cluster with this entry a
// place.
func (h *header) reservable(e l2Entry) bool {
	return h.blank(e) || h.extended && e.word&flagCompressed == 0 && !h.hasPlace(e) && h.kindOf(e, 0) != invalid
}

// extend makes the file long enough for an allocation and its content zeroes.
func (d *Driver) extend(ctx context.Context, a *allocation, mode qapi.PreallocMode) error {
	f := d.file()
	off, n := a.host<<d.h.clusterBits, a.n<<d.h.clusterBits
	if !a.fresh && !a.reserve {
		return d.zeroGuest(ctx, a.claim.from<<d.h.clusterBits, off, n)
	}
	if f.Size() >= off+n {
		return nil
	}
	if mode == qapi.PreallocModeMetadata {
		mode = qapi.PreallocModeOff
	}
	return f.Truncate(ctx, off+n, false, mode, false)
}

// clearStale makes what lies below byte stale of the data file, in the place of
// an allocation, zeroes. A raw data file's content is right as it is, and that
// of reserved places is nobody's.
func (d *Driver) clearStale(ctx context.Context, a *allocation, stale int64) error {
	off := a.host << d.h.clusterBits
	if !d.dataFile().FreshZero() {
		stale = math.MaxInt64
	}
	n := min(off+a.n<<d.h.clusterBits, stale, d.dataFile().Size()) - off
	if n <= 0 || d.h.raw || a.reserve {
		return nil
	}
	return d.zeroGuest(ctx, off, off, n)
}
