package copy

import (
	"context"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"
)

// The set is a table of pages, each with two bits per cluster: dirty says that
// somebody has to copy it, pending that it is dirty or a copy is under way.
// Pages that are all dirty or all clean are two shared ones, so a set costs
// memory only where it is mixed: a copy in ascending order has a few pages of
// its own however long the node is.
//
// pending is read without the lock: a writer that finds its clusters clean
// goes ahead. Everything else is under mu. A page that became clean is
// replaced by the shared one; who still reads the old page sees its zeroes.

const (
	pageClusters = 4096 // clusters per page
	pageWords    = pageClusters / 64
)

type page struct {
	pending [pageWords]atomic.Uint64
	dirty   [pageWords]uint64
	nDirty  int
	nBusy   int // set bits of pending
}

func newPage(clusters int) *page {
	p := &page{}
	for i := range clusters {
		p.dirty[i/64] |= 1 << (i % 64)
	}
	for i, w := range p.dirty {
		p.pending[i].Store(w)
	}
	p.nDirty, p.nBusy = clusters, clusters
	return p
}

func (p *page) clone() *page {
	c := &page{dirty: p.dirty, nDirty: p.nDirty, nBusy: p.nBusy}
	for i := range p.pending {
		c.pending[i].Store(p.pending[i].Load())
	}
	return c
}

// The shared pages are never written.
var (
	cleanPage = &page{}
	dirtyPage = newPage(pageClusters)
)

// Clusters is the set of clusters that are still to be copied, with the copies
// under way. A copy-before-write filter and the job's own steps share one, so
// that each cluster is copied once. A cluster is dirty (to be copied), claimed
// (a copy is under way) or clean. Any goroutine, data plane.
type Clusters struct {
	length   int64
	size     int64 // of a cluster
	shift    int
	n        int64 // clusters
	pages    []atomic.Pointer[page]
	pending  atomic.Int64 // clusters
	progress Progress

	mu sync.Mutex
	// +checklocks:mu
	claims []*Claim // under way
	free   []*Claim // +checklocks:mu
}

// Claim is a run of clusters whose copy is under way.
type Claim struct {
	Off, N int64 // bytes, whole clusters; the end may lie past Len

	waited chan struct{} // closed when the claim ends or shrinks; nil: nobody waits
}

// Outcome of a claim.
type Outcome uint8

const (
	// Copied: counts as progress.
	Copied Outcome = iota
	// Unneeded: clean, without progress; it leaves what remains.
	Unneeded
	// Failed: dirty again.
	Failed
	// Saved: clean, since the old content is kept elsewhere; it counts as
	// progress when Account says that it was copied.
	Saved
)

// NewClusters returns the set for a node of length bytes, all dirty. size is
// the cluster size in bytes, a power of two.
func NewClusters(length, size int64) *Clusters {
	c := &Clusters{length: length, size: size, shift: bits.TrailingZeros64(uint64(size))}
	c.n = (length + size - 1) >> c.shift
	c.pages = make([]atomic.Pointer[page], (c.n+pageClusters-1)/pageClusters)
	for i := range c.pages {
		c.pages[i].Store(dirtyPage)
	}
	if rest := c.n % pageClusters; rest != 0 {
		c.pages[len(c.pages)-1].Store(newPage(int(rest)))
	}
	c.pending.Store(c.n)
	return c
}

// Size returns the cluster size in bytes.
func (c *Clusters) Size() int64 { return c.size }

// Len returns the length in bytes.
func (c *Clusters) Len() int64 { return c.length }

// SetProgress sets who is told of progress. Before the first copy.
func (c *Clusters) SetProgress(p Progress) { c.progress = p }

// Remaining returns the bytes of dirty and claimed clusters, not of those that
// were saved. The last cluster counts in full, even if the node ends within it,
// as in the field.
func (c *Clusters) Remaining() int64 { return c.pending.Load() << c.shift }

// span returns the clusters that [off, off+n) touches.
func (c *Clusters) span(off, n int64) (first, end int64) {
	first = max(off, 0) >> c.shift
	end = min((off+n+c.size-1)>>c.shift, c.n)
	return first, end
}

// words calls f with each word that [first, end) touches, and the bits of it that
// belong to the range, until f returns false.
func words(first, end int64, f func(pg int64, w int, mask uint64) bool) {
	for first < end {
		next := min(end, first&^63+64)
		mask := ^uint64(0) << (first & 63)
		if r := next & 63; r != 0 {
			mask &= 1<<r - 1
		}
		if !f(first/pageClusters, int(first%pageClusters/64), mask) {
			return
		}
		first = next
	}
}

// Dirty tells, without a lock, whether a cluster in [off, off+n) is dirty or
// claimed. A write that finds false may go ahead.
func (c *Clusters) Dirty(off, n int64) bool {
	first, end := c.span(off, n)
	for first < end {
		pg := first / pageClusters
		p := c.pages[pg].Load()
		stop := min(end, (pg+1)*pageClusters)
		switch p {
		case cleanPage:
		case dirtyPage:
			return true
		default:
			found := false
			words(first, stop, func(_ int64, w int, mask uint64) bool {
				found = p.pending[w].Load()&mask != 0
				return !found
			})
			if found {
				return true
			}
		}
		first = stop
	}
	return false
}

