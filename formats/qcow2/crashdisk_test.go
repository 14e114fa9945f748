package qcow2

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"blockd/blockgraph"
	"blockd/blockgraph/graphtest"
	"blockd/qapi"
)

// The crash tests record what reaches an image's files (memFile.log), and
// rebuild the files as they may be after a power failure at every point
// (crashstates_test.go): what was flushed is there, of the rest any choice of
// sectors. Each such image must be consistent, and each sector of the disk,
// read through the whole chain, must hold what it held at the guest's last
// flush or something written since.
//
// Points in time are numbers of entries in the log: something happened at k
// when k entries had been made.

// crashSize is a length of the disk in bytes: begun at from, and there for
// good when the log had to entries.
type crashSize struct {
	size     int64
	from, to int
}

// crashTop says which file is the top image when the log has from entries.
type crashTop struct {
	file, from int
}

// crashFile is one of the files that a crash cuts.
type crashFile struct {
	name  string // as backing file
	f     *memFile
	base  []byte // durable at the beginning
	qcow2 bool
}

// linkData makes copies of files each other's data files as the originals are.
func linkData(files, copies []*crashFile) {
	for i, x := range files {
		k := slices.IndexFunc(files, func(y *crashFile) bool { return y.f == x.f.data })
		if k >= 0 {
			copies[i].f.data, copies[i].f.dataPath = copies[k].f, x.f.dataPath
		}
	}
}

// crashDisk is a disk of which every sector is filled with a number.
type crashDisk struct {
	t     *testing.T
	f     *memFile // the top image's file
	d     *Driver
	base  []byte // of the file, durable at the beginning
	files []*crashFile
	tops  []crashTop
	run   qapi.BlockdevOptionsQcow2
	vals  graphtest.CrashValues
	sizes []crashSize
	seq   atomic.Int64
	marks *crashBitmaps   // nil: the disk has no bitmaps
	snaps *crashSnapshots // nil: no snapshots come and go
	below *crashBelow     // of the top image
	live  map[string]*Driver
	// nameless is what lies below an image whose header names nothing.
	nameless *memFile
}

// crashBelow is what an image has for a backing file at present; nil storage:
// none.
type crashBelow struct {
	s     storage
	under *crashBelow // of an image
}

// crashChildren are the children of an image in a chain.
type crashChildren struct {
	testChildren
	below *crashBelow
}

func (c crashChildren) backing() storage {
	if c.below == nil || c.below.s == nil {
		return nil
	}
	return c.below.s
}

// imageBelow is an opened image as a backing file.
type imageBelow struct {
	*memFile // for what a backing file is never asked
	d        *Driver
}

func (i imageBelow) Size() int64 { return i.d.size.Load() }

func (i imageBelow) ReadV(ctx context.Context, off int64, v *blockgraph.IOVec, flags blockgraph.Flags) error {
	n := min(max(i.Size()-off, 0), v.Len())
	v.Zero(n, v.Len()-n)
	if n == 0 {
		return nil
	}
	return i.d.ReadV(ctx, off, v.Slice(0, n), flags)
}

func (i imageBelow) ReadsZero(ctx context.Context, off, n int64) bool {
	p := make([]byte, n)
	return i.ReadV(ctx, off, blockgraph.MakeIOVec(p), 0) == nil && len(bytes.Trim(p, "\x00")) == 0
}

// change changes bytes [off, off+n) by f, as the checked wrapper does.
func (c *crashDisk) change(off, n int64, f func() error) error {
	if c.marks == nil {
		return f()
	}
	if err := c.marks.before(off, n); err != nil {
		return err
	}
	err := f()
	c.marks.after(off, n)
	return err
}

// now is how many entries the log has.
func (c *crashDisk) now() int { return int(c.seq.Load()) }

// newCrashDisk opens the image in f for writing, with a raw file below it that
// does not change, if that is not nil.
func newCrashDisk(t *testing.T, f, backing *memFile, o *qapi.BlockdevOptionsQcow2) *crashDisk {
	c := &crashDisk{t: t, f: f, run: *o, nameless: backing}
	c.start(nil)
	return c
}

