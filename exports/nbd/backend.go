package nbd

import (
	"context"

	"blockd/blockgraph"
)

// Backend is what an export reads and writes: a root of the block graph. All
// methods are data plane, called from many goroutines at once.
type Backend interface {
	ReadV(ctx context.Context, off int64, v *blockgraph.IOVec, flags blockgraph.Flags) error
	WriteV(ctx context.Context, off int64, v *blockgraph.IOVec, flags blockgraph.Flags) error
	WriteZeroes(ctx context.Context, off, n int64, flags blockgraph.Flags) error
	Discard(ctx context.Context, off, n int64) error
	Flush(ctx context.Context) error
	// BlockStatus describes the range at off through the whole chain; depth is
	// the layer that decides, 1 for the top one, 0 for none.
	BlockStatus(ctx context.Context, off, n int64, mode blockgraph.StatusMode) (st blockgraph.Status, depth int, err error)
	// Inactive: only reads are allowed; see blockgraph.ErrInactive.
	Inactive() bool
}

var _ Backend = (*blockgraph.Root)(nil)
