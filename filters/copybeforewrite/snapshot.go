package copybeforewrite

import (
	"context"
	"sync/atomic"
	"syscall"

	"blockd/bitmaps"
	"blockd/blockgraph"
)

// The filter's point in time can be read (blockgraph.Snapshotter) by a
// snapshot-access node above it. What was saved is in the target, the rest
// still in the source: a reader takes it from there while guests' writes to the
// same bytes wait.
//
// A reader locks its range first and then looks which clusters are saved. A
// guest's write saves its clusters first, and then waits until nobody has
// locked its range. So either the reader finds them saved, or the write finds
// the lock. Writes that find no reader at all pay one load.

type snapshot struct {
	readers atomic.Int32 // holding a lock or about to take one
	reading blockgraph.RangeLock

	// gone is what readers gave up; nil until the first time. Bits are only set.
	gone atomic.Pointer[bitmaps.Bitmap]
}

// waitReaders waits until nobody reads the snapshot's bytes [off, off+n) from
// the source.
func (f *Filter) waitReaders(ctx context.Context, off, n int64) error {
	s := &f.snapshot
	if s.readers.Load() == 0 {
		return nil
	}
	h, err := s.reading.Lock(ctx, off, n, true)
	if err != nil {
		return err
	}
	s.reading.Unlock(h)
	return nil
}

// readable holds that the snapshot still has bytes [off, off+n).
func (f *Filter) readable(off, n int64) error {
	if f.broken.Load() != nil || f.top != nil || f.scratch != nil {
		// With top, the target lacks what the overlay lacked; with a scratch,
		// what is saved is not in the target yet.
		return syscall.EACCES
	}
	if gone := f.snapshot.gone.Load(); gone != nil {
		if _, _, found := gone.NextDirty(off, off+n); found {
			return syscall.EACCES
		}
	}
	return nil
}

// eachPart calls read for parts of bytes [off, off+n), with the node that holds
// them, until it returns false. What is in the source stays there meanwhile.
func (f *Filter) eachPart(ctx context.Context, off, n int64, read func(from *blockgraph.Edge, off, n int64) (bool, error)) error {
	s := &f.snapshot
	for end := off + n; off < end; {
		s.readers.Add(1)
		h, err := s.reading.Lock(ctx, off, end-off, false)
		if err != nil {
			s.readers.Add(-1)
			return err
		}
		k, saved := f.run(off, end-off)
		release := func() {
			s.reading.Unlock(h)
			s.readers.Add(-1)
		}
		from := f.node.File()
		if saved {
			release()
			from = f.node.Child("target")
		}
		more := false
		if err = f.readable(off, k); err == nil {
			more, err = read(from, off, k)
		}
		if !saved {
			release()
		}
		if err != nil || !more {
			return err
		}
		off += k
	}
	return nil
}

// run returns the length of the first run of bytes in [off, off+n) that are all
// saved or all not.
func (f *Filter) run(off, n int64) (k int64, saved bool) {
	c := f.clusters.Size()
	next := min(off&^(c-1)+c, off+n)
	saved = !f.clusters.Dirty(off, next-off)
	for next < off+n {
		to := min(next+c, off+n)
		if f.clusters.Dirty(next, to-next) == saved {
			break
		}
		next = to
	}
	return next - off, saved
}

// ReadSnapshot implements blockgraph.Snapshotter.
func (f *Filter) ReadSnapshot(ctx context.Context, start int64, v *blockgraph.IOVec) error {
	if err := f.readable(start, v.Len()); err != nil {
		return err
	}
	return f.eachPart(ctx, start, v.Len(), func(from *blockgraph.Edge, off, n int64) (bool, error) {
		return true, from.ReadV(ctx, off, v.Slice(off-start, n), 0)
	})
}

// SnapshotStatus implements blockgraph.Snapshotter.
func (f *Filter) SnapshotStatus(ctx context.Context, off, n int64, mode blockgraph.StatusMode) (st blockgraph.Status, err error) {
	err = f.eachPart(ctx, off, n, func(from *blockgraph.Edge, off, n int64) (bool, error) {
		st, _, err = from.Child().StatusAbove(ctx, nil, off, n, mode)
		return false, err
	})
	st.Flags &= blockgraph.StatusData | blockgraph.StatusZero
	st.Offset, st.File = 0, nil
	return st, err
}

// DiscardSnapshot implements blockgraph.Snapshotter. Only whole clusters are
// given up.
func (f *Filter) DiscardSnapshot(ctx context.Context, off, n int64) error {
	c := f.clusters.Size()
	end := (off + n) &^ (c - 1)
	if off+n >= f.clusters.Len() {
		end = f.clusters.Len()
	}
	off = (off + c - 1) &^ (c - 1)
	if off >= end {
		return nil
	}
	f.goneBitmap().Set(off, end-off)
	f.clusters.Clear(off, end-off)
	return f.node.Child("target").Discard(ctx, off, end-off)
}

func (f *Filter) goneBitmap() *bitmaps.Bitmap {
	s := &f.snapshot
	if b := s.gone.Load(); b != nil {
		return b
	}
	s.gone.CompareAndSwap(nil, bitmaps.New(f.clusters.Len(), f.clusters.Size()))
	return s.gone.Load()
}

var _ blockgraph.Snapshotter = (*Filter)(nil)
