// Package pass is what filters have in common: a driver whose every method goes
// to the filtered child. A filter embeds Through and replaces what it changes.
//
// It has no state. What blocks: what blocks below. It must not import jobs, qmp
// or formats.
//
//blockd:io
package pass

import (
	"context"

	"blockd/blockgraph"
)

// Through passes requests to the filtered child of Node.
type Through struct{ Node *blockgraph.Node }

// Below is the edge to the filtered child.
func (t Through) Below() *blockgraph.Edge { return t.Node.Filtered() }

// ReadV implements blockgraph.Driver, as do the following.
func (t Through) ReadV(ctx context.Context, off int64, v *blockgraph.IOVec, flags blockgraph.Flags) error {
	return t.Below().ReadV(ctx, off, v, flags)
}

// WriteV passes through.
func (t Through) WriteV(ctx context.Context, off int64, v *blockgraph.IOVec, flags blockgraph.Flags) error {
	return t.Below().WriteV(ctx, off, v, flags)
}

// WriteZeroes passes through.
func (t Through) WriteZeroes(ctx context.Context, off, n int64, flags blockgraph.Flags) error {
	return t.Below().WriteZeroes(ctx, off, n, flags)
}

// Discard passes through.
func (t Through) Discard(ctx context.Context, off, n int64) error {
	return t.Below().Discard(ctx, off, n)
}

// Flush passes through.
func (t Through) Flush(ctx context.Context) error { return t.Below().Flush(ctx) }

// BlockStatus refers to the child.
func (t Through) BlockStatus(_ context.Context, off, n int64, _ blockgraph.StatusMode) (blockgraph.Status, error) {
	return blockgraph.Status{
		Flags: blockgraph.StatusRecurse | blockgraph.StatusOffsetValid,
		N:     n, Offset: off, File: t.Below().Child(),
	}, nil
}

// Size is the child's.
func (t Through) Size(ctx context.Context) (int64, error) {
	return t.Below().Child().Driver().Size(ctx)
}

// Close has nothing to give up.
func (Through) Close(context.Context) error { return nil }

// Limits are the child's, but for its alignments, which are taken care of
// there.
func (t Through) Limits() blockgraph.Limits {
	l := t.Below().Child().Limits()
	return blockgraph.Limits{MaxTransfer: l.MaxTransfer, OptTransfer: l.OptTransfer, MemAlignment: l.MemAlignment}
}

// Caps are the child's, but for compressed writes. What can be passed on
// without harm is: what the child lacks is emulated there.
func (t Through) Caps() blockgraph.Caps {
	c := t.Below().Child().Caps()
	c.Backing = false
	c.Compressed = blockgraph.CapNone
	c.WriteZeroes = blockgraph.CapNative
	c.MayUnmap = blockgraph.CapNative
	c.NoFallback = blockgraph.CapNative
	c.Discard = blockgraph.CapNative
	c.WriteUnchanged = blockgraph.CapNative
	return c
}

var (
	_ blockgraph.Driver       = Through{}
	_ blockgraph.LimitsReader = Through{}
)
