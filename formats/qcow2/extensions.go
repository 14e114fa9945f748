package qcow2

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
)

// The header extensions (specification: "Header extensions"). They lie between
// the fixed fields and the backing file's name, in the first cluster. What we
// do not know is kept byte for byte when the area is rewritten.

const (
	extEnd           = 0x00000000
	extBackingFormat = 0xe2792aca
	extFeatureNames  = 0x6803f857
	extBitmaps       = 0x23852875
	extCrypto        = 0x0537be77
	extDataFile      = 0x44415441

	featureRecord = 48 // type, bit, 46 bytes of name
	bitmapsExtLen = 24

	maxBackingFormat = 15 // bytes
	maxBitmaps       = 65535
	maxBitmapDir     = 64 << 20
)

// extension is one that is kept as it is.
type extension struct {
	magic uint32
	data  []byte
}

type extensions struct {
	backingFormat string
	dataFile      string // name of the external data file
	features      []byte // feature name table
	others        []extension
	bitmaps       bitmapsExt
	crypto        cryptoExt // of others, what it says
	// end is the offset after the end marker, in bytes.
	end int64
}

// outdatedBitmaps tells whether there is a bitmaps extension that is not in
// force.
func (e *extensions) outdatedBitmaps() bool {
	return slices.ContainsFunc(e.others, func(x extension) bool { return x.magic == extBitmaps })
}

// setBitmaps has the extension point to another directory, or be none. One that
// was not in force is dropped.
func (e *extensions) setBitmaps(count int, offset, size int64) {
	e.others = slices.DeleteFunc(slices.Clone(e.others), func(x extension) bool { return x.magic == extBitmaps })
	e.bitmaps = bitmapsExt{}
	if count > 0 {
		e.bitmaps = bitmapsExt{present: true, count: uint32(count), offset: uint64(offset), size: uint64(size)}
	}
}

// bitmapsExt points to the bitmap directory, when the image has one.
type bitmapsExt struct {
	present bool
	count   uint32
	offset  uint64 // bytes
	size    uint64 // bytes
}

// parseExtensions reads the extensions in b, the first cluster, from byte
// start up to limit.
func parseExtensions(h *header, b []byte, start, limit int64) (*extensions, error) {
	e := &extensions{}
	be := binary.BigEndian
	off := start
	for off < limit {
		if off+8 > limit {
			return nil, errHeader("Header extension too large")
		}
		id, n := be.Uint32(b[off:]), int64(be.Uint32(b[off+4:]))
		off += 8
		if n > limit-off {
			return nil, errHeader("Header extension too large")
		}
		data := b[off : off+n : off+n]
		switch id {
		case extEnd:
			e.end = off
			return e, nil
		case extBackingFormat:
			if n > maxBackingFormat {
				return nil, errHeader("ERROR: ext_backing_format: len=%d too large (>=%d)", n, maxBackingFormat+1)
			}
			e.backingFormat = strings.TrimRight(string(data), "\x00")
		case extDataFile:
			if h.incompatible&incompatDataFile == 0 {
				e.keep(id, data)
				break
			}
			e.dataFile = string(data)
		case extCrypto:
			if err := e.parseCrypto(h, data); err != nil {
				return nil, err
			}
			e.keep(id, data)
		case extFeatureNames:
			e.features = append([]byte(nil), data...)
		case extBitmaps:
			if err := e.parseBitmaps(h, data); err != nil {
				return nil, err
			}
			if !e.bitmaps.present {
				e.keep(id, data)
			}
		default:
			e.keep(id, data)
		}
		off += (n + 7) &^ 7
	}
	e.end = min(off, limit)
	return e, nil
}

func (e *extensions) keep(id uint32, data []byte) {
	e.others = append(e.others, extension{id, append([]byte(nil), data...)})
}

func (e *extensions) parseBitmaps(h *header, data []byte) error {
	if len(data) != bitmapsExtLen {
		return errHeader("bitmaps_ext: Invalid extension length")
	}
	if h.autoclear&autoclearBitmaps == 0 {
		return nil // outdated; whoever knows bitmaps drops it
	}
	be := binary.BigEndian
	n := be.Uint32(data)
	size, offset := be.Uint64(data[8:]), be.Uint64(data[16:])
	switch {
	case be.Uint32(data[4:]) != 0:
		return errHeader("bitmaps_ext: Reserved field is not zero")
	case n > maxBitmaps:
		return errHeader("bitmaps_ext: Image has %d bitmaps, exceeding the QEMU supported maximum of %d", n, maxBitmaps)
	case n == 0:
		return errHeader("found bitmaps extension with zero bitmaps")
	case offset&uint64(h.clusterSize-1) != 0 || offset > maxHostOffset:
		return errHeader("bitmaps_ext: invalid bitmap directory offset")
	case size > maxBitmapDir:
		return errHeader("bitmaps_ext: bitmap directory size (%d) exceeds the maximum supported size (%d)", size, maxBitmapDir)
	}
	e.bitmaps = bitmapsExt{present: true, count: n, offset: offset, size: size}
	return nil
}

// featureNames lists the incompatible features in mask by the image's own
// names for them.
func (e *extensions) featureNames(mask uint64) string {
	var names []string
	if e != nil {
		// The last one may be short, as in the field.
		for t := range slices.Chunk(e.features, featureRecord) {
			if len(t) <= 2 || t[2] == 0 {
				break
			}
			if bit := uint64(1) << (t[1] & 63); t[0] == 0 && t[1] < 64 && mask&bit != 0 {
				name, _, _ := strings.Cut(string(t[2:]), "\x00")
				names = append(names, name)
				mask &^= bit
			}
		}
	}
	if mask != 0 {
		names = append(names, fmt.Sprintf("Unknown incompatible feature: %x", mask))
	}
	return strings.Join(names, ", ")
}

// encode returns the extensions as they stand in a header, with their end
// marker; the feature names are left out when names is false.
func (e *extensions) encode(names bool) []byte {
	var b []byte
	add := func(id uint32, data []byte) {
		b = binary.BigEndian.AppendUint32(b, id)
		b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
		b = append(b, data...)
		for len(b)%8 != 0 {
			b = append(b, 0)
		}
	}
	if e.backingFormat != "" {
		add(extBackingFormat, []byte(e.backingFormat))
	}
	if e.dataFile != "" {
		add(extDataFile, []byte(e.dataFile))
	}
	if x := e.bitmaps; x.present {
		// In the first sector, so that it changes with the rest of the header.
		data := binary.BigEndian.AppendUint32(nil, x.count)
		data = binary.BigEndian.AppendUint32(data, 0)
		data = binary.BigEndian.AppendUint64(data, x.size)
		add(extBitmaps, binary.BigEndian.AppendUint64(data, x.offset))
	}
	for _, x := range e.others {
		add(x.magic, x.data)
	}
	if names && len(e.features) > 0 {
		add(extFeatureNames, e.features)
	}
	add(extEnd, nil)
	return b
}

// ourFeatures is the feature name table of images that we create.
func ourFeatures() []byte {
	var b []byte
	for _, f := range []struct {
		kind, bit byte
		name      string
	}{
		{0, 0, "dirty bit"}, {0, 1, "corrupt bit"}, {0, 2, "external data file"},
		{0, 3, "compression type"}, {0, 4, "extended L2 entries"},
		{1, 0, "lazy refcounts"}, {2, 0, "bitmaps"}, {2, 1, "raw external data"},
	} {
		rec := make([]byte, featureRecord)
		rec[0], rec[1] = f.kind, f.bit
		copy(rec[2:], f.name)
		b = append(b, rec...)
	}
	return b
}
