package qcow2

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"blockd/blockgraph"
	"blockd/clock"
	"blockd/qapi"
)

// sparseImage is an image of a disk of size bytes with an L2 table for every part
// of it: only what is not zeroes takes memory. All tables say the same: cluster i
// of their part lies at dataAt.
type sparseImage struct {
	*memFile // the header and the L1 table
	l2At     int64
	dataAt   int64
	reads    atomic.Int64
	l2       []byte
	cluster  int64
}

func newSparseImage(t testing.TB, size int64) *sparseImage {
	s := &sparseImage{memFile: newImage(t, size), cluster: 64 << 10}
	h, _, _, err := readHeader(ctxb, s.memFile)
	if err != nil {
		t.Fatal(err)
	}
	s.l2At = 1 << 40
	s.dataAt = 1 << 45
	for i := range int64(h.l1Size) {
		binary.BigEndian.PutUint64(s.b[int64(h.l1Offset)+i*l1EntrySize:], uint64(s.l2At+i*s.cluster)|flagCopied)
	}
	s.l2 = make([]byte, s.cluster)
	for i := range s.cluster / 8 {
		binary.BigEndian.PutUint64(s.l2[i*8:], uint64(s.dataAt+i*s.cluster)|flagCopied)
	}
	return s
}

func (s *sparseImage) Size() int64 { return s.dataAt + 1<<40 }

func (s *sparseImage) ReadV(ctx context.Context, off int64, v *blockgraph.IOVec, flags blockgraph.Flags) error {
	s.reads.Add(1)
	switch {
	case off >= s.dataAt:
		v.Zero(0, v.Len())
		return nil
	case off >= s.l2At:
		in := off & (s.cluster - 1)
		v.CopyIn(0, s.l2[in:in+v.Len()])
		return nil
	}
	return s.memFile.ReadV(ctx, off, v, flags)
}

type sparseChildren struct{ s *sparseImage }

func (c sparseChildren) file() storage          { return c.s }
func (c sparseChildren) backing() storage       { return nil }
func (c sparseChildren) node() *blockgraph.Node { return nil }
func (c sparseChildren) data() storage          { return nil }

// Random reads over a disk whose tables do not fit the cache take two reads of the
// file at most: one of a table, one of the data.
func TestRandomReadsOverATebibyteTakeTwoReadsAtMost(t *testing.T) {
	const size, reads, cache = 1 << 40, 600, 256 << 10
	s := newSparseImage(t, size)
	o := &qapi.BlockdevOptionsQcow2{L2CacheSize: ptr(int64(cache)), CacheCleanInterval: ptr(int64(0))}
	d, err := open(ctxb, sparseChildren{s}, &qapi.BlockdevOptions{Qcow2: o}, true)
	if err != nil {
		t.Fatal(err)
	}
	defer closeImage(t, d)
	rnd := rand.New(rand.NewPCG(1, 2))
	p := make([]byte, 4096)
	for range reads {
		before := s.reads.Load()
		if err := d.ReadV(ctxb, rnd.Int64N(size/4096)*4096, blockgraph.MakeIOVec(p), 0); err != nil {
			t.Fatal(err)
		}
		if n := s.reads.Load() - before; n < 1 || n > 2 {
			t.Fatalf("a read took %d reads", n)
		}
	}
	c := d.DriverStats("qcow2").Qcow2.XL2Cache
	if c.Size != cache || c.Hits+c.Misses != reads || c.Misses != uint64(s.reads.Load()-reads-openingReads(t, size)) {
		t.Errorf("%+v, and %d reads of the file", c, s.reads.Load())
	}
	if n := int64(len(d.cache.ring)) * d.options().l2Entry; n != cache {
		t.Errorf("the cache has %d bytes", n)
	}
}

// openingReads is how many reads of the file opening an image takes.
func openingReads(t *testing.T, size int64) int64 {
	s := newSparseImage(t, size)
	d, err := open(ctxb, sparseChildren{s}, &qapi.BlockdevOptions{}, true)
	if err != nil {
		t.Fatal(err)
	}
	closeImage(t, d)
	return s.reads.Load()
}