// newCrashChain opens the image in f for writing, with what its header and
// theirs name among the others below it.
func newCrashChain(t *testing.T, f *memFile, o *qapi.BlockdevOptionsQcow2, below ...*crashFile) *crashDisk {
	c := &crashDisk{t: t, f: f, run: *o}
	c.start(below)
	return c
}

func (c *crashDisk) start(below []*crashFile) {
	t, f := c.t, c.f
	c.files = append(c.files, &crashFile{name: "top", f: f, qcow2: true})
	if f.data != nil {
		c.files = append(c.files, &crashFile{name: "data", f: f.data})
	}
	c.files = append(c.files, below...)
	c.tops = []crashTop{{0, 0}}
	c.vals.Now = c.now
	c.live = map[string]*Driver{}
	c.d, c.below = c.openChain(c.files, 0, c.live)
	size := c.d.size.Load()
	c.sizes = []crashSize{{size: size}}
	if err := c.vals.Begin(get(t, c.d, 0, size)); err != nil {
		t.Fatal(err)
	}
	for _, x := range c.files {
		x.base = bytes.Clone(x.f.b)
		x.f.record, x.f.seq = true, &c.seq
	}
	c.base = c.files[0].base
}

// openChain opens files[i] with what its header names below it. The images
// below go into the map, if that is not nil.
func (c *crashDisk) openChain(files []*crashFile, i int, live map[string]*Driver) (*Driver, *crashBelow) {
	c.t.Helper()
	unmap := qapi.BlockdevDiscardOptionsUnmap
	x := files[i]
	below := &crashBelow{}
	o := c.run
	d, err := open(ctxb, crashChildren{testChildren{f: x.f}, below}, &qapi.BlockdevOptions{Discard: &unmap, Qcow2: &o}, false)
	if err != nil {
		c.t.Fatalf("%s: %v", x.name, err)
	}
	name, _ := d.BackingFile()
	name, _, _ = strings.Cut(name, "?") // the rest only makes it longer
	switch k := slices.IndexFunc(files, func(y *crashFile) bool { return y.name == name }); {
	case name == "":
		if c.nameless != nil {
			below.s = c.nameless
		}
	case k <= i:
		c.t.Fatalf("%s: nothing is known of a backing file %q", x.name, name)
	case files[k].qcow2:
		b, under := c.openChain(files, k, live)
		below.s, below.under = imageBelow{files[k].f, b}, under
		if live != nil {
			live[name] = b
		}
	default:
		below.s = files[k].f
	}
	return d, below
}

func (c *crashDisk) fail(what string, err error) {
	if err != nil {
		c.t.Helper()
		c.t.Errorf("%s: %v", what, err)
	}
}

func (c *crashDisk) write(s, n int64) { c.writeAs(s, n, 0) }

func (c *crashDisk) writeAs(s, n int64, flags blockgraph.Flags) {
	v := c.vals.NewValue()
	c.vals.Change(s, n, func() {
		c.fail("write", c.change(s*sector, n*sector, func() error {
			return c.d.WriteV(ctxb, s*sector, blockgraph.MakeIOVec(bytes.Repeat(graphtest.Sector(v), int(n))), flags)
		}))
	}, func(int64) uint64 { return v })
}

func (c *crashDisk) zero(s, n int64, flags blockgraph.Flags) {
	c.vals.Change(s, n, func() {
		c.fail("zero write", c.change(s*sector, n*sector, func() error {
			return c.orZeroes(s, n, c.d.WriteZeroes(ctxb, s*sector, n*sector, flags))
		}))
	}, func(int64) uint64 { return 0 })
}

// orZeroes writes zeroes where the driver cannot do better, as the checked
// wrapper does.
func (c *crashDisk) orZeroes(s, n int64, err error) error {
	if !errors.Is(err, blockgraph.ErrNotSupported) {
		return err
	}
	return c.d.WriteV(ctxb, s*sector, blockgraph.MakeIOVec(make([]byte, n*sector)), 0)
}

// discard makes sectors read as zeroes; a part of a compressed cluster may stay
// what it was.
func (c *crashDisk) discard(s, n int64) {
	var left []byte
	c.vals.Change(s, n, func() {
		c.fail("discard", c.change(s*sector, n*sector, func() error {
			return c.orZeroes(s, n, c.d.Discard(ctxb, s*sector, n*sector))
		}))
		left = get(c.t, c.d, s*sector, n*sector)
	}, func(i int64) uint64 {
		v, _ := graphtest.SectorValue(left[i*sector : (i+1)*sector])
		if v != 0 && (!c.d.h.extended || v != c.vals.Last(s+i)) {
			c.t.Errorf("sector %d holds %d after a discard", s+i, v)
		}
		return v
	})
}

