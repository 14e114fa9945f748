package qcow2

import (
	"bytes"
	"context"
	"math/rand/v2"
	"sync"
	"testing"

	"blockd/blockgraph"
)

// noLock is for tests in which nobody uses the disk during a step.
func noLock(context.Context, int64, int64) (func(), error) { return func() {}, nil }

func startCompact(t testing.TB, d *Driver, lock blockgraph.RangeLocker) blockgraph.Compaction {
	t.Helper()
	c, err := d.StartCompact(blockgraph.CompactOptions{Lock: lock})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func compact(t testing.TB, d *Driver, lock blockgraph.RangeLocker, step int64) blockgraph.CompactResult {
	t.Helper()
	c := startCompact(t, d, lock)
	defer c.Close()
	for {
		_, more, err := c.Step(ctxb, step)
		if err != nil {
			t.Fatal(err)
		}
		if !more {
			return c.Result()
		}
	}
}

// TestCompactEndsTheFileWhereItsContentEnds frees most of an image, its
// beginning above all, and compacts it.
func TestCompactEndsTheFileWhereItsContentEnds(t *testing.T) {
	for _, s := range optionSets {
		t.Run(s.name, func(t *testing.T) {
			cs := int64(s.cluster)
			size := min(300*cs, 6<<20) // a multiple of all of them
			f := newImage(t, size, s.create()...)
			d := openWith(t, f, nil, &s.run)
			rnd := rand.New(rand.NewPCG(7, 8))
			want := make([]byte, size)
			for off := int64(0); off < size; off += 10 * cs {
				p := randomBytes(rnd, min(10*cs, size-off))
				put(t, d, off, p)
				copy(want[off:], p)
			}
			for cl := range size / cs {
				if cl < size/cs/2 || cl%3 > 0 {
					if err := d.WriteZeroes(ctxb, cl*cs, cs, blockgraph.MayUnmap); blockgraph.Errno(err) != 0 {
						t.Fatal(err)
					}
					clear(want[cl*cs : (cl+1)*cs])
				}
			}
			flush(t, d)
			external, keeps := d.h.external, d.options().discardNoUnref
			r := compact(t, d, noLock, 10000)
			if got := get(t, d, 0, size); !bytes.Equal(got, want) {
				t.Errorf("content differs at %#x", firstDiff(got, want))
			}
			closeImage(t, d)
			mustCheck(t, f, true)
			fieldCheck(t, f)
			d = openImage(t, f, nil)
			chk := inspect(t, d, blockgraph.CheckFixNone, 0)
			got := get(t, d, 0, size)
			closeImage(t, d)
			if !bytes.Equal(got, want) {
				t.Errorf("content differs at %#x after closing", firstDiff(got, want))
			}
			t.Logf("%+v, then %+v", r, chk)
			if chk.Corruptions+chk.Leaks+chk.CheckErrors > 0 {
				t.Errorf("a check of the open image finds %+v", chk)
			}
			if r.FileSizeAfter != f.Size() || r.FileSizeAfter > chk.ImageEnd+cs {
				t.Errorf("the file is %d bytes long, its content %d", r.FileSizeAfter, chk.ImageEnd)
			}
			if !external && !keeps && (r.Moved == 0 || r.FileSizeAfter > r.FileSizeBefore*2/3) {
				t.Errorf("hardly anything was given back: %+v", r)
			}
		})
	}
}

// TestCompactBesideGuests compacts all the time while guests write.
func TestCompactBesideGuests(t *testing.T) {
	for _, cs := range []uint64{512, 4096} {
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		const size, guests = 1 << 20, 4
		f := newImage(t, size, clusterSize(cs))
		d := openImage(t, f, nil)
		var ranges blockgraph.RangeLock
		lock := func(exclusive bool) blockgraph.RangeLocker {
			return func(ctx context.Context, off, n int64) (func(), error) {
				h, err := ranges.Lock(ctx, off, n, exclusive)
				return func() { ranges.Unlock(h) }, err
			}
		}
		model := make([]byte, size)
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for i := range int64(guests) {
			rnd := rand.New(rand.NewPCG(seed, uint64(i)))
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						compactGuest(t, d, rnd, model, i*size/guests, (i+1)*size/guests, lock(false))
					}
				}
			})
		}
		moved := int64(0)
		for i := 0; i < 10 || moved == 0; i++ {
			moved += compact(t, d, lock(true), 4096).Moved
		}
		close(stop)
		wg.Wait()
		flush(t, d)
		moved += compact(t, d, lock(true), 1<<20).Moved
		if got := get(t, d, 0, size); !bytes.Equal(got, model) {
			t.Errorf("content differs at %#x", firstDiff(got, model))
		}
		if moved == 0 {
			t.Error("nothing was moved")
		}
		closeImage(t, d)
		mustCheck(t, f, true)
		fieldCheck(t, f)
	}
}

// compactGuest does one request to [lo, hi) of the disk.
func compactGuest(t *testing.T, d *Driver, rnd *rand.Rand, model []byte, lo, hi int64, lock blockgraph.RangeLocker) {
	cs := d.h.clusterSize
	n := sector * (1 + rnd.Int64N(20))
	off := lo + rnd.Int64N(hi-lo-n)&^(sector-1)
	kind := rnd.IntN(8)
	if kind == 0 {
		off, n = off&^(cs-1), min(16*cs, hi-off&^(cs-1))&^(cs-1)
		off = max(off, lo)
	}
	unlock, err := lock(ctxb, off, n)
	if err != nil {
		t.Error(err)
		return
	}
	defer unlock()
	switch kind {
	case 0:
		if n > 0 {
			if err := d.Discard(ctxb, off, n); err != nil {
				t.Error(err)
			}
			clear(model[off : off+n])
		}
	case 1:
		if got := get(t, d, off, n); !bytes.Equal(got, model[off:off+n]) {
			t.Errorf("read differs at %#x", off+int64(firstDiff(got, model[off:off+n])))
		}
	case 2:
		flush(t, d)
	default:
		p := randomBytes(rnd, n)
		put(t, d, off, p)
		copy(model[off:], p)
	}
}

// compacting compacts the image, with guests' requests between its steps.
var compacting = crashStep{"compact", 2, func(c *crashDisk, r *crashRange) {
	u := startCompact(c.t, c.d, noLock)
	defer u.Close()
	for more := true; more; {
		var err error
		if _, more, err = u.Step(ctxb, 1+r.rnd.Int64N(8192)); err != nil {
			c.fail("compaction", err)
			return
		}
		if r.rnd.IntN(4) == 0 {
			s := crashSteps[r.rnd.IntN(len(crashSteps))]
			s.run(c, r)
		}
		if r.rnd.IntN(200) == 0 {
			return // given up
		}
	}
}}

// leaking leaks clusters and gives them back.
var leaking = crashStep{"leak", 1, func(c *crashDisk, r *crashRange) {
	off, err := c.d.allocateRun(ctxb, 1)
	if err == nil {
		err = writeAt(ctxb, c.d.file(), off, make([]byte, sector))
	}
	c.fail("leak", err)
	if found := inspect(c.t, c.d, blockgraph.CheckFixLeaks, 0); found.LeaksFixed == 0 || found.Leaks+found.Corruptions > 0 {
		c.t.Errorf("after a leak: %+v", found)
	}
}}
