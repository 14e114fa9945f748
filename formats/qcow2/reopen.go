package qcow2

import (
	"context"
	"math/bits"
	"syscall"

	"blockd/blockgraph"
)

// reopenable are the options that may change while an image is open: all of its
// own.
var reopenable = []string{
	"lazy-refcounts", "pass-discard-request", "pass-discard-snapshot", "pass-discard-other", "discard-no-unref", "overlap-check",
	"cache-size", "l2-cache-size", "l2-cache-entry-size", "refcount-cache-size", "cache-clean-interval",
	"encrypt",
}

// PrepareReopen takes new runtime options, and switches between read-only and
// read-write. An image that becomes read-only is written back whole; one that
// becomes writable has done to it what opening it for writing does, once its
// file may be written.
func (d *Driver) PrepareReopen(ctx context.Context, r *blockgraph.ReopenRequest) (*blockgraph.Reopening, error) {
	if d.alone.Load() {
		return nil, errRemade
	}
	opts, err := parseOptions(d.h, d.size.Load(), r.Options)
	if err != nil {
		return nil, err
	}
	wasReadOnly, wasOpts, wasBits := d.readOnly.Load(), d.options(), d.sliceBits
	nowBits := sliceBits(d.h, opts)
	// Another file is the image now, if only the same one with a filter above.
	var file storage
	if r.State != nil && r.State.File().Child() != d.file().Node() {
		file = edge{r.State.File()}
	}
	writing := !wasReadOnly && !d.broken.Load()
	if writing && (r.ReadOnly || nowBits != wasBits || file != nil) {
		if r.ReadOnly || file != nil && !d.bitmaps.onClose {
			var list []*blockgraph.DirtyBitmap
			if r.State != nil {
				// What the same change makes of the list is still in time.
				list = append([]*blockgraph.DirtyBitmap{}, r.State.Bitmaps...)
			}
			if err := d.closeBitmaps(ctx, list); err != nil {
				return nil, err
			}
		}
		if err := d.settle(ctx); err != nil {
			return nil, err
		}
		d.background.wait(ctx)
	}
	if !r.ReadOnly {
		if err := d.protectInactive(ctx, opts); err != nil {
			return nil, err
		}
	}
	p := &blockgraph.Reopening{
		Apply: func() {
			if nowBits != wasBits || file != nil {
				d.forgetTables(nowBits, file)
			}
			d.apply(opts)
			d.cleaner.every(d, opts.cleanInterval)
			d.readOnly.Store(r.ReadOnly)
		},
		Undo: func(ctx context.Context) {
			if nowBits != wasBits || file != nil {
				d.forgetTables(wasBits, d.file())
			}
			d.apply(wasOpts)
			d.cleaner.every(d, wasOpts.cleanInterval)
			d.readOnly.Store(wasReadOnly)
			if writing && r.ReadOnly {
				d.reopenBitmaps(ctx)
			}
		},
	}
	if wasReadOnly && !r.ReadOnly {
		if d.h.incompatible&incompatCorrupt != 0 || d.broken.Load() {
			return nil, blockgraph.Errorf(syscall.EACCES, "qcow2: Image is corrupt; cannot be opened read/write")
		}
		p.Start = d.startWriting
	}
	return p, nil
}

// sliceBits returns log2 of the entries of a slice of the cache.
func sliceBits(h *header, o *options) uint32 {
	return uint32(bits.TrailingZeros64(uint64(o.l2Entry))) - h.l2EntryBits
}

// forgetTables empties the caches, and gives that of L2 tables slices of another
// size. What is in them is read again, from the given file if that is not nil.
// No request is in flight, and nothing in them is dirty.
func (d *Driver) forgetTables(bits uint32, file storage) {
	d.mu.Lock()
	defer d.mu.Unlock()
	t := d.l1.Load()
	for _, s := range d.cache.ring {
		t.dirs[s.table].Store(nil)
	}
	clear(d.cache.ring)
	d.cache.ring, d.cache.hand = d.cache.ring[:0], 0
	d.sliceBits = bits
	if file == nil {
		return
	}
	r := &d.refs
	clear(r.blocks)
	clear(r.ring)
	r.ring, r.hand = r.ring[:0], 0
	r.hint, r.passed, r.passedFrom = [2]int64{}, 0, 0
	r.untouched = max(r.untouched, d.h.clusters(file.Size()))
}
