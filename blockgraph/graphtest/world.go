package graphtest

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"blockd/blockgraph"
	"blockd/clock"
	"blockd/qapi"
)

// ReadWrite is what a guest that writes needs.
const ReadWrite = blockgraph.PermConsistentRead | blockgraph.PermWrite

// World is a graph over a loop of its own, which ends with the test.
//
//blockd:blocking
type World struct {
	T     testing.TB
	Graph *blockgraph.Graph
	// Setup, if not nil, is called with each new Memory before its node has
	// read its limits and capabilities.
	Setup func(m *Memory)
}

// New returns a world with the types `mem`, `image` (native), `pass` and those
// given, which replace the first ones, over the real clock.
//
//blockd:blocking
func New(t testing.TB, types ...*blockgraph.DriverType) *World {
	return NewAt(t, clock.Real(), types...)
}

// NewAt is New over another clock.
//
//blockd:blocking
func NewAt(t testing.TB, c clock.Clock, types ...*blockgraph.DriverType) *World {
	w := &World{T: t}
	mem := &blockgraph.DriverType{Name: "mem", Protocol: true,
		Open: func(_ context.Context, r *blockgraph.OpenRequest) (blockgraph.Driver, error) {
			m := NewMemory(*r.Options.Null.Size)
			if w.Setup != nil {
				w.Setup(m)
			}
			return m, nil
		}}
	w.Graph = blockgraph.NewGraph(blockgraph.NewLoop(), c, append([]*blockgraph.DriverType{mem, ImageType(true), PassType()}, types...)...)
	t.Cleanup(w.Graph.Loop().Stop)
	return w
}

// Try makes a graph change.
func (w *World) Try(f func(tx *blockgraph.Tx) error) error {
	return w.Graph.Update(context.Background(), blockgraph.Cause{Command: "test"}, f)
}

// Update makes a graph change that must succeed.
func (w *World) Update(f func(tx *blockgraph.Tx) error) {
	w.T.Helper()
	if err := w.Try(f); err != nil {
		w.T.Fatal(err)
	}
}

// TryAdd adds a node that the monitor owns.
func (w *World) TryAdd(o *qapi.BlockdevOptions) (n *blockgraph.Node, err error) {
	err = w.Try(func(tx *blockgraph.Tx) error {
		if n, err = tx.Open(o); err == nil {
			tx.SetMonitorOwned(n, true)
		}
		return err
	})
	return n, err
}

// Add is TryAdd that must succeed.
func (w *World) Add(o *qapi.BlockdevOptions) *blockgraph.Node {
	w.T.Helper()
	n, err := w.TryAdd(o)
	if err != nil {
		w.T.Fatal(err)
	}
	return n
}

// Del takes the monitor's reference away.
func (w *World) Del(n *blockgraph.Node) {
	w.T.Helper()
	w.Update(func(tx *blockgraph.Tx) error { tx.SetMonitorOwned(n, false); return nil })
}

// Mem adds a node over a new Memory of size bytes.
func (w *World) Mem(name string, size int64) (*blockgraph.Node, *Memory) {
	w.T.Helper()
	n := w.Add(MemOptions(name, size))
	return n, n.Driver().(*Memory)
}

// Image adds an `image` over the node file and, unless "", the backing node.
func (w *World) Image(name, file, backing string) (*blockgraph.Node, *ImageDriver) {
	w.T.Helper()
	n := w.Add(ImageOptions(name, file, backing))
	return n, n.Driver().(*ImageDriver)
}

// Pass adds a `pass` over the node file.
func (w *World) Pass(name, file string) *blockgraph.Node {
	w.T.Helper()
	return w.Add(PassOptions(name, file))
}

// Root adds a root over a node.
func (w *World) Root(n *blockgraph.Node, perm, shared blockgraph.Perm) (r *blockgraph.Root) {
	w.T.Helper()
	w.Update(func(tx *blockgraph.Tx) (err error) {
		r, err = tx.NewRoot(n, blockgraph.RootOptions{Perm: perm, Shared: shared})
		return err
	})
	return r
}

// CloseRoots takes roots away.
func (w *World) CloseRoots(roots ...*blockgraph.Root) {
	w.T.Helper()
	w.Update(func(tx *blockgraph.Tx) error {
		for _, r := range roots {
			if err := tx.CloseRoot(r); err != nil {
				return err
			}
		}
		return nil
	})
}

// AwaitClosed returns when a graph change keeps the root's gate closed. Until
// then it flushes.
func AwaitClosed(r *blockgraph.Root) {
	gone, leave := context.WithCancel(context.Background())
	leave()
	for r.Flush(gone) == nil {
		runtime.Gosched()
	}
}

// Dump describes nodes, edges, permissions and the number of roots.
func (w *World) Dump() string { return Dump(w.Graph) }

// Dump describes a graph's nodes, edges, permissions and the number of roots.
func Dump(g *blockgraph.Graph) string {
	var b strings.Builder
	g.Loop().Do(func() {
		for _, n := range g.Nodes() {
			fmt.Fprintf(&b, "%s owned=%v ro=%v users=%d\n", n.Name(), n.MonitorOwned(), n.ReadOnly(), len(n.Parents()))
			for _, e := range n.State().Edges {
				p, s := e.Perms()
				fmt.Fprintf(&b, "  %s -> %s [%s] [%s]\n", e.Name(), e.Child().Name(), p, s)
			}
		}
		fmt.Fprintf(&b, "roots=%d\n", len(g.Roots()))
	})
	return b.String()
}

// MemOptions are those of a new Memory of size bytes, which takes discards.
func MemOptions(name string, size int64) *qapi.BlockdevOptions {
	unmap := qapi.BlockdevDiscardOptionsUnmap
	return &qapi.BlockdevOptions{Driver: "mem", NodeName: &name, Null: &qapi.BlockdevOptionsNull{Size: &size}, Discard: &unmap}
}

// ImageOptions are those of an `image`; backing "": none.
func ImageOptions(name, file, backing string) *qapi.BlockdevOptions {
	o := &qapi.BlockdevOptions{Driver: "image", NodeName: &name, Qcow2: &qapi.BlockdevOptionsQcow2{File: qapi.BlockdevRef{Reference: &file}}}
	if backing != "" {
		o.Qcow2.Backing = &qapi.BlockdevRefOrNull{Reference: &backing}
	}
	return o
}

// PassOptions are those of a `pass`.
func PassOptions(name, file string) *qapi.BlockdevOptions {
	return &qapi.BlockdevOptions{Driver: "pass", NodeName: &name, Raw: &qapi.BlockdevOptionsRaw{File: qapi.BlockdevRef{Reference: &file}}}
}

// Vec makes a vector of one buffer.
func Vec(b []byte) *blockgraph.IOVec { return blockgraph.MakeIOVec(b) }
