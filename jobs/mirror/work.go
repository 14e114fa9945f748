package mirror

import (
	"context"

	"blockd/blockgraph"
	"blockd/jobs/copy"
)

// work is the Work of the job: it copies what is dirty, in ascending order,
// again and again. It keeps the latest block status answer, which may describe
// far more than one piece; a write that changes where there are zeroes makes it
// worthless, and what it calls zero is asked again under the lock.
type work struct {
	m      *mirror
	length int64
	enter  func(ctx context.Context) (copy.Ends, func(), error)
	settle func(ctx context.Context) (more bool, err error)

	// Of the planner.
	cursor int64
	extent copy.Piece
	shapes int64 // as of the extent
	putOff bool  // an ignored error left something dirty
}

func newWork(m *mirror) *work {
	return &work{m: m, length: m.source.Size(), enter: copy.EnterRoots(m.main, m.targetRoot)}
}

// Unit implements copy.Work.
func (w *work) Unit() int64 { return w.m.filter.Granularity() }

// Next implements copy.Work.
func (w *work) Next(ctx context.Context, l copy.Limit) (copy.Piece, error) {
	if err := w.m.converge(ctx); err != nil {
		return copy.Piece{}, err
	}
	off, n, ok := w.m.filter.Dirty().NextDirty(w.cursor, w.length)
	if !ok {
		w.cursor = w.length
		return copy.Piece{}, nil
	}
	shapes := w.m.filter.Shapes()
	if off < w.extent.Off || off >= w.extent.Off+w.extent.N || shapes != w.shapes {
		ends, leave, err := w.enter(ctx)
		if err != nil {
			return copy.Piece{}, err
		}
		w.extent, err = w.status(ctx, ends, off, maxStatus)
		leave()
		if err != nil {
			return copy.Piece{}, err
		}
		w.shapes = shapes
	}
	p := copy.Piece{Off: off, N: min(n, w.extent.Off+w.extent.N-off), Kind: w.extent.Kind}
	most := l.Data
	if p.Kind == copy.Zero {
		most = l.Zero
	}
	if g := w.Unit(); p.N > most {
		p.N = max(g, most&^(g-1))
	}
	w.cursor = off + p.N
	return p, nil
}

// status describes the granules from off on, for at most n bytes, in whole
// granules. What cannot be told is data. Its only error is the context's.
func (w *work) status(ctx context.Context, ends copy.Ends, off, n int64) (copy.Piece, error) {
	g := w.Unit()
	p := copy.Piece{Off: off, N: min(g, w.length-off), Kind: copy.Data}
	st, _, err := ends.Source.Child().StatusAbove(ctx, nil, off, min(n, w.length-off), blockgraph.StatusPrecise)
	if err != nil {
		return p, ctx.Err()
	}
	whole := st.N &^ (g - 1)
	if off+st.N >= w.length {
		whole = w.length - off
	}
	if whole == 0 {
		return p, nil
	}
	p.N = whole
	if st.Flags&blockgraph.StatusZero != 0 && !w.m.zeroAsData {
		p.Kind = copy.Zero
	}
	return p, nil
}

// Do implements copy.Work. Of the piece it copies what is still dirty.
func (w *work) Do(ctx context.Context, p copy.Piece, buf []byte) error {
	ends, leave, err := w.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	f := w.m.filter
	h, err := f.Lock(ctx, p.Off, p.N)
	if err != nil {
		return err
	}
	defer f.Unlock(h)
	for off, end := p.Off, p.Off+p.N; ; {
		start, n, ok := f.Dirty().NextDirty(off, end)
		if !ok {
			return nil
		}
		off = start + n
		run := copy.Piece{Off: start, N: n, Kind: p.Kind}
		if err := w.copyRun(ctx, ends, run, buf); err != nil {
			return err
		}
	}
}

// copyRun copies dirty granules under their lock. A run that was planned as
// zeroes and is none any more stays dirty.
func (w *work) copyRun(ctx context.Context, ends copy.Ends, r copy.Piece, buf []byte) error {
	m, f := w.m, w.m.filter
	// First the marks, then a look at what is there: what is written after the
	// look marks again.
	m.inFlight.Add(r.N)
	f.Dirty().Clear(r.Off, r.N)
	op, err := copy.Read, error(nil)
	if r.Kind == copy.Zero {
		var now copy.Piece
		if now, err = w.status(ctx, ends, r.Off, r.N); err == nil && (now.Kind != copy.Zero || now.N < r.N) {
			f.Dirty().Set(r.Off, r.N)
			m.inFlight.Add(-r.N)
			return nil
		}
	} else {
		f.Fill(r.Off, r.N)
	}
	if err == nil && (r.Kind == copy.Data || !f.Blank(r.Off, r.N)) {
		op, err = copy.CopyRange(ctx, ends, r.Off, r.N, r.Kind, buf, 0, m.zeroFlags())
	}
	if err != nil {
		f.Dirty().Set(r.Off, r.N)
		m.inFlight.Add(-r.N)
		f.Unsync()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return &copy.Fault{Op: op, Off: r.Off, N: r.N, Err: err}
	}
	m.copied(r.N)
	m.inFlight.Add(-r.N)
	return nil
}

// Skip implements copy.Work: what failed is still dirty, and its turn comes
// again.
func (w *work) Skip(_ copy.Piece, failed bool) { w.putOff = w.putOff || failed }

// Settle implements copy.Work.
func (w *work) Settle(ctx context.Context) (more bool, err error) {
	w.cursor, w.extent = 0, copy.Piece{}
	return w.settle(ctx)
}
