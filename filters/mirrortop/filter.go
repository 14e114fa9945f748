package mirrortop

import (
	"context"
	"sync"
	"sync/atomic"

	"blockd/bitmaps"
	"blockd/blockgraph"
	"blockd/qapi"
)

// Driver is the name of the driver in queries. No options name it.
const Driver = "mirror_top"

// Edge is the name of the edge to the source.
const Edge = "backing"

// Options of a Filter.
type Options struct {
	// Source is the node below.
	Source *blockgraph.Node
	// Granularity of copying in bytes, a power of two of at least 512.
	Granularity int64
	// Commit: the target is below the source in its chain.
	Commit bool
	// Whole: a granule of the target must be written as a whole, because the
	// target has a backing file by name that is not attached yet.
	Whole bool
	// ZeroAsData: the same target cannot keep zeroes as such, since what is not
	// allocated will show its backing file. The job writes them.
	ZeroAsData bool
}

// Filter is the driver of a mirror_top node, and what its job shares with it:
// the dirty bitmap and the locks on granules.
type Filter struct {
	o     Options
	node  *blockgraph.Node
	dirty *bitmaps.Bitmap
	locks blockgraph.RangeLock

	active    atomic.Bool
	exclusive atomic.Bool
	stopped   atomic.Bool
	halted    atomic.Bool
	synced    atomic.Bool

	// target and the functions are set before the filter becomes active.
	target   *blockgraph.Root
	onError  func(err error)
	progress func(done, remaining int64)
	filled   *bitmaps.Bitmap // see TrackFilled

	// wanted: somebody waits for something to become dirty.
	wanted atomic.Bool
	dirt   Signal
	// shapes counts what may have changed where the source has data.
	shapes atomic.Int64

	life context.Context // ends with Abandon
	die  context.CancelFunc

	mu sync.Mutex //blockd:short
	// +checklocks:mu
	writes int // to the target, under way
	// +checklocks:mu
	rest chan struct{} // closed when writes falls to 0; nil: nobody waits
}

// New returns a filter that is passive. It fails, in the field's words, for a
// source that is too large for its granularity.
func New(o Options) (*Filter, error) {
	if err := bitmaps.Check(o.Source.Size(), o.Granularity); err != nil {
		return nil, err
	}
	f := &Filter{o: o, dirty: bitmaps.New(o.Source.Size(), o.Granularity), dirt: NewSignal()}
	f.life, f.die = context.WithCancel(context.Background())
	return f, nil
}

// Type returns the type of the filter's one node, for Tx.OpenType.
func (f *Filter) Type() *blockgraph.DriverType {
	return &blockgraph.DriverType{
		Name: Driver, Filter: true, NamedByChild: true, NeverFreeze: true,
		Children: func(*qapi.BlockdevOptions) []blockgraph.ChildSpec {
			name := f.o.Source.Name()
			return []blockgraph.ChildSpec{{Name: Edge, Role: blockgraph.RoleFiltered | blockgraph.RolePrimary, Ref: qapi.BlockdevRef{Reference: &name}}}
		},
		Open: func(_ context.Context, r *blockgraph.OpenRequest) (blockgraph.Driver, error) {
			f.node = r.Node
			return f, nil
		},
	}
}

// Target is what an active filter does with the target.
type Target struct {
	// Root writes to it; it needs PermWrite.
	Root *blockgraph.Root
	// OnError is told of a failed write. It may wait for the loop. Any goroutine.
	OnError func(err error)
	// Progress is told of what guests' writes bring to the target.
	Progress func(done, remaining int64)
}

// SetTarget is called before the filter becomes active.
func (f *Filter) SetTarget(t Target) { f.target, f.onError, f.progress = t.Root, t.OnError, t.Progress }

// Dirty is what is to be copied.
func (f *Filter) Dirty() *bitmaps.Bitmap { return f.dirty }

// MarkDirty implements blockgraph.Marker: the filter is one of its source.
func (f *Filter) MarkDirty(off, n int64) {
	f.dirty.Set(off, n)
	if f.wanted.Load() && f.wanted.CompareAndSwap(true, false) {
		f.dirt.Send()
	}
}

// AwaitDirt returns a channel that receives when something is dirty. One
// goroutine calls it, and ends the wait with EndAwait.
func (f *Filter) AwaitDirt() <-chan struct{} {
	f.wanted.Store(true)
	if f.dirty.Count() > 0 && f.wanted.CompareAndSwap(true, false) {
		f.dirt.Send()
	}
	return f.dirt
}

// EndAwait ends a wait whose channel has not received.
func (f *Filter) EndAwait() {
	if !f.wanted.CompareAndSwap(true, false) {
		<-f.dirt
	}
}

