package qcow2

import (
	"context"
	"encoding/binary"
	"log/slog"
	"math"
	"runtime/metrics"
	"syscall"
	"testing"
	"time"

	"blockd/bitmaps"
	"blockd/blockgraph"
	"blockd/qapi"
)

// Fuzz targets: images that somebody has tampered with, one target for each
// structure, so that what is drawn goes where it matters, and FuzzImage for
// everything at once. Each input is opened, read, checked, written to and
// closed. Nothing may crash, ask for what lies outside of the file's possible
// offsets, go on without end, or take memory out of proportion:
//
//   - at most fuzzOps requests reach the file;
//   - all memory that is taken in the course of all this together, whether
//     given back or not, is at most fuzzMemory times the file's length and
//     fuzzSlack, and with headers or snapshots drawn, whose L1 tables may be as
//     long as the format allows, fuzzTables.
//
// Images are small and in memory. `go test -fuzz FuzzX -fuzzminimizetime 10x`:
// minimising takes the engine a minute each otherwise.

const (
	fuzzOps    = 20_000
	fuzzMemory = 256
	fuzzSlack  = 64 << 20
	// fuzzTables is for an L1 table of 32 MiB and a refcount table of 8 MiB, in
	// memory twice as long, made anew for each of the openings.
	fuzzTables = 512 << 20
	// fuzzLimit is where the file's storage is full, in bytes.
	fuzzLimit = 4 << 20
)

// fuzzFile counts and judges what is asked of a file.
type fuzzFile struct {
	memFile
	t   testing.TB
	ops int
}

func (f *fuzzFile) ask(off, n int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ops++; f.ops > fuzzOps {
		f.t.Errorf("more than %d requests", fuzzOps)
		return syscall.EIO
	}
	if off < 0 || n < 0 || off > math.MaxInt64-n {
		f.t.Errorf("request of %d bytes at %#x", n, off)
		return syscall.EINVAL
	}
	return nil
}

func (f *fuzzFile) ReadV(ctx context.Context, off int64, v *blockgraph.IOVec, flags blockgraph.Flags) error {
	if err := f.ask(off, v.Len()); err != nil {
		return err
	}
	return f.memFile.ReadV(ctx, off, v, flags)
}

func (f *fuzzFile) WriteV(ctx context.Context, off int64, v *blockgraph.IOVec, flags blockgraph.Flags) error {
	if err := f.ask(off, v.Len()); err != nil {
		return err
	}
	if off+v.Len() > fuzzLimit {
		return syscall.ENOSPC
	}
	return f.memFile.WriteV(ctx, off, v, flags)
}

func (f *fuzzFile) WriteZeroes(ctx context.Context, off, n int64, flags blockgraph.Flags) error {
	if err := f.ask(off, n); err != nil {
		return err
	}
	if off+n > fuzzLimit {
		return syscall.ENOSPC
	}
	return f.memFile.WriteZeroes(ctx, off, n, flags)
}

func (f *fuzzFile) Discard(ctx context.Context, off, n int64) error {
	if err := f.ask(off, n); err != nil {
		return err
	}
	return f.memFile.Discard(ctx, off, n)
}

func (f *fuzzFile) Truncate(ctx context.Context, size int64, exact bool, mode qapi.PreallocMode, zeroed bool) error {
	if err := f.ask(size, 0); err != nil {
		return err
	}
	if size > fuzzLimit {
		return syscall.ENOSPC
	}
	return f.memFile.Truncate(ctx, size, exact, mode, zeroed)
}

// fuzzChildren have the file as their only child.
type fuzzChildren struct {
	testChildren
	f *fuzzFile
}

func (c fuzzChildren) file() storage { return c.f }

// taken returns how many bytes of memory the process has taken so far.
func taken() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}

