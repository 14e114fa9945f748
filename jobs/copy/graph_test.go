package copy_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"blockd/blockgraph"
	"blockd/clock"
	"blockd/ioengine"
	"blockd/jobs/copy"
	"blockd/qapi"
)

// memDriver is a protocol in memory; what is zero is a hole.
type memDriver struct {
	mu sync.RWMutex
	b  []byte
}

func (d *memDriver) ReadV(_ context.Context, off int64, v *blockgraph.IOVec, _ blockgraph.Flags) error {
	d.mu.RLock()
	defer d.mu.RUnlock()
	v.CopyIn(0, d.b[off:off+v.Len()])
	return nil
}
func (d *memDriver) WriteV(_ context.Context, off int64, v *blockgraph.IOVec, _ blockgraph.Flags) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	v.CopyOut(0, d.b[off:off+v.Len()])
	return nil
}
func (d *memDriver) WriteZeroes(context.Context, int64, int64, blockgraph.Flags) error {
	return blockgraph.ErrNotSupported
}
func (d *memDriver) Discard(context.Context, int64, int64) error { return nil }
func (d *memDriver) Flush(context.Context) error                 { return nil }
func (d *memDriver) BlockStatus(_ context.Context, off, n int64, _ blockgraph.StatusMode) (blockgraph.Status, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	zero := func(at int64) bool {
		return bytes.Equal(d.b[at&^4095:at&^4095+4096], ioengine.Zeroes(4096))
	}
	z := zero(off)
	end := off
	for end < off+n && zero(end) == z {
		end = end&^4095 + 4096
	}
	st := blockgraph.Status{Flags: blockgraph.StatusData, N: min(n, end-off)}
	if z {
		st.Flags = blockgraph.StatusZero
	}
	return st, nil
}
func (d *memDriver) Size(context.Context) (int64, error) { return int64(len(d.b)), nil }
func (d *memDriver) Close(context.Context) error         { return nil }

func newGraph(t *testing.T) *blockgraph.Graph {
	g := blockgraph.NewGraph(blockgraph.NewLoop(), clock.Real(), &blockgraph.DriverType{Name: "mem", Protocol: true,
		Open: func(_ context.Context, r *blockgraph.OpenRequest) (blockgraph.Driver, error) {
			return &memDriver{b: make([]byte, *r.Options.Null.Size)}, nil
		}})
	t.Cleanup(g.Loop().Stop)
	return g
}

func addMem(t *testing.T, g *blockgraph.Graph, name string, size int64) (n *blockgraph.Node, r *blockgraph.Root) {
	t.Helper()
	err := g.Update(t.Context(), blockgraph.Cause{}, func(tx *blockgraph.Tx) (err error) {
		if n, err = tx.Open(&qapi.BlockdevOptions{Driver: "mem", NodeName: &name, Null: &qapi.BlockdevOptionsNull{Size: &size}}); err != nil {
			return err
		}
		r, err = tx.NewRoot(n, blockgraph.RootOptions{Perm: blockgraph.PermConsistentRead | blockgraph.PermWrite, Shared: blockgraph.PermAll})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n, r
}

// TestMirrorUnderWritersAndChangesEndsEqual copies from root to root while
// writers make clusters dirty again and graph changes drain both in either
// order: what a mirror needs of the engine.
func TestMirrorUnderWritersAndChangesEndsEqual(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	g := newGraph(t)
	const size = 4 << 20
	srcNode, src := addMem(t, g, "src", size)
	dstNode, dst := addMem(t, g, "dst", size)
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
				if r.IntN(3) > 0 {
					for x := range b {
						b[x] = byte(k + x)
					}
				}
				off := r.Int64N(size-int64(len(b))) &^ 511
				if err := src.WriteV(context.Background(), off, blockgraph.MakeIOVec(b), 0); err != nil {
					t.Error(err)
				}
				c.Mark(off, int64(len(b)))
			}
		})
	}
	for _, order := range [][]*blockgraph.Node{{srcNode, dstNode}, {dstNode, srcNode}, {dstNode}, {srcNode}} {
		changes.Go(func() {
			for !stop.Load() {
				if err := g.Update(context.Background(), blockgraph.Cause{}, func(tx *blockgraph.Tx) error { return tx.Drain(order...) }); err != nil {
					t.Error(err)
				}
			}
		})
	}
	quiet := make(chan struct{})
	go func() { writers.Wait(); close(quiet) }()
	passes := 0
	w := copy.NewClusterWork(c, copy.ClusterOptions{Enter: copy.EnterRoots(src, dst), Recheck: true,
		Idle: func(ctx context.Context) (bool, error) {
			passes++
			select {
			case <-quiet:
				return c.Remaining() > 0, nil
			default:
				return true, clock.Real().Sleep(ctx, 1)
			}
		}})
	if err := copy.NewJob(w, copy.Options{Clock: clock.Real()}).Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	stop.Store(true)
	changes.Wait()
	if !bytes.Equal(srcNode.Driver().(*memDriver).b, dstNode.Driver().(*memDriver).b) {
		t.Error("source and target differ")
	}
	if remaining.Load() != 0 || c.Remaining() != 0 || done.Load() < size {
		t.Errorf("progress %d, remaining %d %d", done.Load(), remaining.Load(), c.Remaining())
	}
	t.Logf("%d passes, %d bytes copied, %d and %d waits", passes, done.Load(), src.Waits(), dst.Waits())
}