// own returns a page that may be written. mu is held.
func (c *Clusters) own(pg int64) *page {
	p := c.pages[pg].Load()
	if p == cleanPage || p == dirtyPage {
		p = p.clone()
		c.pages[pg].Store(p)
	}
	return p
}

// settle replaces a page that has become clean. mu is held.
func (c *Clusters) settle(pg int64) {
	if c.pages[pg].Load().nBusy == 0 {
		c.pages[pg].Store(cleanPage)
	}
}

// setDirty and clearDirty change dirty bits and return how many changed.
// mu is held.
func (c *Clusters) setDirty(first, end int64) {
	words(first, end, func(pg int64, w int, mask uint64) bool {
		p := c.own(pg)
		add := mask &^ p.dirty[w]
		p.dirty[w] |= mask
		p.nDirty += bits.OnesCount64(add)
		return true
	})
}

func (c *Clusters) clearDirty(first, end int64) {
	words(first, end, func(pg int64, w int, mask uint64) bool {
		p := c.own(pg)
		p.nDirty -= bits.OnesCount64(p.dirty[w] & mask)
		p.dirty[w] &^= mask
		return true
	})
}

// clearPending makes clusters clean that are not dirty, and returns how many
// were pending. mu is held.
func (c *Clusters) clearPending(first, end int64) (cleared int64) {
	last := int64(-1)
	words(first, end, func(pg int64, w int, mask uint64) bool {
		if last >= 0 && pg != last {
			c.settle(last)
		}
		last = pg
		p := c.own(pg)
		old := p.pending[w].Load()
		gone := bits.OnesCount64(old & mask &^ p.dirty[w])
		p.pending[w].Store(old &^ (mask &^ p.dirty[w]))
		p.nBusy -= gone
		cleared += int64(gone)
		return true
	})
	if last >= 0 {
		c.settle(last)
	}
	c.pending.Add(-cleared)
	return cleared
}

// tell reports progress in clusters. mu is not held.
func (c *Clusters) tell(done, remaining int64) {
	if c.progress != nil && (done != 0 || remaining != 0) {
		c.progress(done<<c.shift, remaining<<c.shift)
	}
}

// Account counts the clusters of a claim that ended as Saved as copied.
func (c *Clusters) Account(off, n int64) {
	first, end := c.span(off, n)
	c.tell(end-first, first-end)
}

// Mark makes the clusters of [off, off+n) dirty; those claimed become dirty
// again after their copy, whose data may be old (mirrors). It never waits for I/O.
func (c *Clusters) Mark(off, n int64) {
	first, end := c.span(off, n)
	var added int64
	c.mu.Lock()
	words(first, end, func(pg int64, w int, mask uint64) bool {
		p := c.own(pg)
		old := p.pending[w].Load()
		k := bits.OnesCount64(mask &^ old)
		p.pending[w].Store(old | mask)
		p.nBusy += k
		added += int64(k)
		return true
	})
	c.setDirty(first, end)
	c.pending.Add(added)
	c.mu.Unlock()
	c.tell(0, added)
}

// Clear makes dirty clusters wholly within [off, off+n) clean: they need no
// copy. Progress: their bytes leave what remains. Claimed ones stay claimed.
func (c *Clusters) Clear(off, n int64) { c.tell(0, -c.clear(off, n)) }

