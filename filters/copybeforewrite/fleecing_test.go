package copybeforewrite_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"blockd/blockgraph"
	"blockd/blockgraph/graphtest"
)

// fleece puts a filter over `src` that saves to `t`, an overlay of `src`: a
// reader of `t` sees the point in time.
func (w *world) fleece(size int64, seed uint64) (src *graphtest.Memory, guest, reader *blockgraph.Root, stop func()) {
	source, src := w.Mem("src", size)
	fill(src, rand.New(rand.NewPCG(seed, 0)))
	w.Mem("file", size)
	target, _ := w.Image("t", "file", "src")
	guest = w.Root(source, graphtest.ReadWrite, blockgraph.PermAll)
	reader = w.Root(target, blockgraph.PermConsistentRead, blockgraph.PermAll)
	_, n, job := w.insert(source, target, nil, nil)
	return src, guest, reader, func() { w.remove(source, n, job) }
}

// TestCopyWaitsForReadersOfTheTarget: a reader that found a cluster missing in
// the target, and goes on to read it from the source, must not meet the guest's
// new data there.
func TestCopyWaitsForReadersOfTheTarget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.Graph.Loop().Stop()
		src, guest, reader, stop := w.fleece(1<<20, 1)
		src.Edit(func(b []byte) { b[0] = 1 })
		hold := graphtest.NewHold(graphtest.Read)
		var first atomic.Bool
		src.SetHook(func(r graphtest.Request) error {
			if r.Kind == graphtest.Read && first.CompareAndSwap(false, true) {
				return hold.Wait(r)
			}
			return nil
		})
		got := make([]byte, 4096)
		read, written := make(chan error, 1), make(chan error, 1)
		go func() { read <- reader.ReadV(context.Background(), 0, graphtest.Vec(got), 0) }()
		<-hold.Entered
		go func() {
			written <- guest.WriteV(context.Background(), 0, graphtest.Vec(bytes.Repeat([]byte{2}, 4096)), 0)
		}()
		synctest.Wait()
		if src.Writes.Load() != 0 {
			t.Error("the guest's write passed the reader")
		}
		hold.Release()
		if err := <-read; err != nil || got[0] != 1 {
			t.Error(err, got[0])
		}
		if err := <-written; err != nil || src.Bytes()[0] != 2 {
			t.Error(err)
		}
		stop()
	})
}

// TestReadersOfTheTargetSeeThePointInTime reads all the time while guests write.
func TestReadersOfTheTargetSeeThePointInTime(t *testing.T) {
	const size = 4 << 20
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	src, guest, reader, stop := newWorld(t).fleece(size, seed)
	before := src.Bytes()
	var wg sync.WaitGroup
	for i := range 2 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(i+1)))
			for c := range 64 {
				off := int64(c)*cluster + r.Int64N(cluster-512)&^511
				if err := guest.WriteV(context.Background(), off, graphtest.Vec(bytes.Repeat([]byte{byte(c)}, 512)), 0); err != nil {
					t.Error(err)
				}
			}
		})
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(i+3)))
			for range 300 {
				off, n := r.Int64N(size-cluster), 1+r.Int64N(cluster)
				b := make([]byte, n)
				if err := reader.ReadV(context.Background(), off, graphtest.Vec(b), 0); err != nil || !bytes.Equal(b, before[off:off+n]) {
					t.Errorf("at %d, %d bytes: %v", off, n, err)
					return
				}
			}
		})
	}
	wg.Wait()
	stop()
}
