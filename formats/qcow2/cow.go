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
// the allocation's first and last cluster.
func (d *Driver) around(ctx context.Context, a *allocation, off int64, v *blockgraph.IOVec, pos, n int64) (*filled, error) {
	cs := d.h.clusterSize
	start := off &^ (cs - 1)
	end := start + a.n<<d.h.clusterBits
	head, tail := off-start, end-(off+n)
	first, last := a.old[0], a.old[len(a.old)-1]
	w := &filled{off: off}
	headZero := head == 0 || d.readsZero(first, start)
	tailZero := tail == 0 || d.readsZero(last, off+n)
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
			w.off, w.copied = start, true
			w.bufs[0] = ioengine.Bounce(int(head))
			if err := d.readOld(ctx, first, start, w.bufs[0].Bytes()); err != nil {
				return fail(err)
			}
			w.v.Append(w.bufs[0].Bytes())
		case !a.fresh:
			w.off = start
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

// readsZero tells without I/O whether what the guest sees from off to the end
// of a cluster with this entry is known to be zeroes.
func (d *Driver) readsZero(entry uint64, off int64) bool {
	switch kindOf(entry) {
	case zeroPlain, zeroAlloc:
		return true
	case unallocated:
		b := d.ch.backing()
		return b == nil || off >= b.Size() || off >= d.size.Load()
	}
	return false
}

// readOld fills p with what the guest sees at off, all within one cluster
// with the given entry, which does not change meanwhile. What lies past the
// end of the disk is zeroes.
func (d *Driver) readOld(ctx context.Context, entry uint64, off int64, p []byte) error {
	d.file().DebugEvent("cow_read")
	m := mapping{kind: kindOf(entry), entry: entry, n: int64(len(p))}
	m.host = int64(entry&l2OffsetMask) + off&(d.h.clusterSize-1)
	if inside := d.size.Load() - off; inside < int64(len(p)) {
		inside = max(inside, 0)
		clear(p[inside:])
		p = p[:inside]
	}
	if len(p) == 0 {
		return nil
	}
	return d.readRun(ctx, off, m, blockgraph.MakeIOVec(p))
}
