package qcow2

import (
	"context"
	"encoding/binary"
	"log/slog"
	"math/bits"
	"slices"
	"syscall"

	"blockd/bitmaps"
	"blockd/blockgraph"
	"blockd/ioengine"
	"blockd/qapi"
)

// Reading of the bitmaps in an image (specification: "Bitmaps"): the extension
// points to a directory, an entry of which points to a bitmap's table, which
// points to the clusters of its data.

const (
	bitmapInUse     = 1 << 0
	bitmapAuto      = 1 << 1
	bitmapFlags     = bitmapInUse | bitmapAuto
	bitmapType      = 1 // dirty tracking
	bitmapEntrySize = 24
	bitmapAllOnes   = 1 // a table entry without a cluster
	bitmapReserved  = 0xff000000000001fe

	minGranularityBits = 9
	maxGranularityBits = 31
	maxBitmapTable     = 1 << 27 // entries
	maxBitmapBytes     = 512 << 20
	// maxLoaded bounds what the bitmaps of one image take in memory, in bytes: each
	// may be as long as is allowed, and all may have the same data.
	maxLoaded = 1 << 30
)

// storedBitmap is a bitmap as the image has it.
type storedBitmap struct {
	name            string
	granularityBits uint8
	flags           uint32
	tableOffset     int64
	tableSize       int64    // entries
	table           []uint64 // those that could be read
	size            int64    // of the disk when the data was written, in bytes

	// bits is the bitmap whose bits were written, or nil.
	bits *bitmaps.Bitmap
	// loose: the image has bits that the bitmap has not.
	loose bool
	// settled: its place in the directory is from when the image was opened or
	// given up last, and stays.
	settled bool
}

func dirEntrySize(name string) int64 { return (bitmapEntrySize + int64(len(name)) + 7) &^ 7 }

// tableEntries returns how many clusters the data of a bitmap over size bytes
// takes.
func (h *header) tableEntries(size int64, granularityBits uint8) int64 {
	n := size >> granularityBits
	if size&(1<<granularityBits-1) != 0 {
		n++
	}
	return h.clusters((n + 7) / 8)
}

// loadBitmaps reads the directory and every bitmap that is sound.
func (d *Driver) loadBitmaps(ctx context.Context) error {
	if d.ext.outdatedBitmaps() {
		slog.Warn("a program lacking bitmap support modified this file, so all bitmaps are now considered inconsistent; some clusters may be leaked, run 'qemu-img check -r' on the image file to fix", "file", fileName(d.file()))
	}
	dir, err := d.readBitmapDir(ctx)
	if err != nil {
		return err
	}
	s := &d.bitmaps
	loaded := int64(0)
	for _, e := range dir {
		b := &blockgraph.DirtyBitmap{
			Name: e.name, Persistent: true, ReadOnly: d.readOnly.Load(),
			Disabled: e.flags&bitmapAuto == 0, Inconsistent: e.flags&bitmapInUse != 0,
		}
		granularity := int64(1) << e.granularityBits
		if err := bitmaps.Check(d.size.Load(), granularity); err != nil {
			return err
		}
		// What an empty one takes, roughly.
		if loaded += d.size.Load() >> e.granularityBits / 256; loaded > maxLoaded {
			return errTooLarge(e)
		}
		b.Bits = bitmaps.New(d.size.Load(), granularity)
		if err := d.readBitmap(ctx, e, b.Bits, &loaded); err != nil {
			return err
		}
		e.bits, e.size, e.settled = b.Bits, d.size.Load(), true
		s.want = append(s.want, b)
	}
	// The newest is the first in memory and the last in the directory.
	slices.Reverse(s.want)
	x := d.ext.bitmaps
	s.setDir(dir, place{int64(x.offset), int64(x.offset + x.size), kindBitmapDir})
	s.stored = true
	return nil
}

func fileName(f storage) string {
	if n := f.Node(); n != nil {
		return n.ExactFilename()
	}
	return ""
}