// fuzzUse uses an image in every way; slack is the memory that it may take in
// any case.
func fuzzUse(t testing.TB, b []byte, slack uint64) {
	before, size := taken(), uint64(len(b))
	img := &fuzzFile{t: t}
	img.b = append([]byte(nil), b...)
	ch := fuzzChildren{testChildren{f: &img.memFile}, img}
	if d, err := open(ctxb, ch, &qapi.BlockdevOptions{}, true); err == nil {
		size := min(d.size.Load(), 256<<10)
		if size > 0 {
			_ = d.ReadV(ctxb, 0, blockgraph.MakeIOVec(make([]byte, size)), 0)
			_, _ = d.BlockStatus(ctxb, 0, size, blockgraph.StatusPrecise)
		}
		var info qapi.ImageInfo
		_ = d.ImageInfo(ctxb, &info)
		_ = d.Close(ctxb)
	}
	_, _ = check(ctxb, img)
	unmap := qapi.BlockdevDiscardOptionsUnmap
	if d, err := openFor(ctxb, ch, &qapi.BlockdevOptions{}, opening{repair: true}); err == nil {
		fuzzCheck(t, d)
		_ = d.Close(ctxb)
	}
	for _, use := range []func(*Driver){fuzzSnapshots, fuzzWrite} {
		if d, err := open(ctxb, ch, &qapi.BlockdevOptions{Discard: &unmap}, false); err == nil {
			use(d)
			_ = d.Close(ctxb)
		}
	}
	if got := taken() - before; got > slack+fuzzMemory*size {
		t.Errorf("an image of %d bytes has taken %d bytes of memory", size, got)
	}
}

// fuzzCheck checks and repairs an image that is in use.
func fuzzCheck(t testing.TB, d *Driver) {
	c, err := d.StartCheck(blockgraph.CheckOptions{Fix: blockgraph.CheckFixAll})
	if err != nil {
		return
	}
	defer c.Close()
	rebuilt := false
	for range fuzzOps {
		_, more, err := c.Step(ctxb, 1<<20)
		if err != nil {
			return
		}
		if !more && (rebuilt || !c.Lost() || c.Rebuild(ctxb) != nil) {
			_ = c.Result()
			return
		}
		rebuilt = rebuilt || !more
	}
	t.Errorf("a check takes more than %d steps", fuzzOps)
}

// fuzzSnapshots goes back to the first internal snapshot, removes it and makes
// another.
func fuzzSnapshots(d *Driver) {
	if list := d.InternalSnapshots(); len(list) > 0 {
		if r, err := d.PrepareRevert(ctxb, &list[0].ID, &list[0].Name); err == nil {
			if err := r.Switch(ctxb, nil); err != nil {
				_ = r.Undo(ctxb, nil, err)
			} else {
				_ = r.Finish(ctxb)
			}
		}
		_ = d.DeleteSnapshot(ctxb, &list[0].ID, &list[0].Name)
	}
	_, _ = d.CreateSnapshot(ctxb, "new", time.Unix(1, 0))
}

// fuzzWrite changes an image in every way.
func fuzzWrite(d *Driver) {
	size := min(d.size.Load(), 256<<10)
	if size > 0 && d.size.Load() < 1<<40 {
		_ = d.BeforeChange(ctxb, 0, size)
		if bitmaps.Check(d.size.Load(), 1<<20) == nil {
			more := &blockgraph.DirtyBitmap{Name: "more", Persistent: true, Bits: bitmaps.New(d.size.Load(), 1<<20)}
			_ = d.StoreBitmaps(ctxb, append(d.bitmaps.want[:len(d.bitmaps.want)/2:len(d.bitmaps.want)/2], more))
		}
	}
	if size >= 4096 {
		cs := d.h.clusterSize
		_ = d.WriteV(ctxb, size/2, blockgraph.MakeIOVec(make([]byte, min(3000, size/2))), 0)
		if cs <= size {
			_ = d.WriteZeroes(ctxb, 0, cs, 0)
			_ = d.WriteV(ctxb, 0, blockgraph.MakeIOVec(make([]byte, cs)), blockgraph.Compressed)
		}
		_ = d.Discard(ctxb, 0, min(cs, d.size.Load()))
		_ = d.Flush(ctxb)
	}
	_ = d.ChangeBackingFile(ctxb, "base", "raw")
	if s := d.size.Load(); s < 1<<30 {
		_ = d.Truncate(ctxb, (s/2+4096)&^511, true, "", false)
	}
}

