package qcow2

import (
	"testing"

	"blockd/blockgraph"
	"blockd/qapi"
)

// A disk that becomes shorter leaves a shorter file, of which nothing is lost.
func TestShrinkingCutsTheFile(t *testing.T) {
	for i, opts := range [][]imageOption{{clusterSize(4096)}, {clusterSize(4096), v2}, {clusterSize(512), refcountBits(64)}} {
		f := newImage(t, 2<<20, opts...)
		d := openImage(t, f, nil)
		put(t, d, 0, fill(1, 2<<20))
		flush(t, d)
		before := len(f.b)
		if err := d.Truncate(ctxb, 256<<10, true, "", false); err != nil {
			t.Fatal(err)
		}
		// In the last one blocks of counts lie at the end, and stay.
		if len(f.b) > before/2 && i < 2 {
			t.Errorf("the file has %d bytes, and had %d", len(f.b), before)
		}
		mustCheck(t, f, true)
		if err := d.Truncate(ctxb, 1<<20, true, "", false); err != nil {
			t.Fatal(err)
		}
		put(t, d, 512<<10, fill(2, 100<<10))
		got := get(t, d, 0, 1<<20)
		for i, b := range got {
			want := byte(0)
			switch {
			case i < 256<<10:
				want = 1
			case i >= 512<<10 && i < 612<<10:
				want = 2
			}
			if b != want {
				t.Fatalf("byte %#x is %d, not %d", i, b, want)
			}
		}
		closeImage(t, d)
		mustCheck(t, f, true)
		fieldCheck(t, f)
	}
}

// With discard-no-unref zeroes that may unmap keep the places, too.
func TestZeroesKeepPlacesWithDiscardNoUnref(t *testing.T) {
	f := newImage(t, 1<<20)
	d := openWith(t, f, nil, &qapi.BlockdevOptionsQcow2{DiscardNoUnref: ptr(true)})
	put(t, d, 0, fill(1, 128<<10))
	was := hostOf(t, d, 0)
	if err := d.WriteZeroes(ctxb, 0, 128<<10, blockgraph.MayUnmap); err != nil {
		t.Fatal(err)
	}
	m, err := d.lookup(ctxb, 0, 64<<10, false)
	if err != nil || m.kind != zeroAlloc || m.host != was {
		t.Fatalf("%+v, %v", m, err)
	}
	put(t, d, 0, fill(2, 512))
	if now := hostOf(t, d, 0); now != was {
		t.Errorf("the cluster has moved from %#x to %#x", was, now)
	}
	if got := get(t, d, 512, 512); got[0] != 0 {
		t.Error("old content shows")
	}
	closeImage(t, d)
	mustCheck(t, f, true)
	fieldCheck(t, f)
}
