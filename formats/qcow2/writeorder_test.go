package qcow2

import (
	"bytes"
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"blockd/bitmaps"
	"blockd/blockgraph"
	"blockd/qapi"
)

// The order of writes of each operation that changes metadata, as text that a
// reviewer can read: testdata/writes has a file for each. `go test -run
// TestOrderOfWrites -update` writes them anew.
//
// Between two flushes the disk may reorder, and the driver promises no order:
// there the lines are sorted. A line says what was written by its role in the
// image, before or after the operation, and what changed in it; in brackets is
// the fault point that was passed right before.

var update = flag.Bool("update", false, "write the golden files anew")

// writeOrder is an operation of which the order of writes is held.
type writeOrder struct {
	name  string
	about string
	size  int64
	opts  []imageOption
	below bool                                    // there is a backing file with data
	start func(t *testing.T, d *Driver)           // before recording
	edit  func(t *testing.T, f *memFile)          // of the closed image, after start
	run   func(t *testing.T, d *Driver)           // what is recorded
	whole func(t *testing.T, open func() *Driver) // instead of run: opens, too
}

func written(off int64, n int) func(*testing.T, *Driver) {
	return func(t *testing.T, d *Driver) { put(t, d, off, fill(1, n)); flush(t, d) }
}

func resized(size int64) func(*testing.T, *Driver) {
	return func(t *testing.T, d *Driver) {
		if err := d.Truncate(ctxb, size, true, "", false); err != nil {
			t.Fatal(err)
		}
	}
}

// bitmapsOf makes a list of n bitmaps.
func bitmapsOf(d *Driver, n int) (list []*blockgraph.DirtyBitmap) {
	for i := range n {
		b := &blockgraph.DirtyBitmap{Name: fmt.Sprint("b", i), Persistent: true, Bits: bitmaps.New(d.size.Load(), 4096)}
		b.Bits.Set(0, 1)
		list = append(list, b)
	}
	return list
}

func stored(n int) func(*testing.T, *Driver) {
	return func(t *testing.T, d *Driver) {
		if err := d.StoreBitmaps(ctxb, bitmapsOf(d, n)); err != nil {
			t.Fatal(err)
		}
	}
}

func renamed(name string) func(*testing.T, *Driver) {
	return func(t *testing.T, d *Driver) {
		if err := d.ChangeBackingFile(ctxb, name, ""); err != nil {
			t.Fatal(err)
		}
	}
}

const cs4K = 4096

var small = []imageOption{clusterSize(cs4K)}

// tiny: a block of counts counts 64 clusters, a cluster of the table 64 blocks.
var tiny = []imageOption{clusterSize(512), refcountBits(64)}

