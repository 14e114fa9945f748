package blockgraph_test

import (
	"context"
	"errors"
	"slices"
	"syscall"
	"testing"

	"blockd/bitmaps"
	"blockd/blockgraph"
	"blockd/blockgraph/graphtest"
	"blockd/qapi"
)

// storer is a Memory that stores bitmaps, in memory.
type storer struct {
	*graphtest.Memory
	stored  []*blockgraph.DirtyBitmap
	fail    error // of StoreBitmaps
	opened  []int64
	refused error // by BeforeChange
}

func (s *storer) LoadBitmaps(context.Context) ([]*blockgraph.DirtyBitmap, error) {
	return s.stored, nil
}

func (s *storer) CanStoreBitmap(_ []*blockgraph.DirtyBitmap, name string, _ int64) error {
	if name == "unstorable" {
		return qapi.Errorf("no")
	}
	return nil
}

func (s *storer) StoreBitmaps(_ context.Context, list []*blockgraph.DirtyBitmap) error {
	if s.fail != nil {
		return s.fail
	}
	s.stored = list
	return nil
}

func (s *storer) BeforeChange(_ context.Context, off, _ int64) error {
	if s.refused != nil {
		return s.refused
	}
	s.opened = append(s.opened, off)
	return nil
}

func storerType() *blockgraph.DriverType {
	return &blockgraph.DriverType{Name: "storer", Protocol: true,
		Open: func(_ context.Context, r *blockgraph.OpenRequest) (blockgraph.Driver, error) {
			m := graphtest.NewMemory(*r.Options.Null.Size)
			old := &blockgraph.DirtyBitmap{Name: "old", Persistent: true, Bits: bitmaps.New(*r.Options.Null.Size, 4096)}
			return &storer{Memory: m, stored: []*blockgraph.DirtyBitmap{old}}, nil
		}}
}

// bitmapWorld has two nodes that store bitmaps, each with one that is called
// old.
type bitmapWorld struct {
	*graphtest.World
	a, b *blockgraph.Node
}

const diskSize = 1 << 20

func newBitmapWorld(t *testing.T) *bitmapWorld {
	w := &bitmapWorld{World: graphtest.New(t, storerType())}
	add := func(name string) *blockgraph.Node {
		o := graphtest.MemOptions(name, diskSize)
		o.Driver = "storer"
		return w.Add(o)
	}
	w.a, w.b = add("a"), add("b")
	return w
}

func driver(n *blockgraph.Node) *storer { return n.Driver().(*storer) }

func (w *bitmapWorld) bitmap(n *blockgraph.Node, name string) *blockgraph.DirtyBitmap {
	return n.State().Bitmap(name)
}

func addBitmap(n *blockgraph.Node, name string, persistent bool) func(tx *blockgraph.Tx) error {
	return func(tx *blockgraph.Tx) error { return tx.AddBitmap(n, name, 4096, persistent, false) }
}

func dirty(b *blockgraph.DirtyBitmap) (list []int64) {
	for off := int64(0); off < b.Bits.Size(); off += b.Bits.Granularity() {
		if b.Bits.Get(off) {
			list = append(list, off/b.Bits.Granularity())
		}
	}
	return list
}

func vector(n int) *blockgraph.IOVec { return blockgraph.MakeIOVec(make([]byte, n)) }

func TestBitmapsRecordWhatChangesANode(t *testing.T) {
	w := newBitmapWorld(t)
	w.Update(addBitmap(w.a, "n", false))
	root := w.Root(w.a, graphtest.ReadWrite, blockgraph.PermAll)
	ctx := t.Context()
	steps := []struct {
		name string
		do   func() error
		want []int64
	}{
		{"write", func() error { return root.WriteV(ctx, 4096, vector(512), 0) }, []int64{1}},
		{"zeroes", func() error { return root.WriteZeroes(ctx, 3*4096, 4096, 0) }, []int64{1, 3}},
		{"discard", func() error { return root.Discard(ctx, 5*4096, 2*4096) }, []int64{1, 3, 5, 6}},
		{"read", func() error { return root.ReadV(ctx, 0, vector(4096), 0) }, []int64{1, 3, 5, 6}},
		{"unchanged", func() error { return root.WriteV(ctx, 0, vector(4096), blockgraph.WriteUnchanged) }, []int64{1, 3, 5, 6}},
	}
	for _, s := range steps {
		if err := s.do(); err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
		for _, name := range []string{"n", "old"} {
			if got := dirty(w.bitmap(w.a, name)); !slices.Equal(got, s.want) {
				t.Errorf("after %s %s has %v, want %v", s.name, name, got, s.want)
			}
		}
	}
	if got := driver(w.a).opened; !slices.Equal(got, []int64{4096, 3 * 4096, 5 * 4096}) {
		t.Errorf("told of changes at %v", got)
	}
}

