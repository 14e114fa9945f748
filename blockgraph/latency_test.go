package blockgraph_test

import (
	"context"
	"testing"
	"time"

	"blockd/blockgraph"
	"blockd/blockgraph/graphtest"
	"blockd/clock"
)

// latencyRoots are two roots: one made before KeepLatencies, one after.
func latencyRoots(t *testing.T, keep bool) []*blockgraph.Root {
	t.Helper()
	w := graphtest.New(t)
	root := func(name string) *blockgraph.Root {
		n, _ := w.Mem(name, 1<<20)
		return w.Root(n, graphtest.ReadWrite, blockgraph.PermAll)
	}
	before := root("a")
	if keep {
		w.Graph.Loop().Do(w.Graph.KeepLatencies)
	}
	return []*blockgraph.Root{before, root("b")}
}

func TestLatenciesAreCountedWhenAskedFor(t *testing.T) {
	ctx, v := context.Background(), blockgraph.MakeIOVec(make([]byte, 4096))
	for _, r := range latencyRoots(t, true) {
		for range 3 {
			if err := r.ReadV(ctx, 0, v, 0); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.Flush(ctx); err != nil {
			t.Fatal(err)
		}
		if err := r.Discard(ctx, 0, 4096); err != nil {
			t.Fatal(err)
		}
		read, write, flush, ok := r.Latencies()
		sum := func(l blockgraph.Latencies) (n int64) {
			for _, x := range l {
				n += x
			}
			return n
		}
		if !ok || sum(read) != 3 || sum(write) != 0 || sum(flush) != 1 {
			t.Errorf("%v %v %v %v", read, write, flush, ok)
		}
	}
}

// TestRequestsCostNothingForMetrics holds that nothing is kept before somebody
// asks, and that neither way a request allocates.
func TestRequestsCostNothingForMetrics(t *testing.T) {
	ctx, v := context.Background(), blockgraph.MakeIOVec(make([]byte, 4096))
	cost := func(r *blockgraph.Root) float64 {
		return testing.AllocsPerRun(100, func() {
			if err := r.ReadV(ctx, 0, v, 0); err != nil {
				t.Fatal(err)
			}
		})
	}
	off, on := latencyRoots(t, false)[0], latencyRoots(t, true)[0]
	if _, _, _, ok := off.Latencies(); ok {
		t.Error("latencies are kept though nobody asked")
	}
	if a, b := cost(off), cost(on); a != b {
		t.Errorf("a read allocates %v times, with latencies %v times", a, b)
	}
}

// TestLatencyClassesIncludeTheirUpperEnds: a request that took as long as a bound
// says is in the class that ends there, a longer one in the next.
func TestLatencyClassesIncludeTheirUpperEnds(t *testing.T) {
	clk := clock.NewVirtual()
	w := graphtest.NewAt(t, clk)
	n, mem := w.Mem("a", 1<<20)
	r := w.Root(n, graphtest.ReadWrite, blockgraph.PermAll)
	w.Graph.Loop().Do(w.Graph.KeepLatencies)
	var want blockgraph.Latencies
	for i, bound := range blockgraph.LatencyBounds {
		for _, took := range []time.Duration{bound, bound + 1} {
			mem.SetHook(func(graphtest.Request) error {
				clk.Step(took)
				return nil
			})
			if err := r.ReadV(t.Context(), 0, blockgraph.MakeIOVec(make([]byte, 512)), 0); err != nil {
				t.Fatal(err)
			}
		}
		want[i]++
		want[i+1]++
	}
	if read, _, _, _ := r.Latencies(); read != want {
		t.Errorf("%v, not %v", read, want)
	}
}
