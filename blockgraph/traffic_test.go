package blockgraph_test

import (
	"syscall"
	"testing"

	"blockd/blockgraph"
	"blockd/blockgraph/graphtest"
)

// TestEdgesCountFromWhenTheyAreAskedFor sends requests through two edges, one
// above the other.
func TestEdgesCountFromWhenTheyAreAskedFor(t *testing.T) {
	w := graphtest.New(t)
	base, memory := w.Mem("base", 1<<20)
	pass := w.Pass("pass", "base")
	root := w.Root(pass, blockgraph.PermConsistentRead|blockgraph.PermWrite, blockgraph.PermAll)
	look := func() (user, inner blockgraph.Traffic) {
		w.Graph.Loop().Do(func() {
			for _, e := range pass.Parents() {
				if e.Root() == root {
					user = e.Traffic()
				}
			}
			inner = base.Parents()[0].Traffic()
		})
		return user, inner
	}
	ctx := t.Context()
	block := func() *blockgraph.IOVec { return blockgraph.MakeIOVec(make([]byte, 4096)) }
	if err := root.WriteV(ctx, 0, block(), 0); err != nil {
		t.Fatal(err)
	}
	if user, inner := look(); user != (blockgraph.Traffic{}) || inner != (blockgraph.Traffic{}) {
		t.Errorf("counted before anybody asked: %+v %+v", user, inner)
	}
	for _, err := range []error{
		root.WriteV(ctx, 0, block(), 0), root.WriteZeroes(ctx, 8192, 8192, 0), root.ReadV(ctx, 0, block(), 0),
		root.ReadV(ctx, 4096, block(), 0), root.Flush(ctx),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	want := blockgraph.Traffic{Read: 8192, Written: 12288, Operations: 5}
	if user, inner := look(); user != want || inner != want {
		t.Errorf("%+v and %+v, want %+v for both", user, inner, want)
	}
	memory.SetHook(graphtest.Failing(1, syscall.EIO, graphtest.Read))
	if root.ReadV(ctx, 0, block(), 0) == nil {
		t.Fatal("the read did not fail")
	}
	want.Operations++
	if user, _ := look(); user != want {
		t.Errorf("after a read that failed: %+v, want %+v", user, want)
	}
}
