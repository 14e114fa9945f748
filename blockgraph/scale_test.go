package blockgraph

import (
	"context"
	"fmt"
	"testing"
)

// manyNodes is how many nodes there are where it must not matter how many.
const manyNodes = 10000

// TestCostOfANodeDoesNotGrowWithTheirNumber adds 10,000 nodes and deletes them
// again, and counts: a node costs no more allocations when there are 10,000
// others than when there are none, within a factor of two, and permission
// checks look at the node alone.
func TestCostOfANodeDoesNotGrowWithTheirNumber(t *testing.T) {
	g := newTestGraph()
	defer g.Loop().Stop()
	nodes := make([]*Node, 0, manyNodes)
	addOne := func() {
		var n *Node
		err := g.Update(context.Background(), Cause{}, func(tx *Tx) (err error) {
			if n, err = tx.Open(memOptions(fmt.Sprint("n", len(nodes)), 512)); err == nil {
				tx.SetMonitorOwned(n, true)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		nodes = append(nodes, n)
	}
	deleteOne := func() {
		n := nodes[len(nodes)-1]
		nodes = nodes[:len(nodes)-1]
		err := g.Update(context.Background(), Cause{}, func(tx *Tx) error { tx.SetMonitorOwned(n, false); return nil })
		if err != nil {
			t.Fatal(err)
		}
	}
	// cost is what one of each takes now: allocations, and nodes looked at.
	cost := func() (allocs float64, visits uint64) {
		const runs = 50
		before := g.permVisits
		allocs = testing.AllocsPerRun(runs-1, func() { addOne(); deleteOne() }) // and one to warm up
		return allocs, (g.permVisits - before) / runs
	}
	addOne()
	few, fewVisits := cost()
	for len(nodes) < manyNodes {
		addOne()
	}
	many, manyVisits := cost()
	for len(nodes) > 1 {
		deleteOne()
	}
	end, endVisits := cost()
	t.Logf("%.0f allocations with 1 node, %.0f with %d, %.0f at the end; %d, %d, %d nodes looked at", few, many, manyNodes, end, fewVisits, manyVisits, endVisits)
	if many > 2*few || end > 2*few {
		t.Errorf("a node takes %.0f allocations among %d, %.0f at the end, and %.0f alone", many, manyNodes, end, few)
	}
	if manyVisits != fewVisits || endVisits != fewVisits {
		t.Errorf("permission checks look at %d nodes among %d, at %d at the end, and at %d alone", manyVisits, manyNodes, endVisits, fewVisits)
	}
}

// TestPermissionCheckLooksBelowTheChangeOnly: a root over one of many chains
// has the nodes of that chain checked.
func TestPermissionCheckLooksBelowTheChangeOnly(t *testing.T) {
	g := newTestGraph()
	defer g.Loop().Stop()
	const chains, length = 200, 5
	tops := make([]*Node, chains)
	for c := range tops {
		name := fmt.Sprintf("c%d-0", c)
		tops[c] = add(t, g, memOptions(name, 512))
		for k := 1; k < length; k++ {
			over := fmt.Sprintf("c%d-%d", c, k)
			tops[c] = add(t, g, overOptions("pass", over, name, ""))
			name = over
		}
	}
	before := g.permVisits
	r := newRoot(t, g, tops[7], PermConsistentRead|PermWrite, PermAll)
	update(t, g, func(tx *Tx) error { return tx.CloseRoot(r) })
	if got := g.permVisits - before; got > 4*length {
		t.Errorf("%d nodes looked at for a root over %d", got, length)
	}
}

// TestRequestThroughTheGraphAllocatesNothing: gates, edges, look-ups and
// accounting are free of it, for a chain of filters, too.
func TestRequestThroughTheGraphAllocatesNothing(t *testing.T) {
	g := newTestGraph()
	defer g.Loop().Stop()
	add(t, g, memOptions("mem", 4096))
	add(t, g, overOptions("pass", "one", "mem", ""))
	top := add(t, g, overOptions("pass", "two", "one", ""))
	r := newRoot(t, g, top, PermConsistentRead|PermWrite, PermAll)
	ctx := context.Background()
	var v IOVec
	v.SetBytes(make([]byte, 512))
	for what, f := range map[string]func() error{
		"read":  func() error { return r.ReadV(ctx, 0, &v, 0) },
		"write": func() error { return r.WriteV(ctx, 512, &v, 0) },
		"flush": func() error { return r.Flush(ctx) },
	} {
		if got := testing.AllocsPerRun(100, func() {
			if err := f(); err != nil {
				t.Fatal(err)
			}
		}); got != 0 {
			t.Errorf("a %s allocates %.0f times", what, got)
		}
	}
}
