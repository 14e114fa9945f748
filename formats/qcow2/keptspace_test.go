package qcow2

import (
	"bytes"
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
