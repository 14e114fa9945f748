package qcow2

import (
	"syscall"
	"time"

	"blockd/blockgraph"
	"blockd/qapi"
)

// options are the runtime options of an open image.
type options struct {
	discards       [discardAlways + 1]bool // pass the space of freed clusters on
	discardNoUnref bool
	bitmapsOnClose bool // the field's way of storing bitmaps
	overlap        metadataKind
	l2Cache        int64 // bytes
	l2Entry        int64 // bytes of a slice
	refCache       int64 // bytes
	cleanInterval  time.Duration
}

const (
	// defaultL2Cache is the most that the L2 cache takes unless told, in bytes.
	defaultL2Cache = 32 << 20
	// defaultCleanInterval is how often what nobody used is dropped, unless told.
	defaultCleanInterval = 600 * time.Second
	// minSlices is the least number of slices in the cache.
	minSlices = 2
	// maxCacheEntries bounds configured caches.
	maxCacheEntries = 1<<31 - 1
)

// parseOptions checks the runtime options against the image, of a disk of size
// bytes.
func parseOptions(h *header, size int64, o *qapi.BlockdevOptions) (*options, error) {
	q := o.Qcow2
	if q == nil {
		q = &qapi.BlockdevOptionsQcow2{}
	}
	r := &options{discardNoUnref: is(q.DiscardNoUnref, false)}
	r.bitmapsOnClose = q.XBitmaps != nil && *q.XBitmaps == qapi.Qcow2BitmapPersistenceOnClose
	if err := r.cacheSizes(h, size, q); err != nil {
		return nil, err
	}
	r.cleanInterval = defaultCleanInterval
	if q.CacheCleanInterval != nil {
		if uint64(*q.CacheCleanInterval) > 1<<32-1 {
			return nil, blockgraph.Errorf(syscall.EINVAL, "Cache clean interval too big")
		}
		r.cleanInterval = time.Duration(*q.CacheCleanInterval) * time.Second
	}
	if is(q.LazyRefcounts, false) && h.version < 3 {
		return nil, blockgraph.Errorf(syscall.EINVAL, "Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level")
	}
	if r.discardNoUnref && h.version < 3 {
		return nil, blockgraph.Errorf(syscall.EINVAL, "discard-no-unref is only supported since qcow2 version 3")
	}
	unmap := o.Discard != nil && *o.Discard == qapi.BlockdevDiscardOptionsUnmap
	r.discards[discardRequest] = is(q.PassDiscardRequest, unmap)
	r.discards[discardSnapshot] = is(q.PassDiscardSnapshot, true)
	r.discards[discardOther] = is(q.PassDiscardOther, false)
	r.discards[discardAlways] = true
	r.overlap = parseOverlap(q.OverlapCheck)
	if err := h.checkCrypt(o); err != nil {
		return nil, err
	}
	return r, nil
}

func is(b *bool, other bool) bool {
	if b == nil {
		return other
	}
	return *b
}

