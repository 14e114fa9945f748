package blockgraph

import (
	"context"
	"log/slog"
	"slices"
	"syscall"

	"blockd/bitmaps"
	"blockd/qapi"
)

// Dirty bitmaps of nodes. A node's list is part of its state: a change makes
// other DirtyBitmap values and stages them, so that whatever fails before the
// commit has changed nothing, and what is committed together takes effect at
// one point in time, with the gates of all users closed. Only the bits
// themselves are written by the data plane.
//
// What a driver can store (BitmapStorer) is stored at the commit, before
// anybody sees the change, so that a reply tells what survives a crash.

// MaxBitmapName is the longest name of a bitmap in bytes.
const MaxBitmapName = 1023

// DirtyBitmap is a dirty bitmap of a node as of one of its states. It is
// immutable but for its bits.
type DirtyBitmap struct {
	Name string
	Bits *bitmaps.Bitmap
	// Successor records in the place of Bits while a job uses them (see
	// Tx.FreezeBitmap); else nil.
	Successor *bitmaps.Bitmap
	// Disabled: changes are not recorded.
	Disabled bool
	// Busy: in use by a job or an export.
	Busy bool
	// Persistent: stored in the image.
	Persistent bool
	// ReadOnly: stored in an image that is read-only.
	ReadOnly bool
	// Inconsistent: the image says that its bits are not all there; it can only
	// be removed.
	Inconsistent bool
}

// Recorder returns what changes are recorded in, or nil.
func (b *DirtyBitmap) Recorder() *bitmaps.Bitmap {
	switch {
	case b.Disabled || b.Inconsistent:
		return nil
	case b.Successor != nil:
		return b.Successor
	}
	return b.Bits
}

// BitmapUse is what a bitmap must allow for a use of it.
type BitmapUse uint8

const (
	// BitmapRead: neither busy nor inconsistent.
	BitmapRead BitmapUse = iota
	// BitmapWrite: not read-only either.
	BitmapWrite
	// BitmapRemove: may be inconsistent.
	BitmapRemove
)

// Check returns the field's error when the bitmap may not be used so.
func (b *DirtyBitmap) Check(use BitmapUse) error {
	switch {
	case b.Busy:
		return qapi.Errorf("Bitmap '%s' is currently in use by another operation and cannot be used", b.Name)
	case b.ReadOnly && use != BitmapRead:
		return qapi.Errorf("Bitmap '%s' is readonly and cannot be modified", b.Name)
	case b.Inconsistent && use != BitmapRemove:
		return qapi.Errorf("Bitmap '%s' is inconsistent and cannot be used", b.Name)
	}
	return nil
}

// BitmapStorer is a driver that stores persistent bitmaps in its image.
type BitmapStorer interface {
	// LoadBitmaps returns what the image has, the newest first. Called once, by
	// the opening of the node, whose length is known by then. An error fails it.
	LoadBitmaps(ctx context.Context) ([]*DirtyBitmap, error)
	// CanStoreBitmap tells, by the field's error, why another bitmap could not
	// be stored beside those of the list.
	CanStoreBitmap(list []*DirtyBitmap, name string, granularity int64) error
	// StoreBitmaps makes the persistent ones of the list those of the image,
	// durably and all or nothing. No request is in flight that changes the
	// image's content. On a worker, with the graph token held. It is called with
	// every list that the node gets; what a change of the length and closing the
	// image need is the driver's to store.
	StoreBitmaps(ctx context.Context, list []*DirtyBitmap) error
	// BeforeChange is called before bytes [off, off+n) change while one of the
	// persistent bitmaps records, so that the image has them as dirty before
	// they are. Data plane.
	BeforeChange(ctx context.Context, off, n int64) error
}

// BitmapDoubter is a BitmapStorer of an image that others can change without it
// while the node is read-only.
type BitmapDoubter interface {
	// DoubtBitmaps tells whether they may have. It is called before the node becomes
	// writable again; the bitmaps are inconsistent then.
	DoubtBitmaps(ctx context.Context) (bool, error)
}

// marking is who is told of a node's changes.
type marking struct {
	list []Marker
	// before, if not nil, is told before they happen.
	before BitmapStorer
}

// mark has a node record its changes as a state says. Control plane.
//
//blockd:global
func (n *Node) mark(s *NodeState) {
	m := marking{list: slices.Clone(s.markers)}
	persistent := false
	for _, b := range s.Bitmaps {
		if r := b.Recorder(); r != nil {
			m.list = append(m.list, r)
			persistent = persistent || b.Persistent
		}
	}
	if persistent && !s.ReadOnly && !s.Inactive {
		m.before, _ = n.drv.(BitmapStorer)
	}
	if m.list == nil {
		n.marks.Store(nil)
		return
	}
	n.marks.Store(&m)
}

// beforeChange has the persistent bitmaps of a range made ready.
func (n *Node) beforeChange(ctx context.Context, off, length int64, flags Flags) error {
	m := n.marks.Load()
	if m == nil || m.before == nil || flags&WriteUnchanged != 0 {
		return nil
	}
	return m.before.BeforeChange(ctx, off, length)
}

// changed marks a range, after its bytes have changed.
func (n *Node) changed(off, length int64) {
	if m := n.marks.Load(); m != nil {
		for _, r := range m.list {
			r.MarkDirty(off, length)
		}
	}
}

// setSize changes the length in bytes that users see, and that of the bitmaps
// with it. On a worker, on the loop, and for the data plane's truncations.
//
//blockd:any
func (n *Node) setSize(size int64) {
	n.size.Store(size)
	resizeBits(n.State().Bitmaps, size)
}

