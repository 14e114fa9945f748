package qcow2

import (
	"context"

	"blockd/blockgraph"
)

// Changes of mappings that write no data: zero writes, discards, truncation.

// unmapping is why places are given up.
type unmapping struct {
	kind discardKind
	// kept: the space of clusters that keep their places and hold nothing any more
	// is given up, too.
	kept bool
}

// remap replaces the entries of guest clusters [from, to) by what next says;
// next may be called several times for an entry. Places that are given up are
// freed for the reason why. An error of next ends it; what is done stays.
func (d *Driver) remap(ctx context.Context, from, to int64, why unmapping, next func(entry l2Entry) (l2Entry, error)) error {
	freed := false
	for from < to {
		d.mu.Lock()
		end, wait, err := d.tryRemap(from, to, why, next)
		crowded := err == nil && wait == nil && d.pressed()
		d.unlock()
		switch {
		case wait != nil:
			err = wait.wait(ctx)
		case err != nil:
			err = d.fetch(ctx, err)
		default:
			from = end
		}
		if err != nil && !d.freedRoom(ctx, err, &freed) {
			return err
		}
		if crowded {
			// A failure is the next flush's to report; nothing is lost by it.
			_ = d.writeBack(ctx)
		}
	}
	return nil
}

// tryRemap does the front of remap, within one slice, and returns where it
// ended. Driver.mu is held.
//
// +checklocks:d.mu
func (d *Driver) tryRemap(from, to int64, why unmapping, next func(entry l2Entry) (l2Entry, error)) (end int64, wait *claim, err error) {
	p := d.position(from << d.h.clusterBits)
	t := d.l1.Load()
	if p.table >= int64(len(t.entries)) {
		return to, nil, nil
	}
	end = min(to, from+1<<d.sliceBits-p.entry)
	if c := d.claimed(from, end); c != nil {
		if c.from <= from {
			return 0, c, nil
		}
		end = c.from
	}
	if d.hasNoTable(p) {
		e, err := next(l2Entry{})
		if err != nil {
			return 0, nil, err
		}
		if e == (l2Entry{}) {
			return min(to, (p.table+1)<<d.h.l2Bits), nil, nil
		}
	} else {
		s := t.cached(p.table, p.index)
		if s == nil {
			return 0, nil, missingSlice{p.table, p.index}
		}
		same := true
		for i := p.entry; i < p.entry+end-from && same; i++ {
			e := s.load(i)
			if err := d.checkReplaced(e, s, i); err != nil {
				return 0, nil, err
			}
			n, err := next(e)
			if err != nil {
				return 0, nil, err
			}
			same = n == e
		}
		if same {
			return end, nil, nil
		}
	}
	s, err := d.writable(p)
	if err != nil {
		return 0, nil, err
	}
	for i := p.entry; i < p.entry+end-from; i++ {
		e := s.load(i)
		if err := d.checkReplaced(e, s, i); err != nil {
			return 0, nil, err
		}
		n, err := next(e)
		if err != nil {
			return 0, nil, err
		}
		if n == e {
			continue
		}
		d.setEntry(s, i, n)
		switch stays := d.h.hasPlace(e) && d.h.hasPlace(n) && n.word&l2OffsetMask == e.word&l2OffsetMask; {
		case !stays && (e.word&flagCompressed != 0 || d.h.hasPlace(e)):
			d.freeEntry(e, why.kind)
		case stays && why.kept && d.h.holdsNothing(n) && d.h.owns(n):
			if d.h.strays(n) {
				d.corrupt(false, -1, -1, "Cannot discard unaligned cluster %#x", n.word&l2OffsetMask)
				continue
			}
			d.dropSpace(from+i-p.entry, int64(n.word&l2OffsetMask)>>d.h.clusterBits, 1, why.kind)
		}
	}
	return end, nil, nil
}

// remapBytes is remap for guest bytes [from, to). next also gets the bytes of
// the cluster that are meant, as a mask of its subclusters.
func (d *Driver) remapBytes(ctx context.Context, from, to int64, why unmapping, next func(e l2Entry, mask uint64) (l2Entry, error)) error {
	h := d.h
	for from < to {
		// One cluster in part, or whole ones.
		in, end := from&(h.clusterSize-1), to
		switch {
		case in != 0:
			end = min(to, from-in+h.clusterSize)
		case to-from > h.clusterSize:
			end = to &^ (h.clusterSize - 1)
		}
		mask := h.subclusterMask(in, min(in+end-from, h.clusterSize))
		if err := d.remap(ctx, from>>h.clusterBits, h.clusters(end), why, func(e l2Entry) (l2Entry, error) { return next(e, mask) }); err != nil {
			return err
		}
		from = end
	}
	return nil
}

