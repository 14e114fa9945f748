package qcow2

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"blockd/blockgraph"
	"blockd/blockgraph/graphtest"
	"blockd/qapi"
)

// memFile is a file in memory that can record what reaches it and fail on
// demand.
type memFile struct {
	mu     sync.RWMutex
	b      []byte
	fixed  bool // does not grow
	dirt   byte // what a longer file has where nothing was written
	log    []graphtest.CrashOp
	record bool
	// seq numbers what is recorded; files that are cut by the same crash share
	// one. nil: the file has its own.
	seq    *atomic.Int64
	passed []string // fault points since the last entry of the log
	// fault, if set, is asked before each operation ("read", "write",
	// "flush", "discard", "truncate"), and after a write has reached the file
	// ("written"); it may block.
	fault   func(op string, off, n int64) error
	flushes int
	writes  int
	events  func(event string)
	// data is the external data file of the image in this one, or nil, and
	// dataPath its name in the header.
	data     *memFile
	dataPath string
}

// note adds an entry to the log. mu is held.
func (f *memFile) note(op graphtest.CrashOp) {
	if !f.record {
		return
	}
	if f.seq == nil {
		f.seq = new(atomic.Int64)
	}
	op.Seq, op.Dirt = f.seq.Add(1)-1, f.dirt
	op.Points, f.passed = f.passed, nil
	f.log = append(f.log, op)
}

func (f *memFile) check(op string, off, n int64) error {
	f.mu.RLock()
	h := f.fault
	f.mu.RUnlock()
	if h != nil {
		return h(op, off, n)
	}
	return nil
}

func (f *memFile) setFault(h func(op string, off, n int64) error) {
	f.mu.Lock()
	f.fault = h
	f.mu.Unlock()
}

func (f *memFile) ReadV(_ context.Context, off int64, v *blockgraph.IOVec, _ blockgraph.Flags) error {
	if err := f.check("read", off, v.Len()); err != nil {
		return err
	}
	f.mu.RLock()
	defer f.mu.RUnlock()
	n := v.Len()
	in := min(max(int64(len(f.b))-off, 0), n)
	if in > 0 {
		v.CopyIn(0, f.b[off:off+in])
	}
	v.Zero(in, n-in)
	return nil
}

func (f *memFile) WriteV(_ context.Context, off int64, v *blockgraph.IOVec, _ blockgraph.Flags) error {
	if err := f.check("write", off, v.Len()); err != nil {
		return err
	}
	if err := f.change(off, v, false); err != nil {
		return err
	}
	return f.check("written", off, v.Len())
}

func (f *memFile) change(off int64, v *blockgraph.IOVec, discard bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.writes++
	end := off + v.Len()
	if end > int64(len(f.b)) {
		if f.fixed {
			return syscall.ENOSPC
		}
		f.resize(end)
	}
	v.CopyOut(0, f.b[off:end])
	if f.record {
		f.note(graphtest.CrashOp{Off: off, Data: bytes.Clone(f.b[off:end]), Discard: discard})
	}
	return nil
}

func (f *memFile) resize(n int64) {
	old := min(n, int64(len(f.b)))
	if n <= int64(cap(f.b)) {
		f.b = f.b[:n]
	} else {
		b := make([]byte, n, n+n/2)
		copy(b, f.b)
		f.b = b
	}
	if clear(f.b[old:]); f.dirt != 0 {
		copy(f.b[old:], bytes.Repeat([]byte{f.dirt}, int(n-old)))
	}
}

func (f *memFile) WriteZeroes(ctx context.Context, off, n int64, _ blockgraph.Flags) error {
	return f.WriteV(ctx, off, blockgraph.MakeIOVec(make([]byte, n)), 0)
}

func (f *memFile) Discard(_ context.Context, off, n int64) error {
	if err := f.check("discard", off, n); err != nil {
		return err
	}
	f.mu.RLock()
	n = min(n, int64(len(f.b))-off)
	f.mu.RUnlock()
	if n <= 0 {
		return nil
	}
	// Discarded content is undefined: make it recognisable.
	return f.change(off, blockgraph.MakeIOVec(bytes.Repeat([]byte{0xdd}, int(n))), true)
}

func (f *memFile) Flush(context.Context) error {
	if err := f.check("flush", 0, 0); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.flushes++
	f.note(graphtest.CrashOp{Flush: true})
	return nil
}

func (f *memFile) Truncate(_ context.Context, size int64, _ bool, _ qapi.PreallocMode, _ bool) error {
	if err := f.check("truncate", size, 0); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	shorter := size < int64(len(f.b))
	f.resize(size)
	f.note(graphtest.CrashOp{Size: size, Cut: shorter})
	return nil
}

func (f *memFile) DebugEvent(event string) {
	if f.events != nil {
		f.events(event)
	}
	if f.record {
		f.mu.Lock()
		f.passed = append(f.passed, event)
		f.mu.Unlock()
	}
}

func (f *memFile) Size() int64 {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return int64(len(f.b))
}
func (f *memFile) Grows() bool            { return !f.fixed }
func (f *memFile) FreshZero() bool        { return f.dirt == 0 }
func (f *memFile) Node() *blockgraph.Node { return nil }
func (f *memFile) ReadsZero(_ context.Context, off, n int64) bool {
	f.mu.RLock()
	defer f.mu.RUnlock()
	for i := off; i < min(off+n, int64(len(f.b))); i++ {
		if f.b[i] != 0 {
			return false
		}
	}
	return true
}

