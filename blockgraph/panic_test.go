package blockgraph_test

import (
	"context"
	"io"
	"log/slog"
	"strings"
	"testing"

	"blockd/blockgraph"
	"blockd/blockgraph/graphtest"
)

// bomb is a memory whose permissions cannot be prepared without a panic.
type bomb struct {
	*graphtest.Memory
	armed bool
}

func (b *bomb) PreparePerms(ctx context.Context, perm, shared blockgraph.Perm) error {
	if b.armed {
		panic("bomb")
	}
	return b.Memory.PreparePerms(ctx, perm, shared)
}

// ledger is a memory that knows how often permissions were prepared without an
// end.
type ledger struct {
	*graphtest.Memory
	open int
}

func (l *ledger) PreparePerms(ctx context.Context, perm, shared blockgraph.Perm) error {
	l.open++
	return l.Memory.PreparePerms(ctx, perm, shared)
}
func (l *ledger) CommitPerms(perm, shared blockgraph.Perm) {
	l.open--
	l.Memory.CommitPerms(perm, shared)
}
func (l *ledger) AbortPerms() { l.open-- }

func protocol(name string, open func() blockgraph.Driver) *blockgraph.DriverType {
	return &blockgraph.DriverType{Name: name, Protocol: true,
		Open: func(context.Context, *blockgraph.OpenRequest) (blockgraph.Driver, error) { return open(), nil }}
}

func silent(t *testing.T) {
	was := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(io.Discard, nil)))
	t.Cleanup(func() { slog.SetDefault(was) })
}

// TestPanicBeforeTheCommitUndoesTheChange, wherever it comes from.
func TestPanicBeforeTheCommitUndoesTheChange(t *testing.T) {
	silent(t)
	var mine bomb
	var book ledger
	w := graphtest.New(t,
		protocol("bomb", func() blockgraph.Driver { mine.Memory = graphtest.NewMemory(4096); return &mine }),
		protocol("ledger", func() blockgraph.Driver { book.Memory = graphtest.NewMemory(4096); return &book }),
		protocol("broken", func() blockgraph.Driver { panic("open") }))
	of := func(driver, name string) *blockgraph.Node {
		o := graphtest.MemOptions(name, 4096)
		o.Driver = "bomb"
		if driver != "bomb" {
			o.Driver = "ledger"
		}
		return w.Add(o)
	}
	base, content := w.Mem("base", 4096)
	bombed, booked := of("bomb", "bombed"), of("ledger", "booked")
	guest := w.Root(base, graphtest.ReadWrite, blockgraph.PermAll)
	before := w.Dump()
	perm, shared := content.Locks()
	for name, c := range map[string]struct {
		text string
		f    func(tx *blockgraph.Tx) error
	}{
		"in the change": {"here", func(*blockgraph.Tx) error { panic("here") }},
		"in an open": {"open", func(tx *blockgraph.Tx) error {
			o := graphtest.MemOptions("x", 4096)
			o.Driver = "broken"
			_, err := tx.Open(o)
			return err
		}},
		"in the permission check": {"bomb", func(tx *blockgraph.Tx) error {
			mine.armed = true
			tx.OnAbort(func() { mine.armed = false })
			for _, n := range []*blockgraph.Node{bombed, booked, bombed} {
				if _, err := tx.NewRoot(n, blockgraph.RootOptions{Perm: blockgraph.PermWrite, Shared: blockgraph.PermAll}); err != nil {
					return err
				}
			}
			return nil
		}},
	} {
		var opened *blockgraph.Node
		undone := false
		err := w.Try(func(tx *blockgraph.Tx) (err error) {
			tx.OnAbort(func() { undone = true })
			if opened, err = tx.Open(graphtest.MemOptions("extra", 512)); err != nil {
				return err
			}
			f, err := tx.Open(graphtest.PassOptions("filter", "base"))
			if err != nil {
				return err
			}
			if err := tx.ReplaceNode(base, f); err != nil {
				return err
			}
			return c.f(tx)
		})
		if err == nil || err.Error() != "Internal error: "+c.text {
			t.Errorf("%s: %v", name, err)
		}
		if after := w.Dump(); after != before {
			t.Errorf("%s: before:\n%s\nafter:\n%s", name, before, after)
		}
		if p, s := content.Locks(); p != perm || s != shared {
			t.Errorf("%s: locks %v %v, before %v %v", name, p, s, perm, shared)
		}
		if !undone || !opened.Driver().(*graphtest.Memory).Closed.Load() || book.open != 0 {
			t.Errorf("%s: undone %v, %d locks pending", name, undone, book.open)
		}
		if err := guest.Flush(t.Context()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestPanicAfterTheCommitIsNotHidden: the graph has changed, so there is no
// answer that would be true.
func TestPanicAfterTheCommitIsNotHidden(t *testing.T) {
	silent(t)
	w := graphtest.New(t)
	defer func() {
		if p := recover(); p == nil || !strings.Contains(p.(string), "late") {
			t.Errorf("recovered %v", p)
		}
	}()
	err := w.Try(func(tx *blockgraph.Tx) error {
		tx.After(func() { panic("too late") })
		return nil
	})
	t.Error("the change returned", err)
}
