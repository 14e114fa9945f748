package exports

import (
	"context"
	"testing"

	"go.uber.org/goleak"

	"blockd/blockgraph"
	"blockd/blockgraph/graphtest"
	"blockd/clock"
)

// world is a graph with a registry, closed with the test.
type world struct {
	*Registry
	t       testing.TB
	deleted []string // the loop's
}

func newWorld(t testing.TB) *world {
	t.Helper()
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
	w := &world{t: t}
	w.Registry = New(Options{Graph: graphtest.New(t).Graph, Clock: clock.Real(), Deleted: func(id string) { w.deleted = append(w.deleted, id) }})
	t.Cleanup(func() {
		if err := w.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return w
}

func (w *world) node(name string, readOnly bool) *graphtest.Memory {
	w.t.Helper()
	var n *blockgraph.Node
	err := w.Graph.Update(w.t.Context(), blockgraph.Cause{Command: "blockdev-add"}, func(tx *blockgraph.Tx) (err error) {
		o := graphtest.MemOptions(name, 1<<20+100)
		o.ReadOnly, o.Discard = &readOnly, nil
		if n, err = tx.Open(o); err == nil {
			tx.SetMonitorOwned(n, true)
		}
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return n.Driver().(*graphtest.Memory)
}

func (w *world) events() (ids []string) {
	w.Graph.Loop().Do(func() { ids = append(ids, w.deleted...) })
	return ids
}
