package blockgraph

import (
	"slices"
	"syscall"

	"blockd/bitmaps"
	"blockd/qapi"
)

// Changes of dirty bitmaps, staged within a graph change. Each drains the
// node's users first, unless the caller has, so that what it copies of the
// bits is all there is. The error texts are the field's.

// Bitmap returns the node's bitmap of that name as of this change, or nil.
func (tx *Tx) Bitmap(n *Node, name string) *DirtyBitmap { return tx.State(n).Bitmap(name) }

// Bitmap returns the bitmap of that name, or nil.
func (s *NodeState) Bitmap(name string) *DirtyBitmap {
	for _, b := range s.Bitmaps {
		if b.Name == name {
			return b
		}
	}
	return nil
}

// LookUpBitmap finds a bitmap by node and name.
func (tx *Tx) LookUpBitmap(node, name string) (*Node, *DirtyBitmap, error) {
	n, err := tx.LookUp(&node, &node)
	if err != nil {
		return nil, nil, qapi.Errorf("Node '%s' not found", node)
	}
	b := tx.Bitmap(n, name)
	if b == nil {
		return nil, nil, qapi.Errorf("Dirty bitmap '%s' not found", name)
	}
	return n, b, nil
}

// bitmapFor returns the bitmap that a driver's options name, or nil.
func (tx *Tx) bitmapFor(typ *DriverType, o *qapi.BlockdevOptions) (*DirtyBitmap, error) {
	if typ.Bitmap == nil {
		return nil, nil
	}
	ref := typ.Bitmap(o)
	if ref == nil {
		return nil, nil
	}
	_, b, err := tx.LookUpBitmap(ref.Node, ref.Name)
	if err != nil {
		return nil, err
	}
	return b, b.Check(BitmapRead)
}

// setBitmap puts next in the place of b; nil: nothing.
func (tx *Tx) setBitmap(n *Node, b, next *DirtyBitmap) error {
	if err := tx.Drain(n); err != nil {
		return err
	}
	s := tx.Stage(n)
	list := slices.Clone(s.Bitmaps)
	i := slices.Index(list, b)
	if next == nil {
		list = slices.Delete(list, i, i+1)
	} else {
		list[i] = next
	}
	s.Bitmaps = list
	return nil
}

// AddBitmap gives the node a new, clean bitmap.
func (tx *Tx) AddBitmap(n *Node, name string, granularity int64, persistent, disabled bool) error {
	if persistent && tx.State(n).Inactive {
		return qapi.Errorf("Can't store persistent bitmaps to %s: %s", n.name, Strerror(syscall.EPERM))
	}
	if persistent {
		s, ok := n.drv.(BitmapStorer)
		if !ok {
			return qapi.Errorf("Can't store persistent bitmaps to %s: %s", n.name, Strerror(syscall.ENOTSUP))
		}
		if tx.Bitmap(n, name) == nil {
			if err := s.CanStoreBitmap(tx.State(n).Bitmaps, name, granularity); err != nil {
				return err
			}
		}
	}
	switch {
	case tx.Bitmap(n, name) != nil:
		return qapi.Errorf("Bitmap already exists: %s", name)
	case len(name) > MaxBitmapName:
		return qapi.Errorf("Bitmap name too long: %s", name)
	case tx.State(n).remaking:
		return qapi.Errorf("Node '%s' is busy: its image is being amended", n.name)
	}
	if err := bitmaps.Check(n.Size(), granularity); err != nil {
		return err
	}
	if err := tx.Drain(n); err != nil {
		return err
	}
	s := tx.Stage(n)
	b := &DirtyBitmap{Name: name, Bits: bitmaps.New(n.Size(), granularity), Persistent: persistent, Disabled: disabled}
	s.Bitmaps = append([]*DirtyBitmap{b}, s.Bitmaps...)
	return nil
}

