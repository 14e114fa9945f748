package copybeforewrite

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"blockd/blockgraph"
	"blockd/clock"
	"blockd/ioengine"
	"blockd/jobs/copy"
	"blockd/jobs/scratch"
	"blockd/qapi"
)

// maxCopy is the longest piece that a guest's write copies at a time, in
// bytes; a cluster may be longer.
const maxCopy = 1 << 20

// maxParallel is how many pieces one guest's write copies at once.
const maxParallel = 4

// Filter is the driver of a copy-before-write node. A job makes one by tx.Open
// of options with this driver (with discard=unmap, else the node ignores
// discards), then tx.ReplaceNode(source, node), then tx.NewRoot over the node
// with PermConsistentRead; node.Driver().(*Filter) is this type.
type Filter struct {
	node     *blockgraph.Node
	clock    clock.Clock
	clusters *copy.Clusters
	onError  qapi.OnCbwError
	timeout  time.Duration // 0: none
	flags    blockgraph.Flags
	top      *blockgraph.Node // nil: all of the source

	discardSource bool // of what the job has copied

	scratch     *scratch.Scratch // nil: none
	breakIfFull bool

	snapshot    snapshot
	overwritten *overwritten
	unchosen    int64 // bytes that a job leaves out, see Restrict

	broken    atomic.Pointer[error]
	brokenSig chan struct{} // closed when broken is set

	// How many copies are under way for guests' writes, those among them that
	// outlived their write.
	mu     sync.Mutex //blockd:short
	copies int        // +checklocks:mu
	// +checklocks:mu
	rest chan struct{} // closed when copies falls to 0; nil: nobody waits
}

// Clusters is what is still to be copied, shared by guests' writes and the
// job's own steps. All clusters are dirty at open.
func (f *Filter) Clusters() *copy.Clusters { return f.clusters }

// SetTop has clusters left out that the source's first non-filter node, which is
// looked for now, does not have allocated (sync=top). Before the filter is in
// the graph.
func (f *Filter) SetTop() { f.top = f.node.File().Child().SkipFilters() }

// SetCompressed has data written compressed. Before the filter is in the
// graph.
func (f *Filter) SetCompressed(on bool) {
	f.flags &^= blockgraph.Compressed
	if on {
		f.flags |= blockgraph.Compressed
	}
}

// SetScratch has guests' writes keep old content in s, which Work copies out,
// instead of copying it to the target themselves. Without room in it they copy
// as before or, with breakIfFull, the snapshot breaks. The filter drops s when
// it is closed. Before the filter is in the graph.
func (f *Filter) SetScratch(s *scratch.Scratch, breakIfFull bool) {
	f.scratch, f.breakIfFull = s, breakIfFull
}

// SetDiscardSource has the job's own steps discard in the source what they have
// copied, which the node's permissions then allow for. What a guest is about to
// change is not discarded: it would be gone if the change failed. Before the
// filter is in the graph.
func (f *Filter) SetDiscardSource() { f.discardSource = true }

// SnapshotError is the first failed copy under on-cbw-error=break-snapshot,
// ErrAbandoned after Abandon, or nil. From then on guests' writes are no
// longer held up, and the target is no point in time. Any goroutine.
func (f *Filter) SnapshotError() error {
	if e := f.broken.Load(); e != nil {
		return *e
	}
	return nil
}

// Broken is closed when SnapshotError is set. Any goroutine.
func (f *Filter) Broken() <-chan struct{} { return f.brokenSig }

// Work is the job's own copying of what is dirty (backup), through a root over
// the filter's node. Zeroes may be unmapped where the target's options allow
// it. It ends with SnapshotError when the snapshot breaks.
func (f *Filter) Work(root *blockgraph.Root) copy.Work {
	return copy.NewClusterWork(f.clusters, copy.ClusterOptions{
		Enter:         f.Enter(root),
		Top:           f.top,
		WriteFlags:    f.flags,
		ZeroFlags:     f.zeroFlags(),
		DiscardSource: f.discardSource,
		Check:         f.SnapshotError,
		Scratch:       f.scratch,
	})
}

func (f *Filter) zeroFlags() blockgraph.Flags {
	return f.flags&^blockgraph.Compressed | blockgraph.MayUnmap
}

// Enter returns the function by which a step of a job with a root over the
// filter's node reaches source and target.
func (f *Filter) Enter(root *blockgraph.Root) func(ctx context.Context) (copy.Ends, func(), error) {
	return func(ctx context.Context) (copy.Ends, func(), error) {
		a, err := root.Enter(ctx)
		if err != nil {
			return copy.Ends{}, nil, err
		}
		return f.ends(), a.Leave, nil
	}
}

// Serialises implements blockgraph.Serialiser.
func (f *Filter) Serialises(e *blockgraph.Edge) bool {
	return e.Name() == "target" && f.flags&blockgraph.Serialising != 0
}

// ends is called under an admission.
func (f *Filter) ends() copy.Ends {
	return copy.Ends{Source: f.node.File(), Target: f.node.Child("target")}
}

