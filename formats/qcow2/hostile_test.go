package qcow2

import (
	"bytes"
	"encoding/binary"
	"testing"

	"blockd/bitmaps"
	"blockd/blockgraph"
	"blockd/qapi"
)

func TestHostileHeaders(t *testing.T) {
	be := binary.BigEndian
	for _, c := range []struct {
		name   string
		change func(b []byte)
		want   string
	}{
		{"magic", func(b []byte) { b[0] = 0 }, "Image is not in qcow2 format"},
		{"version", func(b []byte) { be.PutUint32(b[4:], 4) }, "Unsupported qcow2 version 4"},
		{"cluster bits", func(b []byte) { be.PutUint32(b[20:], 8) }, "Unsupported cluster size: 2^8"},
		{"large cluster bits", func(b []byte) { be.PutUint32(b[20:], 1<<31) }, "Unsupported cluster size: 2^2147483648"},
		{"short header", func(b []byte) { be.PutUint32(b[100:], 96) }, "qcow2 header too short"},
		{"long header", func(b []byte) { be.PutUint32(b[100:], 1<<20) }, "qcow2 header exceeds cluster size"},
		{"backing offset", func(b []byte) { be.PutUint64(b[8:], 1<<40) }, "Invalid backing file offset"},
		{"backing size", func(b []byte) { be.PutUint64(b[8:], 1000); be.PutUint32(b[16:], 1<<30) }, "Backing file name too long"},
		{"encryption", func(b []byte) { be.PutUint32(b[32:], 3) }, "Unsupported encryption method 3"},
		{"feature", func(b []byte) { be.PutUint64(b[72:], 1<<40) }, "Unsupported qcow2 feature(s): Unknown incompatible feature: 10000000000"},
		{"corrupt", func(b []byte) { b[79] = 2 }, "qcow2: Image is corrupt; cannot be opened read/write"},
		{"compression", func(b []byte) { b[104] = 7; b[79] = 8 }, "qcow2: unknown compression type: 7"},
		{"compression bit", func(b []byte) { b[79] = 8 }, "qcow2: Compression type incompatible feature bit must not be set"},
		{"no compression bit", func(b []byte) { b[104] = 1 }, "qcow2: Compression type incompatible feature bit must be set"},
		{"refcount order", func(b []byte) { be.PutUint32(b[96:], 7) }, "Reference count entry width too large; may not exceed 64 bits"},
		{"no refcount table", func(b []byte) { be.PutUint32(b[56:], 0) }, "Image does not contain a reference count table"},
		{"refcount table size", func(b []byte) { be.PutUint32(b[56:], 1<<20) }, "Reference count table too large"},
		{"refcount table place", func(b []byte) { b[55] = 1 }, "Reference count table offset invalid"},
		{"far refcount table", func(b []byte) { b[48] = 0xff }, "Reference count table offset invalid"},
		{"L1 size", func(b []byte) { be.PutUint32(b[36:], 1<<31) }, "Active L1 table too large"},
		{"L1 place", func(b []byte) { b[47] = 1 }, "Active L1 table offset invalid"},
		{"L1 too small", func(b []byte) { be.PutUint32(b[36:], 0) }, "L1 table is too small"},
		{"size", func(b []byte) { be.PutUint64(b[24:], 1<<63) }, "Image is too big"},
		{"snapshots", func(b []byte) { be.PutUint32(b[60:], 70000) }, "Snapshot table too large"},
		{"snapshot place", func(b []byte) { be.PutUint32(b[60:], 1); b[71] = 1 }, "Snapshot table offset invalid"},
		{"extension", func(b []byte) { be.PutUint32(b[116:], 1<<31) }, "Header extension too large"},
		{"format name", func(b []byte) { be.PutUint32(b[112:], extBackingFormat); be.PutUint32(b[116:], 100) }, "ERROR: ext_backing_format: len=100 too large (>=16)"},
	} {
		f := newImage(t, 1<<20)
		c.change(f.b)
		_, err := open(ctxb, testChildren{f, nil}, &qapi.BlockdevOptions{}, false)
		if err == nil || err.Error() != c.want {
			t.Errorf("%s: %v, not %q", c.name, err, c.want)
		}
	}
}