var writeOrders = []writeOrder{
	{name: "allocate-first", about: "a write to an empty image, and a flush", opts: small, run: written(0, cs4K)},
	{name: "allocate", about: "a write to a new cluster of a table that exists, and a flush", opts: small, start: written(0, cs4K), run: written(2*cs4K, 2*cs4K)},
	{name: "overwrite", about: "a write to a cluster that has its place, and a flush", opts: small, start: written(0, cs4K), run: written(512, 512)},
	{name: "copy-on-write", about: "a write to part of a cluster above a backing file, and a flush", opts: small, below: true, run: written(512, 512)},
	{name: "compressed", about: "two compressed clusters, and a flush", opts: small, run: func(t *testing.T, d *Driver) {
		for i := range int64(2) {
			if err := d.WriteV(ctxb, i*cs4K, blockgraph.MakeIOVec(fill(3, cs4K)), blockgraph.Compressed); err != nil {
				t.Fatal(err)
			}
		}
		flush(t, d)
	}},
	{name: "zero", about: "zeroes over a cluster that keeps its place, and a flush", opts: small, start: written(0, cs4K), run: func(t *testing.T, d *Driver) {
		if err := d.WriteZeroes(ctxb, 0, cs4K, 0); err != nil {
			t.Fatal(err)
		}
		flush(t, d)
	}},
	{name: "discard", about: "a discard, and two flushes: the count falls after the unmapping is durable", opts: small, start: written(0, 3*cs4K), run: func(t *testing.T, d *Driver) {
		if err := d.Discard(ctxb, cs4K, cs4K); err != nil {
			t.Fatal(err)
		}
		flush(t, d)
		flush(t, d)
	}},
	{name: "discard-v2", about: "the same in version 2", opts: append([]imageOption{v2}, small...), start: written(0, 3*cs4K), run: func(t *testing.T, d *Driver) {
		if err := d.Discard(ctxb, cs4K, cs4K); err != nil {
			t.Fatal(err)
		}
		flush(t, d)
		flush(t, d)
	}},
	{name: "new-refcount-block", about: "a write that needs another refcount block, and a flush", size: 1 << 20, opts: tiny, run: written(0, 40<<10)},
	{name: "new-refcount-table", about: "a write for which the refcount table moves, and two flushes", size: 8 << 20, opts: tiny, start: func(t *testing.T, d *Driver) {
		for off := int64(0); int64(len(d.refs.table))<<d.refs.blockBits-d.refs.untouched > 12; off += 4096 {
			put(t, d, off, fill(1, 4096))
		}
		flush(t, d)
	}, run: func(t *testing.T, d *Driver) { put(t, d, 4<<20, fill(1, 8<<10)); flush(t, d); flush(t, d) }},
	{name: "grow", about: "a larger disk whose L1 table fits where it is", opts: small, run: resized(3 << 20)},
	{name: "grow-moves-table", about: "a larger disk whose L1 table moves", opts: tiny, size: 1 << 20, start: written(0, 512), run: resized(32 << 20)},
	{name: "shrink", about: "a smaller disk", opts: tiny, size: 1 << 20, start: written(960<<10, 32<<10), run: resized(512 << 10)},
	{name: "bitmap-add", about: "a persistent bitmap", opts: small, run: stored(1)},
	{name: "bitmap-remove", about: "one of two bitmaps goes", opts: small, start: stored(2), run: func(t *testing.T, d *Driver) {
		if err := d.StoreBitmaps(ctxb, d.bitmaps.want[1:]); err != nil {
			t.Fatal(err)
		}
	}},
	{name: "bitmap-first-change", about: "the first change in a region that is clean in the stored bitmap", opts: small, start: stored(1), run: func(t *testing.T, d *Driver) {
		if err := d.BeforeChange(ctxb, 0, 512); err != nil {
			t.Fatal(err)
		}
	}},
	{name: "bitmap-resize", about: "a larger disk that a stored bitmap has to fit", opts: tiny, size: 1 << 20, start: stored(1), run: resized(64 << 20)},
	{name: "backing-name", about: "a backing file's name where there was none", opts: small, run: renamed("base.img")},
	{name: "backing-name-long", about: "a name that does not fit the first sector takes the place of a short one", opts: small, start: renamed("base.img"), run: renamed(strings.Repeat("x", 700))},
	{name: "backing-name-removed", about: "the name goes", opts: small, start: renamed("base.img"), run: renamed("")},
	{name: "open-clears-autoclear", about: "opening an image for writing with an autoclear bit that nobody knows", opts: small, edit: func(_ *testing.T, f *memFile) { f.b[fieldAutoclear] = 1 }, whole: func(_ *testing.T, open func() *Driver) { open() }},
	{name: "open-repairs", about: "opening an image for writing that is dirty: the count of one cluster is wrong", opts: small, start: written(0, cs4K), edit: func(t *testing.T, f *memFile) {
		h, _, _, err := readHeader(ctxb, f)
		if err != nil {
			t.Fatal(err)
		}
		f.b[fieldIncompatible+7] |= incompatDirty
		block := binary.BigEndian.Uint64(f.b[h.refTableOffset:])
		at := slices.Index(layoutOf(t, f.b).roles(9), "guest cluster 0")
		if at < 0 {
			t.Fatal("guest cluster 0 has no place")
		}
		setRefAt(f.b[block:], h.refcountOrder, int64(at), 0)
	}, whole: func(_ *testing.T, open func() *Driver) { open() }},
	{name: "open-rebuilds", about: "opening an image for writing that is dirty: the table names a refcount block outside of the file, and a copied flag is wrong", opts: small, start: written(0, cs4K), edit: func(t *testing.T, f *memFile) {
		f.b[fieldIncompatible+7] |= incompatDirty
		p := patientOf(t, f)
		p.setBlock(0, 1<<30)
		p.change(0, func(e uint64) uint64 { return e &^ flagCopied })
	}, whole: func(_ *testing.T, open func() *Driver) { open() }},
	{name: "corrupt", about: "a write that would hit metadata marks the image as corrupt", opts: small, start: written(0, cs4K), run: func(t *testing.T, d *Driver) {
		d.meta.add(hostOf(t, d, 0)>>d.h.clusterBits, kindRefBlock)
		if err := d.WriteV(ctxb, 0, blockgraph.MakeIOVec(fill(2, 512)), 0); err == nil {
			t.Fatal("the write went through")
		}
		d.background.wait(context.Background())
	}},
	{name: "close", about: "closing after a discard", opts: small, start: written(0, 3*cs4K), run: func(t *testing.T, d *Driver) {
		if err := d.Discard(ctxb, cs4K, cs4K); err != nil {
			t.Fatal(err)
		}
		closeImage(t, d)
	}},
}

