package blockgraph

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"blockd/bitmaps"
	"blockd/qapi"
)

// Internal snapshots: what a node held at a point in time, kept within its image.
// The format does the work (InternalSnapshotter) with no request in flight; here
// is what a graph change adds: undoing it, and the bitmaps and lengths that follow
// when a node goes back to a snapshot.

// InternalSnapshotter is a format that keeps snapshots in its image. All but
// InternalSnapshots run on a worker with the graph token held and no request in
// flight. A failed call has changed nothing that users of the disk see.
type InternalSnapshotter interface {
	// InternalSnapshots lists them, the oldest first. Any goroutine.
	InternalSnapshots() []qapi.SnapshotInfo
	// CreateSnapshot keeps what the disk holds, made at at, and returns the id.
	//
	//blockd:blocking
	CreateSnapshot(ctx context.Context, name string, at time.Time) (id string, err error)
	// DeleteSnapshot removes the first with that id and name, of which one may be
	// nil. Its errors are whole texts.
	//
	//blockd:blocking
	DeleteSnapshot(ctx context.Context, id, name *string) error
	// PrepareRevert makes ready to go back to such a one.
	//
	//blockd:blocking
	PrepareRevert(ctx context.Context, id, name *string) (Revert, error)
}

// SnapshotShower is a format that can show an internal snapshot in the place of
// what the image holds, until it is closed.
type SnapshotShower interface {
	// ShowSnapshot shows the first with that id and name, of which one may be nil
	// (ENOENT: there is none). The image was opened read-only (else EINVAL), and
	// no request is in flight.
	//
	//blockd:blocking
	ShowSnapshot(ctx context.Context, id, name *string) error
}

// Range is a range of a node, in bytes.
type Range struct{ Off, N int64 }

// Revert is a return to an internal snapshot that has been prepared. Switch
// follows, and then either Finish or Undo; or Undo at once.
//
//blockd:blocking
type Revert interface {
	// Size is the length of the disk that the snapshot has, in bytes.
	Size() int64
	// Changed lists what may differ between now and the snapshot.
	Changed() []Range
	// Switch makes the snapshot's content the disk's and the list its bitmaps,
	// durably and in one moment.
	Switch(ctx context.Context, list []*DirtyBitmap) error
	// Finish gives up what the disk held before.
	Finish(ctx context.Context) error
	// Undo takes the change back, with the bitmaps that were. It returns cause,
	// joined by its own error.
	Undo(ctx context.Context, list []*DirtyBitmap, cause error) error
}

// Snapshotting returns the node that keeps the internal snapshots of n: itself,
// or one below it that has all of its content, and nil for none. edges are a
// node's children.
func Snapshotting(n *Node, edges func(n *Node) []*Edge) *Node {
	for n != nil {
		if _, ok := n.drv.(InternalSnapshotter); ok {
			return n
		}
		var next *Node
		for _, e := range edges(n) {
			switch {
			case e.role&RolePrimary != 0 && next == nil:
				next = e.child
			case e.role&(RoleData|RoleMetadata|RoleFiltered) != 0:
				return nil
			}
		}
		n = next
	}
	return nil
}

// SnapshotNode is Snapshotting as of this change.
func (tx *Tx) SnapshotNode(n *Node) (*Node, InternalSnapshotter) {
	n = Snapshotting(n, func(n *Node) []*Edge { return tx.State(n).Edges })
	if n == nil {
		return nil, nil
	}
	return n, n.drv.(InternalSnapshotter)
}

// CreateSnapshot keeps what n holds as an internal snapshot of that name, made at
// at. It is removed again if the change is undone.
func (tx *Tx) CreateSnapshot(n *Node, name string, at time.Time) error {
	s := n.drv.(InternalSnapshotter)
	if err := tx.Drain(n); err != nil {
		return err
	}
	id, err := s.CreateSnapshot(tx.ctx, name, at)
	if err != nil {
		return err
	}
	tx.OnAbort(func() {
		if err := s.DeleteSnapshot(context.WithoutCancel(tx.ctx), &id, nil); err != nil {
			slog.ErrorContext(tx.ctx, "the snapshot of a change that failed stays", "node", n.name, "id", id, "error", err)
		}
	})
	return nil
}