// testChildren are an image's file and backing file in memory.
type testChildren struct{ f, b *memFile }

func (c testChildren) file() storage { return c.f }
func (c testChildren) data() storage {
	if c.f.data == nil {
		return nil
	}
	return c.f.data
}
func (c testChildren) node() *blockgraph.Node { return nil }
func (c testChildren) backing() storage {
	if c.b == nil {
		return nil
	}
	return c.b
}

var ctxb = context.Background()

func ptr[T any](v T) *T { return &v }

type imageOption func(o *qapi.BlockdevCreateOptionsQcow2)

func v2(o *qapi.BlockdevCreateOptionsQcow2) { o.Version = ptr(qapi.BlockdevQcow2VersionV2) }
func clusterSize(n uint64) imageOption {
	return func(o *qapi.BlockdevCreateOptionsQcow2) { o.ClusterSize = &n }
}
func refcountBits(n int64) imageOption {
	return func(o *qapi.BlockdevCreateOptionsQcow2) { o.RefcountBits = &n }
}
func external(o *qapi.BlockdevCreateOptionsQcow2) { o.DataFile = &qapi.BlockdevRef{} }
func externalRaw(o *qapi.BlockdevCreateOptionsQcow2) {
	external(o)
	o.DataFileRaw = ptr(true)
}
func extended(o *qapi.BlockdevCreateOptionsQcow2) { o.ExtendedL2 = ptr(true) }

// dirty is for a file that has garbage where it becomes longer.
func dirty(o *qapi.BlockdevCreateOptionsQcow2) { o.File.Reference = ptr("dirty") }

func prealloc(m qapi.PreallocMode) imageOption {
	return func(o *qapi.BlockdevCreateOptionsQcow2) { o.Preallocation = &m }
}

// newImage creates an image in memory.
func newImage(t testing.TB, size int64, opts ...imageOption) *memFile {
	t.Helper()
	f := &memFile{}
	o := &qapi.BlockdevCreateOptionsQcow2{Size: uint64(size)}
	for _, set := range opts {
		set(o)
	}
	l := loneFile{f: f, keys: testKeys}
	if o.File.Reference != nil {
		f.dirt = 0xa5
	}
	if o.DataFile != nil {
		f.data, f.dataPath = &memFile{dirt: f.dirt}, filepath.Join(t.TempDir(), "data.raw")
		l.external, l.dataName = f.data, f.dataPath
	}
	if err := l.create(ctxb, o); err != nil {
		t.Fatal(err)
	}
	return f
}

// openImage opens an image in memory for writing.
func openImage(t testing.TB, f, backing *memFile) *Driver {
	t.Helper()
	return openWith(t, f, backing, &qapi.BlockdevOptionsQcow2{})
}

func openWith(t testing.TB, f, backing *memFile, o *qapi.BlockdevOptionsQcow2) *Driver {
	t.Helper()
	unmap := qapi.BlockdevDiscardOptionsUnmap
	d, err := open(ctxb, testChildren{f, backing}, &qapi.BlockdevOptions{Discard: &unmap, Qcow2: o}, false)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func closeImage(t testing.TB, d *Driver) {
	t.Helper()
	if err := d.Close(ctxb); err != nil {
		t.Fatal(err)
	}
}

func put(t testing.TB, d *Driver, off int64, p []byte) {
	t.Helper()
	if err := d.WriteV(ctxb, off, blockgraph.MakeIOVec(p), 0); err != nil {
		t.Fatalf("write of %d bytes at %#x: %v", len(p), off, err)
	}
}

func get(t testing.TB, d *Driver, off, n int64) []byte {
	t.Helper()
	p := bytes.Repeat([]byte{0xee}, int(n))
	if err := d.ReadV(ctxb, off, blockgraph.MakeIOVec(p), 0); err != nil {
		t.Fatalf("read of %d bytes at %#x: %v", n, off, err)
	}
	return p
}

func flush(t testing.TB, d *Driver) {
	t.Helper()
	if err := d.Flush(ctxb); err != nil {
		t.Fatal(err)
	}
}

func fill(c byte, n int) []byte { return bytes.Repeat([]byte{c}, n) }

// mustCheck runs our checker on an image.
func mustCheck(t testing.TB, f *memFile, leaksToo bool) {
	t.Helper()
	c, err := check(ctxb, f)
	if err != nil {
		t.Fatal(err)
	}
	if c.res.corruptions > 0 || leaksToo && c.res.leaks > 0 {
		t.Fatalf("%d corruptions, %d leaks: %q", c.res.corruptions, c.res.leaks, c.res.messages)
	}
}

// tool and run ask programs from outside.
var tool, run = graphtest.Tool, graphtest.Run

// save writes an image to a file.
func save(t testing.TB, f *memFile, name string) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(p, f.b, 0o600); err != nil {
		t.Fatal(err)
	}
	if f.data != nil {
		if err := os.WriteFile(f.dataPath, f.data.b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

func load(t testing.TB, path string) *memFile {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return &memFile{b: b}
}

// fieldCheck holds that qemu-img check finds nothing.
func fieldCheck(t testing.TB, f *memFile) {
	t.Helper()
	p, err := exec.LookPath("qemu-img")
	if err != nil {
		return
	}
	run(t, append([]string{p, "check", "-q"}, fieldOpen(f, save(t, f, "check.qcow2"))...)...)
}
