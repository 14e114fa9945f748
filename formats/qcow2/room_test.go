package qcow2

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
	"time"

	"blockd/blockgraph"
	"blockd/blockgraph/graphtest"
)

// A storage that is full: what it has keeps its room, more there is not.

// fullAfter makes a file fail to become longer than that, until it is undone.
func fullAfter(f *memFile, length int64) {
	f.setFault(func(op string, off, n int64) error {
		if op == "write" && off+n > length || op == "truncate" && off > length {
			return syscall.ENOSPC
		}
		return nil
	})
}

// fullSteps are what may lack space, each on its own.
var fullSteps = []struct {
	name string
	// first is done while there is room.
	first func(t *testing.T, d *Driver)
	run   func(d *Driver) error
}{
	{"write", nil, func(d *Driver) error { return writeSteps(d, 0) }},
	{"compressed", nil, func(d *Driver) error {
		for at := int64(0); at < 256<<10; at += d.h.clusterSize {
			// Half of it can be compressed.
			p := append(fill(byte(at>>9)+1, int(d.h.clusterSize/2)), randomBytes(rand.New(rand.NewPCG(uint64(at), 1)), d.h.clusterSize/2)...)
			if err := d.WriteV(ctxb, at, blockgraph.MakeIOVec(p), blockgraph.Compressed); err != nil {
				return err
			}
		}
		return nil
	}},
	{"zeroes", nil, func(d *Driver) error {
		for at := int64(0); at < 256<<10; at += 32 << 10 {
			if err := d.WriteZeroes(ctxb, at, d.h.clusterSize, 0); err != nil {
				return err
			}
		}
		return nil
	}},
	{"write after a snapshot", func(t *testing.T, d *Driver) {
		put(t, d, 0, fill(1, 256<<10))
		if _, err := d.CreateSnapshot(ctxb, "s", time.Unix(1, 0)); err != nil {
			t.Fatal(err)
		}
	}, func(d *Driver) error { return writeSteps(d, 0) }},
	{"snapshot", func(t *testing.T, d *Driver) { put(t, d, 0, fill(1, 256<<10)) }, func(d *Driver) error {
		_, err := d.CreateSnapshot(ctxb, "s", time.Unix(1, 0))
		return err
	}},
	{"bitmaps", func(t *testing.T, d *Driver) { put(t, d, 0, fill(1, 64<<10)) }, func(d *Driver) error {
		list := bitmapsOf(d, 3)
		for i := range list {
			if err := d.StoreBitmaps(ctxb, list[:i+1]); err != nil {
				// The one who changes the list goes back to the one before.
				if back := d.StoreBitmaps(ctxb, list[:i]); back != nil {
					return fmt.Errorf("%w, and then %s", err, back)
				}
				return err
			}
		}
		return nil
	}},
	{"growth", func(t *testing.T, d *Driver) { put(t, d, 0, fill(1, 64<<10)) }, func(d *Driver) error {
		return d.Truncate(ctxb, 16<<20, true, "", false)
	}},
	{"growth in place", func(t *testing.T, d *Driver) { put(t, d, 0, fill(1, 64<<10)) }, func(d *Driver) error {
		return d.Truncate(ctxb, 512<<10, true, "", false)
	}},
	{"preallocation", func(t *testing.T, d *Driver) { put(t, d, 0, fill(1, 64<<10)) }, func(d *Driver) error {
		return d.Truncate(ctxb, 512<<10, true, "full", false)
	}},
}

// writeSteps writes over the whole disk in pieces.
func writeSteps(d *Driver, flags blockgraph.Flags) error {
	const step = 8 << 10
	for at := int64(0); at < 256<<10; at += step {
		if err := d.WriteV(ctxb, at, blockgraph.MakeIOVec(fill(byte(at/step)+2, step)), flags); err != nil {
			return err
		}
	}
	return nil
}

