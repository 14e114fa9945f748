package mirrortop

import (
	"context"

	"blockd/blockgraph"
	"blockd/ioengine"
	"blockd/jobs/copy"
)

// This file is what an active filter does with a guest's change.

// kind is what a request does.
type kind uint8

const (
	write kind = iota
	zero
	discard
)

// change is a request that changes the source.
type change struct {
	kind   kind
	off, n int64
	v      *blockgraph.IOVec // of a write, from byte skip on
	skip   int64
	flags  blockgraph.Flags
}

// mirror does a guest's change on the source and then on the target. Its only
// errors are the source's and the context's.
func (f *Filter) mirror(ctx context.Context, c change) error {
	h, err := f.lockGuest(ctx, c)
	if h == nil {
		if err == nil {
			err = f.toSource(ctx, c)
			f.Unsync()
		}
		return err
	}
	head, tail := f.partial(c.off, c.n)
	if err = f.toSource(ctx, c); err == nil {
		if _, _, some := f.dirty.NextDirty(c.off, c.off+c.n); !some {
			f.Unlock(h) // a discard that the source has ignored
			return nil
		}
		w, all := f.forTarget(ctx, c, head, tail)
		if !all {
			f.Unsync()
		}
		if w.n > 0 && f.send(ctx, h, w) {
			return nil
		}
	}
	f.Unlock(h)
	f.Unsync()
	return err
}

// lockGuest takes the granules of a change alone. After Abandon it does not
// wait, and may return neither a lock nor an error.
func (f *Filter) lockGuest(ctx context.Context, c change) (*blockgraph.RangeHold, error) {
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(f.life, cancel)()
	h, err := f.Lock(waiting, c.off, c.n)
	if err != nil && ctx.Err() == nil {
		err = nil
	}
	return h, err
}

// partial tells which ends of a range have to stay marked: those that cover
// their granule in part, if the rest of it is dirty already or has to be
// written together with them.
func (f *Filter) partial(off, n int64) (head, tail bool) {
	g, end := f.o.Granularity, off+n
	head = off&(g-1) != 0 && (f.o.Whole || f.dirty.Get(off))
	tail = end&(g-1) != 0 && end < f.dirty.Size() && (f.o.Whole || f.dirty.Get(end-1))
	return head, tail
}

func (f *Filter) toSource(ctx context.Context, c change) error {
	switch c.kind {
	case zero:
		defer f.shapes.Add(1)
		return f.source().WriteZeroes(ctx, c.off, c.n, c.flags)
	case discard:
		defer f.shapes.Add(1)
		return f.source().Discard(ctx, c.off, c.n)
	default:
		return f.source().WriteV(ctx, c.off, c.v, c.flags)
	}
}

// forTarget returns the part of a change that the target gets now, n <= 0 for
// none, and whether that is all of it. A discard is a zero write on the target
// if it has become one on the source.
func (f *Filter) forTarget(ctx context.Context, c change, head, tail bool) (w change, all bool) {
	w = c
	w.flags &= blockgraph.FUA | blockgraph.MayUnmap
	if c.kind == discard {
		st, _, err := f.source().Child().StatusAbove(ctx, nil, c.off, c.n, blockgraph.StatusPrecise)
		if err != nil || st.N < c.n || st.Flags&blockgraph.StatusZero == 0 {
			w.n = 0
			return w, false
		}
		w.kind, w.flags = zero, blockgraph.MayUnmap
	}
	if w.kind == zero && f.o.ZeroAsData {
		w.n = 0
		return w, false
	}
	g, end := f.o.Granularity, c.off+c.n
	if head {
		w.off = (c.off + g - 1) &^ (g - 1)
	}
	if tail {
		end &^= g - 1
	}
	w.skip, w.n = w.off-c.off, end-w.off
	return w, w.n == c.n
}

// send writes a change to the target and waits for it, unless the filter is
// abandoned or the guest gives up meanwhile. It returns false when it has done
// nothing: then the change stays marked. Otherwise the lock h is the write's.
func (f *Filter) send(ctx context.Context, h *blockgraph.RangeHold, c change) bool {
	if f.life.Err() != nil || f.halted.Load() {
		return false
	}
	a, ok := copy.TryEnter(f.target)
	if !ok {
		return false
	}
	f.begin()
	start, end := f.granules(c.off, c.n)
	f.dirty.Clear(start, end-start)
	f.progress(0, c.n)
	var b *ioengine.Buffer
	if c.kind == write {
		f.Fill(c.off, c.n)
		b = ioengine.Bounce(int(c.n))
		c.v.Slice(c.skip, c.n).CopyOut(0, b.Bytes())
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer f.end()
		err := writeTarget(context.WithoutCancel(ctx), &a, c, b)
		if err != nil {
			f.dirty.Set(start, end-start)
			f.Unsync()
			f.progress(0, -c.n)
		} else {
			f.progress(c.n, -c.n)
		}
		a.Leave()
		f.Unlock(h)
		if err != nil {
			f.onError(err)
		}
	}()
	select {
	case <-done:
	case <-f.life.Done():
	case <-ctx.Done():
	}
	return true
}

// writeTarget writes a change under an admission at the target's root. It gives
// the buffer back.
func writeTarget(ctx context.Context, a *blockgraph.Admission, c change, b *ioengine.Buffer) error {
	if c.kind != write {
		return a.Edge().WriteZeroes(ctx, c.off, c.n, c.flags)
	}
	defer b.Release()
	return a.Edge().WriteV(ctx, c.off, blockgraph.MakeIOVec(b.Bytes()[:c.n]), c.flags&^blockgraph.MayUnmap)
}
