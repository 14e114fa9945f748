package copybeforewrite_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"blockd/blockgraph"
	"blockd/blockgraph/graphtest"
	"blockd/filters/copybeforewrite"
	"blockd/ioengine"
	"blockd/jobs/copy"
	"blockd/jobs/scratch"
)

// TestDiscardSourceTakesNothingThatGuestsWrote: what the job has copied is
// given up in the source, what guests have written since the point in time
// stays, and the target is complete, also when requests to it fail.
func TestDiscardSourceTakesNothingThatGuestsWrote(t *testing.T) {
	for _, withScratch := range []bool{false, true} {
		t.Run(fmt.Sprintf("scratch %v", withScratch), func(t *testing.T) {
			const size, writers, block = 4 << 20, 4, 4096
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			w := newWorld(t)
			source, src := w.Mem("src", size)
			target, dst := w.Mem("dst", size)
			fill(src, rand.New(rand.NewPCG(seed, 0)))
			old := src.Bytes()
			guest := w.Root(source, graphtest.ReadWrite, blockgraph.PermAll)
			var k atomic.Int64
			f, n, job := w.insert(source, target, nil, func(f *copybeforewrite.Filter) {
				f.SetDiscardSource()
				if withScratch {
					room, err := scratch.NewPool(scratch.Config{})
					if err != nil {
						t.Fatal(err)
					}
					f.SetScratch(room.New(size, cluster, 0), false)
				}
			})
			dst.SetHook(func(r graphtest.Request) error {
				if r.Kind != graphtest.Read && k.Add(1)%5 == 0 {
					return syscall.EIO
				}
				return nil
			})
			written := make([][]byte, size/block)
			var wg sync.WaitGroup
			for i := range writers {
				wg.Go(func() {
					r := rand.New(rand.NewPCG(seed, uint64(i+1)))
					for range 20 {
						b := r.IntN(size/block/writers)*writers + i // nobody else's
						data := bytes.Repeat([]byte{byte(1 + r.IntN(200))}, block)
						if guest.WriteV(t.Context(), int64(b)*block, graphtest.Vec(data), 0) == nil {
							written[b] = data
						}
					}
				})
			}
			o := engine(ioengine.Process)
			o.MaxChunk = cluster
			o.OnError = func(context.Context, *copy.Fault) copy.Action { return copy.Retry }
			if err := copy.NewJob(f.Work(job), o).Run(t.Context()); err != nil {
				t.Fatal(err)
			}
			wg.Wait()
			if !bytes.Equal(old, dst.Bytes()) {
				t.Error("the target differs from the source's old content")
			}
			now, gone := src.Bytes(), bytes.Repeat([]byte{0xdd}, cluster)
			for b, data := range written {
				if data != nil && !bytes.Equal(now[b*block:][:block], data) {
					t.Fatalf("what a guest wrote at %d is lost", b*block)
				}
			}
			for c := 0; c < size; c += cluster {
				touched := false
				for _, data := range written[c/block : (c+cluster)/block] {
					touched = touched || data != nil
				}
				if !touched && !bytes.Equal(now[c:c+cluster], gone) {
					t.Errorf("the cluster at %d was not discarded", c)
				}
			}
			w.remove(source, n, job)
		})
	}
}