func TestAWriteFailsWhenItsBitmapCannotBeMadeReady(t *testing.T) {
	w := newBitmapWorld(t)
	root := w.Root(w.a, graphtest.ReadWrite, blockgraph.PermAll)
	driver(w.a).refused = syscall.EIO
	b := make([]byte, 512)
	b[0] = 1
	if err := root.WriteV(t.Context(), 0, blockgraph.MakeIOVec(b), 0); !errors.Is(err, syscall.EIO) {
		t.Error(err)
	}
	if driver(w.a).Bytes()[0] != 0 {
		t.Error("written all the same")
	}
	// Without a bitmap that records nobody is asked.
	w.Update(func(tx *blockgraph.Tx) error { return tx.EnableBitmap(w.a, tx.Bitmap(w.a, "old"), false) })
	if err := root.WriteV(t.Context(), 0, blockgraph.MakeIOVec(b), 0); err != nil {
		t.Error(err)
	}
}

func TestAFailedChangeLeavesBitmapsAsTheyWere(t *testing.T) {
	w := newBitmapWorld(t)
	root := w.Root(w.a, graphtest.ReadWrite, blockgraph.PermAll)
	if err := root.WriteV(t.Context(), 0, vector(512), 0); err != nil {
		t.Fatal(err)
	}
	before, stored := w.a.State().Bitmaps, driver(w.a).stored
	failed := errors.New("failed")
	err := w.Try(func(tx *blockgraph.Tx) error {
		if err := tx.AddBitmap(w.a, "n", 512, true, false); err != nil {
			return err
		}
		if err := tx.MergeBitmap(w.a, tx.Bitmap(w.a, "n"), w.a, tx.Bitmap(w.a, "old")); err != nil {
			return err
		}
		if err := tx.ClearBitmap(w.a, tx.Bitmap(w.a, "old")); err != nil {
			return err
		}
		if err := tx.FreezeBitmap(w.a, tx.Bitmap(w.a, "old"), blockgraph.BitmapWrite); err != nil {
			return err
		}
		return failed
	})
	if err != failed {
		t.Fatal(err)
	}
	if !slices.Equal(w.a.State().Bitmaps, before) || !slices.Equal(driver(w.a).stored, stored) {
		t.Error("another list")
	}
	if got := dirty(w.bitmap(w.a, "old")); !slices.Equal(got, []int64{0}) {
		t.Errorf("dirty %v", got)
	}
	if err := root.WriteV(t.Context(), 4096, vector(512), 0); err != nil {
		t.Fatal(err)
	}
	if got := dirty(w.bitmap(w.a, "old")); !slices.Equal(got, []int64{0, 1}) {
		t.Errorf("dirty %v", got)
	}
}

func TestAStoreThatFailsUndoesAllNodes(t *testing.T) {
	w := newBitmapWorld(t)
	driver(w.b).fail = syscall.ENOSPC
	a, b := w.a.State().Bitmaps, w.b.State().Bitmaps
	err := w.Try(func(tx *blockgraph.Tx) error {
		for _, n := range []*blockgraph.Node{w.a, w.b} {
			if err := tx.AddBitmap(n, "n", 512, true, false); err != nil {
				return err
			}
		}
		return nil
	})
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	if !slices.Equal(w.a.State().Bitmaps, a) || !slices.Equal(w.b.State().Bitmaps, b) || !slices.Equal(driver(w.a).stored, a) {
		t.Error("not as before")
	}
}

