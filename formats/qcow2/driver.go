package qcow2

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"

	"blockd/blockgraph"
	"blockd/formats/luks"
)

// Driver is one opened image.
type Driver struct {
	ch children
	h  *header // geometry, and the other fields as they were at open

	crypt     *encryption  // nil: not encrypted
	size      atomic.Int64 // of the disk in bytes
	readOnly  atomic.Bool
	broken    atomic.Bool // found corrupt: writing has ended
	signaled  atomic.Bool // a corruption was reported
	sliceBits uint32      // log2 of the entries of a slice
	snapshots atomic.Pointer[snapshotList]

	onCorruption atomic.Pointer[CorruptionFunc]
	opts         atomic.Pointer[options]
	overlap      atomic.Uint32 // metadataKind
	meta         *metadataMap
	epochs       epochs
	counted      cacheCounters
	cleaner      cacheCleaner
	l1           atomic.Pointer[l1Table]
	background   background
	care         atomic.Bool // somebody checks or compacts the image

	alone atomic.Bool // it is remade (remake.go): the driver is outdated

	headerTurn chan struct{} // capacity 1
	// Guarded by headerTurn: the first cluster as far as it is in use, as on
	// disk, and its extensions.
	head []byte
	ext  *extensions
	// names is what BackingFile tells.
	names atomic.Pointer[[2]string]

	bitmaps bitmapStore

	flushMu   sync.Mutex
	flushing  bool   // +checklocks:flushMu
	nextBatch *batch // +checklocks:flushMu

	mu        sync.Mutex
	cache     sliceCache
	newTables map[int64]struct{} // L2 tables that no L1 entry on disk knows
	// +checklocks:mu
	unsharing map[int64]struct{}   // L2 tables of which a copy is to be made
	making    map[roomKey]*loading // tables for which room is being made
	dirtyL1   pieces
	l1Moved   bool     // the L1 table has a place that the header does not know
	claims    []*claim // +checklocks:mu
	// +checklocks:mu
	writing *copied // what the write-back that runs has copied
	refs    refcounts
	frees   freeLists
	packAt  int64 // where the next compressed data may go; 0: nowhere
	// +checklocks:mu
	nextSize int64 // size for the header
	// +checklocks:mu
	diskFields headerFields // as in the header on disk
	view       *view        // of a check that goes on, or nil
	reserved   *reservation // what is not to be allocated now
	points     []string     // fault points passed under the lock, for unlock

	// uncounted is how many changes of snapshots have not brought the counts in
	// order yet; reverts is how often the image went back to one. With the graph token
	// held.
	uncounted int
	reverts   int
	// marked: the image was opened to be repaired, and its header says that it needs
	// to be.
	marked bool
}

// passed notes a fault point of something rare that happens under Driver.mu.
func (d *Driver) passed(point string) { d.points = append(d.points, point) }

// unlock gives Driver.mu back after an allocation, and reports the fault points
// that were passed: who acts on them may wait.
//
// +checklocksrelease:d.mu
func (d *Driver) unlock() {
	points := d.points
	d.points = nil
	d.mu.Unlock()
	for _, p := range points {
		d.file().DebugEvent(p)
	}
}

func (d *Driver) file() storage     { return d.ch.file() }
func (d *Driver) options() *options { return d.opts.Load() }

// Size returns the length of the disk in bytes.
func (d *Driver) Size(context.Context) (int64, error) { return d.size.Load(), nil }

// Limits returns the request limits.
func (d *Driver) Limits() blockgraph.Limits {
	l := blockgraph.Limits{ZeroAlignment: d.h.subclusterSize(), DiscardAlignment: d.h.subclusterSize()}
	if d.crypt != nil {
		l.RequestAlignment = luks.SectorSize // which are encrypted as a whole
	}
	return l
}

// Caps returns what the driver does itself.
func (d *Driver) Caps() blockgraph.Caps {
	c := blockgraph.Caps{
		FUA:             blockgraph.CapEmulate,
		ZeroFUA:         blockgraph.CapEmulate,
		WriteZeroes:     blockgraph.CapNative,
		Discard:         blockgraph.CapNative,
		Compressed:      blockgraph.CapNative,
		WriteUnchanged:  blockgraph.CapNative,
		OnlyUnallocated: blockgraph.CapNative,
		Backing:         true,
	}
	c.FreshZero = !d.h.raw // whose data file may have anything there
	if d.h.version >= 3 {
		c.MayUnmap, c.NoFallback = blockgraph.CapNative, blockgraph.CapNative
	}
	return c
}

// settle brings everything that has changed to disk and drops the counts of
// freed clusters. With no request in flight nothing is left.
func (d *Driver) settle(ctx context.Context) error {
	for last := int64(-1); ; {
		if err := d.writeBack(ctx); err != nil {
			return err
		}
		if err := d.reclaim(ctx); err != nil {
			return err
		}
		d.mu.Lock()
		frees, dirty := d.frees.count, len(d.refs.dirty)
		d.mu.Unlock()
		if dirty == 0 && (frees == 0 || frees == last) {
			return nil
		}
		last = frees
	}
}

// Close writes back and gives everything up. No request is in flight.
func (d *Driver) Close(ctx context.Context) error {
	d.cleaner.every(d, 0)
	d.background.wait(ctx)
	var err error
	if !d.readOnly.Load() && !d.broken.Load() {
		err = errors.Join(d.closeBitmaps(ctx, nil), d.settle(ctx))
	}
	d.background.wait(context.WithoutCancel(ctx))
	if n, total := d.BitmapWaits(); n > 0 {
		slog.Info("writes waited for the stored dirty bitmaps", "file", fileName(d.file()), "writes", n, "seconds", total.Seconds())
	}
	return err
}

// QuiesceBegin waits until nothing runs that no request waits for.
func (d *Driver) QuiesceBegin(ctx context.Context) { d.background.wait(ctx) }

// QuiesceEnd does nothing: background work begins with a request only.
func (d *Driver) QuiesceEnd() {}