// TestAFullDiskFailsWhatLacksRoomAndNothingElse ends the storage's room at each
// sector that an operation would make it longer by: the operation fails with ENOSPC,
// but flushing and closing do not, and nothing is leaked, with no more room than
// before; then, with room, the operation goes through.
func TestAFullDiskFailsWhatLacksRoomAndNothingElse(t *testing.T) {
	sets := []optionSet{
		{name: "512", cluster: 512, opts: []imageOption{refcountBits(64)}},
		{name: "4K", cluster: 4096, opts: []imageOption{refcountBits(64)}},
		{name: "64K", cluster: 64 << 10},
		{name: "extended", cluster: 16 << 10, opts: []imageOption{extended}},
	}
	for i := range sets {
		set := &sets[i]
		for k := range fullSteps {
			s := &fullSteps[k]
			t.Run(set.name+" "+s.name, func(t *testing.T) {
				f, d, from := fullImage(t, set, k)
				if err := s.run(d); err != nil {
					t.Fatal(err)
				}
				closeImage(t, d)
				whole := int64(len(f.b)) - from
				step := max(sector, set.cluster/2)
				points := whole / step
				every := int64(graphtest.Sample(t, 1+int(points)/5, 1))
				failed := 0
				for at := int64(0); at <= points; at += every {
					f, d, from := fullImage(t, set, k)
					fullAfter(f, from+at*step)
					err := s.run(d)
					if err != nil && blockgraph.Errno(err) != syscall.ENOSPC {
						t.Fatalf("with room for %d bytes: %v", at*step, err)
					} else if err != nil {
						failed++
					}
					before := get(t, d, 0, 256<<10)
					if err := d.Flush(ctxb); err != nil {
						t.Fatalf("with room for %d bytes a flush fails with %v", at*step, err)
					}
					// What closing leaves, on a disk that is still full.
					closeImage(t, d)
					mustCheck(t, &memFile{b: bytes.Clone(f.b)}, true)
					d = openImage(t, f, nil)
					if got := get(t, d, 0, 256<<10); !bytes.Equal(got, before) {
						t.Fatalf("with room for %d bytes the disk differs at %#x", at*step, firstDiff(got, before))
					}
					f.setFault(nil)
					if err := s.run(d); err != nil {
						t.Fatalf("with room again: %v", err)
					}
					closeImage(t, d)
					mustCheck(t, f, true)
				}
				if failed == 0 && whole > 0 {
					t.Errorf("nothing has failed, though it makes the file %d bytes longer", whole)
				}
			})
		}
	}
}

// fullImage is an image for step k, durable, and how long it is.
func fullImage(t *testing.T, set *optionSet, k int) (*memFile, *Driver, int64) {
	f := newImage(t, 256<<10, set.create()...)
	d := openImage(t, f, nil)
	if first := fullSteps[k].first; first != nil {
		first(t, d)
	}
	flush(t, d)
	return f, d, int64(len(f.b))
}

// TestRequestsThatNeedOneTableMakeIt lets several requests meet while the room for
// the table that all of them need is being made: it is made once, and all go through;
// where there is no room, all fail, and nothing is left behind.
func TestRequestsThatNeedOneTableMakeIt(t *testing.T) {
	for _, full := range []bool{false, true} {
		f := newImage(t, 1<<20, clusterSize(4096))
		d := openImage(t, f, nil)
		reached, release := holdAt(f, "l2_alloc_write")
		errs := make(chan error, 4)
		var wg sync.WaitGroup
		write := func(i int64) {
			wg.Go(func() {
				errs <- d.WriteV(ctxb, i*8192, blockgraph.MakeIOVec(fill(byte(i+1), 4096)), 0)
			})
		}
		write(0)
		<-reached
		if full {
			f.setFault(func(op string, _, _ int64) error {
				if op == "write" {
					return syscall.ENOSPC
				}
				return nil
			})
		}
		for i := range int64(3) {
			write(i + 1)
		}
		release()
		wg.Wait()
		for range 4 {
			switch err := <-errs; {
			case full && blockgraph.Errno(err) != syscall.ENOSPC:
				t.Errorf("full: %v", err)
			case !full && err != nil:
				t.Error(err)
			}
		}
		f.setFault(nil)
		for i := range int64(4) {
			want := fill(byte(i+1), 4096)
			if full {
				clear(want)
			}
			if got := get(t, d, i*8192, 4096); !bytes.Equal(got, want) {
				t.Errorf("full %v: request %d is not there", full, i)
			}
		}
		closeImage(t, d)
		mustCheck(t, f, true)
	}
}

