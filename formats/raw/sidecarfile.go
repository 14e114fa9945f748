package raw

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash/crc32"

	"github.com/google/uuid"

	"blockd/bitmaps"
	"blockd/blockgraph"
)

// The file of a raw image's dirty bitmaps. All numbers are big-endian, offsets
// and lengths bytes.
//
// Two places of 4 KiB, at 0 and 4096, hold a header each in their first 512
// bytes; the valid one with the higher generation counts. A change writes what
// is new to where the present header refers to nothing, and then the other
// place. The header says which image the bitmaps belong to, and where the
// directory lies. An entry of the directory says where a bitmap's bits lie, in
// the form of the qcow2 specification ("Bitmap data"), in one piece. Bits have no
// checksum: they are set in place.

const (
	sideMagic   = "BLKDBMAP"
	sideVersion = 1

	slotSize   = 4096
	recordSize = 512
	dataStart  = 2 * slotSize

	sideClean  = 1 << 0 // flags of the header
	sideDevice = 1 << 1

	entryInconsistent = 1 << 0 // flags of an entry
	entryEnabled      = 1 << 1
	entrySize         = 24 // without the name

	// maxSideBitmaps bounds the bitmaps of one file, maxSideBytes the data of one,
	// as in qcow2, and maxSideLoaded what all take in memory, in bytes.
	maxSideBitmaps = 1024
	maxSideDir     = maxSideBitmaps * (entrySize + blockgraph.MaxBitmapName)
	maxSideBytes   = 512 << 20
	maxSideLoaded  = 1 << 30
	minSideBits    = 9  // log2 of a granularity
	maxSideBits    = 31 // log2 of a granularity
)

var crcTable = crc32.MakeTable(crc32.Castagnoli)

// errNotSide: a file that holds something else, or is damaged.
var errNotSide = errors.New("raw: not a file of dirty bitmaps")

// sideHeader is a header.
type sideHeader struct {
	generation uint64
	id         uuid.UUID // of the file, to tell sidecars apart
	clean      bool
	// image is which file the bitmaps belong to, as it was when the header was
	// written; its ID is hashed.
	image blockgraph.FileIdentity
	idSum [sha256.Size]byte // zero without an ID
	// start is where in the file the disk begins, and disk its length, which the
	// bitmaps cover. next is the length that it is about to get.
	start, disk, next int64
	// The directory.
	dir    area
	dirSum uint32
}

// area is bytes [off, off+n) of the file.
type area struct{ off, n int64 }

func (a area) end() int64 { return a.off + a.n }

// sideEntry is one bitmap's entry.
type sideEntry struct {
	name            string
	granularityBits uint8
	flags           uint32
	data            area

	// bits is the bitmap whose bits were written, or nil; loose: the file has bits
	// that it has not.
	bits  *bitmaps.Bitmap
	loose bool
}

func (e *sideEntry) recording() bool { return e.flags == entryEnabled }

func sumID(id string) (sum [sha256.Size]byte) {
	if id != "" {
		sum = sha256.Sum256([]byte(id))
	}
	return sum
}

// encode returns a header's place.
func (h *sideHeader) encode() []byte {
	be := binary.BigEndian
	b := append(make([]byte, 0, slotSize), sideMagic...)
	b = be.AppendUint32(b, sideVersion)
	flags := uint32(0)
	if h.clean {
		flags |= sideClean
	}
	if h.image.Device {
		flags |= sideDevice
	}
	b = be.AppendUint32(b, flags)
	b = be.AppendUint64(b, h.generation)
	b = append(b, h.id[:]...)
	for _, v := range []int64{int64(h.image.Dev), int64(h.image.Ino), h.image.Size, h.image.Modified, h.image.Changed,
		h.start, h.disk, h.next, h.dir.off, h.dir.n} {
		b = be.AppendUint64(b, uint64(v))
	}
	b = be.AppendUint32(b, h.dirSum)
	b = append(b, h.idSum[:]...)
	b = append(b, make([]byte, recordSize-4-len(b))...)
	b = be.AppendUint32(b, crc32.Checksum(b, crcTable))
	return b[:slotSize]
}