// clear returns how many clusters became clean.
func (c *Clusters) clear(off, n int64) (cleared int64) {
	first := (off + c.size - 1) >> c.shift
	end := (off + n) >> c.shift
	if off+n >= c.length {
		end = c.n
	}
	if first >= end {
		return 0
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.eachUnclaimed(first, end, func(a, b int64) {
		c.clearDirty(a, b)
		cleared += c.clearPending(a, b)
	})
	return cleared
}

// EachPending calls f with the runs of clusters that are dirty or claimed, in
// bytes. The last may end past Len.
func (c *Clusters) EachPending(f func(off, n int64)) {
	from := int64(-1) // first cluster of the present run
	step := func(first int64, pending bool) {
		switch {
		case pending && from < 0:
			from = first
		case !pending && from >= 0:
			f(from<<c.shift, (first-from)<<c.shift)
			from = -1
		}
	}
	for pg := range c.pages {
		first := int64(pg) * pageClusters
		end := min(first+pageClusters, c.n)
		switch p := c.pages[pg].Load(); p {
		case cleanPage, dirtyPage:
			step(first, p == dirtyPage)
		default:
			for i := first; i < end; i++ {
				at := i - first
				step(i, p.pending[at/64].Load()&(1<<(at%64)) != 0)
			}
		}
	}
	step(c.n, false)
}

// eachUnclaimed calls f with the parts of [first, end) that nobody has
// claimed. mu is held.
//
// +checklocks:c.mu
func (c *Clusters) eachUnclaimed(first, end int64, f func(a, b int64)) {
	for first < end {
		stop := end
		next := end
		for _, cl := range c.claims {
			a, b := c.span(cl.Off, cl.N)
			if a < stop && b > first {
				stop = max(a, first)
				next = min(b, end)
			}
		}
		if first < stop {
			f(first, stop)
		}
		first = next
	}
}

// findDirty returns the first run of dirty clusters in [first, end) of at
// most max, or ok false. mu is held.
func (c *Clusters) findDirty(first, end, limit int64) (a, b int64, ok bool) {
	for first < end {
		pg := first / pageClusters
		stop := min(end, (pg+1)*pageClusters)
		p := c.pages[pg].Load()
		if p.nDirty == 0 {
			first = stop
			continue
		}
		found := int64(-1)
		words(first, stop, func(_ int64, w int, mask uint64) bool {
			if d := p.dirty[w] & mask; d != 0 {
				found = pg*pageClusters + int64(w)*64 + int64(bits.TrailingZeros64(d))
				return false
			}
			return true
		})
		if found >= 0 {
			return found, c.runEnd(found, min(end, found+limit)), true
		}
		first = stop
	}
	return 0, 0, false
}

// runEnd returns where the dirty run from first on ends, at most at end.
// mu is held.
func (c *Clusters) runEnd(first, end int64) int64 {
	stop := end
	words(first, end, func(pg int64, w int, mask uint64) bool {
		if clean := mask &^ c.pages[pg].Load().dirty[w]; clean != 0 {
			stop = pg*pageClusters + int64(w)*64 + int64(bits.TrailingZeros64(clean))
			return false
		}
		return true
	})
	return stop
}

// next returns the first dirty, unclaimed run from off on, at most limit
// bytes, in whole clusters.
func (c *Clusters) next(off, n, limit int64) (at, length int64, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a, b, ok := c.free1(off, n, limit)
	return a << c.shift, (b - a) << c.shift, ok
}

// free1 finds a run that is dirty and claimed by nobody. mu is held.
//
// +checklocks:c.mu
func (c *Clusters) free1(off, n, limit int64) (a, b int64, ok bool) {
	first, end := c.span(off, n)
	for {
		a, b, ok = c.findDirty(first, end, max(1, limit>>c.shift))
		if !ok {
			return 0, 0, false
		}
		covered := false
		for _, cl := range c.claims {
			ca, cb := c.span(cl.Off, cl.N)
			switch {
			case ca <= a && a < cb:
				first, covered = cb, true
			case a < ca && ca < b:
				b = ca
			}
		}
		if !covered {
			return a, b, true
		}
	}
}

// Claim takes the first run of dirty clusters in [off, off+n), at most max
// bytes (at least one cluster). ok is false when none is dirty. The claim is
// ended by Done.
func (c *Clusters) Claim(off, n, max int64) (cl *Claim, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a, b, ok := c.free1(off, n, max)
	if !ok {
		return nil, false
	}
	c.clearDirty(a, b)
	if k := len(c.free); k > 0 {
		cl = c.free[k-1]
		c.free = c.free[:k-1]
	} else {
		cl = &Claim{}
	}
	cl.Off, cl.N = a<<c.shift, (b-a)<<c.shift
	c.claims = append(c.claims, cl)
	return cl, true
}

// Shrink gives the tail of the claim from n bytes on back; it is dirty again.
func (c *Clusters) Shrink(cl *Claim, n int64) {
	if n >= cl.N {
		return
	}
	c.mu.Lock()
	first, end := c.span(cl.Off+n, cl.N-n)
	c.setDirty(first, end)
	cl.N = n
	cl.wake()
	c.mu.Unlock()
}

// wake is called with mu held.
func (cl *Claim) wake() {
	if cl.waited != nil {
		close(cl.waited)
		cl.waited = nil
	}
}

// Done ends a claim and wakes those that wait for it. The caller must not use
// the claim any more.
func (c *Clusters) Done(cl *Claim, o Outcome) {
	c.mu.Lock()
	first, end := c.span(cl.Off, cl.N)
	var cleared, done int64
	if o == Failed {
		c.setDirty(first, end)
	} else {
		cleared = c.clearPending(first, end)
	}
	if o == Copied {
		done = end - first
	}
	i := slices.Index(c.claims, cl)
	last := len(c.claims) - 1
	c.claims[i] = c.claims[last]
	c.claims[last] = nil
	c.claims = c.claims[:last]
	cl.wake()
	if len(c.free) < DefaultMaxWorkers {
		c.free = append(c.free, cl)
	}
	c.mu.Unlock()
	if o != Saved {
		c.tell(done, -cleared)
	}
}

// Wait waits until no cluster of [off, off+n) is claimed. The caller holds no
// claim. It fails only with the context's error.
func (c *Clusters) Wait(ctx context.Context, off, n int64) error {
	for {
		ended := c.claimed(off, n)
		if ended == nil {
			return nil
		}
		select {
		case <-ended:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// claimed returns a channel that is closed when a claim in the range ends, or
// nil when there is none.
func (c *Clusters) claimed(off, n int64) <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, cl := range c.claims {
		if cl.Off < off+n && off < cl.Off+cl.N {
			if cl.waited == nil {
				cl.waited = make(chan struct{})
			}
			return cl.waited
		}
	}
	return nil
}
