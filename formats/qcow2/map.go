package qcow2

import (
	"context"
	"syscall"
)

// Mappings (specification: "L1 table", "L2 table entry").

// mapping describes a run of guest bytes.
type mapping struct {
	kind kind
	// word is of the first cluster's entry, with the copied flag where the place
	// may be written to.
	word uint64
	host int64 // of the first byte, in bytes, if there is a place
	n    int64 // bytes
}

// position is where the entry of a guest offset lies.
type position struct {
	table int64 // L1 index
	index int64 // of the slice in the table
	entry int64 // in the slice
}

func (d *Driver) position(off int64) position {
	cluster := off >> d.h.clusterBits
	entry := cluster & (1<<d.h.l2Bits - 1)
	return position{cluster >> d.h.l2Bits, entry >> d.sliceBits, entry & (1<<d.sliceBits - 1)}
}

// lookup returns the mapping of a run of at most n bytes from off on, within
// one slice. Runs with a place are contiguous in the file; a compressed run is
// one cluster. With copied, a run of data ends where its clusters' places can
// no longer, or from here on can, be written to, and a place that strays is not judged
// but of kind invalid. It does I/O only if the slice is not in memory.
//
// The caller has pinned its epoch, or excludes changes.
func (d *Driver) lookup(ctx context.Context, off, n int64, copied bool) (mapping, error) {
	p := d.position(off)
	t := d.l1.Load()
	inCluster := off & (d.h.clusterSize - 1)
	if p.table >= int64(len(t.entries)) || t.entries[p.table].Load()&l1OffsetMask == 0 {
		rest := d.h.clusterSize<<d.h.l2Bits - off&(d.h.clusterSize<<d.h.l2Bits-1)
		return mapping{kind: unallocated, n: min(n, rest)}, nil
	}
	s := t.cached(p.table, p.index)
	if s == nil {
		var err error
		if s, err = d.loadSlice(ctx, p.table, p.index); err != nil {
			return mapping{}, err
		}
		if s == nil {
			return mapping{kind: unallocated, n: min(n, d.h.clusterSize-inCluster)}, nil
		}
	}
	if !d.h.plain {
		return d.lookupSubclusters(s, p, off, n, copied)
	}
	word := s.words[p.entry].Load()
	m := mapping{kind: data, word: word, host: int64(word&l2OffsetMask) + inCluster}
	if host := word & l2OffsetMask; word&(flagCompressed|flagZero) != 0 || host == 0 || host&uint64(d.h.clusterSize-1) != 0 {
		e := l2Entry{word: word}
		if copied && d.h.strays(e) {
			return mapping{kind: invalid, word: word, n: 1}, nil
		}
		m.kind = d.h.kindOf(e, 0)
		if err := d.checkEntry(e, s, p.entry); err != nil {
			return mapping{}, err
		}
	}
	have := d.h.clusterSize - inCluster
	if m.kind == compressed {
		m.n = min(n, have)
		return m, nil
	}
	mask := ^uint64(0)
	if !copied {
		mask &^= flagCopied
	}
	want := word & mask
	for i := p.entry + 1; have < n && i < int64(len(s.words)); i++ {
		if m.kind == data || m.kind == zeroAlloc {
			want += uint64(d.h.clusterSize)
		}
		if s.words[i].Load()&mask != want {
			break
		}
		have += d.h.clusterSize
	}
	m.n = min(n, have)
	return m, nil
}

// checkEntry holds that an entry makes sense.
func (d *Driver) checkEntry(e l2Entry, s *slice, i int64) error {
	if d.h.plain && e.word&(flagCompressed|flagZero) == 0 && e.word&l2OffsetMask&uint64(d.h.clusterSize-1) == 0 {
		return nil
	}
	return d.checkOddEntry(e, s, i, false)
}

// checkReplaced is checkEntry for one that is to be replaced, and whose place is given
// up: where that strays it is nobody's (freeEntry).
func (d *Driver) checkReplaced(e l2Entry, s *slice, i int64) error {
	if d.h.plain && e.word&(flagCompressed|flagZero) == 0 {
		return nil
	}
	return d.checkOddEntry(e, s, i, true)
}

// strays tells whether an entry's place in the image file is not one of its clusters.
func (h *header) strays(e l2Entry) bool {
	return !h.external && e.word&l2OffsetMask&uint64(h.clusterSize-1) != 0 && h.hasPlace(e)
}

