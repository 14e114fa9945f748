package mirrortop

import (
	"context"

	"blockd/blockgraph"
)

// This file is the driver's side of the node: requests pass through to the
// source, those that change it by way of the target when the filter is active.

func (f *Filter) source() *blockgraph.Edge { return f.node.Child(Edge) }

// ReadV implements blockgraph.Driver.
func (f *Filter) ReadV(ctx context.Context, off int64, v *blockgraph.IOVec, flags blockgraph.Flags) error {
	return f.source().ReadV(ctx, off, v, flags)
}

// WriteV implements blockgraph.Driver.
func (f *Filter) WriteV(ctx context.Context, off int64, v *blockgraph.IOVec, flags blockgraph.Flags) error {
	if f.active.Load() && flags&blockgraph.WriteUnchanged == 0 {
		return f.mirror(ctx, change{kind: write, off: off, n: v.Len(), v: v, flags: flags})
	}
	err := f.source().WriteV(ctx, off, v, flags)
	f.Unsync()
	return err
}

// WriteZeroes implements blockgraph.Driver.
func (f *Filter) WriteZeroes(ctx context.Context, off, n int64, flags blockgraph.Flags) error {
	if f.active.Load() && flags&blockgraph.WriteUnchanged == 0 {
		return f.mirror(ctx, change{kind: zero, off: off, n: n, flags: flags})
	}
	err := f.source().WriteZeroes(ctx, off, n, flags)
	f.shapes.Add(1)
	f.Unsync()
	return err
}

// Discard implements blockgraph.Driver.
func (f *Filter) Discard(ctx context.Context, off, n int64) error {
	if f.active.Load() {
		return f.mirror(ctx, change{kind: discard, off: off, n: n})
	}
	err := f.source().Discard(ctx, off, n)
	f.shapes.Add(1)
	f.Unsync()
	return err
}

// Flush implements blockgraph.Driver. The target is the job's to flush.
func (f *Filter) Flush(ctx context.Context) error { return f.source().Flush(ctx) }

// BlockStatus implements blockgraph.Driver.
func (f *Filter) BlockStatus(_ context.Context, off, n int64, _ blockgraph.StatusMode) (blockgraph.Status, error) {
	return blockgraph.Status{Flags: blockgraph.StatusRecurse | blockgraph.StatusOffsetValid, N: n, Offset: off, File: f.source().Child()}, nil
}

// Size implements blockgraph.Driver.
func (f *Filter) Size(context.Context) (int64, error) { return f.source().Child().Size(), nil }

// Close implements blockgraph.Driver. Writes to the target that are still under
// way have no use for the node.
func (f *Filter) Close(context.Context) error { return nil }

// ChildPerms implements blockgraph.ChildPermissioner. A filter that was stopped
// needs nothing. That of a commit gives its users consistent reads without
// having any itself, since the images below it change while it is there, and
// lets others write, or it would stand in its own target's way. An exclusive
// filter lets nobody else write. A node without users is known by needing
// nothing and sharing all.
func (f *Filter) ChildPerms(e *blockgraph.Edge, writable bool, perm, shared blockgraph.Perm) (blockgraph.Perm, blockgraph.Perm) {
	if f.stopped.Load() {
		return 0, blockgraph.PermAll
	}
	np, ns := blockgraph.DefaultChildPerms(e.Role(), writable, perm, shared)
	switch {
	case f.o.Commit:
		np &^= blockgraph.PermConsistentRead
		ns |= blockgraph.PermWrite
	case f.exclusive.Load() && (perm != 0 || shared != blockgraph.PermAll):
		ns &^= blockgraph.PermWrite
	}
	return np, ns
}