// WriteZeroes makes bytes [off, off+n) read as zeroes. Data plane.
func (d *Driver) WriteZeroes(ctx context.Context, off, n int64, flags blockgraph.Flags) error {
	if d.h.raw {
		return d.zeroRaw(ctx, off, n, flags)
	}
	ss := d.h.subclusterSize()
	size := d.size.Load()
	backed := d.ch.backing() != nil
	if d.h.version < 3 && backed {
		return blockgraph.ErrNotSupported
	}
	end := off + n
	aligned := off&(ss-1) == 0 && (end&(ss-1) == 0 || end == size)
	if !aligned && !d.restReadsZero(ctx, off, n) {
		return blockgraph.ErrNotSupported
	}
	from, to := off&^(ss-1), (end+ss-1)&^(ss-1)
	if end == size {
		to = d.h.clusters(end) << d.h.clusterBits
	}
	why := unmapping{kind: discardRequest}
	if d.options().discardNoUnref && flags&blockgraph.MayUnmap != 0 {
		flags &^= blockgraph.MayUnmap // clusters keep their places
		why.kept = true
	}
	flagged := l2Entry{word: flagZero}
	if d.h.version < 3 {
		flagged = l2Entry{}
	}
	return d.remapBytes(ctx, from, to, why, func(e l2Entry, mask uint64) (l2Entry, error) {
		if d.h.extended {
			return d.h.zeroExtended(e, mask, flags, !aligned)
		}
		k := d.h.kindOf(e, 0)
		switch {
		case flags&blockgraph.OnlyUnallocated != 0 && k != unallocated:
			return e, nil
		case !aligned && (k == data || k == compressed):
			return e, blockgraph.ErrNotSupported
		case k == unallocated || k == compressed || d.h.version < 3:
			return flagged, nil
		case flags&blockgraph.MayUnmap != 0 && k != zeroPlain:
			return flagged, nil
		default:
			e.word |= flagZero
			return e, nil
		}
	})
}

// restReadsZero tells whether the parts of the request's first and last
// subcluster that it leaves out read as zeroes as long as they are unallocated
// here.
func (d *Driver) restReadsZero(ctx context.Context, off, n int64) bool {
	b := d.ch.backing()
	if b == nil {
		return true
	}
	ss := d.h.subclusterSize()
	start := off &^ (ss - 1)
	end := min((off+n+ss-1)&^(ss-1), d.size.Load())
	return b.ReadsZero(ctx, start, off-start) && b.ReadsZero(ctx, off+n, end-(off+n))
}

// Discard gives up bytes [off, off+n): whole subclusters, or up to the end of the
// disk. In version 3 they read as zeroes afterwards, but for parts of compressed
// clusters, which stay. Version 2 cannot keep the backing file's old data from
// showing, and does nothing with one. Data plane.
func (d *Driver) Discard(ctx context.Context, off, n int64) error {
	if d.h.raw {
		return d.discardRaw(ctx, off, n)
	}
	backed := d.ch.backing() != nil
	if d.h.version < 3 && backed {
		return blockgraph.ErrNotSupported
	}
	ss := d.h.subclusterSize()
	end := off + n
	if off&(ss-1) != 0 || end&(ss-1) != 0 && end != d.size.Load() {
		return blockgraph.ErrNotSupported
	}
	if end == d.size.Load() {
		end = d.h.clusters(end) << d.h.clusterBits
	}
	keep := d.options().discardNoUnref
	return d.remapBytes(ctx, off, end, unmapping{discardRequest, keep}, func(e l2Entry, mask uint64) (l2Entry, error) {
		if d.h.extended {
			return d.h.discardExtended(e, mask, keep, backed), nil
		}
		k := d.h.kindOf(e, 0)
		switch {
		case d.h.version < 3:
			return l2Entry{}, nil
		case keep && (k == data || k == zeroAlloc):
			e.word |= flagZero
			return e, nil
		case backed || k == data || k == zeroAlloc || k == compressed:
			return l2Entry{word: flagZero}, nil
		default:
			return e, nil
		}
	})
}

// Empty implements blockgraph.Emptier. What snapshots have stays theirs.
func (d *Driver) Empty(ctx context.Context) error {
	if d.h.raw {
		return blockgraph.ErrNotSupported
	}
	end := d.h.clusters(d.size.Load())
	return d.remap(ctx, 0, end, unmapping{kind: discardSnapshot}, func(l2Entry) (l2Entry, error) { return l2Entry{}, nil })
}
