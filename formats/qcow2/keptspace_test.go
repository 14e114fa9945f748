package qcow2

import (
	"bytes"
	"sync/atomic"
	"testing"
	"time"

	"blockd/blockgraph"
	"blockd/qapi"
)

// noUnref opens an image with discard-no-unref.
func noUnref(t *testing.T, f *memFile) *Driver {
	return openWith(t, f, nil, &qapi.BlockdevOptionsQcow2{DiscardNoUnref: ptr(true)})
}

// punched returns the clusters of the file that were discarded while f ran.
func punched(f *memFile, cs int64, do func()) (list []int64) {
	f.setFault(func(op string, off, n int64) error {
		if op == "discard" {
			for c := off / cs; c < (off+n)/cs; c++ {
				list = append(list, c)
			}
		}
		return nil
	})
	do()
	f.setFault(nil)
	return list
}

// TestDiscardNoUnrefPassesDiscardsOn: the cluster keeps its place, and the space
// in the file is given up when that is durable.
func TestDiscardNoUnrefPassesDiscardsOn(t *testing.T) {
	const cs = 16 << 10
	for name, opts := range map[string][]imageOption{"plain": nil, "extended": {extended}} {
		for _, zeroes := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				f := newImage(t, 1<<20, append(opts, clusterSize(cs))...)
				d := noUnref(t, f)
				put(t, d, 0, fill(1, 4*cs))
				flush(t, d)
				place := hostOf(t, d, cs) / cs
				got := punched(f, cs, func() {
					err := d.Discard(ctxb, cs, 2*cs)
					if zeroes {
						err = d.WriteZeroes(ctxb, cs, 2*cs, blockgraph.MayUnmap)
					}
					if err != nil {
						t.Fatal(err)
					}
				})
				if len(got) > 0 {
					t.Errorf("clusters %v were discarded before their unmapping was durable", got)
				}
				// The second one is written again: what it holds stays.
				put(t, d, 2*cs, fill(3, cs))
				got = punched(f, cs, func() { flush(t, d); flush(t, d) })
				if len(got) != 1 || got[0] != place {
					t.Errorf("clusters %v were discarded, not %d", got, place)
				}
				want := append(append(fill(1, cs), make([]byte, cs)...), append(fill(3, cs), fill(1, cs)...)...)
				if !bytes.Equal(get(t, d, 0, 4*cs), want) {
					t.Error("content differs")
				}
				put(t, d, cs, fill(4, 512))
				if now := hostOf(t, d, cs) / cs; now != place {
					t.Errorf("the cluster has moved from %d to %d", place, now)
				}
				closeImage(t, d)
				mustCheck(t, f, true)
				fieldCheck(t, f)
			})
		}
	}
}

