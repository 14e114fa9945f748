package blkdebug

import (
	"context"
	"sync/atomic"

	"blockd/blockgraph"
	"blockd/qapi"
)

// Filter is the driver of a blkdebug node.
type Filter struct {
	node   *blockgraph.Node
	rules  *rules
	limits blockgraph.Limits // as configured; 0: not

	take, unshare blockgraph.Perm

	// How many changes have been asked for, and how many of them a flush has
	// made durable: errors hit only flushes that have something to do.
	changes, flushed atomic.Int64
}

func (f *Filter) image() *blockgraph.Edge { return f.node.Filtered() }

// ReadV implements blockgraph.Driver.
func (f *Filter) ReadV(ctx context.Context, off int64, v *blockgraph.IOVec, flags blockgraph.Flags) error {
	if err := f.rules.check(ioRead, off, v.Len()); err != nil {
		return err
	}
	return f.image().ReadV(ctx, off, v, flags)
}

// WriteV implements blockgraph.Driver.
func (f *Filter) WriteV(ctx context.Context, off int64, v *blockgraph.IOVec, flags blockgraph.Flags) error {
	defer f.changes.Add(1)
	if err := f.rules.check(ioWrite, off, v.Len()); err != nil {
		return err
	}
	return f.image().WriteV(ctx, off, v, flags)
}

// WriteZeroes implements blockgraph.Driver. What is smaller than the optimal
// alignment is left to be written as data.
func (f *Filter) WriteZeroes(ctx context.Context, off, n int64, flags blockgraph.Flags) error {
	if n < max(f.limits.RequestAlignment, f.limits.ZeroAlignment) {
		return blockgraph.ErrNotSupported
	}
	defer f.changes.Add(1)
	if err := f.rules.check(ioWriteZeroes, off, n); err != nil {
		return err
	}
	return f.image().WriteZeroes(ctx, off, n, flags)
}

// Discard implements blockgraph.Driver.
func (f *Filter) Discard(ctx context.Context, off, n int64) error {
	defer f.changes.Add(1)
	if err := f.rules.check(ioDiscard, off, n); err != nil {
		return err
	}
	return f.image().Discard(ctx, off, n)
}

// Flush implements blockgraph.Driver.
func (f *Filter) Flush(ctx context.Context) error {
	changes := f.changes.Load()
	if changes != f.flushed.Load() {
		if err := f.rules.check(ioFlush, 0, 0); err != nil {
			return err
		}
	}
	err := f.image().Flush(ctx)
	if err == nil {
		f.flushed.Store(changes)
	}
	return err
}

// Truncate implements blockgraph.Truncater.
func (f *Filter) Truncate(ctx context.Context, size int64, exact bool, prealloc qapi.PreallocMode, zeroed bool) error {
	defer f.changes.Add(1)
	return f.image().Truncate(ctx, size, exact, prealloc, zeroed)
}

// BlockStatus implements blockgraph.Driver.
func (f *Filter) BlockStatus(_ context.Context, off, n int64, _ blockgraph.StatusMode) (blockgraph.Status, error) {
	if err := f.rules.check(ioBlockStatus, off, n); err != nil {
		return blockgraph.Status{}, err
	}
	return blockgraph.Status{
		Flags: blockgraph.StatusRecurse | blockgraph.StatusOffsetValid,
		N:     n, Offset: off, File: f.image().Child(),
	}, nil
}

// Size implements blockgraph.Driver.
func (f *Filter) Size(ctx context.Context) (int64, error) {
	return f.image().Child().Driver().Size(ctx)
}

// Close implements blockgraph.Driver.
func (f *Filter) Close(context.Context) error { return nil }

// Limits implements blockgraph.LimitsReader: what is configured, else what the
// image asks for, but for its alignment, which is taken care of there.
func (f *Filter) Limits() blockgraph.Limits {
	below := f.image().Child().Limits()
	l := f.limits
	if l.MaxTransfer == 0 {
		l.MaxTransfer = below.MaxTransfer
	}
	l.OptTransfer, l.MemAlignment = below.OptTransfer, below.MemAlignment
	return l
}

// Caps implements blockgraph.LimitsReader. What the image lacks is emulated
// there, except for FUA: a flush passes through here. Compressed writes do not
// pass, as in the field.
func (f *Filter) Caps() blockgraph.Caps {
	c := f.image().Child().Caps()
	c.Backing = false
	c.Compressed = blockgraph.CapNone
	c.WriteZeroes = blockgraph.CapNative
	c.MayUnmap = blockgraph.CapNative
	c.NoFallback = blockgraph.CapNative
	c.Discard = blockgraph.CapNative
	c.WriteUnchanged = blockgraph.CapNative
	return c
}

// ChildPerms implements blockgraph.ChildPermissioner.
func (f *Filter) ChildPerms(e *blockgraph.Edge, writable bool, perm, shared blockgraph.Perm) (blockgraph.Perm, blockgraph.Perm) {
	perm, shared = blockgraph.DefaultChildPerms(e.Role(), writable, perm, shared)
	return perm | f.take, shared &^ f.unshare
}

// PrepareReopen implements blockgraph.Reopener: nothing depends on what may
// change.
func (f *Filter) PrepareReopen(context.Context, *blockgraph.ReopenRequest) (*blockgraph.Reopening, error) {
	return &blockgraph.Reopening{}, nil
}

var (
	_ blockgraph.Reopener     = (*Filter)(nil)
	_ blockgraph.Breakpointer = (*Filter)(nil)
	_ blockgraph.Truncater    = (*Filter)(nil)
)
