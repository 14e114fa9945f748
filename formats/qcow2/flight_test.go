package qcow2

import (
	"bytes"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"blockd/blockgraph"
	"blockd/blockgraph/graphtest"
)

// Requests that are stopped at fault points while others go on.

// holdAt makes the first who passes a fault point wait there until the returned
// function is called. reached is closed when he does.
func holdAt(f *memFile, point string) (reached <-chan struct{}, release func()) {
	at, gate := make(chan struct{}), make(chan struct{})
	var once atomic.Bool
	f.mu.Lock()
	f.events = func(e string) {
		if e == point && once.CompareAndSwap(false, true) {
			close(at)
			<-gate
		}
	}
	f.mu.Unlock()
	return at, sync.OnceFunc(func() { close(gate) })
}

const flightCluster = 4096

// flightImage has some clusters with data; the first is what it is all about.
func flightImage(t *testing.T) (*memFile, *memFile, *Driver, []byte) {
	f := newImage(t, 1<<20, clusterSize(flightCluster))
	backing := &memFile{b: fill(9, 1<<20)}
	d := openImage(t, f, backing)
	want := bytes.Clone(backing.b)
	for i := range int64(8) {
		p := fill(byte(0x10+i), flightCluster)
		put(t, d, i*flightCluster, p)
		copy(want[i*flightCluster:], p)
	}
	flush(t, d)
	return f, backing, d, want
}

// TestDiscardWriteAndAllocationInFlight stops a write to a cluster at each of
// its fault points, discards the cluster, and allocates as much as there is:
// the cluster's place is neither punched nor taken while the write may use it.
func TestDiscardWriteAndAllocationInFlight(t *testing.T) {
	for _, c := range []struct {
		name  string
		off   int64 // of a write of 512 bytes
		point string
	}{
		{"mapped write", 0, "write_aio"},
		{"allocating write, at the beginning", 16 * flightCluster, "cluster_alloc"},
		{"allocating write, reading the rest", 16 * flightCluster, "cow_read"},
		{"allocating write, reading below", 16 * flightCluster, "read_backing_aio"},
		{"allocating write, with the rest", 16 * flightCluster, "cow_write"},
		{"allocating write, with its data", 16 * flightCluster, "write_aio"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, backing, d, want := flightImage(t)
			mapped := c.off == 0
			host := int64(-1)
			if mapped {
				host = hostOf(t, d, c.off)
			}
			reached, release := holdAt(f, c.point)
			wrote := make(chan error, 1)
			go func() { wrote <- d.WriteV(ctxb, c.off, blockgraph.MakeIOVec(fill(0x77, 512)), 0) }()
			<-reached
			var held atomic.Bool
			held.Store(true)
			f.setFault(func(op string, off, n int64) error {
				if held.Load() && op != "read" && host >= 0 && off < host+flightCluster && host < off+n {
					t.Errorf("%s of %d bytes at %#x, which a write in flight has mapped", op, n, off)
				}
				return nil
			})
			discarded := make(chan error, 1)
			go func() { discarded <- d.Discard(ctxb, c.off, flightCluster) }()
			if mapped || c.point == "cluster_alloc" {
				// It has not claimed the cluster: the discard does not wait.
				if err := <-discarded; err != nil {
					t.Fatal(err)
				}
			}
			// Whatever is free may be taken meanwhile.
			for i := int64(20); i < 120; i++ {
				p := fill(byte(i), flightCluster)
				put(t, d, i*flightCluster, p)
				copy(want[i*flightCluster:], p)
				if i%10 == 0 {
					flush(t, d)
				}
			}
			held.Store(false)
			release()
			if err := <-wrote; err != nil {
				t.Fatal(err)
			}
			if !mapped && c.point != "cluster_alloc" {
				if err := <-discarded; err != nil {
					t.Fatal(err)
				}
			}
			f.setFault(nil)
			got := get(t, d, 0, 1<<20)
			at := got[c.off : c.off+flightCluster]
			zero := make([]byte, flightCluster)
			after := append(fill(0x77, 512), zero[512:]...) // the write came last
			if !bytes.Equal(at, zero) && !bytes.Equal(at, after) {
				t.Errorf("the cluster reads as %x… %x", at[:4], at[512:516])
			}
			copy(want[c.off:], at)
			if !bytes.Equal(got, want) {
				t.Errorf("other clusters differ at %#x", firstDiff(got, want))
			}
			closeImage(t, d)
			mustCheck(t, f, true)
			d = openImage(t, f, backing)
			if again := get(t, d, 0, 1<<20); !bytes.Equal(again, want) {
				t.Errorf("differs after opening it again, at %#x", firstDiff(again, want))
			}
			closeImage(t, d)
		})
	}
}

