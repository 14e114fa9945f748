package graphtest

import (
	"context"

	"blockd/blockgraph"
	"blockd/qapi"
)

// Pass is a filter that passes everything through to its child `file`.
type Pass struct{ node *blockgraph.Node }

// PassType returns the type `pass`.
func PassType() *blockgraph.DriverType {
	return &blockgraph.DriverType{
		Name: "pass", Filter: true,
		Children: func(o *qapi.BlockdevOptions) []blockgraph.ChildSpec {
			return []blockgraph.ChildSpec{{Name: "file", Role: blockgraph.RoleFiltered | blockgraph.RolePrimary, Ref: o.Raw.File}}
		},
		Open: func(_ context.Context, r *blockgraph.OpenRequest) (blockgraph.Driver, error) {
			return &Pass{r.Node}, nil
		},
	}
}

// ReadV implements blockgraph.Driver, as do the others.
func (d *Pass) ReadV(ctx context.Context, off int64, v *blockgraph.IOVec, f blockgraph.Flags) error {
	return d.node.File().ReadV(ctx, off, v, f)
}
func (d *Pass) WriteV(ctx context.Context, off int64, v *blockgraph.IOVec, f blockgraph.Flags) error {
	return d.node.File().WriteV(ctx, off, v, f)
}
func (d *Pass) WriteZeroes(ctx context.Context, off, n int64, f blockgraph.Flags) error {
	return d.node.File().WriteZeroes(ctx, off, n, f)
}
func (d *Pass) Discard(ctx context.Context, off, n int64) error {
	return d.node.File().Discard(ctx, off, n)
}
func (d *Pass) Flush(ctx context.Context) error { return d.node.File().Flush(ctx) }
func (d *Pass) BlockStatus(_ context.Context, off, n int64, _ blockgraph.StatusMode) (blockgraph.Status, error) {
	return blockgraph.Status{Flags: blockgraph.StatusRecurse | blockgraph.StatusOffsetValid, N: n, Offset: off, File: d.node.File().Child()}, nil
}
func (d *Pass) Size(context.Context) (int64, error) { return d.node.File().Child().Size(), nil }
func (d *Pass) Close(context.Context) error         { return nil }
