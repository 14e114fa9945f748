package blockgraph

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"blockd/qapi"
)

func update(t *testing.T, g *Graph, f func(tx *Tx) error) {
	t.Helper()
	if err := g.Update(context.Background(), Cause{Command: "test"}, f); err != nil {
		t.Fatal(err)
	}
}

func add(t *testing.T, g *Graph, o *qapi.BlockdevOptions) *Node {
	t.Helper()
	var n *Node
	update(t, g, func(tx *Tx) (err error) {
		if n, err = tx.Open(o); err == nil {
			tx.SetMonitorOwned(n, true)
		}
		return err
	})
	return n
}

// dump describes names, edges and permissions.
func dump(g *Graph) string {
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

func newRoot(t *testing.T, g *Graph, n *Node, perm, shared Perm) *Root {
	t.Helper()
	var r *Root
	update(t, g, func(tx *Tx) (err error) {
		r, err = tx.NewRoot(n, RootOptions{Perm: perm, Shared: shared})
		return err
	})
	return r
}

func TestFailedChangeLeavesGraphAsItWas(t *testing.T) {
	g := newTestGraph()
	base := add(t, g, memOptions("base", 4096))
	add(t, g, overOptions("fmt", "top", "base", ""))
	before := dump(g)
	var opened *Node
	err := g.Update(context.Background(), Cause{}, func(tx *Tx) error {
		var err error
		if opened, err = tx.Open(memOptions("extra", 512)); err != nil {
			return err
		}
		if _, err := tx.NewRoot(opened, RootOptions{Perm: PermWrite, Shared: PermAll}); err != nil {
			return err
		}
		tx.SetMonitorOwned(base, false)
		f, err := tx.Open(overOptions("pass", "filter", "extra", ""))
		if err != nil {
			return err
		}
		if err := tx.ReplaceNode(base, f); err != nil {
			return err
		}
		return errors.New("no")
	})
	if err == nil || err.Error() != "no" {
		t.Fatal(err)
	}
	if after := dump(g); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	if !opened.drv.(*memDriver).closed.Load() {
		t.Error("the node of the failed change is still open")
	}
	if l := base.drv.(*memDriver).locks; l[0] != PermConsistentRead|PermWrite|PermResize {
		t.Errorf("locks after the failed change: %v", l)
	}
}

func TestPermissionConflictIsRefusedInTheFieldsWords(t *testing.T) {
	g := newTestGraph()
	add(t, g, memOptions("tf", 4096))
	add(t, g, overOptions("fmt", "top", "tf", ""))
	before := dump(g)
	err := g.Update(context.Background(), Cause{}, func(tx *Tx) error {
		_, err := tx.Open(overOptions("fmt", "t3", "tf", ""))
		return err
	})
	want := "Permission conflict on node 'tf': permissions 'write, resize' are both required by node 'top' (uses node 'tf' as 'file' child) and unshared by node 't3' (uses node 'tf' as 'file' child)."
	if err == nil || err.Error() != want {
		t.Errorf("got %v", err)
	}
	if after := dump(g); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

func TestUnusedNodesAreClosedParentsFirst(t *testing.T) {
	g := newTestGraph()
	var mem, top *Node
	update(t, g, func(tx *Tx) (err error) {
		if mem, err = tx.Open(memOptions("m", 512)); err != nil {
			return err
		}
		if top, err = tx.Open(overOptions("fmt", "top", "m", "")); err != nil {
			return err
		}
		tx.SetMonitorOwned(top, true)
		return nil
	})
	update(t, g, func(tx *Tx) error { tx.SetMonitorOwned(top, false); return nil })
	if d := dump(g); d != "roots=0\n" {
		t.Errorf("left behind: %s", d)
	}
	if !mem.drv.(*memDriver).closed.Load() {
		t.Error("the child is still open")
	}
}

func TestCycleIsRefused(t *testing.T) {
	g := newTestGraph()
	add(t, g, memOptions("m", 512))
	a := add(t, g, overOptions("fmt", "a", "m", ""))
	before := dump(g)
	err := g.Update(context.Background(), Cause{}, func(tx *Tx) error {
		return tx.SetChild(a, "backing", RoleCOW, a)
	})
	if err == nil || !strings.Contains(err.Error(), "would create a cycle") {
		t.Errorf("got %v", err)
	}
	if after := dump(g); after != before {
		t.Error("the graph changed")
	}
}

func TestChangeWaitsForRequestsOfAffectedRootsOnly(t *testing.T) {
	g := newTestGraph()
	add(t, g, memOptions("base", 4096))
	a := add(t, g, overOptions("pass", "a", "base", ""))
	c := add(t, g, overOptions("pass", "c", "base", ""))
	base := c.Filtered().Child().drv.(*memDriver)
	ra := newRoot(t, g, a, PermConsistentRead, PermAll)
	rc := newRoot(t, g, c, PermConsistentRead, PermAll)
	base.block = make(chan struct{})
	done := make(chan error, 2)
	read := func(r *Root) { done <- r.ReadV(context.Background(), 0, MakeIOVec(make([]byte, 512)), 0) }
	go read(rc)
	for rc.InFlight() == 0 {
	}
	// C's request is stuck; a change above base that only A can reach goes on.
	add(t, g, memOptions("other", 4096))
	update(t, g, func(tx *Tx) error {
		return tx.SetChild(a, "file", RoleFiltered|RolePrimary, tx.Find("other"))
	})
	if rc.Waits() != 0 {
		t.Error("C waited for A's change")
	}
	go read(ra) // reaches other, which is not blocked
	if err := <-done; err != nil {
		t.Error(err)
	}
	// A change that C can reach waits for C's request, and the loop does not.
	changed := make(chan struct{})
	go func() {
		update(t, g, func(tx *Tx) error {
			return tx.SetChild(c, "file", RoleFiltered|RolePrimary, tx.Find("other"))
		})
		close(changed)
	}()
	for rc.gate.closed.Load() == 0 {
	}
	g.Loop().Do(func() {})
	select {
	case <-changed:
		t.Fatal("the change did not wait")
	default:
	}
	close(base.block)
	<-changed
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestRequestsUnderGraphChangesSeeTheirData(t *testing.T) {
	g := newTestGraph()
	const size, workers = 1 << 16, 4
	mem := add(t, g, memOptions("mem", size))
	root := newRoot(t, g, mem, PermConsistentRead|PermWrite, PermAll)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for w := range workers {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(w)))
			part := int64(size / workers)
			start := int64(w) * part
			want := make([]byte, part)
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				off := rng.Int64N(part - 512)
				p := bytes.Repeat([]byte{byte(i)}, 512)
				if err := root.WriteV(context.Background(), start+off, MakeIOVec(p), 0); err != nil {
					t.Error(err)
					return
				}
				copy(want[off:], p)
				got := make([]byte, part)
				if err := root.ReadV(context.Background(), start, MakeIOVec(got), 0); err != nil || !bytes.Equal(got, want) {
					t.Error("lost a write", err)
					return
				}
			}
		})
	}
	for i := range 200 {
		var f *Node
		update(t, g, func(tx *Tx) (err error) {
			if f, err = tx.Open(overOptions("pass", fmt.Sprintf("f%d", i), "mem", "")); err != nil {
				return err
			}
			return tx.ReplaceNode(mem, f)
		})
		update(t, g, func(tx *Tx) error { return tx.ReplaceNode(f, mem) })
	}
	close(stop)
	wg.Wait()
	if len(g.names) != 1 {
		t.Error(dump(g))
	}
}