// TestAllocationWhileClustersAreGivenUp stops the write-back that makes a
// discard durable, and the dropping of counts, at each of their fault points:
// the place is not taken before its count has fallen, and nobody waits.
func TestAllocationWhileClustersAreGivenUp(t *testing.T) {
	for _, point := range []string{"l2_update", "flush_to_disk", "cluster_free"} {
		t.Run(point, func(t *testing.T) {
			f, backing, d, want := flightImage(t)
			hosts := []int64{hostOf(t, d, 0), hostOf(t, d, 3*flightCluster)}
			for _, off := range []int64{0, 3 * flightCluster} {
				if err := d.Discard(ctxb, off, flightCluster); err != nil {
					t.Fatal(err)
				}
				clear(want[off : off+flightCluster])
			}
			reached, release := holdAt(f, point)
			done := make(chan error, 1)
			go func() { done <- d.Flush(ctxb) }()
			<-reached
			for i := int64(30); i < 60; i++ {
				p := fill(byte(i), flightCluster)
				put(t, d, i*flightCluster, p)
				copy(want[i*flightCluster:], p)
				if host := hostOf(t, d, i*flightCluster); slices.Contains(hosts, host) {
					t.Fatalf("%#x was taken at %s", host, point)
				}
			}
			if got := get(t, d, 0, 1<<20); !bytes.Equal(got, want) {
				t.Fatalf("differs at %#x", firstDiff(got, want))
			}
			release()
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			flush(t, d)
			// Now they may go to others.
			var reused bool
			for i := int64(60); i < 64; i++ {
				p := fill(byte(i), flightCluster)
				put(t, d, i*flightCluster, p)
				copy(want[i*flightCluster:], p)
				reused = reused || slices.Contains(hosts, hostOf(t, d, i*flightCluster))
			}
			if !reused {
				t.Error("the places are never used again")
			}
			closeImage(t, d)
			mustCheck(t, f, true)
			d = openImage(t, f, backing)
			if got := get(t, d, 0, 1<<20); !bytes.Equal(got, want) {
				t.Errorf("differs after opening it again, at %#x", firstDiff(got, want))
			}
			closeImage(t, d)
		})
	}
}

// TestABlockedRefcountReadStopsNobodyWithRoom: a read of a refcount block that
// does not return keeps only those waiting who need it.
func TestABlockedRefcountReadStopsNobodyWithRoom(t *testing.T) {
	// A block counts 512 clusters of 4 KiB.
	f := newImage(t, 64<<20, clusterSize(flightCluster), refcountBits(64))
	d := openImage(t, f, nil)
	put(t, d, 0, fill(1, 12<<20))
	closeImage(t, d)
	d = openImage(t, f, nil)
	put(t, d, 32<<20, fill(2, flightCluster))
	// Only the block with free clusters stays in memory: it has changed.
	d.mu.Lock()
	capacity := d.refs.capacity
	for d.refs.capacity = 1; d.refs.blocks[0] != nil; {
		d.evictRefBlocks()
	}
	d.refs.capacity = capacity
	d.mu.Unlock()
	// A discard drops the count of a cluster in another block, which is read.
	if err := d.Discard(ctxb, 0, flightCluster); err != nil {
		t.Fatal(err)
	}
	reached, release := holdAt(f, "refblock_load")
	done := make(chan error, 1)
	go func() { done <- d.Flush(ctxb) }()
	<-reached
	get(t, d, 4<<20, 1<<20)
	put(t, d, 5<<20, fill(4, 5000))
	for i := range int64(20) {
		put(t, d, 33<<20+i*flightCluster, fill(3, flightCluster))
	}
	put(t, d, 60<<20, fill(5, 100)) // and makes a table
	release()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	closeImage(t, d)
	mustCheck(t, f, true)
}

// spaceWork is a workload of everything that allocates. unsure gets what the
// sectors of a failed request may hold.
type spaceWork struct {
	t      *testing.T
	d      *Driver
	want   []byte
	unsure []bool
	failed int
}

func (w *spaceWork) did(off, n int64, p []byte, err error) {
	w.t.Helper()
	if err != nil {
		if !noSpace(err) {
			w.t.Fatalf("failed with %v", err)
		}
		w.failed++
	}
	for i := off; i < off+n; i++ {
		if err != nil {
			w.unsure[i] = true
			continue
		}
		w.want[i], w.unsure[i] = 0, false
		if p != nil {
			w.want[i] = p[i-off]
		}
	}
}