func TestFrozenBitmapKeepsItsBitsAndRecordsBeside(t *testing.T) {
	for name, c := range map[string]struct {
		keep  bool
		extra *bitmaps.Bitmap
		want  []int64
	}{
		"abdicate":       {want: []int64{2}},
		"reclaim":        {keep: true, want: []int64{1, 2}},
		"what is missed": {extra: func() *bitmaps.Bitmap { b := bitmaps.New(diskSize, 512); b.Set(9*4096, 1); return b }(), want: []int64{2, 9}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newBitmapWorld(t)
			root := w.Root(w.a, graphtest.ReadWrite, blockgraph.PermAll)
			write := func(granule int64) {
				if err := root.WriteV(t.Context(), granule*4096, vector(512), 0); err != nil {
					t.Fatal(err)
				}
			}
			write(1)
			freeze := func(tx *blockgraph.Tx) error {
				return tx.FreezeBitmap(w.a, tx.Bitmap(w.a, "old"), blockgraph.BitmapWrite)
			}
			w.Update(freeze)
			write(2)
			if got := dirty(w.bitmap(w.a, "old")); !slices.Equal(got, []int64{1}) {
				t.Errorf("frozen: %v", got)
			}
			const busy = "Bitmap 'old' is currently in use by another operation and cannot be used"
			if err := w.Try(freeze); err == nil || err.Error() != busy {
				t.Error(err)
			}
			thaw := func(tx *blockgraph.Tx) error { return tx.ThawBitmap(w.a, "old", c.keep, c.extra) }
			w.Update(thaw)
			w.Update(thaw) // nothing to end any more
			b := w.bitmap(w.a, "old")
			if got := dirty(b); b.Busy || b.Successor != nil || !slices.Equal(got, c.want) {
				t.Errorf("%+v: %v, want %v", b, got, c.want)
			}
			write(7)
			if !b.Bits.Get(7 * 4096) {
				t.Error("records no more")
			}
		})
	}
}

func TestEndOfAUseOutlivesTheNode(t *testing.T) {
	w := newBitmapWorld(t)
	w.Update(func(tx *blockgraph.Tx) error { return tx.HoldBitmap(w.a, tx.Bitmap(w.a, "old")) })
	w.Del(w.a)
	w.Update(func(tx *blockgraph.Tx) error {
		return errors.Join(tx.ReleaseBitmap(w.a, "old"), tx.ThawBitmap(w.a, "old", true, nil))
	})
}

func TestBitmapsFollowTheLength(t *testing.T) {
	w := newBitmapWorld(t)
	w.Update(addBitmap(w.a, "n", false))
	resize := func(size int64) error {
		return w.Try(func(tx *blockgraph.Tx) error { return tx.Resize(w.a, size, true, qapi.PreallocModeOff) })
	}
	for _, size := range []int64{2 << 20, 512 << 10} {
		if err := resize(size); err != nil {
			t.Fatal(err)
		}
		for _, b := range w.a.State().Bitmaps {
			if b.Bits.Size() != size {
				t.Errorf("%s has %d bytes", b.Name, b.Bits.Size())
			}
		}
	}
	w.Update(func(tx *blockgraph.Tx) error { return tx.HoldBitmap(w.a, tx.Bitmap(w.a, "old")) })
	const busy = "Bitmap 'old' is currently in use by another operation and cannot be used"
	if err := resize(1 << 20); err == nil || err.Error() != busy {
		t.Error(err)
	}
}

func TestBitmapsOfAFileGrowAsItIsWritten(t *testing.T) {
	w := graphtest.New(t)
	w.Setup = func(m *graphtest.Memory) { m.Cap.Grow = true }
	n, _ := w.Mem("f", 4096)
	w.Update(addBitmap(n, "b", false))
	parent := w.Pass("p", "f")
	root := w.Root(parent, graphtest.ReadWrite, blockgraph.PermAll)
	a, err := root.Enter(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.File().WriteV(t.Context(), 8*4096, vector(512), 0); err != nil {
		t.Fatal(err)
	}
	a.Leave()
	b := n.State().Bitmap("b")
	if b.Bits.Size() != n.Size() || !b.Bits.Get(8*4096) {
		t.Errorf("%d bytes, node %d", b.Bits.Size(), n.Size())
	}
}

func TestANewNodesBitmapsAreStoredWithIt(t *testing.T) {
	w := newBitmapWorld(t)
	failed := errors.New("failed")
	var n *blockgraph.Node
	change := func(end error) error {
		return w.Try(func(tx *blockgraph.Tx) (err error) {
			o := graphtest.MemOptions("new", diskSize)
			o.Driver = "storer"
			if n, err = tx.Open(o); err != nil {
				return err
			}
			tx.SetMonitorOwned(n, true)
			if err := tx.AddBitmap(n, "n", 512, true, false); err != nil {
				return err
			}
			return end
		})
	}
	names := func() (list []string) {
		for _, b := range driver(n).stored {
			list = append(list, b.Name)
		}
		return list
	}
	if err := change(failed); err != failed {
		t.Fatal(err)
	}
	if got := names(); !slices.Equal(got, []string{"old"}) {
		t.Errorf("stored %v by a change that failed", got)
	}
	if err := change(nil); err != nil {
		t.Fatal(err)
	}
	if got := names(); !slices.Equal(got, []string{"n", "old"}) {
		t.Errorf("stored %v", got)
	}
}