// holds compares the disk as it is read now with the last values.
func (c *crashDisk) holds() {
	c.t.Helper()
	size := c.d.size.Load()
	if err := c.vals.Holds(get(c.t, c.d, 0, size)); err != nil {
		c.t.Fatal(err)
	}
}

func (c *crashDisk) flush() {
	start := c.vals.FlushBegins()
	if err := c.d.Flush(ctxb); err != nil {
		c.t.Error(err)
		return
	}
	c.vals.Flushed(start)
}

// resize changes the length of the disk, which is durable when it returns, as
// is everything before. Nothing else runs.
func (c *crashDisk) resize(sectors int64) {
	start, from, old := c.vals.FlushBegins(), c.now(), c.sizes[len(c.sizes)-1].size/sector
	if sectors == old {
		return // nothing happens, and nothing becomes durable
	}
	c.vals.Change(min(old, sectors), max(old, sectors)-min(old, sectors), func() {
		c.fail("resize", c.d.Truncate(ctxb, sectors*sector, true, "", false))
	}, func(int64) uint64 { return 0 })
	c.sizes = append(c.sizes, crashSize{sectors * sector, from, c.now()})
	c.vals.Flushed(start)
}

// sizeAllowed tells whether the disk may have a length after a crash at k.
func (c *crashDisk) sizeAllowed(size int64, k int) bool {
	ok := false
	for _, s := range c.sizes {
		switch {
		case s.to <= k:
			ok = s.size == size
		case s.from < k:
			ok = ok || s.size == size
		}
	}
	return ok
}

// topAt returns which file is the top image after a crash at k.
func (c *crashDisk) topAt(k int) int {
	top := 0
	for _, p := range c.tops {
		if p.from <= k {
			top = p.file
		}
	}
	return top
}

// judge opens the image as whoever comes after a crash does, and checks it.
func (c *crashDisk) judge(x *crash) {
	c.t.Helper()
	top := c.topAt(x.K)
	for i, y := range x.files {
		if !y.qcow2 {
			continue
		}
		if binary.BigEndian.Uint64(y.f.b[fieldIncompatible:])&incompatDirty != 0 && y.f.b[7] >= 3 {
			d, _ := c.openChain(x.files, i, nil) // repairs it
			closeImage(c.t, d)
		}
		c.mustBeSound(y.f, fmt.Sprintf("%v: %s", x, y.name))
	}
	d, _ := c.openChain(x.files, top, nil)
	size := d.size.Load()
	if !c.sizeAllowed(size, x.K) || !c.sizeAllowed(size, x.Until) {
		c.t.Fatalf("%v: the disk has %d bytes: %+v", x, size, c.sizes)
	}
	got := get(c.t, d, 0, size)
	if c.marks != nil {
		c.marks.judge(d.bitmaps.want, got, x.K, x.How)
	}
	if c.snaps != nil {
		c.snaps.judge(x, x.files[top].f, d.snapshots.Load().list)
	}
	if err := c.vals.Judge(x.CrashState, got); err != nil {
		c.t.Fatal(err)
	}
	closeImage(c.t, d)
}

// mustBeSound holds that our checker finds no more than leaks, and in version 2,
// where snapshots come and go, copied flags that do not fit.
func (c *crashDisk) mustBeSound(f *memFile, when string) {
	c.t.Helper()
	chk, err := check(ctxb, f)
	if err != nil {
		c.t.Fatalf("%s: %v", when, err)
	}
	allowed := int64(0)
	if c.snaps != nil && chk.h.version < 3 {
		if err := chk.wrongFlags(func(int64, int64, uint64) { allowed++ }, chk.storedCount); err != nil {
			c.t.Fatalf("%s: %v", when, err)
		}
	}
	if chk.res.corruptions > allowed {
		c.t.Fatalf("%s: %d corruptions, of which %d may be: %q", when, chk.res.corruptions, allowed, chk.res.messages)
	}
}