func TestOrderOfWrites(t *testing.T) {
	have := map[string]bool{}
	writeOrders := slices.Concat(writeOrders, snapshotOrders, amendOrders, remakeOrders)
	for i := range writeOrders {
		o := &writeOrders[i]
		have[o.name+".txt"] = true
		t.Run(o.name, func(t *testing.T) { holdGolden(t, o.name, "# "+o.about+"\n"+o.record(t)) })
	}
	t.Run("create", func(t *testing.T) {
		have["create.txt"], have["create-backing.txt"] = true, true
		for name, opts := range map[string][]imageOption{"create": small, "create-backing": append([]imageOption{named("base.img", "raw")}, small...)} {
			f := &memFile{record: true}
			o := &qapi.BlockdevCreateOptionsQcow2{Size: 1 << 20}
			for _, set := range opts {
				set(o)
			}
			if err := (loneFile{f: f}).create(ctxb, o); err != nil {
				t.Fatal(err)
			}
			holdGolden(t, name, "# a new image, by "+name+"\n"+describeWrites(t, nil, f.log, f.b))
		}
	})
	if t.Failed() {
		return
	}
	files, err := os.ReadDir(filepath.Join("testdata", "writes"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !have[f.Name()] {
			t.Errorf("%s is nobody's", f.Name())
		}
	}
}

// record runs the operation and describes what it wrote.
func (o *writeOrder) record(t *testing.T) string {
	size := o.size
	if size == 0 {
		size = 256 << 10
	}
	f := newImage(t, size, o.opts...)
	var below *memFile
	if o.below {
		below = &memFile{b: fill(9, int(size))}
	}
	d := openImage(t, f, below)
	if o.start != nil {
		o.start(t, d)
	}
	if o.edit != nil {
		closeImage(t, d)
		o.edit(t, f)
	}
	before := bytes.Clone(f.b)
	f.record = true
	if o.whole != nil {
		o.whole(t, func() *Driver { return openImage(t, f, below) })
	} else {
		o.run(t, d)
	}
	return describeWrites(t, before, f.log, f.b)
}

func holdGolden(t *testing.T, name, got string) {
	t.Helper()
	p := filepath.Join("testdata", "writes", name+".txt")
	if *update {
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(p)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: the order of writes is\n%snot\n%s", p, got, want)
	}
}
