package copy

import (
	"context"
	"sync"

	"blockd/blockgraph"
	"blockd/jobs/scratch"
)

// ClusterOptions say how a ClusterWork copies.
type ClusterOptions struct {
	// Enter admits a step and returns both ends, and the function that ends
	// the admission: EnterRoots, or Enter of a copy-before-write filter.
	Enter func(ctx context.Context) (Ends, func(), error)
	// Top, if not nil, is the image whose own clusters are copied, and no others
	// (sync=top): see Layer.
	Top *blockgraph.Node
	// WriteFlags go with every write of data; ZeroFlags with every write of
	// zeroes (blockgraph.MayUnmap).
	WriteFlags, ZeroFlags blockgraph.Flags
	// DiscardSource: what a step has copied is discarded in the source before
	// its claim ends, so that nothing newer is. The source's edge needs PermWrite.
	DiscardSource bool
	// Recheck: the source changes under the copy (mirror), so what a range is
	// is asked after it was claimed, not only when it was planned. A
	// copy-before-write filter needs none: what is dirty has not changed.
	Recheck bool
	// Check, if not nil, is asked under the claim before a copy and after it;
	// its error ends the run and leaves the clusters dirty.
	Check func() error
	// Scratch, if not nil, is where guests' writes keep old content: the work
	// copies it out, before anything else, and has its own steps hold guests'
	// writes up for as long as they read, not while they write.
	Scratch *scratch.Scratch
	// Idle, if not nil, is Settle after all claims have ended: a mirror waits
	// here for dirty clusters. Without it Settle says whether there are any.
	Idle func(ctx context.Context) (more bool, err error)
}

// NewClusterWork returns the Work that copies the dirty clusters of c, in
// ascending order (backup and, later, mirror). What the source says reads as
// zeroes is not read; a failing block status counts as data, as in the field.
// It reports progress through c.
func NewClusterWork(c *Clusters, o ClusterOptions) Work { return &clusterWork{c: c, o: o} }

// clusterWork plans along a cursor. It keeps the latest block status answer,
// which may describe far more than one piece.
type clusterWork struct {
	c *Clusters
	o ClusterOptions

	// Of the planner. It first looks for what can be left out, so that the
	// progress, and after a failure the bitmap, tell of what is to be copied.
	looked bool
	cursor int64
	extent Piece
}

// maxStatus is the longest range that one block status query asks for, in bytes.
const maxStatus = 64 << 30

// Unit implements Work.
func (w *clusterWork) Unit() int64 { return w.c.size }

// Next implements Work.
func (w *clusterWork) Next(ctx context.Context, l Limit) (Piece, error) {
	if w.o.Scratch != nil {
		if p, ok := w.nextSaved(l); ok {
			return p, nil
		}
	}
	for w.o.Top != nil && !w.looked {
		p, err := w.plan(ctx, Limit{Data: maxStatus, Zero: maxStatus})
		if err != nil || p.N > 0 && p.Kind == Skip {
			return p, err
		}
		if p.N == 0 {
			w.looked, w.cursor, w.extent = true, 0, Piece{}
		}
	}
	return w.plan(ctx, l)
}

// plan returns the next piece from the cursor on; an empty one is the end.
func (w *clusterWork) plan(ctx context.Context, l Limit) (Piece, error) {
	c := w.c
	if w.cursor >= c.length {
		return Piece{}, nil
	}
	off, n, ok := c.next(w.cursor, c.length-w.cursor, max(l.Data, l.Zero))
	if !ok {
		w.cursor = c.length
		return Piece{}, nil
	}
	if off < w.extent.Off || off >= w.extent.Off+w.extent.N {
		ends, leave, err := w.o.Enter(ctx)
		if err != nil {
			return Piece{}, err
		}
		w.extent, err = w.status(ctx, ends, off, maxStatus)
		leave()
		if err != nil {
			return Piece{}, err
		}
	}
	p := Piece{Off: off, N: min(n, w.extent.Off+w.extent.N-off), Kind: w.extent.Kind}
	switch p.Kind {
	case Data:
		p.N = min(p.N, l.Data)
	case Zero:
		p.N = min(p.N, max(l.Zero, c.size)&^(c.size-1))
	}
	w.cursor = off + p.N
	return p, nil
}

// status describes the clusters from off on, for at most n bytes, in whole
// clusters. Its only error is the context's.
func (w *clusterWork) status(ctx context.Context, ends Ends, off, n int64) (Piece, error) {
	c := w.c
	src := ends.Source.Child()
	base, skips := Layer(src, w.o.Top)
	one := Piece{Off: off, N: c.size, Kind: Data}
	st, _, err := src.StatusAbove(ctx, base, off, min(n, c.length-off), blockgraph.StatusPrecise)
	if err != nil {
		return one, ctx.Err()
	}
	p := Piece{Off: off, N: st.N &^ (c.size - 1), Kind: Data}
	if off+st.N >= c.length {
		p.N = (st.N + c.size - 1) &^ (c.size - 1)
	}
	if p.N == 0 {
		return one, nil
	}
	switch {
	case skips && st.Flags&blockgraph.StatusAllocated == 0:
		p.Kind = Skip
	case st.Flags&blockgraph.StatusZero != 0:
		p.Kind = Zero
	}
	return p, nil
}

// Layer returns down to which node, itself left out, a cluster counts as
// top's own, for a source that is read through src; skips tells whether others
// may be left out. Overlays that were put over top since belong to it: what
// is in them was in top, or was written after the point in time. When a job has
// merged top into another image nobody knows any more what was top's own.
func Layer(src, top *blockgraph.Node) (base *blockgraph.Node, skips bool) {
	if top == nil || !src.ChainContains(top) {
		return nil, false
	}
	return top.BackingChain(), true
}