// fuzzTemplates are the images of which a part is replaced.
func fuzzTemplates(t testing.TB) []*memFile {
	var list []*memFile
	for _, opts := range [][]imageOption{
		{clusterSize(512)},
		{clusterSize(512), v2},
		{clusterSize(1024), refcountBits(1)},
		{clusterSize(4096), refcountBits(64), lazy},
		{clusterSize(2048), zstdType},
		{clusterSize(16 << 10), extended},
	} {
		img := newImage(t, 64<<10, opts...)
		d := openImage(t, img, nil)
		put(t, d, 0, fill(1, 2000))
		cs := d.h.clusterSize
		if err := d.WriteV(ctxb, 16384, blockgraph.MakeIOVec(make([]byte, 2*cs)), blockgraph.Compressed); err != nil {
			t.Fatal(err)
		}
		if err := d.WriteZeroes(ctxb, 32768, cs, 0); err != nil {
			t.Fatal(err)
		}
		closeImage(t, d)
		list = append(list, img)
	}
	return append(list, bitmapImage(t))
}

// fuzzQuiet keeps what is logged of each corruption from being printed.
func fuzzQuiet(f *testing.F) {
	old := slog.Default()
	slog.SetDefault(slog.New(slog.DiscardHandler))
	f.Cleanup(func() { slog.SetDefault(old) })
}

// at is the bytes at an offset of an image.
func at(b []byte, off, n int64) []byte {
	off = min(off, int64(len(b)))
	return b[off:min(off+n, int64(len(b)))]
}

// fuzzParts are where the structures of a template lie.
type fuzzParts struct {
	b   []byte
	h   *header
	ext *extensions
}

func partsOf(t testing.TB, img *memFile) *fuzzParts {
	h, ext, _, err := readHeader(ctxb, &memFile{b: img.b})
	if err != nil {
		t.Fatal(err)
	}
	return &fuzzParts{img.b, h, ext}
}

func (p *fuzzParts) clone() []byte { return append([]byte(nil), p.b...) }

func (p *fuzzParts) l1() []byte { return at(p.b, int64(p.h.l1Offset), int64(p.h.l1Size)*8) }

// l2 is where the first L2 table lies.
func (p *fuzzParts) l2() int64 { return int64(binary.BigEndian.Uint64(p.l1()) & l1OffsetMask) }

func (p *fuzzParts) refBlock() int64 {
	return int64(binary.BigEndian.Uint64(p.b[p.h.refTableOffset:]))
}

// fuzzOver calls use for each template with its number.
func fuzzOver(f *testing.F, use func(i uint8, p *fuzzParts)) []*fuzzParts {
	fuzzQuiet(f)
	var list []*fuzzParts
	for i, img := range fuzzTemplates(f) {
		p := partsOf(f, img)
		list = append(list, p)
		use(uint8(i), p)
	}
	return list
}

func FuzzHeader(f *testing.F) {
	list := fuzzOver(f, func(i uint8, p *fuzzParts) { f.Add(i, at(p.b, 0, min(p.h.clusterSize, 1024))) })
	f.Fuzz(func(t *testing.T, i uint8, head []byte) {
		b := list[int(i)%len(list)].clone()
		copy(b, head)
		fuzzUse(t, b, fuzzSlack+fuzzTables)
	})
}

func FuzzTables(f *testing.F) {
	list := fuzzOver(f, func(i uint8, p *fuzzParts) { f.Add(i, p.l1(), at(p.b, p.l2(), 512)) })
	f.Fuzz(func(t *testing.T, i uint8, l1, l2 []byte) {
		p := list[int(i)%len(list)]
		b := p.clone()
		if p.l2() > 0 {
			copy(at(b, p.l2(), p.h.clusterSize), l2)
		}
		copy(at(b, int64(p.h.l1Offset), p.h.clusterSize), l1)
		fuzzUse(t, b, fuzzSlack)
	})
}

