package exports

import (
	"context"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"blockd/blockgraph"
	"blockd/clock"
	"blockd/qapi"
)

// image is a driver in memory that remembers the permissions that its users
// hold.
type image struct {
	mu           sync.RWMutex
	b            []byte
	perm, shared blockgraph.Perm
}

func (d *image) ReadV(_ context.Context, off int64, v *blockgraph.IOVec, _ blockgraph.Flags) error {
	d.mu.RLock()
	defer d.mu.RUnlock()
	v.CopyIn(0, d.b[off:off+v.Len()])
	return nil
}

func (d *image) WriteV(_ context.Context, off int64, v *blockgraph.IOVec, _ blockgraph.Flags) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	v.CopyOut(0, d.b[off:off+v.Len()])
	return nil
}

func (d *image) WriteZeroes(context.Context, int64, int64, blockgraph.Flags) error {
	return blockgraph.ErrNotSupported
}
func (d *image) Discard(context.Context, int64, int64) error { return nil }
func (d *image) Flush(context.Context) error                 { return nil }
func (d *image) BlockStatus(_ context.Context, _, n int64, _ blockgraph.StatusMode) (blockgraph.Status, error) {
	return blockgraph.Status{Flags: blockgraph.StatusData, N: n}, nil
}
func (d *image) Size(context.Context) (int64, error) { return int64(len(d.b)), nil }
func (d *image) Close(context.Context) error         { return nil }
func (d *image) PreparePerms(context.Context, blockgraph.Perm, blockgraph.Perm) error {
	return nil
}
func (d *image) CommitPerms(perm, shared blockgraph.Perm) { d.perm, d.shared = perm, shared }
func (d *image) AbortPerms()                              {}

// world is a graph with a registry, closed with the test.
type world struct {
	*Registry
	t       testing.TB
	deleted []string // the loop's
}

func newWorld(t testing.TB) *world {
	t.Helper()
	before := goleak.IgnoreCurrent()
	loop := blockgraph.NewLoop()
	g := blockgraph.NewGraph(loop, clock.Real(), &blockgraph.DriverType{
		Name: "image", Protocol: true,
		Open: func(_ context.Context, r *blockgraph.OpenRequest) (blockgraph.Driver, error) {
			return &image{b: make([]byte, *r.Options.Null.Size)}, nil
		},
	})
	w := &world{t: t}
	w.Registry = New(Options{Graph: g, Clock: clock.Real(), Deleted: func(id string) { w.deleted = append(w.deleted, id) }})
	t.Cleanup(func() {
		if err := w.Close(context.Background()); err != nil {
			t.Error(err)
		}
		loop.Stop()
		goleak.VerifyNone(t, before)
	})
	return w
}

func (w *world) node(name string, readOnly bool) *image {
	w.t.Helper()
	size := int64(1<<20 + 100)
	var n *blockgraph.Node
	err := w.Graph.Update(w.t.Context(), blockgraph.Cause{Command: "blockdev-add"}, func(tx *blockgraph.Tx) (err error) {
		o := &qapi.BlockdevOptions{Driver: "image", NodeName: &name, ReadOnly: &readOnly, Null: &qapi.BlockdevOptionsNull{Size: &size}}
		if n, err = tx.Open(o); err == nil {
			tx.SetMonitorOwned(n, true)
		}
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return n.Driver().(*image)
}

func (w *world) events() (ids []string) {
	w.Graph.Loop().Do(func() { ids = append(ids, w.deleted...) })
	return ids
}
