package qcow2

// What is wrong with an entry of a table, in the field's words: the one judgement
// of the check of an image that nobody uses (check.go) and of one that guests use
// (inspect.go). How the tables are gone through, and how references are counted,
// is theirs.

const (
	l1Reserved       = 0x7f000000000001ff
	l2Reserved       = 0x3f000000000001fe
	refTableReserved = 0x1ff
)

// faultFunc is told of each fault of an entry.
type faultFunc = func(format string, args ...any)

// judgeL1Entry returns where the L2 table of an entry of an L1 table lies, in
// bytes; 0: there is none. Unless it is aligned, the table is not to be read.
func (h *header) judgeL1Entry(e uint64, fault faultFunc) (off int64, aligned bool) {
	off = int64(e & l1OffsetMask)
	if e&l1Reserved != 0 {
		fault("found L1 entry with reserved bits set: %x", e)
	}
	if off&(h.clusterSize-1) != 0 {
		fault("l2_offset=%x: Table is not cluster aligned; L1 entry corrupted", off)
		return off, false
	}
	return off, true
}

// judgeL2Entry returns the bytes of the image's file that an entry of an L2 table
// refers to; none: a length of 0.
func (h *header) judgeL2Entry(e l2Entry, fault faultFunc) (off, n int64) {
	if e.word&flagCompressed != 0 {
		return h.judgeCompressed(e, fault)
	}
	off = int64(e.word & l2OffsetMask)
	if e.word&l2Reserved != 0 {
		fault("found l2 entry with reserved bits set: %x", e.word)
	}
	switch {
	case e.bitmap&(e.bitmap>>32) != 0:
		fault("offset=%x: Allocated cluster has corrupted subcluster allocation bitmap", off)
	case !h.hasPlace(e) && uint32(e.bitmap) != 0:
		fault("Unallocated cluster has non-zero subcluster allocation map")
	}
	if h.hasPlace(e) && off&(h.clusterSize-1) != 0 {
		fault("offset=%x: cluster is not properly aligned; L2 entry corrupted", off)
	}
	return h.placeOf(e)
}

// judgeCompressed is judgeL2Entry for a compressed cluster.
func (h *header) judgeCompressed(e l2Entry, fault faultFunc) (off, n int64) {
	off, n = h.compressedExtent(e.word)
	if e.word&flagCopied != 0 {
		fault("coffset=0x%x: copied flag must never be set for compressed clusters", off)
	}
	switch {
	case h.external:
		fault("compressed cluster with data file, entry=0x%x", e.word)
		return 0, 0
	case e.bitmap != 0:
		fault("compressed cluster with non-zero subcluster allocation bitmap, entry=0x%x", e.word)
		return 0, 0
	}
	return off, n
}

// judgeRefTableEntry returns where the refcount block of entry i of the refcount
// table lies, in a file of size bytes; 0: all its counts are 0. One that is not
// sound does not lie anywhere.
func (h *header) judgeRefTableEntry(i int64, e uint64, size int64, fault faultFunc) (off int64, sound bool) {
	off = int64(e & refTableMask)
	switch {
	case e&refTableReserved != 0:
		fault("refcount table entry %d has reserved bits set", i)
	case off == 0:
		return 0, true
	case off&(h.clusterSize-1) != 0:
		fault("refcount block %d is not cluster aligned; refcount table entry corrupted", i)
	case off < 0 || off >= size:
		fault("refcount block %d is outside image", i)
	default:
		return off, true
	}
	return off, false
}
