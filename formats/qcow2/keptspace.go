package qcow2

import (
	"context"
	"errors"
	"log/slog"

	"blockd/blockgraph"
)

// Discards of guest clusters that keep their places. In an external data file
// every cluster does; with discard-no-unref (the field, since 8.1) those do that
// become zeroes. Only the space in the file is given up.
//
// Such a cluster may be written to again at once, in the same place. So it is
// discarded only when what unmapped it is durable, as freed clusters are
// (free.go), if it has not come back meanwhile, and with the cluster claimed. In
// the image file nobody else may refer to it, and its entry must still say so.

// dropSpace notes that guest clusters from first on hold nothing any more,
// though they keep their places, from cluster host on. Driver.mu is held.
//
// +checklocks:d.mu
func (d *Driver) dropSpace(first, host, n int64, why discardKind) {
	if d.h.raw || !d.options().discards[why] {
		return
	}
	d.frees.count += n
	d.frees.kept += n
	d.frees.add(extent{first: first, n: n, kind: why, kept: true, host: host, turn: d.frees.turn})
}

// retake notes that the places of guest clusters may hold something again, so
// that they are not discarded. Driver.mu is held.
//
// +checklocks:d.mu
func (d *Driver) retake(first, n int64) {
	f := &d.frees
	if f.kept == 0 {
		return
	}
	if f.retaken == nil {
		f.retaken = map[int64]int64{}
	}
	f.turn++
	for c := first; c < first+n; c++ {
		f.retaken[c] = f.turn
	}
}

// dropKept discards the clusters of x that still hold nothing. That they do not
// is durable, and nobody uses the old mapping any more.
func (d *Driver) dropKept(ctx context.Context, x *extent) {
	for x.n > 0 {
		host := x.host
		run, c, err := d.claimDropped(x)
		if err != nil {
			if m, ok := err.(missingSlice); ok {
				// This may be done by a write-back, which must not wait for another.
				_, _, err = d.bringSlice(ctx, m.table, m.index)
			}
			if err != nil {
				slog.Debug("qcow2: a discarded cluster keeps its space", "error", err)
				d.mu.Lock()
				d.passBy(x, 1)
				d.mu.Unlock()
			}
			continue
		}
		if c == nil {
			continue
		}
		cb := d.h.clusterBits
		f := d.dataFile()
		end := min((host+run)<<cb, f.Size())
		if host<<cb < end {
			if err := f.Discard(ctx, host<<cb, end-host<<cb); err != nil && !errors.Is(err, blockgraph.ErrNotSupported) {
				slog.Debug("qcow2: a discarded cluster keeps its space", "error", err)
			}
		}
		d.mu.Lock()
		d.unclaim(c)
		d.mu.Unlock()
	}
}

// passBy takes n clusters from the front of x. Driver.mu is held.
//
// +checklocks:d.mu
func (d *Driver) passBy(x *extent, n int64) {
	x.first += n
	x.host += n
	x.n -= n
	f := &d.frees
	f.count -= n
	if f.kept -= n; f.kept == 0 {
		f.retaken = nil
	}
}

// claimDropped takes clusters from the front of x and claims those that are to
// be discarded; a nil claim: none of them. An error is something to be loaded
// first.
func (d *Driver) claimDropped(x *extent) (n int64, c *claim, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	first := x.first
	want, err := d.stillDropped(x, 0)
	if err != nil {
		return 0, nil, err
	}
	for n = 1; n < x.n; n++ {
		if w, err := d.stillDropped(x, n); err != nil || w != want {
			break // of an error the next call tells
		}
	}
	d.passBy(x, n)
	if want {
		c = d.claim(first, first+n)
	}
	return n, c, nil
}

// stillDropped tells whether the ith guest cluster of x, which held nothing in its
// place, has not come back. Driver.mu is held.
//
// +checklocks:d.mu
func (d *Driver) stillDropped(x *extent, i int64) (bool, error) {
	cluster, host := x.first+i, x.host+i
	if d.frees.retaken[cluster] > x.turn || d.claimed(cluster, cluster+1) != nil {
		return false, nil
	}
	if d.h.external {
		return true, nil
	}
	p, t := d.position(cluster<<d.h.clusterBits), d.l1.Load()
	if p.table >= int64(len(t.entries)) || d.hasNoTable(p) {
		return false, nil
	}
	if t.entries[p.table].Load()&flagCopied == 0 {
		return false, nil // who shares the table may share the cluster
	}
	s := t.cached(p.table, p.index)
	if s == nil {
		return false, missingSlice{p.table, p.index}
	}
	e := s.load(p.entry)
	return d.h.holdsNothing(e) && d.h.owns(e) && int64(e.word&l2OffsetMask) == host<<d.h.clusterBits, nil
}

// holdsNothing tells whether all of a cluster reads as zeroes whatever is in its
// place.
func (h *header) holdsNothing(e l2Entry) bool {
	if !h.hasPlace(e) {
		return false
	}
	if h.extended {
		return e.bitmap == allZero
	}
	return h.kindOf(e, 0) == zeroAlloc
}
