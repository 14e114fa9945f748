package blockgraph_test

import (
	"bytes"
	"context"
	"sync"
	"sync/atomic"
	"testing"

	"blockd/blockgraph"
	"blockd/blockgraph/graphtest"
)

// chains has A -> B -> base and C -> base, with a guest over A and one over C.
type chains struct {
	*graphtest.World
	a, b, base, c *blockgraph.Node
	files         map[string]*graphtest.Memory
	overA, overC  *blockgraph.Root
}

const chainSize = 4 * graphtest.Cluster

func newChains(t *testing.T) *chains {
	w := &chains{World: graphtest.New(t), files: map[string]*graphtest.Memory{}}
	image := func(name, backing string) *blockgraph.Node {
		_, w.files[name] = w.Mem(name+"-file", chainSize)
		n, _ := w.Image(name, name+"-file", backing)
		return n
	}
	w.base = image("base", "")
	w.files["base"].Image().Fill(0, 4, 'x')
	w.b, w.c = image("b", "base"), image("c", "base")
	w.a = image("a", "b")
	w.overA = w.Root(w.a, graphtest.ReadWrite, blockgraph.PermAll)
	w.overC = w.Root(w.c, graphtest.ReadWrite, blockgraph.PermAll)
	return w
}

// rebase puts A on another backing file.
func (w *chains) rebase(to *blockgraph.Node) {
	w.Update(func(tx *blockgraph.Tx) error { return tx.SetChild(w.a, "backing", blockgraph.RoleCOW, to) })
}

// TestGuestOfAnotherChainNeverWaitsForARebase: A goes to and fro between B and
// base while C works on the same base.
func TestGuestOfAnotherChainNeverWaitsForARebase(t *testing.T) {
	w := newChains(t)
	want := bytes.Repeat([]byte{'x'}, graphtest.Cluster)
	var stop atomic.Bool
	var guests sync.WaitGroup
	var requests [2]atomic.Int64
	for i, r := range []*blockgraph.Root{w.overA, w.overC} {
		guests.Go(func() {
			got := make([]byte, graphtest.Cluster)
			for k := byte(0); !stop.Load(); k++ {
				requests[i].Add(1)
				if err := r.ReadV(context.Background(), graphtest.Cluster, graphtest.Vec(got), 0); err != nil || !bytes.Equal(got, want) {
					t.Errorf("guest %d: wrong data (%v)", i, err)
					return
				}
				mine := bytes.Repeat([]byte{k}, 512)
				if err := r.WriteV(context.Background(), 512, graphtest.Vec(mine), 0); err != nil {
					t.Error(err)
					return
				}
				if err := r.ReadV(context.Background(), 512, graphtest.Vec(got[:512]), 0); err != nil || !bytes.Equal(got[:512], mine) {
					t.Errorf("guest %d: lost a write (%v)", i, err)
					return
				}
			}
		})
	}
	// Without pause, until both guests have had their share.
	rebases := 0
	for requests[0].Load() < 100 || requests[1].Load() < 100 || rebases < 500 {
		w.rebase(w.base)
		w.rebase(w.b)
		rebases += 2
		if t.Failed() {
			break
		}
	}
	stop.Store(true)
	guests.Wait()
	t.Logf("%d rebases; A: %d rounds, %d waits; C: %d rounds", rebases, requests[0].Load(), w.overA.Waits(), requests[1].Load())
	if n := w.overC.Waits(); n != 0 {
		t.Errorf("C waited %d times for changes of A", n)
	}
}

// TestRequestBehindAClosedGateIsCounted: the counter that the test above holds
// at 0 counts.
func TestRequestBehindAClosedGateIsCounted(t *testing.T) {
	w := newChains(t)
	done := make(chan error)
	w.Update(func(tx *blockgraph.Tx) error {
		if err := tx.Drain(w.base); err != nil {
			return err
		}
		go func() { done <- w.overC.Flush(context.Background()) }()
		for w.overC.Waits() == 0 {
			w.Graph.Loop().Do(func() {}) // lets others run
		}
		return nil
	})
	if err := <-done; err != nil {
		t.Error(err)
	}
}
