// Package snapshotaccess is the node that shows the point in time which the
// node below keeps, a copy-before-write filter: it is what a pull backup reads
// (the field: snapshot-access). It can be read, and discarded where the reader
// is done; it cannot be written.
//
// It is no filter: its content differs from its child's. It needs no permission
// on it, and others may do there as they like.
//
// It has no state. What blocks: what blocks below. It must not import jobs, qmp
// or formats.
//
//blockd:io
package snapshotaccess

import (
	"context"

	"blockd/blockgraph"
	"blockd/qapi"
)

type driver struct {
	node *blockgraph.Node
	size int64 // bytes, as of the opening
}

// Type returns the driver type for the graph's registry.
func Type() *blockgraph.DriverType {
	return &blockgraph.DriverType{
		Name:     string(qapi.BlockdevDriverSnapshotAccess),
		Required: blockgraph.RequiredChildren("file"),
		Children: func(o *qapi.BlockdevOptions) []blockgraph.ChildSpec {
			return []blockgraph.ChildSpec{{Name: "file", Role: blockgraph.RoleData | blockgraph.RolePrimary, Ref: o.SnapshotAccess.File}}
		},
		Open: func(_ context.Context, r *blockgraph.OpenRequest) (blockgraph.Driver, error) {
			return &driver{node: r.Node, size: r.Node.File().Child().Size()}, nil
		},
		NamedByChild: true,
	}
}

// below returns the child's snapshot, or ErrNotSupported.
func (d *driver) below() (blockgraph.Snapshotter, error) {
	if s, ok := d.node.File().Child().Driver().(blockgraph.Snapshotter); ok {
		return s, nil
	}
	return nil, blockgraph.ErrNotSupported
}

// ReadV reads the point in time.
func (d *driver) ReadV(ctx context.Context, off int64, v *blockgraph.IOVec, _ blockgraph.Flags) error {
	s, err := d.below()
	if err != nil {
		return err
	}
	return s.ReadSnapshot(ctx, off, v)
}

// WriteV is refused.
func (d *driver) WriteV(context.Context, int64, *blockgraph.IOVec, blockgraph.Flags) error {
	return blockgraph.ErrNotSupported
}

// WriteZeroes is refused.
func (d *driver) WriteZeroes(context.Context, int64, int64, blockgraph.Flags) error {
	return blockgraph.ErrNotSupported
}

// Discard gives up a part of the point in time.
func (d *driver) Discard(ctx context.Context, off, n int64) error {
	s, err := d.below()
	if err != nil {
		return err
	}
	return s.DiscardSnapshot(ctx, off, n)
}

// Flush has nothing to do.
func (d *driver) Flush(context.Context) error { return nil }

// BlockStatus is that of the point in time.
func (d *driver) BlockStatus(ctx context.Context, off, n int64, mode blockgraph.StatusMode) (blockgraph.Status, error) {
	s, err := d.below()
	if err != nil {
		return blockgraph.Status{}, err
	}
	return s.SnapshotStatus(ctx, off, n, mode)
}

// Size is the child's as of the opening.
func (d *driver) Size(context.Context) (int64, error) { return d.size, nil }

// Close has nothing to give up.
func (d *driver) Close(context.Context) error { return nil }

// Limits has none.
func (d *driver) Limits() blockgraph.Limits { return blockgraph.Limits{} }

// Caps: nothing is emulated by writing, since that is refused.
func (d *driver) Caps() blockgraph.Caps {
	return blockgraph.Caps{WriteZeroes: blockgraph.CapNative, Discard: blockgraph.CapNative}
}

// ChildPerms implements blockgraph.ChildPermissioner.
func (d *driver) ChildPerms(*blockgraph.Edge, bool, blockgraph.Perm, blockgraph.Perm) (blockgraph.Perm, blockgraph.Perm) {
	return 0, blockgraph.PermAll
}