// TestDiscardNoUnrefLeavesWhatSnapshotsHold: the same cluster is theirs, too.
func TestDiscardNoUnrefLeavesWhatSnapshotsHold(t *testing.T) {
	const cs = 64 << 10
	f := newImage(t, 1<<20)
	d := noUnref(t, f)
	put(t, d, 0, fill(1, 2*cs))
	id, err := d.CreateSnapshot(ctxb, "s", time.Unix(0, 0))
	if err != nil {
		t.Fatal(err)
	}
	if got := punched(f, cs, func() {
		if err := d.Discard(ctxb, 0, cs); err != nil {
			t.Fatal(err)
		}
		flush(t, d)
		flush(t, d)
	}); len(got) > 0 {
		t.Errorf("clusters %v were discarded", got)
	}
	r, err := d.PrepareRevert(ctxb, &id, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Switch(ctxb, nil); err != nil {
		t.Fatal(err)
	}
	if err := r.Finish(ctxb); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(get(t, d, 0, 2*cs), fill(1, 2*cs)) {
		t.Error("the snapshot has lost what was discarded")
	}
	closeImage(t, d)
	mustCheck(t, f, true)
}

// TestDiscardNoUnrefLeavesWhatOthersMayShare: a table that is shared keeps its
// clusters, whatever the flags in it say.
func TestDiscardNoUnrefLeavesWhatOthersMayShare(t *testing.T) {
	const cs = 64 << 10
	f := newImage(t, 1<<20)
	d := noUnref(t, f)
	put(t, d, 0, fill(1, cs))
	flush(t, d)
	if err := d.Discard(ctxb, 0, cs); err != nil {
		t.Fatal(err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	entry := &d.l1.Load().entries[0]
	e := d.l1.Load().cached(0, 0).load(0)
	x := &extent{first: 0, n: 1, kept: true, host: int64(e.word&l2OffsetMask) / cs, turn: d.frees.turn}
	for _, copied := range []bool{true, false} {
		if !copied {
			entry.Store(entry.Load() &^ flagCopied)
		}
		if still, err := d.stillDropped(x, 0); err != nil || still != copied {
			t.Errorf("with the table's copied flag %v: %v, %v", copied, still, err)
		}
	}
}

// TestDiscardNoUnrefWithoutPassing leaves the file alone.
func TestDiscardNoUnrefWithoutPassing(t *testing.T) {
	const cs = 64 << 10
	f := newImage(t, 1<<20)
	d := openWith(t, f, nil, &qapi.BlockdevOptionsQcow2{DiscardNoUnref: ptr(true), PassDiscardRequest: ptr(false)})
	put(t, d, 0, fill(1, cs))
	if got := punched(f, cs, func() {
		if err := d.Discard(ctxb, 0, cs); err != nil {
			t.Fatal(err)
		}
		closeImage(t, d)
	}); len(got) > 0 {
		t.Errorf("clusters %v were discarded", got)
	}
}

// TestDiscardNoUnrefForgetsWhatCameBack: a cluster that was written again and
// discarded again is discarded in the file when the second time is durable.
func TestDiscardNoUnrefForgetsWhatCameBack(t *testing.T) {
	const cs = 64 << 10
	f := newImage(t, 1<<20)
	d := noUnref(t, f)
	put(t, d, 0, fill(1, cs))
	flush(t, d)
	reader := d.epochs.pin() // so that the first discard has to wait
	drop := func() {
		if err := d.Discard(ctxb, 0, cs); err != nil {
			t.Fatal(err)
		}
	}
	drop()
	flush(t, d)
	put(t, d, 0, fill(2, cs))
	flush(t, d)
	drop()
	reader.unpin()
	if got := punched(f, cs, func() {
		if err := d.reclaim(ctxb); err != nil {
			t.Fatal(err)
		}
	}); len(got) > 0 {
		t.Errorf("clusters %v were discarded, and the disk still refers to them", got)
	}
	if got := punched(f, cs, func() { flush(t, d); flush(t, d) }); len(got) != 1 {
		t.Errorf("clusters %v were discarded in the end", got)
	}
	closeImage(t, d)
	mustCheck(t, f, true)
}

// TestADiscardUnderWayHoldsItsCluster: whoever writes to the cluster again waits,
// so that the discard does not take what was written.
func TestADiscardUnderWayHoldsItsCluster(t *testing.T) {
	const cs = 64 << 10
	for name, opts := range map[string][]imageOption{"image": nil, "data-file": {external}} {
		t.Run(name, func(t *testing.T) {
			f := newImage(t, 1<<20, opts...)
			d := noUnref(t, f)
			put(t, d, 0, fill(1, 3*cs))
			flush(t, d)
			if err := d.Discard(ctxb, cs, cs); err != nil {
				t.Fatal(err)
			}
			file := f
			if f.data != nil {
				file = f.data
			}
			discards := 0
			file.setFault(func(op string, _, _ int64) error {
				if op == "discard" {
					discards++
					d.mu.Lock()
					defer d.mu.Unlock()
					for c := range int64(3) {
						if held := d.claimed(c, c+1) != nil; held != (c == 1) {
							t.Errorf("cluster %d: held is %v", c, held)
						}
					}
				}
				return nil
			})
			flush(t, d)
			flush(t, d)
			file.setFault(nil)
			if discards != 1 {
				t.Errorf("%d discards", discards)
			}
			put(t, d, cs, fill(2, cs)) // nobody holds it any more
			if !bytes.Equal(get(t, d, cs, cs), fill(2, cs)) {
				t.Error("content differs")
			}
			closeImage(t, d)
			mustCheck(t, f, true)
		})
	}
}

// TestZeroesThatMayNotUnmapKeepTheirSpace: who writes zeroes without leave to unmap
// wants the space to stay.
func TestZeroesThatMayNotUnmapKeepTheirSpace(t *testing.T) {
	const cs = 64 << 10
	f := newImage(t, 1<<20)
	d := noUnref(t, f)
	put(t, d, 0, fill(1, 2*cs))
	flush(t, d)
	if got := punched(f, cs, func() {
		if err := d.WriteZeroes(ctxb, 0, cs, 0); err != nil {
			t.Fatal(err)
		}
		flush(t, d)
		flush(t, d)
	}); len(got) > 0 {
		t.Errorf("clusters %v were discarded", got)
	}
	closeImage(t, d)
	mustCheck(t, f, true)
}

// TestDiscardNoUnrefLeavesClustersThatHoldSomething: a cluster is given up when the
// last of its subclusters holds nothing, and not before.
func TestDiscardNoUnrefLeavesClustersThatHoldSomething(t *testing.T) {
	const cs = 16 << 10
	f := newImage(t, 1<<20, extended, clusterSize(cs))
	d := noUnref(t, f)
	put(t, d, 0, fill(1, cs))
	flush(t, d)
	for _, part := range []struct{ off, n, punched int64 }{{0, cs / 2, 0}, {cs / 2, cs/2 - 512, 0}, {cs - 512, 512, 1}} {
		got := punched(f, cs, func() {
			if err := d.Discard(ctxb, part.off, part.n); err != nil {
				t.Fatal(err)
			}
			flush(t, d)
			flush(t, d)
		})
		if int64(len(got)) != part.punched {
			t.Errorf("after a discard of %d bytes at %d: clusters %v were discarded", part.n, part.off, got)
		}
		end := part.off + part.n
		if !bytes.Equal(get(t, d, 0, cs), append(make([]byte, end), fill(1, int(cs-end))...)) {
			t.Errorf("after a discard of %d bytes at %d: content differs", part.n, part.off)
		}
	}
	closeImage(t, d)
	mustCheck(t, f, true)
}

// TestGivingUpSpaceLoadsATableIntoAFullCache: the write-back that gives up the space of
// a discarded cluster reads its table again, when all that is in the cache has changed
// anew and could only go after another write-back.
func TestGivingUpSpaceLoadsATableIntoAFullCache(t *testing.T) {
	const cs, table = 512, 64 * 512 // bytes that an L2 table maps
	f := newImage(t, 1<<20, clusterSize(cs))
	d := openWith(t, f, nil, &qapi.BlockdevOptionsQcow2{DiscardNoUnref: ptr(true), L2CacheSize: ptr(int64(2 * cs))})
	for i := range int64(3) {
		put(t, d, i*table, fill(1, cs))
		flush(t, d)
	}
	held := d.epochs.pin()
	if err := d.Discard(ctxb, 0, cs); err != nil {
		t.Fatal(err)
	}
	flush(t, d) // and the request that is held may use the place yet
	var once atomic.Bool
	change := func(off int64) {
		put(t, d, table+off, fill(2, cs))
		put(t, d, 2*table+off, fill(2, cs))
	}
	change(cs)
	if d.l1.Load().peek(0, 0) != nil {
		t.Fatal("the table is in memory")
	}
	f.events = func(e string) {
		if e == "flush_to_disk" && once.CompareAndSwap(false, true) {
			change(2 * cs)
			held.unpin()
		}
	}
	flush(t, d)
	if d.pendingFrees() || d.l1.Load().peek(0, 0) == nil {
		t.Error("the space was not given up")
	}
	closeImage(t, d)
	mustCheck(t, f, true)
}