// readBitmapDir reads and checks the directory.
func (d *Driver) readBitmapDir(ctx context.Context) ([]*storedBitmap, error) {
	x := d.ext.bitmaps
	if !x.present {
		return nil, nil
	}
	if x.size == 0 {
		return nil, errHeader("Requested bitmap directory size is zero")
	}
	if int64(x.offset) > d.file().Size()-int64(x.size) {
		return nil, errHeader("bitmaps_ext: the bitmap directory (offset %#x, %d bytes) lies past the end of the file", x.offset, x.size)
	}
	buf := ioengine.Bounce(int(x.size))
	defer buf.Release()
	if err := readAt(ctx, d.file(), int64(x.offset), buf.Bytes()); err != nil {
		return nil, blockgraph.Errorf(blockgraph.Errno(err), "Failed to read bitmap directory: %s", blockgraph.Strerror(err))
	}
	be := binary.BigEndian
	var dir []*storedBitmap
	names := map[string]bool{}
	for p := buf.Bytes(); len(p) > 0; {
		if len(p) < bitmapEntrySize {
			return nil, errHeader("Broken bitmap directory")
		}
		if len(dir) == int(x.count) {
			return nil, errHeader("More bitmaps found than specified in header extension")
		}
		e := &storedBitmap{
			tableOffset: int64(be.Uint64(p)), tableSize: int64(be.Uint32(p[8:])), flags: be.Uint32(p[12:]), granularityBits: p[17],
		}
		nameLen, extra := int64(be.Uint16(p[18:])), int64(be.Uint32(p[20:]))
		size := (bitmapEntrySize + nameLen + extra + 7) &^ 7
		if size > int64(len(p)) {
			return nil, errHeader("Broken bitmap directory")
		}
		if extra != 0 {
			return nil, errHeader("Bitmap extra data is not supported")
		}
		e.name = string(p[bitmapEntrySize : bitmapEntrySize+nameLen])
		if !d.soundEntry(e, p[16], nameLen) || names[e.name] {
			return nil, errHeader("Bitmap '%s' doesn't satisfy the constraints", e.name)
		}
		names[e.name] = true
		dir = append(dir, e)
		p = p[size:]
	}
	if len(dir) != int(x.count) {
		return nil, errHeader("Less bitmaps found than specified in header extension")
	}
	return dir, nil
}

func (d *Driver) soundEntry(e *storedBitmap, kind byte, nameLen int64) bool {
	cs := d.h.clusterSize
	switch {
	case e.tableSize == 0, e.tableSize > maxBitmapTable, e.tableSize > maxBitmapBytes/cs,
		e.tableOffset <= 0, e.tableOffset&(cs-1) != 0, e.tableOffset >= maxHostOffset,
		e.granularityBits < minGranularityBits, e.granularityBits > maxGranularityBits,
		e.flags&^bitmapFlags != 0, nameLen > blockgraph.MaxBitmapName, kind != bitmapType:
		return false
	}
	return e.flags&bitmapInUse != 0 || d.h.tableEntries(d.size.Load(), e.granularityBits) <= e.tableSize
}

// readBitmap reads a bitmap's table and data. loaded counts the memory of all.
func (d *Driver) readBitmap(ctx context.Context, e *storedBitmap, to *bitmaps.Bitmap, loaded *int64) error {
	f := d.file()
	fail := func(format string, err error) error {
		return blockgraph.Errorf(blockgraph.Errno(err), format+": %s", e.name, blockgraph.Strerror(err))
	}
	const badTable, badData = "Could not read bitmap_table table from image for bitmap '%s'", "Could not read bitmap '%s' from image"
	inUse := e.flags&bitmapInUse != 0
	if e.tableOffset > f.Size()-e.tableSize*8 {
		if inUse {
			return nil // it has nothing that could be given up
		}
		return fail(badTable, syscall.EINVAL)
	}
	raw := ioengine.Bounce(int(e.tableSize * 8))
	defer raw.Release()
	if err := readAt(ctx, f, e.tableOffset, raw.Bytes()); err != nil {
		return fail(badTable, err)
	}
	if !inUse && e.tableSize != d.h.tableEntries(d.size.Load(), e.granularityBits) {
		return fail(badData, syscall.EINVAL)
	}
	cs := d.h.clusterSize
	end := f.Size()
	*loaded += e.tableSize * 8
	e.table = make([]uint64, e.tableSize)
	data := ioengine.Bounce(int(cs))
	defer data.Release()
	for i := range e.table {
		v := binary.BigEndian.Uint64(raw.Bytes()[i*8:])
		off := int64(v & l2OffsetMask)
		if v&bitmapReserved != 0 || off&(cs-1) != 0 || off >= end || off != 0 && v&bitmapAllOnes != 0 {
			if inUse {
				continue // its clusters leak when it is removed
			}
			return fail(badTable, syscall.EINVAL)
		}
		e.table[i] = v
		if inUse {
			continue // the data means nothing
		}
		at := int64(i) * cs
		if off == 0 && v&bitmapAllOnes == 0 {
			continue
		}
		if *loaded += cs; *loaded > maxLoaded {
			return errTooLarge(e)
		}
		if off == 0 {
			first := at * 8 << e.granularityBits
			to.Set(first, cs*8<<e.granularityBits)
			continue
		}
		if err := readAt(ctx, f, off, data.Bytes()); err != nil {
			return fail(badData, err)
		}
		to.Deserialize(at, data.Bytes())
	}
	return nil
}