// cacheSizes applies the field's rules for the four cache options.
func (r *options) cacheSizes(h *header, size int64, q *qapi.BlockdevOptionsQcow2) error {
	for _, given := range []struct {
		name string
		size *int64
	}{{"cache-size", q.CacheSize}, {"l2-cache-size", q.L2CacheSize}, {"l2-cache-entry-size", q.L2CacheEntrySize}, {"refcount-cache-size", q.RefcountCacheSize}} {
		if given.size != nil && *given.size < 0 {
			return blockgraph.Errorf(syscall.EINVAL, "Parameter '%s' expects a non-negative number below 2^64", given.name)
		}
	}
	entries := h.clusters(size)
	wholeL2 := (entries<<h.l2EntryBits + h.clusterSize - 1) &^ (h.clusterSize - 1)
	minRef := minRefBlocks * h.clusterSize
	l2Max := int64(defaultL2Cache)
	if q.L2CacheSize != nil {
		l2Max = *q.L2CacheSize
	}
	if q.RefcountCacheSize != nil {
		r.refCache = *q.RefcountCacheSize
	}
	r.l2Cache = min(wholeL2, l2Max)
	if all := q.CacheSize; all != nil {
		switch {
		case q.L2CacheSize != nil && q.RefcountCacheSize != nil:
			return blockgraph.Errorf(syscall.EINVAL, "cache-size, l2-cache-size and refcount-cache-size may not be set at the same time")
		case q.L2CacheSize != nil && l2Max > *all:
			return blockgraph.Errorf(syscall.EINVAL, "l2-cache-size may not exceed cache-size")
		case r.refCache > *all:
			return blockgraph.Errorf(syscall.EINVAL, "refcount-cache-size may not exceed cache-size")
		case q.L2CacheSize != nil:
			r.refCache = *all - r.l2Cache
		case q.RefcountCacheSize != nil:
			r.l2Cache = *all - r.refCache
		case *all >= wholeL2+minRef:
			r.l2Cache = wholeL2
			r.refCache = *all - r.l2Cache
		default:
			r.refCache = min(*all, minRef)
			r.l2Cache = *all - r.refCache
		}
	}
	r.l2Entry = h.clusterSize
	if q.L2CacheEntrySize != nil {
		r.l2Entry = *q.L2CacheEntrySize
	} else if r.l2Cache < wholeL2 {
		r.l2Entry = min(h.clusterSize, 4096)
	}
	if r.l2Entry < 1<<minClusterBits || r.l2Entry > h.clusterSize || !isPowerOfTwo(uint64(r.l2Entry)) {
		return blockgraph.Errorf(syscall.EINVAL, "L2 cache entry size must be a power of two between %d and the cluster size (%d)", 1<<minClusterBits, h.clusterSize)
	}
	if r.l2Cache/r.l2Entry > maxCacheEntries {
		return blockgraph.Errorf(syscall.EINVAL, "L2 cache size too big")
	}
	if r.refCache>>h.clusterBits > maxCacheEntries {
		return blockgraph.Errorf(syscall.EINVAL, "Refcount cache size too big")
	}
	return nil
}

// parseOverlap returns the kinds of metadata to protect.
func parseOverlap(o *qapi.Qcow2OverlapChecks) metadataKind {
	kinds := overlapTemplate(qapi.Qcow2OverlapCheckModeCached)
	if o == nil {
		return kinds
	}
	if o.Mode != nil {
		return overlapTemplate(*o.Mode)
	}
	f := o.Flags
	if f.Template != nil {
		kinds = overlapTemplate(*f.Template)
	}
	for i, b := range []*bool{f.MainHeader, f.ActiveL1, f.ActiveL2, f.RefcountTable, f.RefcountBlock, f.SnapshotTable, f.InactiveL1, f.InactiveL2, f.BitmapDirectory} {
		if b != nil {
			kinds &^= 1 << i
			if *b {
				kinds |= 1 << i
			}
		}
	}
	return kinds
}

func overlapTemplate(m qapi.Qcow2OverlapCheckMode) metadataKind {
	switch m {
	case qapi.Qcow2OverlapCheckModeNone:
		return 0
	case qapi.Qcow2OverlapCheckModeConstant:
		return overlapConstant
	case qapi.Qcow2OverlapCheckModeAll:
		return overlapAll
	default:
		return overlapCached
	}
}

// apply puts options into force, all but the interval of cleaning. No request is in
// flight.
func (d *Driver) apply(r *options) {
	d.opts.Store(r)
	d.overlap.Store(uint32(r.overlap))
	d.mu.Lock()
	defer d.mu.Unlock()
	slice := int64(1) << (d.sliceBits + d.h.l2EntryBits)
	// Two whole tables must fit: that is what making a new one needs.
	d.cache.capacity = int(max(r.l2Cache/slice, minSlices, 2*d.slicesPerTable()))
	d.refs.capacity = int(max(max(r.refCache, minRefCache)>>d.h.clusterBits, minRefBlocks))
	d.counted.l2Size.Store(int64(d.cache.capacity) * slice)
	d.counted.refSize.Store(int64(d.refs.capacity) << d.h.clusterBits)
}
