package raw

import (
	"context"
	"log/slog"
	"syscall"

	"blockd/blockgraph"
	"blockd/qapi"
)

// storing is the driver of a node with persistent dirty bitmaps.
type storing struct {
	*driver
	side *sidecar
}

var (
	_ blockgraph.BitmapStorer      = (*storing)(nil)
	_ blockgraph.BitmapDoubter     = (*storing)(nil)
	_ blockgraph.Reopener          = (*storing)(nil)
	_ blockgraph.Truncater         = (*storing)(nil)
	_ blockgraph.ChildPermissioner = (*storing)(nil)
	_ blockgraph.LimitsReader      = (*storing)(nil)
)

// LoadBitmaps returns what the file beside the image has.
func (d *storing) LoadBitmaps(ctx context.Context) ([]*blockgraph.DirtyBitmap, error) {
	s := d.side
	if err := s.ahead.Lock(ctx); err != nil {
		return nil, err
	}
	defer s.ahead.Unlock()
	return s.load(ctx)
}

// CanStoreBitmap tells why another bitmap could not be stored.
func (d *storing) CanStoreBitmap(list []*blockgraph.DirtyBitmap, name string, granularity int64) error {
	return d.side.canStore(list, name, granularity)
}

// StoreBitmaps makes the persistent ones of the list those of the file.
func (d *storing) StoreBitmaps(ctx context.Context, list []*blockgraph.DirtyBitmap) error {
	s := d.side
	if err := s.ahead.Lock(ctx); err != nil {
		return err
	}
	defer s.ahead.Unlock()
	s.want, s.stored = list, false
	return s.store(ctx, false)
}

// DoubtBitmaps tells whether the image is another than when the bitmaps were read
// or written for good.
func (d *storing) DoubtBitmaps(ctx context.Context) (bool, error) {
	s := d.side
	if err := s.ahead.Lock(ctx); err != nil {
		return false, err
	}
	defer s.ahead.Unlock()
	return s.doubt(ctx)
}

// BeforeChange sees to it that a range is dirty in the file.
func (d *storing) BeforeChange(ctx context.Context, off, n int64) error {
	return d.side.ahead.Before(ctx, d.side, off, n)
}

// Truncate resizes the image, and the bitmaps in the file. A crash between the
// two leaves a file that knows both lengths.
func (d *storing) Truncate(ctx context.Context, size int64, exact bool, prealloc qapi.PreallocMode, zeroed bool) error {
	s := d.side
	if err := s.ahead.Lock(ctx); err != nil {
		return err
	}
	defer s.ahead.Unlock()
	if err := s.Ready(ctx); err != nil {
		return err
	}
	if err := s.announce(ctx, size); err != nil {
		return err
	}
	if err := d.driver.Truncate(ctx, size, exact, prealloc, zeroed); err != nil {
		return err
	}
	s.stored = false
	now, err := d.Size(ctx)
	if err == nil {
		err = s.storeFor(ctx, now, false)
	}
	if err != nil {
		// The image has its new length. Before it changes next, this is tried again.
		slog.Error("the dirty bitmaps beside a raw image could not follow its size", "node", d.node.Name(), "error", err)
	}
	return nil
}

// Caps: the image does not grow by being written, which would pass by the
// bitmaps.
func (d *storing) Caps() blockgraph.Caps {
	c := d.driver.Caps()
	c.Grow = false
	return c
}

// ChildPerms lets nobody else write to the file below a writable node: such
// writes would pass by the bitmaps.
func (d *storing) ChildPerms(e *blockgraph.Edge, writable bool, perm, shared blockgraph.Perm) (blockgraph.Perm, blockgraph.Perm) {
	np, ns := d.driver.ChildPerms(e, writable, perm, shared)
	if writable {
		ns &^= blockgraph.PermWrite | blockgraph.PermResize
	}
	return np, ns
}

// PrepareReopen switches between read-only and read-write. Another part of the
// file would be another image.
func (d *storing) PrepareReopen(ctx context.Context, r *blockgraph.ReopenRequest) (*blockgraph.Reopening, error) {
	s := d.side
	p, err := newPart(ctx, r.State.File(), r.Options.Raw)
	if err != nil {
		return nil, err
	}
	if was := d.now.Load(); *p != *was {
		return nil, blockgraph.Errorf(syscall.EINVAL, "Cannot change the part of the file that node '%s' is: its dirty bitmaps belong to this one", d.node.Name())
	}
	if child := r.State.File().Child(); child != d.node.File().Child() && s.present() && !s.leadsTo(child) {
		return nil, blockgraph.Errorf(syscall.EINVAL, "Cannot change the file of node '%s': its dirty bitmaps belong to this one", d.node.Name())
	}
	switch {
	case r.ReadOnly && !s.readOnly:
		if err := d.rest(ctx); err != nil {
			return nil, err
		}
		return &blockgraph.Reopening{
			Apply: func() { s.readOnly = true },
			Undo: func(ctx context.Context) {
				s.readOnly = false
				if err := d.StoreBitmaps(ctx, s.want); err != nil {
					slog.Error("the dirty bitmaps beside a raw image cannot be marked as in use", "node", d.node.Name(), "error", err)
				}
			},
		}, nil
	case !r.ReadOnly && s.readOnly:
		// Whoever made the node writable has the list stored.
		return &blockgraph.Reopening{
			Apply: func() { s.readOnly, s.stored = false, false },
			Undo:  func(context.Context) { s.readOnly = true },
		}, nil
	}
	return &blockgraph.Reopening{}, nil
}

// rest writes the bitmaps for good.
func (d *storing) rest(ctx context.Context) error {
	s := d.side
	if err := s.ahead.Lock(ctx); err != nil {
		return err
	}
	defer s.ahead.Unlock()
	return s.rest(ctx)
}

// Close writes the bitmaps for good.
func (d *storing) Close(ctx context.Context) error {
	if n, total := d.side.ahead.Waits(); n > 0 {
		slog.Info("changes waited for dirty bitmaps to be stored", "node", d.node.Name(), "waits", n, "time", total)
	}
	err := d.rest(ctx)
	if cerr := d.driver.Close(ctx); err == nil {
		err = cerr
	}
	return err
}
