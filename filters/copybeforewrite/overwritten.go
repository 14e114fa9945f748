package copybeforewrite

import (
	"math/bits"
	"sync/atomic"

	"blockd/blockgraph"
	"blockd/qapi"
)

// What a query tells about a filter's own bitmaps, which have no names: how much
// readers of the snapshot may ask for, and how much of it guests have overwritten
// since the point in time; and, of the source, how much is still to be copied.

const (
	overwrittenPage  = 4096 // clusters
	overwrittenWords = overwrittenPage / 64
)

// overwritten is the set of clusters that guests have written since the point in
// time. It takes memory where they did. Any goroutine, without a lock.
type overwritten struct {
	pages []atomic.Pointer[[overwrittenWords]atomic.Uint64]
	count atomic.Int64
}

func newOverwritten(clusters int64) *overwritten {
	return &overwritten{pages: make([]atomic.Pointer[[overwrittenWords]atomic.Uint64], (clusters+overwrittenPage-1)/overwrittenPage)}
}

// mark adds clusters [first, end).
func (o *overwritten) mark(first, end int64) {
	for first < end {
		page := &o.pages[first/overwrittenPage]
		p := page.Load()
		if p == nil {
			p = new([overwrittenWords]atomic.Uint64)
			if !page.CompareAndSwap(nil, p) {
				p = page.Load()
			}
		}
		next := min(end, first&^63+64)
		mask := ^uint64(0) << (first & 63)
		if r := next & 63; r != 0 {
			mask &= 1<<r - 1
		}
		word := &p[first%overwrittenPage/64]
		if word.Load()&mask != mask {
			o.count.Add(int64(bits.OnesCount64(mask &^ word.Or(mask))))
		}
		first = next
	}
}

// noteOverwritten notes that a guest changes bytes [off, off+n).
func (f *Filter) noteOverwritten(off, n int64) {
	size := f.clusters.Size()
	f.overwritten.mark(off/size, (min(off+n, f.clusters.Len())+size-1)/size)
}

// WorkingBitmaps implements blockgraph.BitmapWorker.
func (f *Filter) WorkingBitmaps() (own, source []qapi.BlockDirtyInfo) {
	size := f.clusters.Size()
	info := func(count int64) qapi.BlockDirtyInfo {
		return qapi.BlockDirtyInfo{Count: count, Granularity: uint32(size)}
	}
	access := (f.clusters.Len()+size-1)&^(size-1) + f.unchosen
	if gone := f.snapshot.gone.Load(); gone != nil {
		access -= gone.Count()
	}
	return []qapi.BlockDirtyInfo{info(access), info(f.overwritten.count.Load() * size)}, []qapi.BlockDirtyInfo{info(f.clusters.Remaining())}
}

var _ blockgraph.BitmapWorker = (*Filter)(nil)
