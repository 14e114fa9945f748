package blklogwrites

import (
	"context"

	"blockd/blockgraph"
	"blockd/filters/pass"
)

// Filter is the driver of a blklogwrites node.
type Filter struct {
	pass.Through
	log     log
	changes pass.Changes // flushes with nothing to do are not logged
}

// logged does a request and logs it, failed or not. The error of the log
// comes first.
func (f *Filter) logged(ctx context.Context, x entry, do func() error) error {
	err := do()
	if e := f.log.add(ctx, f.Node.Child("log"), x); e != nil {
		return e
	}
	return err
}

// WriteV implements blockgraph.Driver.
func (f *Filter) WriteV(ctx context.Context, off int64, v *blockgraph.IOVec, flags blockgraph.Flags) error {
	defer f.changes.Made()
	return f.logged(ctx, entry{off: off, n: v.Len(), data: v}, func() error { return f.Through.WriteV(ctx, off, v, flags) })
}

// WriteZeroes implements blockgraph.Driver.
func (f *Filter) WriteZeroes(ctx context.Context, off, n int64, flags blockgraph.Flags) error {
	defer f.changes.Made()
	return f.logged(ctx, entry{off: off, n: n, zeroes: true}, func() error { return f.Through.WriteZeroes(ctx, off, n, flags) })
}

// Discard implements blockgraph.Driver.
func (f *Filter) Discard(ctx context.Context, off, n int64) error {
	defer f.changes.Made()
	return f.logged(ctx, entry{off: off, n: n, flags: flagDiscard}, func() error { return f.Through.Discard(ctx, off, n) })
}

// Flush implements blockgraph.Driver.
func (f *Filter) Flush(ctx context.Context) error {
	upTo, pending := f.changes.Pending()
	if !pending {
		return f.Through.Flush(ctx)
	}
	err := f.logged(ctx, entry{flags: flagFlush}, func() error { return f.Through.Flush(ctx) })
	if err == nil {
		f.changes.Flushed(upTo)
	}
	return err
}

// Close logs a last flush if there is something to flush, so that the superblock
// counts everything.
func (f *Filter) Close(ctx context.Context) error {
	if _, pending := f.changes.Pending(); pending {
		return f.Flush(ctx)
	}
	return nil
}

// Limits implements blockgraph.LimitsReader: whole sectors of the log.
func (f *Filter) Limits() blockgraph.Limits {
	l := f.Through.Limits()
	l.RequestAlignment = 1 << f.log.bits
	return l
}

// Caps implements blockgraph.LimitsReader. FUA is a flush, which is logged.
func (f *Filter) Caps() blockgraph.Caps {
	c := f.Through.Caps()
	return blockgraph.Caps{WriteZeroes: blockgraph.CapNative, Discard: blockgraph.CapNative, Grow: c.Grow, FreshZero: c.FreshZero}
}
