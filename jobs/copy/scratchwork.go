package copy

import (
	"context"

	"blockd/ioengine"
)

// This file is a ClusterWork's dealings with a scratch. A cluster is in one of
// three places: dirty in the Clusters, kept in the scratch, or in the hands of
// one step. It leaves one for the next under a claim or as a Run, so it is
// copied once and counted once.

// nextSaved plans what is kept.
func (w *clusterWork) nextSaved(l Limit) (Piece, bool) {
	off, n, zero, ok := w.o.Scratch.Next(l.Data, l.Zero)
	p := Piece{Off: off, N: n, Kind: Data}
	if zero {
		p.Kind = Zero
	}
	return p, ok
}

// copyOut copies what is kept of the piece to the target. A scratch that cannot
// be read ends the run: what it kept is nowhere else.
func (w *clusterWork) copyOut(ctx context.Context, ends Ends, p Piece, buf []byte) error {
	for {
		r, ok := w.o.Scratch.Take(p.Off, p.N, buf != nil)
		if !ok {
			return nil
		}
		kind := Zero
		if !r.Zero {
			kind = Data
			if err := r.Read(ctx, buf[:r.N]); err != nil {
				r.Return()
				return err
			}
		}
		err := w.check()
		if err == nil {
			if err = w.write(ctx, ends, r.Off, r.N, kind, buf); err != nil {
				err = &Fault{Op: Write, Off: p.Off, N: p.N, Err: err}
			}
		}
		if err != nil {
			r.Return()
			return err
		}
		off, n := r.Off, r.N
		r.Done()
		w.c.Account(off, n)
	}
}

// writeReleased ends the claim, whose content is in buf, and then writes it: no
// guest's write waits for the target. If that fails the content is kept.
func (w *clusterWork) writeReleased(ctx context.Context, ends Ends, cl *Claim, kind Kind, buf []byte, whole Piece) error {
	off, n := cl.Off, min(cl.N, w.c.length-cl.Off)
	w.c.Done(cl, Saved)
	err := w.write(ctx, ends, off, n, kind, buf)
	if err == nil {
		w.c.Account(off, n)
		return nil
	}
	var b *ioengine.Buffer
	if kind == Data {
		b = ioengine.Bounce(int(n))
		copy(b.Bytes(), buf[:n])
	}
	room := w.o.Scratch.Overdraw(n, kind == Zero)
	if lost := room.Keep(ctx, off, n, b); lost != nil {
		return lost
	}
	return &Fault{Op: Write, Off: whole.Off, N: whole.N, Err: err}
}

// forgetSaved gives up what is kept of a piece, and returns how many clusters it
// was.
func (w *clusterWork) forgetSaved(p Piece) (clusters int64) {
	for {
		r, ok := w.o.Scratch.Take(p.Off, p.N, true)
		if !ok {
			return clusters
		}
		first, end := w.c.span(r.Off, r.N)
		clusters += end - first
		r.Done()
	}
}
