package qcow2

import (
	"context"
	"encoding/binary"
	"math/bits"
	"syscall"

	"blockd/blockgraph"
)

// The header (specification: "Header"). Its fixed fields lie in the image's
// first sector, so that each change of them is one atomic write. The copy in
// memory is what is known to be on disk.

const (
	magic = 0x514649fb // "QFI\xfb"

	minClusterBits = 9
	maxClusterBits = 21
	// minExtendedClusterBits: a subcluster is no less than a sector.
	minExtendedClusterBits = minClusterBits + subclusterBits

	v2HeaderLength = 72
	v3HeaderLength = 104 // without the compression type
	ourHeader      = 112 // length of headers that we write

	// sector is the unit that reaches the disk whole or not at all, in bytes.
	sector = 512

	// Limits on what an image may make us allocate, in bytes.
	maxL1Size       = 32 << 20
	maxRefTableSize = 8 << 20

	maxBackingName = 1023
	// maxHostOffset is the end of the offsets that table entries can hold.
	maxHostOffset = 1 << 56
)

// Feature bits (specification: "incompatible_features" and following).
const (
	incompatDirty       = 1 << 0
	incompatCorrupt     = 1 << 1
	incompatDataFile    = 1 << 2
	incompatCompression = 1 << 3
	incompatExtendedL2  = 1 << 4
	incompatKnown       = incompatDirty | incompatCorrupt | incompatCompression | incompatDataFile | incompatExtendedL2

	compatLazyRefcounts = 1 << 0

	autoclearBitmaps = 1 << 0
	autoclearRaw     = 1 << 1
)

// Compression types.
const (
	compressionZlib = 0
	compressionZstd = 1
)

// Offsets of fields that change while an image is open.
const (
	fieldBackingOffset  = 8
	fieldBackingSize    = 16
	fieldSize           = 24
	fieldCryptMethod    = 32
	fieldL1Size         = 36
	fieldL1Offset       = 40
	fieldRefTableOffset = 48
	fieldRefTableSize   = 56
	fieldSnapshots      = 60
	fieldSnapshotsAt    = 64
	fieldIncompatible   = 72
	fieldCompatible     = 80
	fieldAutoclear      = 88
	fieldRefcountOrder  = 96
	fieldHeaderLength   = 100
)

// header holds the decoded fixed fields.
type header struct {
	version           uint32
	backingOffset     uint64
	backingSize       uint32
	clusterBits       uint32
	size              uint64
	cryptMethod       uint32
	l1Size            uint32 // entries
	l1Offset          uint64
	refTableOffset    uint64
	refTableClusters  uint32
	snapshots         uint32
	snapshotsOffset   uint64
	incompatible      uint64
	compatible        uint64
	autoclear         uint64
	refcountOrder     uint32
	length            uint32
	compression       uint8
	clusterSize       int64
	extended          bool   // L2 entries
	external          bool   // data file
	raw               bool   // data file
	plain             bool   // neither extended nor external
	l2EntryBits       uint32 // log2 of the size of an L2 entry in bytes
	l2Bits            uint32 // log2 of the entries of an L2 table
	subclusterShift   uint32 // log2 of the size of a subcluster in bytes
	refBlockBits      uint32 // log2 of the entries of a refcount block
	compressedShift   uint32
	compressedSizeMax uint64 // mask of the sector count of a compressed cluster
}

// errHeader makes the field's errors of a bad header.
func errHeader(format string, args ...any) error {
	return blockgraph.Errorf(syscall.EINVAL, format, args...)
}

// parseHeader decodes and checks the fixed fields in the first sector.
func parseHeader(b []byte) (*header, error) {
	be := binary.BigEndian
	h := &header{
		version:          be.Uint32(b[4:]),
		backingOffset:    be.Uint64(b[8:]),
		backingSize:      be.Uint32(b[16:]),
		clusterBits:      be.Uint32(b[20:]),
		size:             be.Uint64(b[24:]),
		cryptMethod:      be.Uint32(b[32:]),
		l1Size:           be.Uint32(b[36:]),
		l1Offset:         be.Uint64(b[40:]),
		refTableOffset:   be.Uint64(b[48:]),
		refTableClusters: be.Uint32(b[56:]),
		snapshots:        be.Uint32(b[60:]),
		snapshotsOffset:  be.Uint64(b[64:]),
		refcountOrder:    4,
		length:           v2HeaderLength,
	}
	if be.Uint32(b) != magic {
		return nil, errHeader("Image is not in qcow2 format")
	}
	if h.version < 2 || h.version > 3 {
		return nil, blockgraph.Errorf(syscall.ENOTSUP, "Unsupported qcow2 version %d", h.version)
	}
	if h.clusterBits < minClusterBits || h.clusterBits > maxClusterBits {
		return nil, errHeader("Unsupported cluster size: 2^%d", h.clusterBits)
	}
	h.clusterSize = 1 << h.clusterBits
	if h.version >= 3 {
		h.incompatible = be.Uint64(b[72:])
		h.compatible = be.Uint64(b[80:])
		h.autoclear = be.Uint64(b[88:])
		h.refcountOrder = be.Uint32(b[96:])
		h.length = be.Uint32(b[100:])
		if h.length < v3HeaderLength {
			return nil, errHeader("qcow2 header too short")
		}
	}
	if int64(h.length) > h.clusterSize {
		return nil, errHeader("qcow2 header exceeds cluster size")
	}
	if h.backingOffset > uint64(h.clusterSize) {
		return nil, errHeader("Invalid backing file offset")
	}
	if h.length > v3HeaderLength {
		h.compression = b[104]
	}
	return h, nil
}

