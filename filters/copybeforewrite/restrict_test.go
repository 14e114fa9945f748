package copybeforewrite_test

import (
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"

	"blockd/bitmaps"
	"blockd/blockgraph"
	"blockd/blockgraph/graphtest"
	"blockd/qapi"
)

// TestRestrictedFilterCopiesTheMarkedClustersOnly compares with a model, for
// bitmaps that are finer and coarser than clusters.
func TestRestrictedFilterCopiesTheMarkedClustersOnly(t *testing.T) {
	const cluster = 64 << 10
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	for _, granularity := range []int64{512, cluster, 4 * cluster} {
		w := newWorld(t)
		size := int64(40*cluster + 512*r.IntN(200))
		source, _ := w.Mem("src", size)
		w.Mem("dst", size)
		w.Update(func(tx *blockgraph.Tx) error { return tx.AddBitmap(source, "b", granularity, false, false) })
		bits := source.State().Bitmap("b").Bits
		want := map[int64]bool{}
		for range 1 + r.IntN(8) {
			off := r.Int64N(size) &^ 511
			n := 1 + r.Int64N(3*cluster)
			bits.Set(off, n)
		}
		for off := int64(0); off < size; off += 512 {
			if bits.Get(off) {
				want[off/cluster] = true
			}
		}
		f, n, job := w.insert(source, w.Graph.Node("dst"), func(o *qapi.BlockdevOptionsCbw) {
			o.Bitmap = &qapi.BlockDirtyBitmap{Node: "src", Name: "b"}
		}, nil)
		got := map[int64]bool{}
		f.Clusters().EachPending(func(off, n int64) {
			for c := off / cluster; c < (off+n)/cluster; c++ {
				got[c] = true
			}
		})
		for c := range (size + cluster - 1) / cluster {
			if got[c] != want[c] {
				t.Errorf("granularity %d: cluster %d pending: %v", granularity, c, got[c])
			}
			k := min(cluster, size-c*cluster)
			err := f.ReadSnapshot(t.Context(), c*cluster, graphtest.Vec(make([]byte, k)))
			if wrong := want[c] && err != nil || !want[c] && blockgraph.Errno(err) != syscall.EACCES; wrong {
				t.Errorf("granularity %d: reading cluster %d: %v", granularity, c, err)
			}
		}
		w.remove(source, n, job)
	}
}

func TestBitmapThatDoesNotFitIsRefused(t *testing.T) {
	w := newWorld(t)
	source, _ := w.Mem("src", 1<<20)
	other, _ := w.Mem("other", 2<<20)
	w.Mem("dst", 1<<20)
	w.Update(func(tx *blockgraph.Tx) error {
		return tx.AddBitmap(other, "b", 512, false, false)
	})
	open := func() error {
		return w.Try(func(tx *blockgraph.Tx) error {
			_, err := tx.Open(cbwOptions("src", "dst", func(o *qapi.BlockdevOptionsCbw) {
				o.Bitmap = &qapi.BlockDirtyBitmap{Node: "other", Name: "b"}
			}))
			return err
		})
	}
	const sizes = "Failed to merge bitmap 'b' to internal copy-bitmap: Bitmaps are of different sizes (destination size is 1048576, source size is 2097152) and can't be merged"
	if err := open(); err == nil || err.Error() != sizes {
		t.Error(err)
	}
	w.Update(func(tx *blockgraph.Tx) error { return tx.HoldBitmap(other, tx.Bitmap(other, "b")) })
	const busy = "Bitmap 'b' is currently in use by another operation and cannot be used"
	if err := open(); err == nil || err.Error() != busy {
		t.Error(err)
	}
	_ = source
}

func TestRestrictByBitmapsOfEverySize(t *testing.T) {
	// All marked and nothing marked.
	for _, all := range []bool{true, false} {
		b := bitmaps.New(3<<20, 512)
		if all {
			b.Set(0, 3<<20)
		}
		w := newWorld(t)
		source, _ := w.Mem("src", 3<<20)
		w.Mem("dst", 3<<20)
		f, n, job := w.insert(source, w.Graph.Node("dst"), nil, nil)
		f.Restrict(b)
		var runs []int64
		f.Clusters().EachPending(func(off, n int64) { runs = append(runs, off, n) })
		if want := []int64{0, 3 << 20}; all && !slices.Equal(runs, want) || !all && runs != nil {
			t.Errorf("all %v: %v", all, runs)
		}
		w.remove(source, n, job)
	}
}
