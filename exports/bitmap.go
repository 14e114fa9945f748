package exports

import (
	"context"

	"blockd/bitmaps"
	"blockd/blockgraph"
	"blockd/exports/nbd"
	"blockd/qapi"
)

// Dirty bitmaps as metadata contexts. A bitmap is busy as long as an export
// offers it.

// dirtyContext is the context qemu:dirty-bitmap:NAME.
type dirtyContext struct {
	name string
	bits *bitmaps.Bitmap
}

// extentDirty is the one flag of the context (the NBD protocol's
// NBD_STATE_DIRTY).
const extentDirty = 1

func (c dirtyContext) Name() string { return c.name }

func (c dirtyContext) Extent(_ context.Context, off, n int64) (uint32, int64, error) {
	start, k, ok := c.bits.NextDirty(off, off+n)
	switch {
	case !ok:
		return 0, n, nil
	case start > off:
		return 0, start - off, nil
	}
	return extentDirty, k, nil
}

// exported is a bitmap that an export offers.
type exported struct {
	node *blockgraph.Node
	name string
}

// offerBitmaps returns the contexts of the bitmaps that an export of n names,
// which are busy from the commit on until releaseBitmaps.
func offerBitmaps(tx *blockgraph.Tx, n *blockgraph.Node, refs []qapi.BlockDirtyBitmapOrStr, writable bool) (contexts []nbd.StatusContext, held []exported, err error) {
	for i := range refs {
		at, b, err := findBitmap(tx, n, &refs[i], writable)
		if err != nil {
			return nil, nil, err
		}
		if err := b.Check(blockgraph.BitmapRead); err != nil {
			return nil, nil, err
		}
		contexts = append(contexts, dirtyContext{"qemu:dirty-bitmap:" + b.Name, b.Bits})
		held = append(held, exported{at, b.Name})
	}
	// One may be named twice.
	for _, x := range held {
		if err := tx.HoldBitmap(x.node, tx.Bitmap(x.node, x.name)); err != nil {
			return nil, nil, err
		}
	}
	return contexts, held, nil
}

// findBitmap finds a bitmap in the chain below n, or of the node that is named.
func findBitmap(tx *blockgraph.Tx, n *blockgraph.Node, ref *qapi.BlockDirtyBitmapOrStr, writable bool) (*blockgraph.Node, *blockgraph.DirtyBitmap, error) {
	if ref.External != nil {
		return tx.LookUpBitmap(ref.External.Node, ref.External.Name)
	}
	for {
		if b := tx.Bitmap(n, *ref.Local); b != nil {
			s := tx.State(n)
			if !writable && !s.ReadOnly && !s.Inactive && !b.Disabled {
				return nil, nil, qapi.Errorf("Enabled bitmap '%s' incompatible with readonly export", *ref.Local)
			}
			return n, b, nil
		}
		e := n.FilterOrCOWIn(tx.State(n))
		if e == nil {
			return nil, nil, qapi.Errorf("Bitmap '%s' is not found", *ref.Local)
		}
		n = e.Child()
	}
}

func releaseBitmaps(tx *blockgraph.Tx, held []exported) error {
	for _, x := range held {
		if err := tx.ReleaseBitmap(x.node, x.name); err != nil {
			return err
		}
	}
	return nil
}
