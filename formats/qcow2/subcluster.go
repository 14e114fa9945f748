package qcow2

import (
	"math/bits"

	"blockd/blockgraph"
)

// Mappings in images with extended L2 entries or an external data file. What
// is a cluster elsewhere is a subcluster here: it is what has a kind, what is
// copied at least on a write, and what zero writes and discards may cover.

const (
	allAllocated = 1<<subclusters - 1
	allZero      = allAllocated << 32
)

// lookupSubclusters is the rest of Driver.lookup for such images.
func (d *Driver) lookupSubclusters(s *slice, p position, off, n int64, copied bool) (mapping, error) {
	h := d.h
	e := s.load(p.entry)
	if copied && h.strays(e) {
		return mapping{kind: invalid, word: e.word, n: 1}, nil
	}
	if err := d.checkEntry(e, s, p.entry); err != nil {
		return mapping{}, err
	}
	sc, in := h.subcluster(off), off&(h.clusterSize-1)
	m := mapping{kind: h.kindOf(e, sc), word: e.word}
	if m.kind == compressed {
		m.n = min(n, h.clusterSize-in)
		return m, nil
	}
	placed := h.hasPlace(e)
	if placed {
		m.host = int64(e.word&l2OffsetMask) + in
		if h.owns(e) {
			m.word |= flagCopied
		}
	}
	end := sc + h.sameKind(e, m.kind, sc)
	have := end<<h.subclusterShift - in
	for i := p.entry + 1; have < n && end == h.subclustersPerCluster() && i < s.len(); i++ {
		next := s.load(i)
		if h.kindOf(next, 0) != m.kind || placed && int64(next.word&l2OffsetMask) != m.host+have || copied && h.owns(next) != (m.word&flagCopied != 0) {
			break
		}
		end = h.sameKind(next, m.kind, 0)
		have += end << h.subclusterShift
	}
	m.n = min(n, have)
	return m, nil
}

// subclustersPerCluster is 1 in images without extended entries.
func (h *header) subclustersPerCluster() int64 { return 1 << (h.clusterBits - h.subclusterShift) }

// sameKind returns how many subclusters of an entry, from sc on, are of the
// kind that sc is.
func (h *header) sameKind(e l2Entry, k kind, sc int64) int64 {
	if !h.extended || k == compressed || k == invalid {
		return h.subclustersPerCluster() - sc
	}
	var same uint32
	switch alloc, zero := uint32(e.bitmap), uint32(e.bitmap>>32); k {
	case data:
		same = alloc
	case zeroPlain, zeroAlloc:
		same = zero
	default:
		same = ^(alloc | zero)
	}
	return min(int64(bits.TrailingZeros32(^(same >> sc))), subclusters-sc)
}

// owns tells whether the place of an entry may be written to: nothing else
// refers to it. That is always so in an external data file.
func (h *header) owns(e l2Entry) bool { return h.external || e.word&flagCopied != 0 }

// subclusterMask returns the bits of an allocation bitmap for bytes [from, to)
// of a cluster.
func (h *header) subclusterMask(from, to int64) uint64 {
	lo, hi := from>>h.subclusterShift, (to-1)>>h.subclusterShift
	return (1<<(hi+1) - 1) &^ (1<<lo - 1)
}

// copyBounds returns which guest bytes go to the place of an allocation when
// the request writes [off, end): with it what must be copied of the first and
// last cluster. In a place that the clusters have already these are the rest of
// subclusters without data; another place gets all data of the old one, too.
func (d *Driver) copyBounds(a *allocation, off, end int64) (from, to int64) {
	h := d.h
	cs, ss := h.clusterSize, h.subclusterSize()
	start, last := off&^(cs-1), (end-1)&^(cs-1)
	from, to = off&^(ss-1), (end+ss-1)&^(ss-1)
	head, tail := a.old[0], a.old[len(a.old)-1]
	switch {
	case a.reuse:
		if h.kindOf(head, h.subcluster(off)) == data {
			from = off
		}
		if h.kindOf(tail, h.subcluster(end-1)) == data {
			to = end
		}
	case h.extended:
		if head.word&flagCompressed != 0 {
			from = start
		} else if alloc := uint32(head.bitmap); alloc != 0 {
			from = min(from, start+int64(bits.TrailingZeros32(alloc))<<h.subclusterShift)
		}
		if tail.word&flagCompressed != 0 {
			to = last + cs
		} else if alloc := uint32(tail.bitmap); alloc != 0 {
			to = max(to, last+int64(bits.Len32(alloc))<<h.subclusterShift)
		}
	}
	return from, to
}

// mapped returns the entry of the i-th cluster of an allocation when it is
// done.
func (d *Driver) mapped(a *allocation, i int64) l2Entry {
	h := d.h
	e := l2Entry{word: uint64(a.host+i)<<h.clusterBits | flagCopied}
	if !h.extended {
		if a.reserve {
			e.word |= flagZero
		}
		return e
	}
	if old := a.old[i]; old.word&flagCompressed == 0 {
		e.bitmap = old.bitmap
	}
	if a.reserve {
		return e
	}
	start := (a.claim.from + i) << h.clusterBits
	mask := h.subclusterMask(max(a.from-start, 0), min(a.to-start, h.clusterSize))
	e.bitmap = e.bitmap&^(mask<<32) | mask
	return e
}

// zeroSubclusters returns an entry with the subclusters in mask read as
// zeroes. unmap: the place may be given up when no data is left in it. ok is
// false where only part of a compressed cluster is to be zeroes.
func (h *header) zeroSubclusters(e l2Entry, mask uint64, unmap bool) (next l2Entry, ok bool) {
	if e.word&flagCompressed != 0 {
		return l2Entry{bitmap: allZero}, mask == allAllocated
	}
	next = e
	next.bitmap = e.bitmap&^mask | mask<<32
	if unmap && next.bitmap == allZero {
		next.word = 0
	}
	return next, true
}

// unallocatedIn returns which subclusters in mask are unallocated.
func (h *header) unallocatedIn(e l2Entry, mask uint64) uint64 {
	if e.word&flagCompressed != 0 {
		return 0
	}
	return mask &^ (e.bitmap | e.bitmap>>32)
}

// zeroExtended is the rest of WriteZeroes for images with extended entries.
// Bytes [from, to) are whole subclusters, or end at the end of the disk. With
// holes none of them may have data.
func (h *header) zeroExtended(e l2Entry, mask uint64, flags blockgraph.Flags, holes bool) (l2Entry, error) {
	if flags&blockgraph.OnlyUnallocated != 0 {
		mask = h.unallocatedIn(e, mask)
		if mask == 0 {
			return e, nil
		}
	}
	if holes && (e.word&flagCompressed != 0 || e.bitmap&mask != 0) {
		return e, blockgraph.ErrNotSupported
	}
	next, ok := h.zeroSubclusters(e, mask, flags&blockgraph.MayUnmap != 0)
	if !ok {
		return e, blockgraph.ErrNotSupported
	}
	return next, nil
}

// discardExtended is the rest of Discard for images with extended entries.
func (h *header) discardExtended(e l2Entry, mask uint64, keep, backed bool) l2Entry {
	if !backed && e.word&flagCompressed == 0 && e.bitmap&mask == 0 && (mask != allAllocated || !h.hasPlace(e)) {
		return e // reads as zeroes, and has no place to give up
	}
	next, ok := h.zeroSubclusters(e, mask, !keep)
	if !ok {
		return e // a part of a compressed cluster stays
	}
	return next
}