// before saves what bytes [off, off+n) hold before the guest changes them, and
// waits for readers of the snapshot who take them from the source. An error
// fails the guest's request.
func (f *Filter) before(ctx context.Context, off, n int64, flags blockgraph.Flags) error {
	if flags&blockgraph.WriteUnchanged != 0 {
		return nil
	}
	if f.clusters.Dirty(off, n) && f.broken.Load() == nil {
		if err := f.save(ctx, off, n); err != nil && f.broken.Load() == nil {
			if ctx.Err() != nil || f.onError == qapi.OnCbwErrorBreakGuestWrite {
				return err
			}
			f.breakSnapshot(err)
		}
	}
	f.noteOverwritten(off, n)
	return f.waitReaders(ctx, off, n)
}

// saveRange copies what is dirty of the range, a long one by several
// goroutines.
func (f *Filter) saveRange(ctx context.Context, off, n int64) error {
	k := min((n+maxCopy-1)/maxCopy, maxParallel)
	if k <= 1 {
		return f.saveDirty(ctx, off, n)
	}
	errs := make(chan error, k)
	for range k {
		go func() { errs <- f.saveDirty(ctx, off, n) }()
	}
	var err error
	for range k {
		if e := <-errs; err == nil {
			err = e
		}
	}
	return err
}

// saveDirty copies what is dirty of the range, piece by piece, and waits for
// what others copy of it. What they failed to copy is tried again here.
func (f *Filter) saveDirty(ctx context.Context, off, n int64) error {
	for f.clusters.Dirty(off, n) {
		cl, ok := f.clusters.Claim(off, n, maxCopy)
		if !ok {
			if err := f.clusters.Wait(ctx, off, n); err != nil {
				return err
			}
			continue
		}
		if err := f.saveClaim(ctx, cl); err != nil {
			return err
		}
	}
	return nil
}

// saveClaim copies one claim and ends it.
func (f *Filter) saveClaim(ctx context.Context, cl *copy.Claim) error {
	ends := f.ends()
	n := min(cl.N, f.clusters.Len()-cl.Off)
	kind, err := f.kind(ctx, ends, cl)
	if err == nil && kind != copy.Skip && f.scratch != nil {
		var kept bool
		if kept, err = f.keep(ctx, ends, cl, kind); kept {
			f.clusters.Done(cl, copy.Saved)
			return nil
		}
	}
	if err == nil && kind != copy.Data {
		_, err = copy.CopyRange(ctx, ends, cl.Off, n, kind, nil, 0, f.zeroFlags())
	} else if err == nil {
		b := ioengine.Bounce(int(n))
		_, err = copy.CopyRange(ctx, ends, cl.Off, n, kind, b.Bytes(), f.flags, 0)
		b.Release()
	}
	switch {
	case err != nil:
		f.clusters.Done(cl, copy.Failed)
	case kind == copy.Skip:
		f.clusters.Done(cl, copy.Unneeded)
	default:
		f.clusters.Done(cl, copy.Copied)
	}
	return err
}

// keep keeps one claim's content in the scratch, if there is room: a scratch
// whose file fails has none. It does not end the claim.
func (f *Filter) keep(ctx context.Context, ends copy.Ends, cl *copy.Claim, kind copy.Kind) (kept bool, err error) {
	n := min(cl.N, f.clusters.Len()-cl.Off)
	room, ok := f.scratch.Reserve(n, kind == copy.Zero)
	full := error(scratch.ErrFull)
	if ok {
		var b *ioengine.Buffer
		if kind == copy.Data {
			b = ioengine.Bounce(int(n))
			if err = ends.Source.ReadV(ctx, cl.Off, blockgraph.MakeIOVec(b.Bytes()), 0); err != nil {
				b.Release()
				room.Free()
				return false, err
			}
		}
		err := room.Keep(ctx, cl.Off, n, b)
		switch {
		case err == nil:
			return true, nil
		case ctx.Err() != nil || errors.Is(err, scratch.ErrDropped):
			return false, err
		}
		full = err
	}
	if !f.breakIfFull {
		return false, nil
	}
	f.breakSnapshot(full)
	return false, full
}

// kind asks what the claimed clusters are, as one. A failing status counts as
// data; the error is the context's.
func (f *Filter) kind(ctx context.Context, ends copy.Ends, cl *copy.Claim) (copy.Kind, error) {
	src := ends.Source.Child()
	base, skips := copy.Layer(src, f.top)
	n := min(cl.N, f.clusters.Len()-cl.Off)
	st, _, err := src.StatusAbove(ctx, base, cl.Off, n, blockgraph.StatusPrecise)
	switch {
	case err != nil:
		return copy.Data, ctx.Err()
	case st.N < n:
		return copy.Data, nil
	case skips && st.Flags&blockgraph.StatusAllocated == 0:
		return copy.Skip, nil
	case st.Flags&blockgraph.StatusZero != 0:
		return copy.Zero, nil
	}
	return copy.Data, nil
}