func (w *spaceWork) write(off, n int64, c byte, flags blockgraph.Flags) {
	w.t.Helper()
	p := fill(c, int(n))
	if err := w.d.BeforeChange(ctxb, off, n); err != nil {
		w.did(off, 0, nil, err)
		return
	}
	w.did(off, n, p, w.d.WriteV(ctxb, off, blockgraph.MakeIOVec(p), flags))
}

func (w *spaceWork) run() {
	t, d := w.t, w.d
	cs := d.h.clusterSize
	note := func(err error) { w.did(0, 0, nil, err) }
	w.write(100, 3000, 1, 0)
	note(d.Flush(ctxb))
	w.write(64<<10, 8*cs, 2, 0)
	note(d.StoreBitmaps(ctxb, bitmapsOf(d, 2)))
	w.write(128<<10, 4*cs, 3, blockgraph.Compressed)
	w.write(64<<10+cs, 512, 4, 0)
	w.did(64<<10+2*cs, 2*cs, nil, d.Discard(ctxb, 64<<10+2*cs, 2*cs))
	note(d.Flush(ctxb))
	w.write(128<<10, cs, 5, 0)
	w.did(200<<10, 4*cs, nil, d.WriteZeroes(ctxb, 200<<10, 4*cs, 0))
	// A length that the L1 table and the bitmaps have to be moved for.
	if err := d.Truncate(ctxb, 16<<20, true, "", false); err != nil && !noSpace(err) {
		t.Fatal(err)
	} else if err != nil {
		w.failed++
	}
	note(d.StoreBitmaps(ctxb, d.bitmaps.want[:1]))
	w.write(0, 2000, 6, 0)
	note(d.Flush(ctxb))
}

// TestFullDiskAtEveryWrite lets the storage be full from each write of a
// workload on, and at each write alone, which may have reached the disk all the
// same: requests fail with ENOSPC, what did not fail is there, and the image is
// clean as it lies there as well as when there is room again.
func TestFullDiskAtEveryWrite(t *testing.T) {
	sets := []optionSet{{cluster: 512, opts: []imageOption{refcountBits(64)}}, {cluster: 512}, {cluster: 4096}}
	for _, set := range sets[:graphtest.Sample(t, 1, len(sets))] {
		for _, c := range []struct {
			kind    string
			forever bool
		}{{"write", false}, {"write", true}, {"written", false}} {
			nth := 0
			for fullDiskAt(t, &set, c.kind, nth, c.forever) {
				nth++
			}
			if nth < 30 {
				t.Errorf("the workload writes only %d times", nth)
			}
		}
	}
}

// fullDiskAt tells whether the workload came as far as its nth write.
func fullDiskAt(t *testing.T, set *optionSet, kind string, nth int, forever bool) (hit bool) {
	t.Helper()
	f := newImage(t, 256<<10, set.create()...)
	d := openImage(t, f, nil)
	what := fmt.Sprintf("clusters of %d, full at %s %d, forever %v", set.cluster, kind, nth, forever)
	defer func() {
		if t.Failed() {
			t.Log(what)
		}
	}()
	var mu sync.Mutex // compressed clusters are written side by side
	count := 0
	f.setFault(func(op string, _, _ int64) error {
		if op != kind {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		if count++; count-1 == nth || forever && count-1 > nth {
			hit = true
			return blockgraph.Errorf(28, "No space left on device")
		}
		return nil
	})
	w := &spaceWork{t: t, d: d, want: make([]byte, 256<<10), unsure: make([]bool, 256<<10)}
	w.run()
	// The image as it lies there.
	mustCheck(t, &memFile{b: bytes.Clone(f.b)}, false)
	f.setFault(nil)
	flush(t, d)
	got := get(t, d, 0, 256<<10)
	for i := range got {
		if !w.unsure[i] && got[i] != w.want[i] {
			t.Fatalf("byte %#x is %d, not %d", i, got[i], w.want[i])
		}
	}
	closeImage(t, d)
	mustCheck(t, f, true)
	d = openImage(t, f, nil)
	if again := get(t, d, 0, 256<<10); !bytes.Equal(again, got) {
		t.Fatalf("differs after opening it again, at %#x", firstDiff(again, got))
	}
	closeImage(t, d)
	if hit && w.failed == 0 && forever {
		t.Fatal("nothing has failed")
	}
	return hit
}
