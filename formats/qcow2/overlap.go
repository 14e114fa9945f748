package qcow2

import (
	"sort"
	"sync"
	"sync/atomic"
)

// The overlap check: before anything is written, the place is compared with
// where the image's metadata lies, so that a wrong table entry does not let a
// guest overwrite it. Tables that are few and long are kept as a sorted list,
// L2 tables and refcount blocks in a hash table; both are read without a lock.

// metadataKind says what a place holds, as a bit mask like the field's.
type metadataKind uint16

const (
	kindHeader metadataKind = 1 << iota
	kindActiveL1
	kindActiveL2
	kindRefTable
	kindRefBlock
	kindSnapshotTable
	kindInactiveL1
	kindInactiveL2
	kindBitmapDir
	kindNames = 9

	overlapConstant = kindHeader | kindActiveL1 | kindRefTable | kindSnapshotTable | kindBitmapDir
	overlapCached   = overlapConstant | kindActiveL2 | kindRefBlock | kindInactiveL1
	overlapAll      = overlapCached | kindInactiveL2
)

var kindName = [kindNames]string{
	"qcow2_header", "active L1 table", "active L2 table", "refcount table", "refcount block",
	"snapshot table", "inactive L1 table", "inactive L2 table", "bitmap directory",
}

func (k metadataKind) String() string {
	for i, name := range kindName {
		if k&(1<<i) != 0 {
			return name
		}
	}
	return "nothing"
}

// place is a range of bytes in the file that holds metadata.
type place struct {
	from, to int64
	kind     metadataKind
}

// metadataMap is where the image's metadata lies.
type metadataMap struct {
	clusterBits uint32
	places      atomic.Pointer[[]place] // sorted; may overlap
	table       atomic.Pointer[clusterTable]

	mu sync.Mutex // serialises changes
}

// clusterTable is an open-addressed set of clusters: each word is
// cluster<<1 | 1 for an L2 table, cluster<<1 for a refcount block, plus 2 so
// that no entry is 0; 1 is an entry that was removed.
type clusterTable struct {
	words []atomic.Uint64
	used  int // words that are not 0
}

const removedWord = 1

func clusterWord(cluster int64, kind metadataKind) uint64 {
	w := uint64(cluster)<<1 + 2
	if kind == kindActiveL2 {
		w |= 1
	}
	return w
}

func (t *clusterTable) slot(cluster int64) uint64 {
	return uint64(cluster) * 0x9e3779b97f4a7c15 >> 20 & uint64(len(t.words)-1)
}

func (t *clusterTable) kind(cluster int64) metadataKind {
	base := clusterWord(cluster, kindRefBlock)
	for i := t.slot(cluster); ; i = (i + 1) & uint64(len(t.words)-1) {
		switch w := t.words[i].Load(); w {
		case 0:
			return 0
		case base:
			return kindRefBlock
		case base | 1:
			return kindActiveL2
		}
	}
}

func (t *clusterTable) put(w uint64) {
	i := t.slot(int64((w - 2) >> 1))
	for t.words[i].Load() != 0 {
		i = (i + 1) & uint64(len(t.words)-1)
	}
	t.words[i].Store(w)
	t.used++
}

func newMetadataMap(clusterBits uint32) *metadataMap {
	m := &metadataMap{clusterBits: clusterBits}
	m.places.Store(&[]place{})
	m.table.Store(&clusterTable{words: make([]atomic.Uint64, 64)})
	return m
}

// add notes that a cluster holds an L2 table or a refcount block.
func (m *metadataMap) add(cluster int64, kind metadataKind) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.table.Load()
	if t.kind(cluster) != 0 {
		return
	}
	if 2*(t.used+1) > len(t.words) {
		live := 0
		for i := range t.words {
			if t.words[i].Load() > removedWord {
				live++
			}
		}
		size := 64
		for size < 4*(live+1) {
			size *= 2
		}
		bigger := &clusterTable{words: make([]atomic.Uint64, size)}
		for i := range t.words {
			if w := t.words[i].Load(); w > removedWord {
				bigger.put(w)
			}
		}
		bigger.put(clusterWord(cluster, kind))
		m.table.Store(bigger)
		return
	}
	t.put(clusterWord(cluster, kind))
}

// remove notes that a cluster holds metadata no more.
func (m *metadataMap) remove(cluster int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.table.Load()
	base := clusterWord(cluster, kindRefBlock)
	for i := t.slot(cluster); t.words[i].Load() != 0; i = (i + 1) & uint64(len(t.words)-1) {
		if t.words[i].Load()|1 == base|1 {
			t.words[i].Store(removedWord)
			return
		}
	}
}

// setPlaces replaces the list of places of one kind.
func (m *metadataMap) setPlaces(kind metadataKind, list ...place) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []place
	for _, p := range *m.places.Load() {
		if p.kind != kind {
			all = append(all, p)
		}
	}
	for _, p := range list {
		if p.to > p.from {
			all = append(all, p)
		}
	}
	sort.Slice(all, func(i, j int) bool { return all[i].from < all[j].from })
	// Each place also covers what an earlier one reaches past it, so that a
	// search needs to look at one neighbour only; places of sound images do
	// not overlap.
	for i := 1; i < len(all); i++ {
		if all[i-1].to > all[i].to {
			all[i].to = all[i-1].to
		}
	}
	m.places.Store(&all)
}

// at returns what kind of metadata, among the kinds asked for, lies in the
// clusters of bytes [off, off+n) of the file; 0 is none.
func (m *metadataMap) at(off, n int64, kinds metadataKind) metadataKind {
	cluster := int64(1) << m.clusterBits
	n = (off + n + cluster - 1) &^ (cluster - 1)
	off &^= cluster - 1
	n -= off
	list := *m.places.Load()
	i := sort.Search(len(list), func(i int) bool { return list[i].to > off })
	last := metadataKind(0) // what a table that is shared is called last
	for ; i < len(list) && list[i].from < off+n; i++ {
		if k := list[i].kind & kinds; k&^kindInactiveL2 != 0 {
			return k
		} else if k != 0 {
			last = k
		}
	}
	if kinds&(kindActiveL2|kindRefBlock) == 0 {
		return last
	}
	t := m.table.Load()
	for c := off >> m.clusterBits; c<<m.clusterBits < off+n; c++ {
		if k := t.kind(c) & kinds; k != 0 {
			return k
		}
	}
	return last
}

// invalidWrite is the field's text.
const invalidWrite = "Preventing invalid write on metadata (overlaps with %s)"

// checkOverlap holds that bytes [off, off+n) of the file may be written as
// kind own (0: guest data). A violation is a fatal corruption.
func (d *Driver) checkOverlap(off, n int64, own metadataKind) error {
	kinds := metadataKind(d.overlap.Load()) &^ own
	if kinds == 0 {
		return nil
	}
	if k := d.meta.at(off, n, kinds); k != 0 {
		return d.corrupt(true, off, n, invalidWrite, k)
	}
	return nil
}
