package bitmapstore

import (
	"context"
	"sync/atomic"
	"time"

	"blockd/clock"
)

// Regions: the unit in which a recording bitmap is made dirty in the image
// ahead of the disk. A region is open when every recording bitmap has all of
// its bits set in the image, durably. Whoever is about to change something
// looks at one bit; only the first in a region waits, for a write of a few
// bytes and a flush. Where the writes go on from the region before, the next
// few are opened in the same go.

const (
	// minRegionBits is log2 of the length of a region, unless a bitmap's granules
	// are so large that eight of them, a byte of its data, are more.
	minRegionBits = 26 // 64 MiB
	// regionsAhead is how many regions are opened beyond those that are needed
	// where writing is sequential.
	regionsAhead = 4
)

// Image is the side of Ahead that knows the format. Its methods are called with
// the turn held.
type Image interface {
	// Ready brings the bitmaps that are wanted to the image, if they are not there
	// yet, or tells why nothing may change.
	Ready(ctx context.Context) error
	// Recorded returns the length of the disk in bytes, and log2 of the largest
	// granularity of a bitmap that records.
	Recorded() (size int64, granularityBits uint)
	// SetDirty sets the bits of [from, to) in every stored bitmap that records,
	// durably. Both are multiples of eight of its granules, but for the end of
	// the disk, which to may exceed.
	SetDirty(ctx context.Context, from, to int64) error
}

// Ahead keeps the stored bitmaps ahead of the disk. It is made by NewAhead.
type Ahead struct {
	// RegionBits is log2 of the least length of a region. Set before use.
	RegionBits uint

	turn    chan struct{} // capacity 1
	regions atomic.Pointer[regions]
	exempt  atomic.Bool

	waits, waitNs atomic.Int64
}

// NewAhead returns one that has no region open.
func NewAhead() *Ahead { return &Ahead{RegionBits: minRegionBits, turn: make(chan struct{}, 1)} }

// Lock takes the turn of those who write bitmaps to the image, or fails with the
// context's error.
func (a *Ahead) Lock(ctx context.Context) error {
	select {
	case a.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Unlock gives the turn back.
func (a *Ahead) Unlock() { <-a.turn }

// Exempt lets changes pass without a look at the regions, or not.
func (a *Ahead) Exempt(on bool) { a.exempt.Store(on) }

// Forget closes all regions: the image has other bits now. The turn is held.
func (a *Ahead) Forget() { a.regions.Store(nil) }

// Waits returns how often a change of the disk waited until it was dirty in the
// stored bitmaps, and for how long in all. Any goroutine.
func (a *Ahead) Waits() (n int64, total time.Duration) {
	return a.waits.Load(), time.Duration(a.waitNs.Load())
}

// Before sees to it that bytes [off, off+n) are dirty in the stored bitmaps that
// record. Data plane.
func (a *Ahead) Before(ctx context.Context, im Image, off, n int64) error {
	if r := a.regions.Load(); r != nil && r.open(off, n) || a.exempt.Load() {
		return nil
	}
	start := clock.Real().Now()
	defer func() {
		a.waits.Add(1)
		a.waitNs.Add(int64(clock.Real().Now().Sub(start)))
	}()
	if err := a.Lock(ctx); err != nil {
		return err
	}
	defer a.Unlock()
	if err := im.Ready(ctx); err != nil || a.exempt.Load() {
		return err
	}
	size, granularityBits := im.Recorded()
	r := a.regions.Load()
	if r == nil || r.size < size {
		r = newRegions(size, max(a.RegionBits, granularityBits+3))
		a.regions.Store(r)
	}
	if r.open(off, n) {
		return nil
	}
	first, last := off>>r.bits, (off+n-1)>>r.bits
	if first > 0 && r.isOpen(first-1) {
		last += regionsAhead
	}
	last = min(last, int64(len(r.words))*64-1)
	// The client may have gone; the others wait for the same.
	if err := im.SetDirty(context.WithoutCancel(ctx), first<<r.bits, (last+1)<<r.bits); err != nil {
		return err
	}
	for i := first; i <= last; i++ {
		r.words[i/64].Or(1 << (i % 64))
	}
	return nil
}

// regions are those that are open.
type regions struct {
	size  int64 // of the disk in bytes
	bits  uint  // log2 of the length
	words []atomic.Uint64
}

func newRegions(size int64, bits uint) *regions {
	return &regions{size: size, bits: bits, words: make([]atomic.Uint64, (size>>bits)/64+1)}
}

func (r *regions) isOpen(i int64) bool {
	w := i / 64
	return w < int64(len(r.words)) && r.words[w].Load()&(1<<(i%64)) != 0
}

// open tells whether all of bytes [off, off+n) are.
func (r *regions) open(off, n int64) bool {
	for i := off >> r.bits; i <= (off+n-1)>>r.bits; i++ {
		if !r.isOpen(i) {
			return false
		}
	}
	return true
}
