package blockgraph

import (
	"context"
	"errors"
	"testing"

	"blockd/clock"
)

// reopenDriver is a file in memory whose alignment follows the cache option.
type reopenDriver struct {
	memDriver
	align int64
}

func (d *reopenDriver) Limits() Limits { return Limits{RequestAlignment: d.align} }
func (d *reopenDriver) PrepareReopen(_ context.Context, r *ReopenRequest) (*Reopening, error) {
	was := d.align
	return &Reopening{
		Apply: func() {
			d.align = 512
			if r.ReadOnly {
				d.align = 4096
			}
		},
		Undo: func(context.Context) { d.align = was },
	}, nil
}

// fussyDriver is a format that can be reopened while fail is nil.
type fussyDriver struct {
	passDriver
	fail error
}

func (d *fussyDriver) PrepareReopen(context.Context, *ReopenRequest) (*Reopening, error) {
	return &Reopening{Start: func(context.Context) error { return d.fail }}, nil
}

func newReopenGraph() *Graph {
	return NewGraph(NewLoop(), clock.Real(),
		&DriverType{Name: "mem", Protocol: true, Open: func(_ context.Context, r *OpenRequest) (Driver, error) {
			return &reopenDriver{memDriver{b: make([]byte, *r.Options.Null.Size)}, 512}, nil
		}},
		&DriverType{Name: "pass", Filter: true, Children: fileChild(RoleFiltered | RolePrimary), Open: openPass},
		&DriverType{Name: "fmt", Children: fileChild(RoleData | RoleMetadata | RolePrimary), Open: func(_ context.Context, r *OpenRequest) (Driver, error) {
			return &fussyDriver{passDriver: passDriver{r.Node}}, nil
		}})
}

// TestFailedChangeTakesBackWhatAReopenAnticipated: a node that became writable
// gets its permissions before the commit.
func TestFailedChangeTakesBackWhatAReopenAnticipated(t *testing.T) {
	for _, where := range []string{"in the reopen", "after it"} {
		g := newReopenGraph()
		base := add(t, g, memOptions("base", 4096))
		top := overOptions("fmt", "top", "base", "")
		top.ReadOnly = ptr(true)
		n := add(t, g, top)
		if where == "in the reopen" {
			n.drv.(*fussyDriver).fail = errors.New("no")
		}
		before, locks := dump(g), base.drv.(*reopenDriver).locks
		err := g.Update(context.Background(), Cause{}, func(tx *Tx) error {
			if err := tx.SetReadOnly(n, false); err != nil {
				return err
			}
			return errors.New("no")
		})
		if err == nil || err.Error() != "no" {
			t.Fatal(err)
		}
		if after := dump(g); after != before {
			t.Errorf("%s: before:\n%s\nafter:\n%s", where, before, after)
		}
		if l := base.drv.(*reopenDriver).locks; l != locks {
			t.Errorf("%s: locks %v, before %v", where, l, locks)
		}
	}
}

// TestLimitsFollowAReopen, also those of the filters above.
func TestLimitsFollowAReopen(t *testing.T) {
	g := newReopenGraph()
	base := add(t, g, memOptions("base", 4096))
	filter := add(t, g, overOptions("pass", "filter", "base", ""))
	check := func(align int64) {
		t.Helper()
		g.Loop().Do(func() {
			for _, n := range []*Node{base, filter} {
				if n.limits.RequestAlignment != align || !n.tracker.on {
					t.Errorf("%s: alignment %d", n.name, n.limits.RequestAlignment)
				}
			}
		})
	}
	check(512)
	update(t, g, func(tx *Tx) error { return tx.SetReadOnly(base, true) })
	check(4096)
	if err := g.Update(context.Background(), Cause{}, func(tx *Tx) error {
		if err := tx.SetReadOnly(base, false); err != nil {
			return err
		}
		return errors.New("no")
	}); err == nil {
		t.Fatal("no error")
	}
	check(4096)
}

// TestThawIsUndoneWithItsChange: what relies on the chain still does.
func TestThawIsUndoneWithItsChange(t *testing.T) {
	g := newTestGraph()
	base := add(t, g, memOptions("base", 4096))
	add(t, g, memOptions("f", 4096))
	top := add(t, g, overOptions("fmt", "top", "f", "base"))
	var c *FrozenChain
	update(t, g, func(tx *Tx) (err error) {
		c, err = tx.FreezeChain(top, base)
		return err
	})
	cut := func(tx *Tx) error { return tx.SetChild(top, "backing", RoleCOW, nil) }
	frozen := "Cannot change frozen 'backing' link from 'top' to 'base'"
	if err := g.Update(context.Background(), Cause{}, cut); err == nil || err.Error() != frozen {
		t.Fatal(err)
	}
	if err := g.Update(context.Background(), Cause{}, func(tx *Tx) error {
		tx.Thaw(c)
		if err := cut(tx); err != nil {
			return err
		}
		return errors.New("no")
	}); err == nil || err.Error() != "no" {
		t.Fatal(err)
	}
	if err := g.Update(context.Background(), Cause{}, cut); err == nil || err.Error() != frozen {
		t.Errorf("after the failed change: %v", err)
	}
	update(t, g, func(tx *Tx) error {
		tx.Thaw(c)
		return cut(tx)
	})
}

// TestNodeStaysOpenWhileItIsInspected, and is not inspected once it closes.
func TestNodeStaysOpenWhileItIsInspected(t *testing.T) {
	g := newTestGraph()
	n := add(t, g, memOptions("n", 512))
	drv := n.drv.(*memDriver)
	done := make(chan error)
	n.Inspect(func(Driver) {
		go func() {
			done <- g.Update(context.Background(), Cause{}, func(tx *Tx) error {
				tx.SetMonitorOwned(n, false)
				return nil
			})
		}()
		gone := false
		for !gone { // the change publishes before it closes
			g.Loop().Do(func() { gone = g.Node("n") == nil })
		}
		if drv.closed.Load() {
			t.Error("closed while inspected")
		}
	})
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if n.Inspect(func(Driver) { t.Error("a closed node was inspected") }) {
		t.Error("Inspect of a closed node says true")
	}
}