func TestUnalignedRequestsOfConcurrentWritersKeepTheirNeighbours(t *testing.T) {
	memAlign = 512
	defer func() { memAlign = 1 }()
	g := newTestGraph()
	mem := add(t, g, memOptions("mem", 8192))
	root := newRoot(t, g, mem, PermConsistentRead|PermWrite, PermAll)
	var wg sync.WaitGroup
	const step = 100
	for i := int64(0); i+step <= 8192; i += step {
		wg.Go(func() {
			p := bytes.Repeat([]byte{byte(i/step) + 1}, step)
			if err := root.WriteV(context.Background(), i, MakeIOVec(p), 0); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	got := make([]byte, 8192)
	if err := root.ReadV(context.Background(), 0, MakeIOVec(got), 0); err != nil {
		t.Fatal(err)
	}
	for i := range got[:8100] {
		if got[i] != byte(i/step)+1 {
			t.Fatalf("byte %d is %d", i, got[i])
		}
	}
}

func TestRequestOutOfRangeFails(t *testing.T) {
	g := newTestGraph()
	root := newRoot(t, g, add(t, g, memOptions("mem", 4096)), PermConsistentRead|PermWrite, PermAll)
	for _, off := range []int64{-1, 4000, 1 << 62, 1<<63 - 512} {
		if err := root.ReadV(context.Background(), off, MakeIOVec(make([]byte, 512)), 0); err == nil {
			t.Errorf("a read at %d succeeded", off)
		}
	}
}

func BenchmarkRootRead(b *testing.B) {
	g := newTestGraph()
	var root *Root
	err := g.Update(context.Background(), Cause{}, func(tx *Tx) error {
		n, err := tx.Open(memOptions("mem", 1<<20))
		if err != nil {
			return err
		}
		root, err = tx.NewRoot(n, RootOptions{Perm: PermConsistentRead, Shared: PermAll})
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		var v IOVec
		v.SetBytes(make([]byte, 512))
		for pb.Next() {
			if err := root.ReadV(context.Background(), 0, &v, 0); err != nil {
				b.Fatal(err)
			}
		}
	})
}
