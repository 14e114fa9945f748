package bitmaps

import (
	"fmt"
	"math/bits"
	"sync"
	"sync/atomic"

	"blockd/qapi"
)

const (
	// MinGranularity is the finest granularity, in bytes.
	MinGranularity = 512
	// MaxBits bounds the memory of one bitmap: 8 GiB with every bit set, 150 MiB
	// when empty.
	MaxBits = 1 << 36
)

// Bitmap is a dirty bitmap. See the package comment for who may call what.
type Bitmap struct {
	shift  uint // of the granularity
	size   atomic.Int64
	levels atomic.Pointer[levels]
	// mu keeps readers out while bits or the levels are taken away.
	mu sync.RWMutex //blockd:short
}

// Check tells whether New can make such a bitmap.
func Check(size, granularity int64) error {
	if granularity < MinGranularity || granularity&(granularity-1) != 0 {
		return qapi.Errorf("Granularity must be power of 2 and at least 512")
	}
	if size < 0 || bitsFor(size, shiftOf(granularity)) > MaxBits {
		return qapi.Errorf("Bitmap of %d bytes with granularity %d is too large", size, granularity)
	}
	return nil
}

// New returns an empty bitmap over size bytes. Sizes and granularities from
// outside go through Check first; New panics for what it refuses.
func New(size, granularity int64) *Bitmap {
	if err := Check(size, granularity); err != nil {
		panic(fmt.Sprintf("bitmaps.New(%d, %d): %v", size, granularity, err))
	}
	b := &Bitmap{shift: shiftOf(granularity)}
	b.size.Store(size)
	b.levels.Store(newLevels(bitsFor(size, b.shift)))
	return b
}

func shiftOf(granularity int64) uint { return uint(bits.TrailingZeros64(uint64(granularity))) }

// bitsFor returns how many bits cover size bytes.
func bitsFor(size int64, shift uint) int64 {
	n := size >> shift
	if size&(1<<shift-1) != 0 {
		n++
	}
	return n
}

// Granularity returns the bytes that one bit stands for.
func (b *Bitmap) Granularity() int64 { return 1 << b.shift }

// Size returns how many bytes the bitmap covers.
func (b *Bitmap) Size() int64 { return b.size.Load() }

// Count returns the bytes that are dirty, in whole granules: the last one
// counts in full, as in the field, even if the size ends within it.
func (b *Bitmap) Count() int64 {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.levels.Load().count.Load() << b.shift
}

// MarkDirty is Set, as a blockgraph.Marker.
func (b *Bitmap) MarkDirty(off, n int64) { b.Set(off, n) }

// Set makes every granule that [off, off+n) touches dirty. What lies past the
// end is ignored.
func (b *Bitmap) Set(off, n int64) {
	if n <= 0 || off < 0 {
		return
	}
	for {
		l := b.levels.Load()
		// The size is read after the levels: it never exceeds the capacity of
		// levels that are loaded later.
		size := b.size.Load()
		if off >= size {
			return
		}
		end := size
		if n < size-off {
			end = off + n
		}
		last := min((end-1)>>b.shift, l.capacity()-1)
		l.set(off>>b.shift, last)
		if b.levels.Load() == l {
			return
		}
		// Resize has put others in their place and may have missed these bits.
	}
}

// Clear makes the granules that lie wholly within [off, off+n) clean; the end
// of the bitmap ends its last one.
func (b *Bitmap) Clear(off, n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	size := b.size.Load()
	if n <= 0 || off < 0 || off >= size {
		return
	}
	first := bitsFor(off, b.shift)
	end := bitsFor(size, b.shift)
	if n < size-off {
		end = (off + n) >> b.shift
	}
	if first < end {
		b.levels.Load().clear(first, end-1)
	}
}

// Get tells whether the granule with byte off is dirty.
func (b *Bitmap) Get(off int64) bool {
	b.mu.RLock()
	defer b.mu.RUnlock()
	if off < 0 || off >= b.size.Load() {
		return false
	}
	bit := off >> b.shift
	return b.levels.Load().word(bit/64)&(1<<(bit%64)) != 0
}

