package commit

import (
	"context"

	"blockd/blockgraph"
	"blockd/qapi"
)

// filter is the driver of the node that stands over the top while its data
// moves down (the field: commit_top). It passes reads through, and lets the
// overlays above read while it asks nothing of the chain below, so that the
// job alone decides who may use that.
type filter struct{ node *blockgraph.Node }

// insertAbove opens a filter over a node and gives it the node's users.
func insertAbove(tx *blockgraph.Tx, top *blockgraph.Node, name *string) (*blockgraph.Node, error) {
	below := top.Name()
	typ := &blockgraph.DriverType{
		Name:         "commit_top",
		Filter:       true,
		NamedByChild: true,
		NeverFreeze:  true,
		Children: func(*qapi.BlockdevOptions) []blockgraph.ChildSpec {
			return []blockgraph.ChildSpec{{
				Name: "backing",
				Role: blockgraph.RoleFiltered | blockgraph.RolePrimary,
				Ref:  qapi.BlockdevRef{Reference: &below},
			}}
		},
		Open: func(_ context.Context, r *blockgraph.OpenRequest) (blockgraph.Driver, error) {
			return &filter{r.Node}, nil
		},
	}
	readOnly := true
	n, err := tx.OpenType(typ, &qapi.BlockdevOptions{Driver: qapi.BlockdevDriver(typ.Name), NodeName: name, ReadOnly: &readOnly})
	if err != nil {
		return nil, err
	}
	if name == nil {
		tx.SetImplicit(n)
	}
	return n, tx.ReplaceNode(top, n)
}

func (f *filter) child() *blockgraph.Edge { return f.node.Filtered() }

// ReadV implements blockgraph.Driver.
func (f *filter) ReadV(ctx context.Context, off int64, v *blockgraph.IOVec, flags blockgraph.Flags) error {
	return f.child().ReadV(ctx, off, v, flags)
}

// WriteV implements blockgraph.Driver; the node is read-only.
func (f *filter) WriteV(context.Context, int64, *blockgraph.IOVec, blockgraph.Flags) error {
	return blockgraph.ErrNotSupported
}

// WriteZeroes implements blockgraph.Driver.
func (f *filter) WriteZeroes(context.Context, int64, int64, blockgraph.Flags) error {
	return blockgraph.ErrNotSupported
}

// Discard implements blockgraph.Driver.
func (f *filter) Discard(context.Context, int64, int64) error { return blockgraph.ErrNotSupported }

// Flush implements blockgraph.Driver.
func (f *filter) Flush(ctx context.Context) error { return f.child().Flush(ctx) }

// BlockStatus implements blockgraph.Driver.
func (f *filter) BlockStatus(_ context.Context, off, n int64, _ blockgraph.StatusMode) (blockgraph.Status, error) {
	return blockgraph.Status{Flags: blockgraph.StatusRecurse | blockgraph.StatusOffsetValid, N: n, Offset: off, File: f.child().Child()}, nil
}

// Size implements blockgraph.Driver.
func (f *filter) Size(context.Context) (int64, error) { return f.child().Child().Size(), nil }

// Close implements blockgraph.Driver.
func (f *filter) Close(context.Context) error { return nil }

// ChildPerms implements blockgraph.ChildPermissioner.
func (f *filter) ChildPerms(*blockgraph.Edge, bool, blockgraph.Perm, blockgraph.Perm) (blockgraph.Perm, blockgraph.Perm) {
	return 0, blockgraph.PermAll
}
