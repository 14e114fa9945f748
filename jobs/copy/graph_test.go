package copy_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"blockd/blockgraph"
	"blockd/blockgraph/graphtest"
	"blockd/clock"
	"blockd/jobs/copy"
)

// TestMirrorUnderWritersAndChangesEndsEqual copies from root to root while
// writers make clusters dirty again and graph changes drain both in either
// order: what a mirror needs of the engine.
func TestMirrorUnderWritersAndChangesEndsEqual(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	w := graphtest.New(t)
	const size = 4 << 20
	srcNode, from := w.Mem("src", size)
	dstNode, to := w.Mem("dst", size)
	src, dst := w.Root(srcNode, graphtest.ReadWrite, blockgraph.PermAll), w.Root(dstNode, graphtest.ReadWrite, blockgraph.PermAll)
	c := copy.NewClusters(size, 65536)
	var done, remaining atomic.Int64
	remaining.Store(size)
	c.SetProgress(func(d, r int64) { done.Add(d); remaining.Add(r) })
	var stop atomic.Bool
	var writers, changes sync.WaitGroup
	for i := range 3 {
		writers.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(i)))
			for k := range 600 {
				b := make([]byte, 4096*(1+r.IntN(16)))
				for x := range b {
					b[x] = byte(k + x)
				}
				off := r.Int64N(size-int64(len(b))) &^ 511
				var err error
				if r.IntN(3) == 0 {
					err = src.WriteZeroes(context.Background(), off, int64(len(b)), 0)
				} else {
					err = src.WriteV(context.Background(), off, graphtest.Vec(b), 0)
				}
				if err != nil {
					t.Error(err)
				}
				c.Mark(off, int64(len(b)))
			}
		})
	}
	for _, order := range [][]*blockgraph.Node{{srcNode, dstNode}, {dstNode, srcNode}, {dstNode}, {srcNode}} {
		changes.Go(func() {
			for !stop.Load() {
				if err := w.Try(func(tx *blockgraph.Tx) error { return tx.Drain(order...) }); err != nil {
					t.Error(err)
				}
			}
		})
	}
	quiet := make(chan struct{})
	go func() { writers.Wait(); close(quiet) }()
	passes := 0
	work := copy.NewClusterWork(c, copy.ClusterOptions{Enter: copy.EnterRoots(src, dst), Recheck: true,
		Idle: func(ctx context.Context) (bool, error) {
			passes++
			select {
			case <-quiet:
				return c.Remaining() > 0, nil
			default:
				return true, clock.Real().Sleep(ctx, 1)
			}
		}})
	if err := copy.NewJob(work, copy.Options{Clock: clock.Real()}).Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	stop.Store(true)
	changes.Wait()
	if !bytes.Equal(from.Bytes(), to.Bytes()) {
		t.Error("source and target differ")
	}
	if remaining.Load() != 0 || c.Remaining() != 0 || done.Load() < size {
		t.Errorf("progress %d, remaining %d %d", done.Load(), remaining.Load(), c.Remaining())
	}
	t.Logf("%d passes, %d bytes copied, %d and %d waits", passes, done.Load(), src.Waits(), dst.Waits())
}