// Do implements Work.
func (w *clusterWork) Do(ctx context.Context, p Piece, buf []byte) error {
	ends, leave, err := w.o.Enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if w.o.Scratch != nil {
		if err := w.copyOut(ctx, ends, p, buf); err != nil {
			return err
		}
	}
	for off, end := p.Off, p.Off+p.N; off < end; {
		cl, ok := w.c.Claim(off, end-off, end-off)
		if !ok {
			return nil
		}
		off = cl.Off + cl.N
		kind := p.Kind
		if w.o.Recheck {
			st, err := w.status(ctx, ends, cl.Off, cl.N)
			if err != nil {
				w.c.Done(cl, Failed)
				return err
			}
			if kind = st.Kind; kind == Data && buf == nil {
				// Planned as zeroes; the next round has a buffer for it.
				w.c.Done(cl, Failed)
				continue
			}
			w.c.Shrink(cl, st.N)
			off = cl.Off + cl.N
		}
		if err := w.copyClaim(ctx, ends, cl, kind, buf, p); err != nil {
			return err
		}
	}
	return nil
}

// copyClaim copies what is claimed and ends the claim. whole is the piece that a
// fault names.
func (w *clusterWork) copyClaim(ctx context.Context, ends Ends, cl *Claim, kind Kind, buf []byte, whole Piece) error {
	off, n := cl.Off, min(cl.N, w.c.length-cl.Off)
	err := w.check()
	if err == nil && kind == Data {
		if err = readInto(ctx, ends.Source, off, buf[:n]); err != nil {
			err = &Fault{Op: Read, Off: whole.Off, N: whole.N, Err: err}
		}
	}
	if err == nil && kind != Skip && w.o.Scratch != nil && !w.o.DiscardSource {
		if err = w.check(); err == nil {
			return w.writeReleased(ctx, ends, cl, kind, buf, whole)
		}
	}
	if err == nil && kind != Skip {
		if err = w.write(ctx, ends, off, n, kind, buf); err != nil {
			err = &Fault{Op: Write, Off: whole.Off, N: whole.N, Err: err}
		}
	}
	if err == nil {
		err = w.check()
	}
	if err == nil && kind != Skip && w.o.DiscardSource {
		// A discard is advice; whether it worked does not matter to the copy.
		_ = ends.Source.Discard(ctx, off, n)
	}
	switch {
	case err != nil:
		w.c.Done(cl, Failed)
	case kind == Skip:
		w.c.Done(cl, Unneeded)
	default:
		w.c.Done(cl, Copied)
	}
	return err
}

// write writes one piece to the target.
func (w *clusterWork) write(ctx context.Context, ends Ends, off, n int64, kind Kind, buf []byte) error {
	if kind == Zero {
		return ends.Target.WriteZeroes(ctx, off, n, w.o.ZeroFlags)
	}
	return writeFrom(ctx, ends.Target, off, buf[:n], w.o.WriteFlags)
}

func (w *clusterWork) check() error {
	if w.o.Check == nil {
		return nil
	}
	return w.o.Check()
}

// Skip implements Work.
func (w *clusterWork) Skip(p Piece, failed bool) {
	n := w.c.clear(p.Off, p.N)
	if !failed {
		// What is kept of it is not given up: a guest has changed it since,
		// perhaps before it was looked at.
		w.c.tell(0, -n)
		return
	}
	if w.o.Scratch != nil {
		n += w.forgetSaved(p)
	}
	w.c.tell(n, -n)
}

// Settle implements Work.
func (w *clusterWork) Settle(ctx context.Context) (more bool, err error) {
	if err := w.c.Wait(ctx, 0, w.c.length); err != nil {
		return false, err
	}
	w.cursor, w.extent = 0, Piece{}
	if w.o.Idle != nil {
		return w.o.Idle(ctx)
	}
	// A guest's write may have claimed what was dirty since the wait, and then
	// keeps it or fails. So nothing is over before no cluster is dirty or
	// claimed; from then on nothing gets into the scratch any more.
	if w.c.Remaining() > 0 {
		return true, w.check()
	}
	if err := w.check(); err != nil {
		return false, err
	}
	if w.o.Scratch != nil && !w.o.Scratch.Empty() {
		w.o.Scratch.Replan()
		return true, nil
	}
	return false, nil
}

var vectors = sync.Pool{New: func() any { return &blockgraph.IOVec{} }}

// CopyRange copies bytes [off, off+n) by way of buf, which is nil for zeroes,
// and tells which side failed. It is called under an admission; it blocks on
// I/O only.
func CopyRange(ctx context.Context, e Ends, off, n int64, kind Kind, buf []byte, writeFlags, zeroFlags blockgraph.Flags) (Op, error) {
	switch kind {
	case Skip:
		return Read, nil
	case Zero:
		return Write, e.Target.WriteZeroes(ctx, off, n, zeroFlags)
	}
	if err := readInto(ctx, e.Source, off, buf[:n]); err != nil {
		return Read, err
	}
	return Write, writeFrom(ctx, e.Target, off, buf[:n], writeFlags)
}

func readInto(ctx context.Context, e *blockgraph.Edge, off int64, b []byte) error {
	v := vectors.Get().(*blockgraph.IOVec)
	v.SetBytes(b)
	err := e.ReadV(ctx, off, v, 0)
	putVector(v)
	return err
}

func writeFrom(ctx context.Context, e *blockgraph.Edge, off int64, b []byte, flags blockgraph.Flags) error {
	v := vectors.Get().(*blockgraph.IOVec)
	v.SetBytes(b)
	err := e.WriteV(ctx, off, v, flags)
	putVector(v)
	return err
}

func putVector(v *blockgraph.IOVec) {
	v.SetBytes(nil)
	v.Reset()
	vectors.Put(v)
}