func TestCacheOptionErrors(t *testing.T) {
	type opts = qapi.BlockdevOptionsQcow2
	n := func(v int64) *int64 { return &v }
	for _, c := range []struct {
		o    opts
		want string
	}{
		{opts{CacheSize: n(1), L2CacheSize: n(1), RefcountCacheSize: n(1)}, "cache-size, l2-cache-size and refcount-cache-size may not be set at the same time"},
		{opts{CacheSize: n(1), L2CacheSize: n(2)}, "l2-cache-size may not exceed cache-size"},
		{opts{CacheSize: n(1), RefcountCacheSize: n(2)}, "refcount-cache-size may not exceed cache-size"},
		{opts{L2CacheEntrySize: n(1000)}, "L2 cache entry size must be a power of two between 512 and the cluster size (65536)"},
		{opts{L2CacheEntrySize: n(1 << 17)}, "L2 cache entry size must be a power of two between 512 and the cluster size (65536)"},
		{opts{RefcountCacheSize: n(1 << 60)}, "Refcount cache size too big"},
	} {
		_, err := open(ctxb, testChildren{newImage(t, 1<<20), nil}, &qapi.BlockdevOptions{Qcow2: &c.o}, true)
		if err == nil || err.Error() != c.want {
			t.Errorf("%v, not %q", err, c.want)
		}
	}
}

// bitmapImage is an image with two bitmaps, of which one is in use.
func bitmapImage(t testing.TB) *memFile {
	img := newImage(t, 64<<10, clusterSize(512))
	d := openImage(t, img, nil)
	var list []*blockgraph.DirtyBitmap
	for _, name := range []string{"b", "a"} {
		b := &blockgraph.DirtyBitmap{Name: name, Persistent: true, Bits: bitmaps.New(64<<10, 512)}
		b.Bits.Set(0, 1)
		list = append(list, b)
	}
	if err := d.StoreBitmaps(ctxb, list); err != nil {
		t.Fatal(err)
	}
	closeImage(t, d)
	dir := int(d.ext.bitmaps.offset)
	binary.BigEndian.PutUint32(img.b[dir+12:], bitmapAuto|bitmapInUse) // the first, b
	return img
}

func TestHostileBitmapDirectoriesAreRefused(t *testing.T) {
	good := bitmapImage(t)
	d := openImage(t, good, nil)
	dir, table := int(d.ext.bitmaps.offset), int(d.bitmaps.dir[1].tableOffset)
	if !d.bitmaps.want[1].Inconsistent || d.bitmaps.want[0].Inconsistent || !d.bitmaps.want[0].Bits.Get(0) {
		t.Fatal("not what was made")
	}
	ext := bytes.Index(good.b[:512], []byte{0x23, 0x85, 0x28, 0x75}) + 8
	const second = 32 // of the directory
	be := binary.BigEndian
	u32 := func(at int, v uint32) func(b []byte) { return func(b []byte) { be.PutUint32(b[at:], v) } }
	u64 := func(at int, v uint64) func(b []byte) { return func(b []byte) { be.PutUint64(b[at:], v) } }
	entry := dir + second
	const constraints = "Bitmap 'a' doesn't satisfy the constraints"
	for name, c := range map[string]struct {
		edit func(b []byte)
		want string
	}{
		"no bitmaps":          {u32(ext, 0), "found bitmaps extension with zero bitmaps"},
		"too many":            {u32(ext, 1), "More bitmaps found than specified in header extension"},
		"too few":             {u32(ext, 3), "Less bitmaps found than specified in header extension"},
		"empty directory":     {u64(ext+8, 0), "Requested bitmap directory size is zero"},
		"huge directory":      {u64(ext+8, 1<<40), "bitmaps_ext: bitmap directory size (1099511627776) exceeds the maximum supported size (67108864)"},
		"cut directory":       {u64(ext+8, second+20), "Broken bitmap directory"},
		"name past the end":   {u32(entry+16, 1<<24|9<<16|900), "Broken bitmap directory"},
		"extra data":          {u32(dir+20, 8), "Bitmap extra data is not supported"},
		"type":                {u32(entry+16, 2<<24|9<<16|1), constraints},
		"granularity":         {u32(entry+16, 1<<24|8<<16|1), constraints},
		"reserved flag":       {u32(entry+12, 8), constraints},
		"no table":            {u32(entry+8, 0), constraints},
		"huge table":          {u32(entry+8, 1<<31), constraints},
		"table not aligned":   {u64(entry, uint64(table)+8), constraints},
		"table far away":      {u64(entry, 1<<60), constraints},
		"the same name":       {func(b []byte) { b[entry+24] = 'b' }, "Bitmap 'b' doesn't satisfy the constraints"},
		"longer table":        {u32(entry+8, 2), "Could not read bitmap 'a' from image: Invalid argument"},
		"reserved bit":        {u64(table, 1<<60), "Could not read bitmap_table table from image for bitmap 'a': Invalid argument"},
		"data not aligned":    {u64(table, 0x300), "Could not read bitmap_table table from image for bitmap 'a': Invalid argument"},
		"data past the end":   {u64(table, 1<<40), "Could not read bitmap_table table from image for bitmap 'a': Invalid argument"},
		"ones with a cluster": {u64(table, 0x401), "Could not read bitmap_table table from image for bitmap 'a': Invalid argument"},
	} {
		t.Run(name, func(t *testing.T) {
			img := &memFile{b: bytes.Clone(good.b)}
			c.edit(img.b)
			before := bytes.Clone(img.b)
			_, err := open(ctxb, testChildren{img, nil}, &qapi.BlockdevOptions{}, false)
			if err == nil || err.Error() != c.want {
				t.Errorf("%v", err)
			}
			if !bytes.Equal(img.b, before) {
				t.Error("the image has changed")
			}
		})
	}
}

