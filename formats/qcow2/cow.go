package qcow2

import (
	"context"

	"blockd/blockgraph"
	"blockd/ioengine"
)

// Copy-on-write: the parts of a new place's first and last cluster that the
// request does not write come from where the guest sees them so far. They go
// out together with the data, in one vectored write.

// filled is a write that includes what lies around a request.
type filled struct {
	v      blockgraph.IOVec
	off    int64 // guest offset of the first byte
	copied bool  // some of it was read
	bufs   [2]*ioengine.Buffer
}

func (w *filled) release() {
	for _, b := range w.bufs {
		b.Release()
	}
}

// around prepares the write of n bytes at off with what lies around them in
// the bounds of the allocation.
func (d *Driver) around(ctx context.Context, a *allocation, off int64, v *blockgraph.IOVec, pos, n int64) (*filled, error) {
	head, tail := off-a.from, a.to-(off+n)
	first, last := a.old[0], a.old[len(a.old)-1]
	w := &filled{off: off}
	headZero := head == 0 || d.readsZero(first, a.from, off)
	tailZero := tail == 0 || d.readsZero(last, off+n, a.to)
	// Where the file has zeroes already, nothing needs to be written.
	if headZero && tailZero && a.fresh {
		w.v.AppendRange(v, pos, n)
		return w, nil
	}
	fail := func(err error) (*filled, error) {
		w.release()
		return nil, err
	}
	if head > 0 {
		switch {
		case !headZero:
			w.off, w.copied = a.from, true
			w.bufs[0] = ioengine.Bounce(int(head))
			if err := d.readOld(ctx, first, a.from, w.bufs[0].Bytes()); err != nil {
				return fail(err)
			}
			w.v.Append(w.bufs[0].Bytes())
		case !a.fresh:
			w.off = a.from
			appendZeroes(&w.v, head)
		}
	}
	w.v.AppendRange(v, pos, n)
	if tail > 0 {
		switch {
		case !tailZero:
			w.copied = true
			w.bufs[1] = ioengine.Bounce(int(tail))
			if err := d.readOld(ctx, last, off+n, w.bufs[1].Bytes()); err != nil {
				return fail(err)
			}
			w.v.Append(w.bufs[1].Bytes())
		case !a.fresh:
			appendZeroes(&w.v, tail)
		}
	}
	return w, nil
}

func appendZeroes(v *blockgraph.IOVec, n int64) {
	for n > 0 {
		z := ioengine.Zeroes(n)
		v.Append(z)
		n -= int64(len(z))
	}
}

// oldRuns calls f for the runs of one kind of bytes [from, to), all within one
// cluster with the given entry, until it returns false.
func (d *Driver) oldRuns(e l2Entry, from, to int64, f func(k kind, from, to int64) bool) {
	h := d.h
	for from < to {
		sc := h.subcluster(from)
		k := h.kindOf(e, sc)
		end := min(from&^(h.clusterSize-1)+(sc+h.sameKind(e, k, sc))<<h.subclusterShift, to)
		if !f(k, from, end) {
			return
		}
		from = end
	}
}

// readsZero tells without I/O whether what the guest sees of bytes [from, to)
// of a cluster with this entry is known to be zeroes.
func (d *Driver) readsZero(e l2Entry, from, to int64) bool {
	zero := true
	b := d.ch.backing()
	d.oldRuns(e, from, to, func(k kind, from, _ int64) bool {
		switch k {
		case zeroPlain, zeroAlloc:
		case unallocated, unallocatedAlloc:
			zero = b == nil || from >= b.Size() || from >= d.size.Load()
		default:
			zero = false
		}
		return zero
	})
	return zero
}

// readOld fills p with what the guest sees at off, all within one cluster
// with the given entry, which does not change meanwhile. What lies past the
// end of the disk is zeroes.
func (d *Driver) readOld(ctx context.Context, e l2Entry, off int64, p []byte) error {
	d.file().DebugEvent("cow_read")
	if inside := d.size.Load() - off; inside < int64(len(p)) {
		inside = max(inside, 0)
		clear(p[inside:])
		p = p[:inside]
	}
	var err error
	d.oldRuns(e, off, off+int64(len(p)), func(k kind, from, to int64) bool {
		m := mapping{kind: k, word: e.word, n: to - from}
		m.host = int64(e.word&l2OffsetMask) + from&(d.h.clusterSize-1)
		err = d.readRun(ctx, from, m, blockgraph.MakeIOVec(p[from-off:to-off]))
		return err == nil
	})
	return err
}