// RevertSnapshot has n hold again what it held when the first internal snapshot
// with that id and name was made; one of them may be nil. Bitmaps that record have
// what changes by that as dirty. Other users must allow writes and, where the
// length changes, that.
func (tx *Tx) RevertSnapshot(n *Node, id, name *string) error {
	s := n.drv.(InternalSnapshotter)
	above := tx.sharing(n)
	for _, a := range above {
		for _, b := range tx.State(a).Bitmaps {
			if b.Recorder() == nil {
				continue
			}
			if err := b.Check(BitmapWrite); err != nil {
				return err
			}
		}
	}
	root, err := tx.NewRoot(n, RootOptions{Perm: PermWrite, Shared: PermAll})
	if err != nil {
		return err
	}
	if err := tx.Drain(n); err != nil {
		return err
	}
	r, err := s.PrepareRevert(tx.ctx, id, name)
	if err != nil {
		return err
	}
	ctx := context.WithoutCancel(tx.ctx)
	was := tx.State(n).Bitmaps
	tx.OnAbort(func() {
		if err := r.Undo(ctx, was, nil); err != nil {
			slog.ErrorContext(ctx, "a return to a snapshot was not undone in order", "node", n.name, "error", err)
		}
	})
	if r.Size() != n.Size() {
		if err := tx.SetRootPerms(root, PermWrite|PermResize, PermAll); err != nil {
			return err
		}
		for _, a := range above {
			if err := a.checkResize(r.Size()); err != nil {
				return err
			}
		}
	}
	for _, a := range above {
		tx.followRevert(a, n, r)
	}
	if err := r.Switch(tx.ctx, tx.Stage(n).Bitmaps); err != nil {
		return err
	}
	for _, a := range above {
		if err := tx.takeSize(a); err != nil {
			return err
		}
	}
	tx.After(func() {
		if err := r.Finish(ctx); err != nil {
			slog.ErrorContext(ctx, "what a disk held before it went back to a snapshot still takes space", "node", n.name, "error", err)
		}
	})
	return tx.CloseRoot(root)
}

// sharing returns n and the nodes above it whose content is n's, children before
// parents.
func (tx *Tx) sharing(n *Node) []*Node {
	list := []*Node{n}
	for i := 0; i < len(list); i++ {
		for _, e := range tx.Parents(list[i]) {
			if e.node != nil && e.role&RoleCOW == 0 && e.role&(RolePrimary|RoleFiltered) != 0 && !slices.Contains(list, e.node) {
				list = append(list, e.node)
			}
		}
	}
	return list
}

// followRevert stages the bitmaps of a, which shows what n holds, as they are
// after the revert: of another length, and of those that record what changes is
// dirty.
func (tx *Tx) followRevert(a, n *Node, r Revert) {
	s := tx.Stage(a)
	s.Bitmaps = slices.Clone(s.Bitmaps)
	resized := r.Size() != n.Size()
	for i, b := range s.Bitmaps {
		if b.Recorder() == nil && !resized {
			continue
		}
		c := *b
		c.Bits = b.Bits.Clone()
		if a == n {
			_ = c.Bits.Resize(r.Size()) // checkResize has seen to it
		}
		if b.Recorder() != nil {
			markReverted(c.Bits, a == n, r.Changed())
		}
		s.Bitmaps[i] = &c
	}
}

// markReverted marks what a revert changes. Above the node itself offsets may be
// others, and all is marked.
func markReverted(bits *bitmaps.Bitmap, exact bool, changed []Range) {
	if !exact {
		bits.Set(0, bits.Size())
		return
	}
	for _, c := range changed {
		if n := min(c.N, bits.Size()-c.Off); n > 0 {
			bits.Set(c.Off, n)
		}
	}
}

// takeSize gives a node the length that its driver has by now, until the change
// is undone. Its staged bitmaps follow.
func (tx *Tx) takeSize(a *Node) error {
	size, err := a.drv.Size(tx.ctx)
	if err != nil {
		return Errorf(Errno(err), "Could not refresh total sector count: %s", Strerror(err))
	}
	was := a.size.Load()
	if size = alignUp(size, sectorSize); size == was {
		return nil
	}
	a.size.Store(size)
	tx.OnAbort(func() { a.size.Store(was) })
	for _, b := range tx.Stage(a).Bitmaps {
		if grown := size - b.Bits.Size(); grown != 0 {
			from := b.Bits.Size()
			if err := b.Bits.Resize(size); err != nil {
				return err
			}
			if b.Recorder() != nil && grown > 0 {
				b.Bits.Set(from, grown)
			}
		}
	}
	return nil
}