// TestWhatIsFreedIsRoom: on a full disk a request takes what was given up before it,
// though nobody has flushed since.
func TestWhatIsFreedIsRoom(t *testing.T) {
	f := newImage(t, 1<<20, clusterSize(4096))
	d := openImage(t, f, nil)
	put(t, d, 0, fill(1, 64<<10))
	flush(t, d)
	fullAfter(f, int64(len(f.b)))
	if err := d.WriteV(ctxb, 512<<10, blockgraph.MakeIOVec(fill(2, 4096)), 0); blockgraph.Errno(err) != syscall.ENOSPC {
		t.Fatal(err)
	}
	if err := d.Discard(ctxb, 0, 16<<10); err != nil {
		t.Fatal(err)
	}
	put(t, d, 512<<10, fill(2, 16<<10))
	// The same when the space is free already, and runs were looked for elsewhere.
	if err := d.Discard(ctxb, 16<<10, 16<<10); err != nil {
		t.Fatal(err)
	}
	flush(t, d)
	put(t, d, 768<<10, fill(3, 16<<10))
	if got := get(t, d, 512<<10, 16<<10); !bytes.Equal(got, fill(2, 16<<10)) {
		t.Error("it is not what was written")
	}
	closeImage(t, d)
	mustCheck(t, f, true)
}

// TestARefcountBlockTakesNoClusterThatIsGone: the cluster that a search has found for a
// new refcount block may be an L2 table by the time that the block is made.
func TestARefcountBlockTakesNoClusterThatIsGone(t *testing.T) {
	f := newImage(t, 1<<20, clusterSize(512), refcountBits(64))
	d := openImage(t, f, nil)
	put(t, d, 0, fill(1, 512))
	table := int64(d.l1.Load().entries[0].Load()&l1OffsetMask) >> d.h.clusterBits
	index := int64(len(d.refs.table)) - 1
	if d.refs.table[index] != 0 {
		t.Fatal("there is a block already")
	}
	if err := d.makeRefBlock(ctxb, index, table); err != nil {
		t.Fatal(err)
	}
	if d.broken.Load() || d.refs.table[index] != 0 {
		t.Error("it was taken")
	}
	if got := get(t, d, 0, 512); !bytes.Equal(got, fill(1, 512)) {
		t.Error("the disk has changed")
	}
	closeImage(t, d)
	mustCheck(t, f, true)
}

// TestManyRequestsMakeTables has requests of one cluster and of several meet, all of
// which need tables, refcount blocks and larger refcount tables.
func TestManyRequestsMakeTables(t *testing.T) {
	const size, workers = 4 << 20, 8
	f := newImage(t, size, clusterSize(512), refcountBits(64))
	d := openImage(t, f, nil)
	var wg sync.WaitGroup
	for w := range int64(workers) {
		wg.Go(func() {
			for at := w * 4096; at < size; at += workers * 4096 {
				n := int64(4096)
				if w%2 == 0 {
					n = 512
				}
				for in := int64(0); in < 4096; in += n {
					if err := d.WriteV(ctxb, at+in, blockgraph.MakeIOVec(fill(byte(w+1), int(n))), 0); err != nil {
						t.Errorf("at %#x: %v", at+in, err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	for at := int64(0); at < size; at += 4096 {
		if got := get(t, d, at, 4096); !bytes.Equal(got, fill(byte(at/4096%workers+1), 4096)) {
			t.Fatalf("differs at %#x", at)
		}
	}
	closeImage(t, d)
	mustCheck(t, f, true)
}
