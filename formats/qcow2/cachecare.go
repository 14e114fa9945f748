package qcow2

import (
	"sync"
	"sync/atomic"
	"time"

	"blockd/clock"
	"blockd/qapi"
)

// What is known of the caches of metadata, and giving back what they do not use
// (the option cache-clean-interval).

// cacheCounters count since the image was opened.
type cacheCounters struct {
	l2Misses, l2Size            atomic.Int64
	refHits, refMisses, refSize atomic.Int64
}

// DriverStats tells how the caches do. A lookup in the cache of L2 tables is a
// request that reads, looks for the state of blocks, or writes to a place that it
// has. Any goroutine; it does not wait.
func (d *Driver) DriverStats(name string) *qapi.BlockStatsSpecific {
	c := &d.counted
	lookups, misses := d.epochs.total(), uint64(c.l2Misses.Load())
	return &qapi.BlockStatsSpecific{
		Driver: qapi.BlockdevDriver(name),
		Qcow2: &qapi.BlockStatsSpecificQcow2{
			// One that takes several slices may miss several times.
			XL2Cache:       qapi.CacheStats{Hits: lookups - min(misses, lookups), Misses: misses, Size: uint64(c.l2Size.Load())},
			XRefcountCache: qapi.CacheStats{Hits: uint64(c.refHits.Load()), Misses: uint64(c.refMisses.Load()), Size: uint64(c.refSize.Load())},
		},
	}
}

// cacheCleaner drops, at every interval, what nobody has used since the one
// before.
type cacheCleaner struct {
	mu       sync.Mutex
	clock    clock.Clock   // +checklocks:mu
	interval time.Duration // +checklocks:mu
	timer    clock.Timer   // +checklocks:mu
}

// every cleans the driver's caches every so often from now on; 0: never.
func (c *cacheCleaner) every(d *Driver, interval time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.clock == nil {
		c.clock = clock.Real()
	}
	if c.timer != nil {
		c.timer.Stop()
		c.timer = nil
	}
	if c.interval = interval; interval > 0 {
		c.schedule(d)
	}
}

// schedule waits for the next time.
//
// +checklocks:c.mu
func (c *cacheCleaner) schedule(d *Driver) {
	var t clock.Timer
	t = c.clock.AfterFunc(c.interval, func() {
		c.mu.Lock()
		mine := c.timer == t // it may have been stopped too late
		c.mu.Unlock()
		if !mine {
			return
		}
		d.cleanCaches()
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.timer == t {
			c.schedule(d)
		}
	})
	c.timer = t
}

// cleanCaches drops what nobody has used since it was called last, and is on disk.
func (d *Driver) cleanCaches() {
	d.mu.Lock()
	defer d.mu.Unlock()
	t := d.l1.Load()
	slices := d.cache.ring[:0]
	for _, s := range d.cache.ring {
		if s.used.Load() || !d.mayEvict(s) {
			s.used.Store(false)
			slices = append(slices, s)
			continue
		}
		(*t.dirs[s.table].Load())[s.index].Store(nil)
	}
	clear(d.cache.ring[len(slices):])
	d.cache.ring, d.cache.hand = slices, 0
	r := &d.refs
	blocks := r.ring[:0]
	for _, b := range r.ring {
		if _, dirty := r.dirty[b]; dirty || b.fresh || b.used || d.busyWriting(nil, b) {
			b.used = false
			blocks = append(blocks, b)
			continue
		}
		delete(r.blocks, b.index)
	}
	clear(r.ring[len(blocks):])
	r.ring, r.hand = blocks, 0
}