// RemoveBitmap takes a bitmap away that is not in use.
func (tx *Tx) RemoveBitmap(n *Node, b *DirtyBitmap) error {
	if err := b.Check(BitmapRemove); err != nil {
		return err
	}
	return tx.setBitmap(n, b, nil)
}

// HoldBitmap marks a bitmap as in use, until ReleaseBitmap in this change or
// a later one.
func (tx *Tx) HoldBitmap(n *Node, b *DirtyBitmap) error {
	c := *b
	c.Busy = true
	return tx.setBitmap(n, b, &c)
}

// ReleaseBitmap ends a HoldBitmap. The node or the bitmap may be gone.
func (tx *Tx) ReleaseBitmap(n *Node, name string) error {
	b := tx.held(n, name)
	if b == nil {
		return nil
	}
	c := *b
	c.Busy = false
	return tx.setBitmap(n, b, &c)
}

// held returns the bitmap that somebody holds, or nil when it went with its
// node.
func (tx *Tx) held(n *Node, name string) *DirtyBitmap {
	if tx.Find(n.name) != n {
		return nil
	}
	b := tx.Bitmap(n, name)
	if b == nil || !b.Busy {
		return nil
	}
	return b
}

// ClearBitmap makes everything clean.
func (tx *Tx) ClearBitmap(n *Node, b *DirtyBitmap) error {
	if err := b.Check(BitmapWrite); err != nil {
		return err
	}
	c := *b
	c.Bits = bitmaps.New(n.Size(), b.Bits.Granularity())
	return tx.setBitmap(n, b, &c)
}

// EnableBitmap has changes recorded or not.
func (tx *Tx) EnableBitmap(n *Node, b *DirtyBitmap, enable bool) error {
	if err := b.Check(BitmapRead); err != nil {
		return err
	}
	if b.Disabled == !enable {
		return nil
	}
	c := *b
	c.Disabled = !enable
	return tx.setBitmap(n, b, &c)
}

// MergeBitmap makes everything dirty that is dirty in src, which may be another
// node's.
func (tx *Tx) MergeBitmap(n *Node, b *DirtyBitmap, srcNode *Node, src *DirtyBitmap) error {
	if err := b.Check(BitmapWrite); err != nil {
		return err
	}
	if err := src.Check(BitmapRead); err != nil {
		return err
	}
	if to, from := b.Bits.Size(), src.Bits.Size(); to != from {
		return qapi.Errorf("Bitmaps are of different sizes (destination size is %d, source size is %d) and can't be merged", to, from)
	}
	if err := tx.Drain(n, srcNode); err != nil {
		return err
	}
	c := *b
	c.Bits = b.Bits.Clone()
	c.Bits.Merge(src.Bits)
	return tx.setBitmap(n, b, &c)
}

// FreezeBitmap holds a bitmap for a job: its bits stay as they are, while a
// successor records. ThawBitmap ends it.
func (tx *Tx) FreezeBitmap(n *Node, b *DirtyBitmap, use BitmapUse) error {
	if err := b.Check(use); err != nil {
		return err
	}
	c := *b
	c.Busy = true
	c.Successor = bitmaps.New(n.Size(), b.Bits.Granularity())
	return tx.setBitmap(n, b, &c)
}

// ThawBitmap ends FreezeBitmap. The bitmap has what the successor recorded;
// with keep also what it had before, and what extra has, if that is not nil.
// The node or the bitmap may be gone.
func (tx *Tx) ThawBitmap(n *Node, name string, keep bool, extra *bitmaps.Bitmap) error {
	b := tx.held(n, name)
	if b == nil || b.Successor == nil {
		return nil
	}
	if err := tx.Drain(n); err != nil {
		return err
	}
	c := *b
	c.Busy, c.Successor = false, nil
	c.Bits = b.Successor
	if keep {
		c.Bits = b.Bits.Clone()
		c.Bits.Merge(b.Successor)
	} else if extra != nil {
		c.Bits = b.Successor.Clone()
	}
	if extra != nil {
		c.Bits.Merge(extra)
	}
	return tx.setBitmap(n, b, &c)
}