func errTooLarge(e *storedBitmap) error {
	return blockgraph.Errorf(syscall.EFBIG, "Could not read bitmap '%s' from image: %s", e.name, blockgraph.Strerror(syscall.EFBIG))
}

// encodeDir returns the directory as it stands in the image.
func encodeDir(dir []*storedBitmap) []byte {
	var b []byte
	be := binary.BigEndian
	for _, e := range dir {
		b = be.AppendUint64(b, uint64(e.tableOffset))
		b = be.AppendUint32(b, uint32(e.tableSize))
		b = be.AppendUint32(b, e.flags)
		b = append(b, bitmapType, e.granularityBits)
		b = be.AppendUint16(b, uint16(len(e.name)))
		b = be.AppendUint32(b, 0)
		b = append(b, e.name...)
		for len(b)%8 != 0 {
			b = append(b, 0)
		}
	}
	return b
}

// bitmapInfos tells about the bitmaps in the image.
func bitmapInfos(dir []*storedBitmap) []qapi.Qcow2BitmapInfo {
	var list []qapi.Qcow2BitmapInfo
	for _, e := range dir {
		info := qapi.Qcow2BitmapInfo{Name: e.name, Granularity: 1 << e.granularityBits, Flags: []qapi.Qcow2BitmapInfoFlags{}}
		if e.flags&bitmapInUse != 0 {
			info.Flags = append(info.Flags, qapi.Qcow2BitmapInfoFlagsInUse)
		}
		if e.flags&bitmapAuto != 0 {
			info.Flags = append(info.Flags, qapi.Qcow2BitmapInfoFlagsAuto)
		}
		list = append(list, info)
	}
	return list
}

// errBitmapOfNothing: the format has no form for the bitmap of an empty disk. What
// the field writes then it refuses to open.
var errBitmapOfNothing = blockgraph.Errorf(syscall.EINVAL, "A disk of size 0 cannot have persistent bitmaps")

// CanStoreBitmap tells, by the field's error, why another bitmap could not be
// stored beside those of the list.
func (d *Driver) CanStoreBitmap(list []*blockgraph.DirtyBitmap, name string, granularity int64) error {
	refuse := func(format string, args ...any) error {
		e := qapi.Errorf(format, args...)
		node := ""
		if n := d.ch.node(); n != nil {
			node = n.Name()
		}
		return qapi.Errorf("Can't make bitmap '%s' persistent in '%s': %s", name, node, e.Desc)
	}
	if d.h.version < 3 {
		return refuse("Cannot store dirty bitmaps in qcow2 v2 files")
	}
	gb := uint8(bits.TrailingZeros64(uint64(granularity)))
	switch {
	case d.size.Load() == 0:
		return refuse("%s", errBitmapOfNothing)
	case gb > maxGranularityBits:
		return refuse("Granularity exceeds maximum (%d bytes)", int64(1)<<maxGranularityBits)
	case gb < minGranularityBits:
		return refuse("Granularity is under minimum (%d bytes)", int64(1)<<minGranularityBits)
	case !d.h.canStore(d.size.Load(), gb):
		return refuse("Too much space will be occupied by the bitmap. Use larger granularity")
	case len(name) > blockgraph.MaxBitmapName:
		return refuse("Name length exceeds maximum (%d characters)", blockgraph.MaxBitmapName)
	}
	count, size := 1, dirEntrySize(name)
	for _, b := range list {
		if b.Persistent {
			count++
			size += dirEntrySize(b.Name)
		}
	}
	switch {
	case count > maxBitmaps:
		return refuse("Maximum number of persistent bitmaps is already reached")
	case size > maxBitmapDir:
		return refuse("Not enough space in the bitmap directory")
	}
	return nil
}

// canStore tells whether the format has room for a bitmap over size bytes.
func (h *header) canStore(size int64, granularityBits uint8) bool {
	n := h.tableEntries(size, granularityBits)
	return n <= maxBitmapTable && n<<h.clusterBits <= maxBitmapBytes
}