// checkFeatures refuses what the driver does not know. ext is the extension
// area, for the names of features.
func (h *header) checkFeatures(ext *extensions) error {
	if h.compression > compressionZstd {
		return blockgraph.Errorf(syscall.ENOTSUP, "qcow2: unknown compression type: %d", h.compression)
	}
	if bit := h.incompatible&incompatCompression != 0; bit != (h.compression != compressionZlib) {
		if bit {
			return errHeader("qcow2: Compression type incompatible feature bit must not be set")
		}
		return errHeader("qcow2: Compression type incompatible feature bit must be set")
	}
	if unknown := h.incompatible &^ incompatKnown; unknown != 0 {
		return blockgraph.Errorf(syscall.ENOTSUP, "Unsupported qcow2 feature(s): %s", ext.featureNames(unknown))
	}
	if h.incompatible&incompatExtendedL2 != 0 && h.clusterBits < minExtendedClusterBits {
		return errHeader("Extended L2 entries are only supported with cluster sizes of at least %d bytes", 1<<minExtendedClusterBits)
	}
	if h.refcountOrder > 6 {
		return errHeader("Reference count entry width too large; may not exceed 64 bits")
	}
	if h.cryptMethod > cryptLUKS {
		return blockgraph.Errorf(syscall.ENOTSUP, "Unsupported encryption method %d", h.cryptMethod)
	}
	return nil
}

// checkTables checks the place and size of the tables that the header names,
// and derives the geometry.
func (h *header) checkTables() error {
	h.setGeometry()
	if err := h.checkTable(h.refTableOffset, uint64(h.refTableClusters), uint64(h.clusterSize), maxRefTableSize, "Reference count table"); err != nil {
		return err
	}
	if err := h.checkTable(h.snapshotsOffset, uint64(h.snapshots), snapshotHeader, snapshotHeader*maxSnapshots, "Snapshot table"); err != nil {
		return err
	}
	if err := h.checkTable(h.l1Offset, uint64(h.l1Size), 8, maxL1Size, "Active L1 table"); err != nil {
		return err
	}
	need := h.l1Entries(h.size)
	if need > 1<<31-1 || h.size > 1<<63-1 {
		return blockgraph.Errorf(syscall.EFBIG, "Image is too big")
	}
	if uint64(h.l1Size) < need {
		return errHeader("L1 table is too small")
	}
	return nil
}

// setGeometry derives fields from others.
func (h *header) setGeometry() {
	h.extended, h.external = h.incompatible&incompatExtendedL2 != 0, h.incompatible&incompatDataFile != 0
	h.l2EntryBits, h.subclusterShift = 3, h.clusterBits
	if h.extended {
		h.l2EntryBits, h.subclusterShift = 4, h.clusterBits-subclusterBits
	}
	h.raw = h.external && h.autoclear&autoclearRaw != 0
	h.plain = !h.extended && !h.external
	h.l2Bits = h.clusterBits - h.l2EntryBits
	h.refBlockBits = h.clusterBits + 3 - h.refcountOrder
	h.compressedShift = 62 - (h.clusterBits - 8)
	h.compressedSizeMax = 1<<(h.clusterBits-8) - 1
}

func (h *header) checkTable(offset, entries, entryLen, maxBytes uint64, name string) error {
	if entries > maxBytes/entryLen {
		return blockgraph.Errorf(syscall.EFBIG, "%s too large", name)
	}
	if 1<<63-1-entries*entryLen < offset || offset&uint64(h.clusterSize-1) != 0 {
		return errHeader("%s offset invalid", name)
	}
	return nil
}

// l1Entries returns how many L1 entries a disk of size bytes needs.
func (h *header) l1Entries(size uint64) uint64 {
	shift := h.clusterBits + h.l2Bits
	n := size >> shift
	if size&(1<<shift-1) != 0 {
		n++
	}
	return n
}

// clusters returns how many clusters n bytes take.
func (h *header) clusters(n int64) int64 {
	c := n >> h.clusterBits
	if n&(h.clusterSize-1) != 0 {
		c++
	}
	return c
}

// updateHeader changes fixed fields of the header on disk. Updates take turns;
// only they wait for each other's I/O.
func (d *Driver) updateHeader(ctx context.Context, change func(sector []byte)) error {
	select {
	case d.headerTurn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-d.headerTurn }()
	next := make([]byte, sector)
	copy(next, d.head[:sector])
	change(next)
	if err := writeAt(ctx, d.file(), 0, next); err != nil {
		return err
	}
	copy(d.head, next)
	return nil
}

func isPowerOfTwo(n uint64) bool { return bits.OnesCount64(n) == 1 }
