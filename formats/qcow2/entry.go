package qcow2

import (
	"runtime"
	"sync/atomic"
)

// L2 entries (specification: "L2 table entry", "Extended L2 Entries"). An
// ordinary one is a word. An extended one is followed by a bitmap that says of
// each of the cluster's 32 subclusters if it is allocated or reads as zeroes;
// in memory an ordinary entry has the bitmap 0.

const (
	flagCompressed = 1 << 62
	flagZero       = 1 << 0 // of ordinary entries
	l2OffsetMask   = 0x00fffffffffffe00

	subclusterBits = 5 // log2 of the subclusters of a cluster
	subclusters    = 1 << subclusterBits
)

// l2Entry is an L2 entry.
type l2Entry struct {
	word   uint64
	bitmap uint64 // bits 0 to 31: allocated; 32 to 63: reads as zeroes
}

// kind is what an L2 entry says about a subcluster, or about the cluster when
// the image has no subclusters.
type kind uint8

const (
	unallocated      kind = iota
	unallocatedAlloc      // like unallocated, but has a place (subclusters only)
	zeroPlain             // reads as zeroes, no place
	zeroAlloc             // reads as zeroes, has a place
	data
	compressed
	invalid // a bitmap that makes no sense
)

// kindOf tells the kind of subcluster sc.
func (h *header) kindOf(e l2Entry, sc int64) kind {
	switch {
	case e.word&flagCompressed != 0:
		return compressed
	case h.extended:
		return h.subclusterKind(e, sc)
	case e.word&flagZero != 0 && e.word&l2OffsetMask != 0:
		return zeroAlloc
	case e.word&flagZero != 0:
		return zeroPlain
	case e.word&l2OffsetMask == 0 && !h.placedAtZero(e):
		return unallocated
	default:
		return data
	}
}

func (h *header) subclusterKind(e l2Entry, sc int64) kind {
	if e.bitmap&(e.bitmap>>32) != 0 {
		return invalid
	}
	alloc, zero := e.bitmap>>sc&1 != 0, e.bitmap>>(32+sc)&1 != 0
	if !h.hasPlace(e) {
		switch {
		case uint32(e.bitmap) != 0:
			return invalid
		case zero:
			return zeroPlain
		}
		return unallocated
	}
	switch {
	case alloc:
		return data
	case zero:
		return zeroAlloc
	}
	return unallocatedAlloc
}

// placedAtZero tells whether an entry with the offset 0 means it: in an
// external data file, where guest and host offsets are the same.
func (h *header) placedAtZero(e l2Entry) bool {
	return h.external && e.word&flagCopied != 0
}

// hasPlace tells whether an entry maps its cluster to one in the file that
// holds the data; a compressed cluster's data is none.
func (h *header) hasPlace(e l2Entry) bool {
	return e.word&flagCompressed == 0 && (e.word&l2OffsetMask != 0 || h.placedAtZero(e))
}

// blank tells whether all of a cluster is unallocated and it has no place.
func (h *header) blank(e l2Entry) bool {
	return h.kindOf(e, 0) == unallocated && e.bitmap == 0
}

// allUnallocated tells whether all of a cluster is unallocated; it may have a
// place.
func (h *header) allUnallocated(e l2Entry) bool {
	k := h.kindOf(e, 0)
	return (k == unallocated || k == unallocatedAlloc) && e.bitmap == 0
}

// subcluster returns the index of the subcluster that holds byte off.
func (h *header) subcluster(off int64) int64 {
	return off & (h.clusterSize - 1) >> h.subclusterShift
}

// subclusterSize is in bytes; a whole cluster without subclusters.
func (h *header) subclusterSize() int64 { return 1 << h.subclusterShift }

// Entries in memory are words that are read and written atomically, one or, in
// extended tables, two for an entry. They are changed with Driver.mu held. Two
// words cannot be read at once without a lock, so the changes of a slice are
// counted, before and after: whoever reads the same even number before and
// after an entry's words has read what belongs together.

// len returns the number of entries.
func (s *slice) len() int64 {
	if s.wide {
		return int64(len(s.words)) / 2
	}
	return int64(len(s.words))
}

// load returns entry i. Any goroutine.
func (s *slice) load(i int64) l2Entry {
	if s.wide {
		return s.loadWide(i)
	}
	return l2Entry{word: s.words[i].Load()}
}

func (s *slice) loadWide(i int64) l2Entry {
	for tries := 1; ; tries++ {
		before := s.changes.Load()
		e := l2Entry{s.words[2*i].Load(), s.words[2*i+1].Load()}
		if before&1 == 0 && s.changes.Load() == before {
			return e
		}
		if tries%16 == 0 {
			runtime.Gosched() // the one who changes it was interrupted
		}
	}
}

// store changes entry i. Driver.mu is held, or nobody else has the slice yet.
func (s *slice) store(i int64, e l2Entry) {
	if !s.wide {
		s.words[i].Store(e.word)
		return
	}
	s.changes.Add(1)
	s.words[2*i].Store(e.word)
	s.words[2*i+1].Store(e.bitmap)
	s.changes.Add(1)
}

// sliceWords are the words of a slice.
type sliceWords struct {
	words   []atomic.Uint64
	wide    bool          // two words for an entry
	changes atomic.Uint64 // of wide entries; odd while one is being changed
}
