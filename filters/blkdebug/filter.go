package blkdebug

import (
	"context"

	"blockd/blockgraph"
	"blockd/filters/pass"
	"blockd/qapi"
)

// Filter is the driver of a blkdebug node.
type Filter struct {
	pass.Through
	rules  *rules
	limits blockgraph.Limits // as configured; 0: not

	take, unshare blockgraph.Perm

	changes pass.Changes // errors hit only flushes that have something to do
}

// ReadV implements blockgraph.Driver.
func (f *Filter) ReadV(ctx context.Context, off int64, v *blockgraph.IOVec, flags blockgraph.Flags) error {
	if err := f.rules.check(ioRead, off, v.Len()); err != nil {
		return err
	}
	return f.Below().ReadV(ctx, off, v, flags)
}

// WriteV implements blockgraph.Driver.
func (f *Filter) WriteV(ctx context.Context, off int64, v *blockgraph.IOVec, flags blockgraph.Flags) error {
	defer f.changes.Made()
	if err := f.rules.check(ioWrite, off, v.Len()); err != nil {
		return err
	}
	return f.Below().WriteV(ctx, off, v, flags)
}

// WriteZeroes implements blockgraph.Driver. What is smaller than the optimal
// alignment is left to be written as data.
func (f *Filter) WriteZeroes(ctx context.Context, off, n int64, flags blockgraph.Flags) error {
	if n < max(f.limits.RequestAlignment, f.limits.ZeroAlignment) {
		return blockgraph.ErrNotSupported
	}
	defer f.changes.Made()
	if err := f.rules.check(ioWriteZeroes, off, n); err != nil {
		return err
	}
	return f.Below().WriteZeroes(ctx, off, n, flags)
}

// Discard implements blockgraph.Driver.
func (f *Filter) Discard(ctx context.Context, off, n int64) error {
	defer f.changes.Made()
	if err := f.rules.check(ioDiscard, off, n); err != nil {
		return err
	}
	return f.Below().Discard(ctx, off, n)
}

// Flush implements blockgraph.Driver.
func (f *Filter) Flush(ctx context.Context) error {
	changes, pending := f.changes.Pending()
	if pending {
		if err := f.rules.check(ioFlush, 0, 0); err != nil {
			return err
		}
	}
	err := f.Below().Flush(ctx)
	if err == nil {
		f.changes.Flushed(changes)
	}
	return err
}

// Truncate implements blockgraph.Truncater.
func (f *Filter) Truncate(ctx context.Context, size int64, exact bool, prealloc qapi.PreallocMode, zeroed bool) error {
	defer f.changes.Made()
	return f.Below().Truncate(ctx, size, exact, prealloc, zeroed)
}

// BlockStatus implements blockgraph.Driver.
func (f *Filter) BlockStatus(ctx context.Context, off, n int64, mode blockgraph.StatusMode) (blockgraph.Status, error) {
	if err := f.rules.check(ioBlockStatus, off, n); err != nil {
		return blockgraph.Status{}, err
	}
	return f.Through.BlockStatus(ctx, off, n, mode)
}

// Limits implements blockgraph.LimitsReader: what is configured, else what the
// image asks for.
func (f *Filter) Limits() blockgraph.Limits {
	below, l := f.Through.Limits(), f.limits
	if l.MaxTransfer == 0 {
		l.MaxTransfer = below.MaxTransfer
	}
	l.OptTransfer, l.MemAlignment = below.OptTransfer, below.MemAlignment
	return l
}

// ChildPerms implements blockgraph.ChildPermissioner.
func (f *Filter) ChildPerms(e *blockgraph.Edge, writable bool, perm, shared blockgraph.Perm) (blockgraph.Perm, blockgraph.Perm) {
	perm, shared = blockgraph.DefaultChildPerms(e.Role(), writable, perm, shared)
	return perm | f.take, shared &^ f.unshare
}

var (
	_ blockgraph.Breakpointer = (*Filter)(nil)
	_ blockgraph.Truncater    = (*Filter)(nil)
)

// PrepareReopen implements blockgraph.Reopener: nothing of its own may change.
func (f *Filter) PrepareReopen(context.Context, *blockgraph.ReopenRequest) (*blockgraph.Reopening, error) {
	return &blockgraph.Reopening{}, nil
}