func TestATableOfOnesIsAllDirty(t *testing.T) {
	img := bitmapImage(t)
	d := openImage(t, img, nil)
	binary.BigEndian.PutUint64(img.b[d.bitmaps.dir[1].tableOffset:], bitmapAllOnes)
	d = openImage(t, img, nil)
	if n := d.bitmaps.want[0].Bits.Count(); n != 64<<10 {
		t.Errorf("%d bytes dirty", n)
	}
}

// readsOf counts the reads of a file while f runs.
func readsOf(f *memFile, do func()) (n int) {
	f.setFault(func(op string, _, _ int64) error {
		if op == "read" {
			n++
		}
		return nil
	})
	do()
	f.setFault(nil)
	return n
}

// A table that many entries name is read once: otherwise a small image keeps a
// check, and the repair of a dirty one when it is opened, busy for hours.
func TestCheckReadsTablesThatAreNamedOftenOnce(t *testing.T) {
	img := newImage(t, 64<<20, clusterSize(512), refcountBits(64))
	d := openImage(t, img, nil)
	put(t, d, 0, fill(1, 512))
	closeImage(t, d)
	p := partsOf(t, img)
	l1 := p.l1()
	for i := 8; i < len(l1); i += 8 {
		copy(l1[i:], l1[:8])
	}
	table := at(img.b, int64(p.h.refTableOffset), 512)
	for i := 8; i < len(table); i += 8 {
		copy(table[i:], table[:8])
	}
	if len(l1) < 8*1000 {
		t.Fatalf("the L1 table has %d bytes", len(l1))
	}
	reads := readsOf(img, func() {
		c, err := check(ctxb, img)
		if err != nil || c.res.corruptions == 0 {
			t.Fatal(err)
		}
	})
	if reads > 20 {
		t.Errorf("%d reads", reads)
	}
}

// Tables as long as the format allows cost neither reads nor memory where the
// file has nothing of them.
func TestTablesPastTheEndOfTheFileAreNotRead(t *testing.T) {
	img := newImage(t, 1<<20)
	be := binary.BigEndian
	be.PutUint32(img.b[fieldL1Size:], maxL1Size/8)
	be.PutUint64(img.b[fieldL1Offset:], 1<<40)
	img.setFault(func(op string, off, n int64) error {
		if op == "read" && off+n > int64(len(img.b)) {
			t.Errorf("read of %d bytes at %#x", n, off)
		}
		return nil
	})
	d, err := open(ctxb, testChildren{f: img}, &qapi.BlockdevOptions{}, true)
	if err != nil {
		t.Fatal(err)
	}
	if got := get(t, d, 0, 1<<20); !bytes.Equal(got, make([]byte, 1<<20)) {
		t.Error("content")
	}
	closeImage(t, d)
	if c, err := check(ctxb, img); err != nil || c.res.corruptions == 0 {
		t.Error(err)
	}
}

func TestSnapshotsPastTheEndOfTheFileAreRefused(t *testing.T) {
	img := newImage(t, 1<<20)
	end := len(img.b)
	binary.BigEndian.PutUint32(img.b[60:], 1000)
	binary.BigEndian.PutUint64(img.b[64:], uint64(end))
	for name, c := range map[string]struct {
		more []byte
		want string
	}{
		"nothing there": {nil, "Snapshot table entry 0 (at 0x40000) lies past the end of the file"},
		"half an entry": {make([]byte, 20), "Snapshot table entry 0 (at 0x40000) lies past the end of the file"},
		"long names":    {append(make([]byte, 12), append(fill(0xff, 4), make([]byte, 24)...)...), "Snapshot table entry 0 (at 0x40000) lies past the end of the file"},
		"one entry":     {make([]byte, 40), "Snapshot table entry 1 (at 0x40028) lies past the end of the file"},
	} {
		f := &memFile{b: append(bytes.Clone(img.b), c.more...)}
		_, err := open(ctxb, testChildren{f: f}, &qapi.BlockdevOptions{}, true)
		if err == nil || err.Error() != c.want {
			t.Errorf("%s: %v", name, err)
		}
	}
}