//blockd:any
func resizeBits(list []*DirtyBitmap, size int64) { eachBits(list, size, (*bitmaps.Bitmap).Resize) }

// growBits is resizeBits for a file that has grown by being written, maybe
// further by now.
func growBits(list []*DirtyBitmap, size int64) { eachBits(list, size, (*bitmaps.Bitmap).Grow) }

//blockd:any
func eachBits(list []*DirtyBitmap, size int64, resize func(*bitmaps.Bitmap, int64) error) {
	for _, b := range list {
		for _, bits := range []*bitmaps.Bitmap{b.Bits, b.Successor} {
			if bits == nil || bits.Size() == size {
				continue
			}
			_ = resize(bits, size) // checkResize or checkGrowth has seen to it
		}
	}
}

// checkResize tells whether the bitmaps allow another length.
func (n *Node) checkResize(size int64) error {
	_, stores := n.drv.(BitmapStorer)
	for _, b := range n.State().Bitmaps {
		if stores && b.Persistent {
			if err := b.Check(BitmapWrite); err != nil {
				return err
			}
		}
		if err := bitmaps.Check(size, b.Bits.Granularity()); err != nil {
			return err
		}
	}
	return nil
}

// checkGrowth tells whether a file may grow to size by being written.
func (n *Node) checkGrowth(size int64) error {
	for _, b := range n.State().Bitmaps {
		if bitmaps.Check(alignUp(size, sectorSize), b.Bits.Granularity()) != nil {
			return syscall.EFBIG
		}
	}
	return nil
}

// loadBitmaps gives a node that is being opened the bitmaps of its image.
func (tx *Tx) loadBitmaps(n *Node) error {
	s, ok := n.drv.(BitmapStorer)
	if !ok || tx.State(n).Inactive {
		return nil
	}
	list, err := s.LoadBitmaps(tx.ctx)
	if err != nil || len(list) == 0 {
		return err
	}
	state := tx.Stage(n)
	state.Bitmaps = slices.Concat(list, state.Bitmaps)
	if !n.published {
		// What the image goes back to if the change is undone.
		was := n.state.Load().clone()
		was.Bitmaps = list
		n.state.Store(was)
	}
	return nil
}

// forgetBitmaps takes from a node that becomes inactive the bitmaps of its
// image, which another program may change.
func (tx *Tx) forgetBitmaps(n *Node) error {
	s := tx.Stage(n)
	var others []*DirtyBitmap
	for _, b := range s.Bitmaps {
		if !b.Persistent {
			others = append(others, b)
		} else if b.Busy {
			return b.Check(BitmapRead)
		}
	}
	s.Bitmaps = others
	return nil
}

// storeBitmaps brings the staged lists to the images. On an error they are as
// they were.
func (tx *Tx) storeBitmaps() error {
	type stored struct {
		n *Node
		s BitmapStorer
	}
	var done []stored
	for n, s := range tx.states {
		old := n.state.Load()
		_, wasReadOnly := tx.anticipated[n]
		wasReadOnly = wasReadOnly || old.ReadOnly
		setReadOnly(s, wasReadOnly)
		rests, rested := s.ReadOnly || s.Inactive, wasReadOnly || old.Inactive
		if slices.Equal(s.Bitmaps, old.Bitmaps) && rests == rested {
			continue
		}
		resizeBits(s.Bitmaps, n.Size())
		d, ok := n.drv.(BitmapStorer)
		if !ok || rests {
			continue
		}
		if rested {
			if err := tx.doubtBitmaps(n, s); err != nil {
				return err
			}
			// Only after the commit the driver is sure to be able to write. An
			// image that was read-only or inactive has had no changes; BeforeChange tries
			// again before the first one.
			list := s.Bitmaps
			tx.After(func() {
				if err := d.StoreBitmaps(tx.ctx, list); err != nil {
					slog.ErrorContext(tx.ctx, "the dirty bitmaps of a node cannot be stored", "node", n.name, "error", err)
				}
			})
			continue
		}
		done = append(done, stored{n, d})
		if err := d.StoreBitmaps(tx.ctx, s.Bitmaps); err != nil {
			for _, d := range done {
				if e := d.s.StoreBitmaps(context.WithoutCancel(tx.ctx), d.n.State().Bitmaps); e != nil {
					slog.ErrorContext(tx.ctx, "the dirty bitmaps of a node may be other ones after a crash", "node", d.n.name, "error", e)
				}
			}
			if e, bare := err.(syscall.Errno); bare {
				err = Errorf(e, "%s", Strerror(e))
			}
			return err
		}
	}
	return nil
}

// doubtBitmaps makes the bitmaps of an image inconsistent that others have changed
// while it was read-only.
func (tx *Tx) doubtBitmaps(n *Node, s *NodeState) error {
	d, ok := n.drv.(BitmapDoubter)
	if !ok {
		return nil
	}
	doubt, err := d.DoubtBitmaps(tx.ctx)
	if err != nil || !doubt {
		return err
	}
	s.Bitmaps = slices.Clone(s.Bitmaps)
	for i, b := range s.Bitmaps {
		if b.Persistent && !b.Inconsistent {
			c := *b
			c.Inconsistent = true
			s.Bitmaps[i] = &c
		}
	}
	return nil
}

// setReadOnly has the bitmaps of an image follow it.
func setReadOnly(s *NodeState, was bool) {
	if s.ReadOnly == was {
		return
	}
	s.Bitmaps = slices.Clone(s.Bitmaps)
	for i, b := range s.Bitmaps {
		if ro := b.Persistent && s.ReadOnly; ro != b.ReadOnly {
			c := *b
			c.ReadOnly = ro
			s.Bitmaps[i] = &c
		}
	}
}