func FuzzRefcounts(f *testing.F) {
	list := fuzzOver(f, func(i uint8, p *fuzzParts) {
		f.Add(i, at(p.b, int64(p.h.refTableOffset), 64), at(p.b, p.refBlock(), 512), false)
		f.Add(i, at(p.b, int64(p.h.refTableOffset), 64), at(p.b, p.refBlock(), 512), true)
		for _, entry := range lostEntries(p) {
			f.Add(i, binary.BigEndian.AppendUint64(nil, entry), []byte{}, i%2 > 0)
		}
	})
	f.Fuzz(func(t *testing.T, i uint8, table, block []byte, dirty bool) {
		p := list[int(i)%len(list)]
		b := p.clone()
		copy(at(b, p.refBlock(), p.h.clusterSize), block)
		copy(at(b, int64(p.h.refTableOffset), p.h.clusterSize), table)
		if dirty && p.h.version >= 3 {
			b[fieldIncompatible+7] |= incompatDirty
		}
		fuzzUse(t, b, fuzzSlack)
	})
}

func FuzzSnapshots(f *testing.F) {
	list := fuzzOver(f, func(i uint8, p *fuzzParts) {
		e := make([]byte, 64)
		be := binary.BigEndian
		be.PutUint64(e, p.h.l1Offset)
		be.PutUint32(e[8:], p.h.l1Size)
		be.PutUint16(e[12:], 1)
		be.PutUint16(e[14:], 4)
		be.PutUint32(e[36:], 16)
		copy(e[56:], "1name")
		f.Add(i, uint32(1), e)
		f.Add(i, uint32(2), append(e, e...))
	})
	f.Fuzz(func(t *testing.T, i uint8, n uint32, table []byte) {
		p := list[int(i)%len(list)]
		b := p.clone()
		for int64(len(b))%p.h.clusterSize != 0 {
			b = append(b, 0)
		}
		binary.BigEndian.PutUint32(b[60:], n)
		binary.BigEndian.PutUint64(b[64:], uint64(len(b)))
		fuzzUse(t, append(b, table...), fuzzSlack+fuzzTables)
	})
}

func FuzzBitmaps(f *testing.F) {
	fuzzQuiet(f)
	p := partsOf(f, bitmapImage(f))
	x := p.ext.bitmaps
	dir := at(p.b, int64(x.offset), int64(x.size))
	table := int64(binary.BigEndian.Uint64(dir))
	f.Add(x.count, x.size, dir, at(p.b, table, 64))
	f.Fuzz(func(t *testing.T, count uint32, size uint64, dir, words []byte) {
		b := p.clone()
		ext := *p.ext
		ext.bitmaps.count, ext.bitmaps.size = count, size
		copy(b[p.h.length:sector], ext.encode(false))
		copy(at(b, table, 512), words)
		copy(at(b, int64(x.offset), 512), dir)
		fuzzUse(t, b, fuzzSlack)
	})
}

func FuzzCompressed(f *testing.F) {
	list := fuzzOver(f, func(i uint8, p *fuzzParts) {
		entry := 16384 >> p.h.clusterBits * 8
		if p.h.clusterBits == 9 && i > 4 {
			return // the image with bitmaps has none
		}
		word := binary.BigEndian.Uint64(p.b[p.l2()+int64(entry):])
		off, n := p.h.compressedExtent(word)
		f.Add(i, word, at(p.b, off, n))
	})
	f.Fuzz(func(t *testing.T, i uint8, word uint64, content []byte) {
		p := list[int(i)%len(list)]
		b := p.clone()
		off, n := p.h.compressedExtent(word)
		copy(at(b, off, n), content)
		if p.l2() > 0 {
			binary.BigEndian.PutUint64(b[p.l2():], word|flagCompressed)
		}
		slack := uint64(fuzzSlack)
		if off < sector { // the header is drawn, too
			slack += fuzzTables
		}
		fuzzUse(t, b, slack)
	})
}

func FuzzImage(f *testing.F) {
	fuzzQuiet(f)
	for _, img := range fuzzTemplates(f) {
		f.Add(img.b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) <= fuzzLimit {
			fuzzUse(t, b, fuzzSlack+fuzzTables)
		}
	})
}