// Shapes returns a number that changes with every request that may have changed
// where the source has data and where zeroes.
func (f *Filter) Shapes() int64 { return f.shapes.Load() }

// Granularity returns the unit of copying in bytes.
func (f *Filter) Granularity() int64 { return f.o.Granularity }

// SetExclusive says whether anybody but the filter may write to the source.
// Tx.RefreshPerms has it take effect. Before SetActive(true).
func (f *Filter) SetExclusive(on bool) { f.exclusive.Store(on) }

// Exclusive tells whether nobody but the filter may write to the source. Any
// goroutine.
func (f *Filter) Exclusive() bool { return f.exclusive.Load() }

// SetActive says whether guests' writes go to the target, too. Called with the
// guests drained.
//
//blockd:global
func (f *Filter) SetActive(on bool) {
	f.active.Store(on)
	if !on {
		f.synced.Store(false)
	}
}

// Active tells whether guests' writes go to the target, too. Any goroutine.
func (f *Filter) Active() bool { return f.active.Load() }

// SetStopped has the filter need nothing of the source any more, for the change
// that takes it out. It has no requests from then on.
func (f *Filter) SetStopped(on bool) { f.stopped.Store(on) }

// Sync says that the target has all of the source, if it does: the filter is
// active and nothing is dirty. It stays so until a write is only marked. Any
// goroutine.
func (f *Filter) Sync() bool {
	if !f.active.Load() {
		return false
	}
	f.synced.Store(true)
	if f.dirty.Count() != 0 { // looked at after: a write marks, then takes synced back
		f.synced.Store(false)
	}
	return f.synced.Load()
}

// SetHalted has an active filter only mark, for a job that an error has stopped.
// Any goroutine.
func (f *Filter) SetHalted(on bool) { f.halted.Store(on) }

// Halted tells whether the filter only marks. Any goroutine.
func (f *Filter) Halted() bool { return f.halted.Load() }

// Synced tells whether the target has all of the source. Any goroutine.
func (f *Filter) Synced() bool { return f.synced.Load() }

// Unsync says that the target may no longer have all of the source.
//
//blockd:any
func (f *Filter) Unsync() {
	if f.synced.Load() {
		f.synced.Store(false)
	}
}

// Lock takes the granules that [off, off+n) touches alone. Data plane; it
// waits, and the caller must not wait for anything but I/O until Unlock.
func (f *Filter) Lock(ctx context.Context, off, n int64) (*blockgraph.RangeHold, error) {
	start, end := f.granules(off, n)
	return f.locks.Lock(ctx, start, end-start, true)
}

// Unlock ends a Lock.
func (f *Filter) Unlock(h *blockgraph.RangeHold) { f.locks.Unlock(h) }

// granules widens a range to whole granules.
func (f *Filter) granules(off, n int64) (start, end int64) {
	g := f.o.Granularity
	return off &^ (g - 1), (off + n + g - 1) &^ (g - 1)
}

// TrackFilled has the filter note which granules of the target may have come to
// hold something else than zeroes. Called when all of it reads as zeroes,
// before anything is written.
func (f *Filter) TrackFilled() { f.filled = bitmaps.New(f.dirty.Size(), f.o.Granularity) }

// Fill notes that data is about to be written to the target. Any goroutine.
func (f *Filter) Fill(off, n int64) {
	if f.filled != nil {
		f.filled.Set(off, n)
	}
}

// Blank tells whether all of [off, off+n) reads as zeroes on the target. Called
// under Lock.
func (f *Filter) Blank(off, n int64) bool {
	if f.filled == nil {
		return false
	}
	_, _, some := f.filled.NextDirty(off, off+n)
	return !some
}

// Abandon makes the filter passive for good and lets every guest go on that
// waits for the target. Any goroutine; it returns at once. It may be called
// again.
//
//blockd:any
func (f *Filter) Abandon() {
	f.die()
	f.Unsync()
}

// Writes returns how many writes to the target are under way for guests. Any
// goroutine.
//
//blockd:any
func (f *Filter) Writes() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.writes
}

// Rest returns a channel that is closed when no write to the target is under
// way for a guest, nil when none is.
func (f *Filter) Rest() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.writes == 0 {
		return nil
	}
	if f.rest == nil {
		f.rest = make(chan struct{})
	}
	return f.rest
}

// begin counts a write to the target.
func (f *Filter) begin() {
	f.mu.Lock()
	f.writes++
	f.mu.Unlock()
}

func (f *Filter) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.writes--
	if f.writes == 0 && f.rest != nil {
		close(f.rest)
		f.rest = nil
	}
}