// decodeHeader reads one place.
func decodeHeader(b []byte) (*sideHeader, error) {
	be := binary.BigEndian
	if len(b) < recordSize || string(b[:8]) != sideMagic || crc32.Checksum(b[:recordSize-4], crcTable) != be.Uint32(b[recordSize-4:]) ||
		be.Uint32(b[8:]) != sideVersion {
		return nil, errNotSide
	}
	flags := be.Uint32(b[12:])
	if flags&^(sideClean|sideDevice) != 0 {
		return nil, errNotSide
	}
	h := &sideHeader{generation: be.Uint64(b[16:]), clean: flags&sideClean != 0}
	copy(h.id[:], b[24:40])
	var v [10]int64
	for i := range v {
		v[i] = int64(be.Uint64(b[40+8*i:]))
	}
	h.image = blockgraph.FileIdentity{Device: flags&sideDevice != 0, Dev: uint64(v[0]), Ino: uint64(v[1]), Size: v[2], Modified: v[3], Changed: v[4]}
	h.start, h.disk, h.next, h.dir = v[5], v[6], v[7], area{v[8], v[9]}
	h.dirSum = be.Uint32(b[120:])
	copy(h.idSum[:], b[124:156])
	if h.start < 0 || h.disk < 0 || h.next < 0 || h.dir.n < 0 || h.dir.n > maxSideDir || h.dir.n > 0 && h.dir.off < dataStart {
		return nil, errNotSide
	}
	return h, nil
}

// chooseHeader returns the header that counts, and which place has it; nil for a
// file in which none was ever written.
func chooseHeader(b []byte) (h *sideHeader, slot int, err error) {
	for i := range 2 {
		if x, err := decodeHeader(b[i*slotSize:]); err == nil && (h == nil || x.generation > h.generation) {
			h, slot = x, i
		}
	}
	if h == nil && len(bytes.Trim(b, "\x00")) > 0 {
		return nil, 0, errNotSide
	}
	return h, slot, nil
}

// encodeSideDir returns the directory.
func encodeSideDir(list []*sideEntry) []byte {
	be := binary.BigEndian
	var b []byte
	for _, e := range list {
		b = be.AppendUint64(b, uint64(e.data.off))
		b = be.AppendUint64(b, uint64(e.data.n))
		b = be.AppendUint32(b, e.flags)
		b = append(b, e.granularityBits, 0)
		b = be.AppendUint16(b, uint16(len(e.name)))
		b = append(b, e.name...)
	}
	return b
}

// decodeSideDir reads the directory of a header.
func decodeSideDir(h *sideHeader, b []byte) ([]*sideEntry, error) {
	if crc32.Checksum(b, crcTable) != h.dirSum {
		return nil, errNotSide
	}
	be := binary.BigEndian
	var list []*sideEntry
	names := map[string]bool{}
	for len(b) > 0 {
		if len(b) < entrySize || len(list) == maxSideBitmaps {
			return nil, errNotSide
		}
		e := &sideEntry{data: area{int64(be.Uint64(b)), int64(be.Uint64(b[8:]))}, flags: be.Uint32(b[16:]), granularityBits: b[20]}
		n := int(be.Uint16(b[22:]))
		if n == 0 || n > blockgraph.MaxBitmapName || n > len(b)-entrySize {
			return nil, errNotSide
		}
		reserved := b[21]
		e.name = string(b[entrySize : entrySize+n])
		b = b[entrySize+n:]
		switch {
		case names[e.name], reserved != 0, e.flags&^(entryEnabled|entryInconsistent) != 0,
			e.granularityBits < minSideBits, e.granularityBits > maxSideBits,
			e.data.off < dataStart, e.data.off > 1<<62, e.data.n != sideBytes(h.disk, e.granularityBits), e.data.n > maxSideBytes:
			return nil, errNotSide
		}
		names[e.name] = true
		list = append(list, e)
	}
	return list, nil
}

// sideBytes is how long the bits of a disk are.
func sideBytes(disk int64, granularityBits uint8) int64 {
	return bitmaps.SerialSize(disk, 1<<granularityBits)
}