// NextDirty returns the first dirty extent [start, start+n) of [off, limit),
// clipped to it.
func (b *Bitmap) NextDirty(off, limit int64) (start, n int64, ok bool) {
	return b.next(off, limit, (*levels).nextSet, (*levels).nextClear)
}

// NextClean returns the first clean extent [start, start+n) of [off, limit),
// clipped to it.
func (b *Bitmap) NextClean(off, limit int64) (start, n int64, ok bool) {
	return b.next(off, limit, (*levels).nextClear, (*levels).nextSet)
}

// next returns the first extent of [off, limit) that begins where begin finds a
// bit and goes on to where end does.
func (b *Bitmap) next(off, limit int64, begin, end func(l *levels, from, limit int64) int64) (start, n int64, ok bool) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	off, limit = max(0, off), min(limit, b.size.Load())
	if off >= limit {
		return 0, 0, false
	}
	l, bits := b.levels.Load(), bitsFor(limit, b.shift)
	first := begin(l, off>>b.shift, bits)
	if first >= bits {
		return 0, 0, false
	}
	start = max(off, first<<b.shift)
	return start, b.byteEnd(end(l, first, bits), limit) - start, true
}

// byteEnd returns the byte at which the granule before bit ends, at most limit.
func (b *Bitmap) byteEnd(bit, limit int64) int64 {
	if bit > limit>>b.shift {
		return limit
	}
	return bit << b.shift
}

// Merge makes everything dirty that is dirty in src. Granularities may differ;
// what src has past b's end is ignored. It does not hold b's mutex, so two
// bitmaps may be merged into each other at once.
func (b *Bitmap) Merge(src *Bitmap) {
	if src == b {
		return
	}
	src.mu.RLock()
	defer src.mu.RUnlock()
	size := src.size.Load()
	if src.shift != b.shift || size > b.size.Load() {
		src.each(func(off, n int64) { b.Set(off, n) })
		return
	}
	from, end := src.levels.Load(), bitsFor(size, src.shift)
	for {
		l := b.levels.Load()
		for bit := from.nextSet(0, end); bit < end; bit = from.nextSet(bit, end) {
			l.or(bit/64, from.word(bit/64))
			bit = (bit/64 + 1) * 64
		}
		if b.levels.Load() == l {
			return
		}
	}
}

// each calls f for every dirty extent. mu is held for reading.
func (b *Bitmap) each(f func(off, n int64)) {
	size := b.size.Load()
	l, end := b.levels.Load(), bitsFor(size, b.shift)
	for bit := l.nextSet(0, end); bit < end; {
		stop := l.nextClear(bit, end)
		off := bit << b.shift
		f(off, b.byteEnd(stop, size)-off)
		bit = l.nextSet(stop, end)
	}
}

// Resize changes how many bytes the bitmap covers. What is new is clean. It
// fails where Check does. Bits may be set meanwhile, but for those past the end
// of a bitmap that becomes shorter.
func (b *Bitmap) Resize(size int64) error {
	if err := Check(size, b.Granularity()); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.resize(size)
	return nil
}

// Grow is Resize to at least size bytes: whoever comes late shortens nothing.
func (b *Bitmap) Grow(size int64) error {
	if err := Check(size, b.Granularity()); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if size > b.size.Load() {
		b.resize(size)
	}
	return nil
}

// resize is called with mu held.
func (b *Bitmap) resize(size int64) {
	l, old, want := b.levels.Load(), bitsFor(b.size.Load(), b.shift), bitsFor(size, b.shift)
	switch {
	case want < old:
		l.clear(want, old-1)
	case want > l.capacity():
		// A file that is appended to grows with every write: leave room.
		wide := newLevels(min(MaxBits, want+want/4))
		// First the new levels become those that Set uses, then they take over
		// what the old ones had: a bit set in the old ones is either seen here
		// or set again by its setter.
		b.levels.Store(wide)
		for bit := l.nextSet(0, old); bit < old; bit = l.nextSet(bit, old) {
			wide.or(bit/64, l.word(bit/64))
			bit = (bit/64 + 1) * 64
		}
	}
	b.size.Store(size)
}

// Clone returns a copy. Bits set meanwhile may or may not be in it.
func (b *Bitmap) Clone() *Bitmap {
	c := New(b.Size(), b.Granularity())
	c.Merge(b)
	return c
}
