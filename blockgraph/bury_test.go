package blockgraph_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"blockd/blockgraph"
	"blockd/blockgraph/graphtest"
	"blockd/qapi"
)

// slowCloser is a filter that closes when it is let.
type slowCloser struct {
	*graphtest.Pass
	let chan struct{}
}

func (s *slowCloser) Close(context.Context) error { <-s.let; return nil }

// TestNodeThatDoesNotCloseHoldsNobodyUp but the command that closes it: other
// nodes are closed, other changes are made, and its own children stay open
// until it has closed.
func TestNodeThatDoesNotCloseHoldsNobodyUp(t *testing.T) {
	silent(t)
	synctest.Test(t, func(t *testing.T) {
		let := make(chan struct{})
		slow := graphtest.PassType()
		slow.Name = "slow"
		open := slow.Open
		slow.Open = func(ctx context.Context, r *blockgraph.OpenRequest) (blockgraph.Driver, error) {
			d, err := open(ctx, r)
			if err != nil {
				return nil, err
			}
			return &slowCloser{d.(*graphtest.Pass), let}, nil
		}
		w := graphtest.New(t, slow)
		defer w.Graph.Loop().Stop()
		name := "shared"
		shared, sharedContent := w.Mem(name, 4096)
		over := func(name string, file qapi.BlockdevRef) *blockgraph.Node {
			o := graphtest.PassOptions(name, "")
			o.Driver, o.Raw.File = "slow", file
			return w.Add(o)
		}
		a := over("a", qapi.BlockdevRef{Definition: graphtest.MemOptions("own", 4096)})
		own := a.File().Child().Driver().(*graphtest.Memory)
		b := over("b", qapi.BlockdevRef{Reference: &name})
		fine, fineContent := w.Mem("fine", 4096)
		deleted := make(chan time.Duration)
		go func() {
			start := time.Now()
			w.Update(func(tx *blockgraph.Tx) error {
				for _, n := range []*blockgraph.Node{a, b, fine} {
					tx.SetMonitorOwned(n, false)
				}
				return nil
			})
			deleted <- time.Since(start)
		}()
		synctest.Wait()
		if !fineContent.Closed.Load() {
			t.Error("a node that could be closed is not")
		}
		start := time.Now()
		w.Mem("a", 4096) // the name is free, and so is the token before long
		if took := time.Since(start); took != 5*time.Second {
			t.Errorf("the next change waited %v", took)
		}
		orphans := func() (k int) {
			w.Graph.Loop().Do(func() { k = w.Graph.Orphans() })
			return k
		}
		if k := orphans(); k != 3 || own.Closed.Load() {
			t.Errorf("%d orphans", k)
		}
		w.Del(shared) // in use by b until b has closed
		if sharedContent.Closed.Load() {
			t.Error("closed below its user")
		}
		time.Sleep(time.Minute)
		close(let)
		if took := <-deleted; took != time.Minute+5*time.Second {
			t.Errorf("the command took %v", took)
		}
		if k := orphans(); k != 0 || !own.Closed.Load() || !sharedContent.Closed.Load() {
			t.Errorf("%d orphans at the end", k)
		}
		if got, want := w.Dump(), "a owned=true ro=false users=0\nroots=0\n"; got != want {
			t.Errorf("left behind: %s", got)
		}
	})
}