func (d *Driver) checkOddEntry(e l2Entry, s *slice, i int64, mayStray bool) error {
	h := d.h
	l2 := int64(d.l1.Load().entries[s.table].Load() & l1OffsetMask)
	index := s.index<<d.sliceBits + i
	switch k := h.kindOf(e, 0); {
	case k == compressed && h.external:
		return d.corrupt(true, -1, -1, "Compressed cluster entry found in image with external data file (L2 offset: %#x, L2 index: %#x)", l2, index)
	case k == compressed:
		return nil
	case k == invalid:
		return d.corrupt(true, -1, -1, "Invalid cluster entry found (L2 offset: %#x, L2 index: %#x)", l2, index)
	case h.version < 3 && (k == zeroPlain || k == zeroAlloc):
		return d.corrupt(true, -1, -1, "Zero cluster entry found in pre-v3 image (L2 offset: %#x, L2 index: %#x)", l2, index)
	case !h.hasPlace(e):
		return nil
	}
	host := int64(e.word & l2OffsetMask)
	if host&(h.clusterSize-1) != 0 && !(mayStray && h.strays(e)) {
		return d.corrupt(true, -1, -1, "Cluster allocation offset %#x unaligned (L2 offset: %#x, L2 index: %#x)", host, l2, index)
	}
	if guest := (s.table<<h.l2Bits + index) << h.clusterBits; h.external && host != guest {
		return d.corrupt(true, -1, -1, "External data file host cluster offset %#x does not match guest cluster offset: %#x, L2 index: %#x)", host, guest, index)
	}
	return nil
}

// writable returns the slice that maps off, ready to be changed: its table
// exists and belongs to the active L1 table alone. It is called with Driver.mu
// held, and holds it on return too; on an error nothing has changed, and what
// was missing may be fetched.
//
// +checklocks:d.mu
func (d *Driver) writable(p position) (*slice, error) {
	if d.broken.Load() {
		return nil, syscall.EIO
	}
	t := d.l1.Load()
	if e := t.entries[p.table].Load(); e&l1OffsetMask == 0 || e&flagCopied == 0 {
		return nil, missingTable(p.table)
	}
	s := t.cached(p.table, p.index)
	if s == nil {
		return nil, missingSlice{p.table, p.index}
	}
	return s, nil
}

// slicesPerTable returns the number of slices of an L2 table.
func (d *Driver) slicesPerTable() int64 { return 1 << (d.h.l2Bits - d.sliceBits) }

// wholeTable returns the first slice of an L2 table that is not in memory, or -1.
// Driver.mu is held.
func (d *Driver) wholeTable(t *l1Table, table int64) int64 {
	for i := range d.slicesPerTable() {
		if t.cached(table, i) == nil {
			return i
		}
	}
	return -1
}

// newTable makes a cluster an L2 table, empty and in memory. Driver.mu is held.
//
// +checklocks:d.mu
func (d *Driver) newTable(t *l1Table, table, cluster int64) {
	for i := range d.slicesPerTable() {
		s := d.newSlice(table, i)
		d.dirtyWhole(s)
		d.insert(t, s)
	}
	d.hookTable(t, table, cluster)
}

// replaceTable gives an L2 table another place, where it is written whole. All
// of it is in memory. Driver.mu is held.
//
// +checklocks:d.mu
func (d *Driver) replaceTable(t *l1Table, table, cluster int64, why discardKind) {
	old := int64(t.entries[table].Load()&l1OffsetMask) >> d.h.clusterBits
	for i := range d.slicesPerTable() {
		d.dirtyWhole(t.cached(table, i))
	}
	d.hookTable(t, table, cluster)
	d.meta.remove(old)
	d.free(old, 1, why)
}

func (d *Driver) dirtyWhole(s *slice) {
	s.dirty.add(0, s.len()<<d.h.l2EntryBits)
	d.cache.dirty[s] = struct{}{}
}

// hookTable makes a cluster the L2 table of an L1 entry. Driver.mu is held.
//
// +checklocks:d.mu
func (d *Driver) hookTable(t *l1Table, table, cluster int64) {
	d.meta.add(cluster, kindActiveL2)
	d.tableChanged(table, t.entries[table].Load(), uint64(cluster)<<d.h.clusterBits)
	t.entries[table].Store(uint64(cluster)<<d.h.clusterBits | flagCopied)
	d.dirtyL1.add(table*l1EntrySize, (table+1)*l1EntrySize)
	d.newTables[table] = struct{}{}
}

// keepsTable tells whether the slices of an L2 table have to stay in memory:
// nothing on disk refers to it yet, or it is being copied. Driver.mu is held.
//
// +checklocks:d.mu
func (d *Driver) keepsTable(table int64) bool {
	if _, ok := d.newTables[table]; ok {
		return true
	}
	_, ok := d.unsharing[table]
	return ok
}