// Opening reads the header and the tables of the first level, however long the
// disk is.
func TestOpeningTakesFewReadsHoweverLongTheDisk(t *testing.T) {
	small, large := openingReads(t, 1<<30), openingReads(t, 10<<40)
	if small != large || large > 5 {
		t.Errorf("%d reads for 1 GiB, %d for 10 TiB", small, large)
	}
}

// The cache takes what the image needs and no more than its cap.
func TestCacheFitsTheImage(t *testing.T) {
	for _, tc := range []struct{ size, want int64 }{
		{1 << 30, 128 << 10}, {64 << 30, 8 << 20}, {1 << 40, defaultL2Cache},
	} {
		d := openImage(t, newImage(t, tc.size), nil)
		if got := int64(d.DriverStats("qcow2").Qcow2.XL2Cache.Size); got != tc.want {
			t.Errorf("%d bytes of disk: a cache of %d bytes", tc.size, got)
		}
		closeImage(t, d)
	}
}

// What nobody has used for an interval is given back; what is used, and what is
// not on disk, stays.
func TestCacheCleanInterval(t *testing.T) {
	f := newImage(t, 64<<20, clusterSize(4096))
	d := openWith(t, f, nil, &qapi.BlockdevOptionsQcow2{CacheCleanInterval: ptr(int64(0))})
	v := clock.NewVirtual()
	d.cleaner.mu.Lock()
	d.cleaner.clock = v
	d.cleaner.mu.Unlock()
	d.cleaner.every(d, 10*time.Second)
	for i := range int64(16) {
		put(t, d, i*2<<20, fill(1, 4096))
	}
	in := func() (slices, blocks int) {
		d.mu.Lock()
		defer d.mu.Unlock()
		return len(d.cache.ring), len(d.refs.ring)
	}
	all, blocks := in()
	v.Step(30 * time.Second)
	if n, b := in(); n != all || b != blocks {
		t.Errorf("%d and %d tables before their write-back, of %d and %d", n, b, all, blocks)
	}
	flush(t, d)
	v.Step(20 * time.Second)
	get(t, d, 0, 4096)
	v.Step(10 * time.Second)
	if n, b := in(); n != 1 || b != 0 {
		t.Errorf("%d and %d tables, of which one was used", n, b)
	}
	v.Step(10 * time.Second)
	if n, _ := in(); n != 0 {
		t.Errorf("%d tables that nobody has used for an interval", n)
	}
	for i := range int64(16) {
		if got := get(t, d, i*2<<20, 1); got[0] != 1 {
			t.Fatal("content is lost")
		}
	}
	closeImage(t, d)
	if _, more := v.Next(); more {
		t.Error("a closed image still waits for its next cleaning")
	}
	mustCheck(t, f, true)
}

// A reopening changes the interval, and one that is undone changes it back.
func TestCacheCleanIntervalOfAReopening(t *testing.T) {
	d := openWith(t, newImage(t, 1<<20), nil, &qapi.BlockdevOptionsQcow2{CacheCleanInterval: ptr(int64(0))})
	v := clock.NewVirtual()
	d.cleaner.mu.Lock()
	d.cleaner.clock = v
	d.cleaner.mu.Unlock()
	holds := func(want time.Duration) {
		t.Helper()
		if next, any := v.Next(); any != (want > 0) || next != want {
			t.Errorf("cleaned in %s, not in %s", next, want)
		}
	}
	reopen := func(seconds int64) *blockgraph.Reopening {
		t.Helper()
		o := &qapi.BlockdevOptionsQcow2{CacheCleanInterval: &seconds}
		p, err := d.PrepareReopen(ctxb, &blockgraph.ReopenRequest{Options: &qapi.BlockdevOptions{Qcow2: o}})
		if err != nil {
			t.Fatal(err)
		}
		p.Apply()
		return p
	}
	reopen(7)
	holds(7 * time.Second)
	undone := reopen(5)
	holds(5 * time.Second)
	undone.Undo(ctxb)
	holds(7 * time.Second)
	reopen(0)
	holds(0)
	closeImage(t, d)
}
