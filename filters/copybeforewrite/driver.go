package copybeforewrite

import (
	"context"

	"blockd/blockgraph"
)

// This file is the driver's side of the node: requests pass through to the
// file child, those that change it after what they overwrite was saved.

// ReadV implements blockgraph.Driver.
func (f *Filter) ReadV(ctx context.Context, off int64, v *blockgraph.IOVec, flags blockgraph.Flags) error {
	return f.node.File().ReadV(ctx, off, v, flags)
}

// WriteV implements blockgraph.Driver.
func (f *Filter) WriteV(ctx context.Context, off int64, v *blockgraph.IOVec, flags blockgraph.Flags) error {
	if err := f.before(ctx, off, v.Len(), flags); err != nil {
		return err
	}
	return f.node.File().WriteV(ctx, off, v, flags)
}

// WriteZeroes implements blockgraph.Driver.
func (f *Filter) WriteZeroes(ctx context.Context, off, n int64, flags blockgraph.Flags) error {
	if err := f.before(ctx, off, n, flags); err != nil {
		return err
	}
	return f.node.File().WriteZeroes(ctx, off, n, flags)
}

// Discard implements blockgraph.Driver.
func (f *Filter) Discard(ctx context.Context, off, n int64) error {
	if err := f.before(ctx, off, n, 0); err != nil {
		return err
	}
	return f.node.File().Discard(ctx, off, n)
}

// Flush implements blockgraph.Driver. The target is the job's to flush.
func (f *Filter) Flush(ctx context.Context) error { return f.node.File().Flush(ctx) }

// BlockStatus implements blockgraph.Driver.
func (f *Filter) BlockStatus(_ context.Context, off, n int64, _ blockgraph.StatusMode) (blockgraph.Status, error) {
	return blockgraph.Status{Flags: blockgraph.StatusRecurse | blockgraph.StatusOffsetValid, N: n, Offset: off, File: f.node.File().Child()}, nil
}

// Size implements blockgraph.Driver.
func (f *Filter) Size(context.Context) (int64, error) { return f.node.File().Child().Size(), nil }

// Close implements blockgraph.Driver: it waits for copies that outlived their
// guests' requests.
func (f *Filter) Close(ctx context.Context) error {
	f.QuiesceBegin(ctx)
	if f.scratch != nil {
		f.scratch.Drop()
	}
	return ctx.Err()
}

// ChildPerms implements blockgraph.ChildPermissioner. The target is written,
// and everything on it shared but a change of its length, which is checked
// only at the start: the guest's disk may be in its backing chain. The source
// is shared for writing with nobody once the filter has users: who writes
// beside the filter would change what was not saved. A node without users is
// known by needing nothing and sharing all, so a job's root over the filter
// needs PermConsistentRead.
func (f *Filter) ChildPerms(e *blockgraph.Edge, _ bool, perm, shared blockgraph.Perm) (blockgraph.Perm, blockgraph.Perm) {
	role := e.Role()
	if role&blockgraph.RoleFiltered == 0 {
		return blockgraph.PermWrite, blockgraph.PermAll &^ blockgraph.PermResize
	}
	np, ns := blockgraph.DefaultChildPerms(role, true, perm, shared)
	if perm == 0 && shared == blockgraph.PermAll {
		return np, ns
	}
	if perm&blockgraph.PermWrite != 0 {
		np |= blockgraph.PermConsistentRead
	}
	if f.discardSource {
		np |= blockgraph.PermWrite
	}
	return np, ns &^ (blockgraph.PermWrite | blockgraph.PermResize)
}
