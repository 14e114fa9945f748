package blockgraph

import (
	"context"
	"errors"
	"sync/atomic"
	"syscall"

	"blockd/ioengine"
	"blockd/qapi"
)

// This file is the checked wrapper: the one way by which requests reach a
// driver. It checks ranges and flags, splits by the driver's limits, widens
// requests to its alignment, emulates what it lacks, tracks requests where
// they must exclude each other, and marks what changed after it landed and
// before the completion is seen.

// MaxRequest is the longest read or write that enters the graph, in bytes.
const MaxRequest = 1 << 30

// ReadV reads through the edge. Bytes past the child's end read as zeroes.
// Data plane.
func (e *Edge) ReadV(ctx context.Context, off int64, v *IOVec, flags Flags) error {
	assertPerm(e, PermConsistentRead, flags)
	err := e.child.readV(ctx, off, v, flags)
	e.passed(v.Len(), 0, err)
	return err
}

// WriteV writes through the edge. A write past the end makes the child longer
// where its driver can. Data plane.
func (e *Edge) WriteV(ctx context.Context, off int64, v *IOVec, flags Flags) error {
	assertPerm(e, PermWrite, flags)
	err := e.child.writeV(ctx, off, v, flags)
	e.passed(0, v.Len(), err)
	return err
}

// WriteZeroes makes bytes [off, off+n) zero. Space is given up (MayUnmap) only
// where the child's `discard` allows it, but for a guest, who asked for it at the
// node itself: so does the field. Data plane.
func (e *Edge) WriteZeroes(ctx context.Context, off, n int64, flags Flags) error {
	assertPerm(e, PermWrite, flags)
	if guest := e.root != nil && e.root.job == ""; flags&MayUnmap != 0 && !guest && !discards(e.child.state.Load().Options) {
		flags &^= MayUnmap
	}
	err := e.child.writeZeroes(ctx, off, n, flags)
	e.passed(0, n, err)
	return err
}

// Discard gives up bytes [off, off+n). Data plane.
func (e *Edge) Discard(ctx context.Context, off, n int64) error {
	assertPerm(e, PermWrite, 0)
	err := e.child.discard(ctx, off, n)
	e.passed(0, 0, err)
	return err
}

// Flush makes completed writes durable. Data plane.
func (e *Edge) Flush(ctx context.Context) error {
	err := e.child.flush(ctx)
	e.passed(0, 0, err)
	return err
}

// BlockStatus describes the range at off as the child sees it, without its
// backing files. Data plane.
func (e *Edge) BlockStatus(ctx context.Context, off, n int64, mode StatusMode) (Status, error) {
	return e.child.blockStatus(ctx, off, n, mode)
}

// Truncate changes the child's length in bytes. On a worker, with the token
// held or from within an admitted request of the parent.
func (e *Edge) Truncate(ctx context.Context, size int64, exact bool, prealloc qapi.PreallocMode, zeroed bool) error {
	assertPerm(e, PermResize, 0)
	return e.child.truncate(ctx, size, exact, prealloc, zeroed)
}

// Flush makes completed writes of a node durable. Within a graph change that
// has drained it.
func (n *Node) Flush(ctx context.Context) error { return n.flush(ctx) }

func (n *Node) readV(ctx context.Context, off int64, v *IOVec, flags Flags) error {
	length := v.Len()
	if length == 0 {
		return nil
	}
	if err := checkRange(off, length); err != nil {
		return err
	}
	if n.caps.CopyOnRead != CapNative {
		if flags&Prefetch != 0 {
			return nil
		}
		flags &^= CopyOnRead
	}
	align := n.limits.RequestAlignment
	if align > 1 && (off|length)&(align-1) != 0 {
		return n.readUnaligned(ctx, off, v, flags, align)
	}
	h, err := n.tracker.begin(ctx, off, length, flags&Serialising != 0)
	if err != nil {
		return err
	}
	err = n.readAligned(ctx, off, v, flags&^Serialising)
	n.tracker.end(h)
	return err
}

// readAligned reads what lies before the end and zeroes the rest.
func (n *Node) readAligned(ctx context.Context, off int64, v *IOVec, flags Flags) error {
	length := v.Len()
	if size := n.size.Load(); off+length > size {
		inside := max(0, size-off)
		if a := n.limits.RequestAlignment; a > 1 {
			inside = min(length, (inside+a-1)&^(a-1))
		}
		v.Zero(inside, length-inside)
		if inside == 0 {
			return nil
		}
		v = v.Slice(0, inside)
		length = inside
	}
	if m := n.limits.MaxTransfer; m > 0 && length > m {
		for done := int64(0); done < length; {
			k := min(m, length-done)
			if err := n.drv.ReadV(ctx, off+done, v.Slice(done, k), flags); err != nil {
				return err
			}
			done += k
		}
		return nil
	}
	return n.drv.ReadV(ctx, off, v, flags)
}

func (n *Node) readUnaligned(ctx context.Context, off int64, v *IOVec, flags Flags, align int64) error {
	start, end := alignDown(off, align), alignUp(off+v.Len(), align)
	b := ioengine.Bounce(int(end - start))
	defer b.Release()
	if err := n.readV(ctx, start, MakeIOVec(b.Bytes()), flags); err != nil {
		return err
	}
	v.CopyIn(0, b.Bytes()[off-start:off-start+v.Len()])
	return nil
}

func (n *Node) writeV(ctx context.Context, off int64, v *IOVec, flags Flags) error {
	length := v.Len()
	if length == 0 {
		return nil
	}
	if err := n.checkWrite(off, length); err != nil {
		return err
	}
	n.checkThreshold(off, length)
	st := n.state.Load()
	if st.DetectZeroes != "" && st.DetectZeroes != qapi.BlockdevDetectZeroesOptionsOff && v.IsZero() {
		zf := flags
		if st.DetectZeroes == qapi.BlockdevDetectZeroesOptionsUnmap {
			zf |= MayUnmap
		}
		return n.writeZeroes(ctx, off, length, zf)
	}
	if flags&Compressed != 0 && n.caps.Compressed == CapNone {
		return ErrNotSupported
	}
	align := n.limits.RequestAlignment
	if align > 1 && (off|length)&(align-1) != 0 {
		return n.writeUnaligned(ctx, off, v, flags, align)
	}
	h, err := n.tracker.begin(ctx, off, length, flags&Serialising != 0)
	if err != nil {
		return err
	}
	err = n.writeAligned(ctx, off, v, flags)
	n.tracker.end(h)
	return err
}

// writeAligned does an aligned, tracked write.
func (n *Node) writeAligned(ctx context.Context, off int64, v *IOVec, flags Flags) error {
	n.event("pwritev")
	err := n.writeDriver(ctx, off, v, flags)
	n.event("pwritev_done")
	return err
}

// writeDriver is writeAligned without its fault points.
func (n *Node) writeDriver(ctx context.Context, off int64, v *IOVec, flags Flags) error {
	df := n.driverFlags(flags)
	length := v.Len()
	err := n.beforeChange(ctx, off, length, flags)
	if err != nil {
		return err
	}
	if m := n.limits.MaxTransfer; m > 0 && length > m {
		for done := int64(0); done < length && err == nil; {
			k := min(m, length-done)
			err = n.drv.WriteV(ctx, off+done, v.Slice(done, k), df)
			done += k
		}
	} else {
		err = n.drv.WriteV(ctx, off, v, df)
	}
	if err == nil && flags&FUA != 0 && n.caps.FUA != CapNative {
		err = n.flush(ctx)
	}
	n.written(off, length, flags, err)
	return err
}

// driverFlags leaves the flags that the driver takes with a write.
func (n *Node) driverFlags(flags Flags) Flags {
	var keep Flags
	c := &n.caps
	if c.FUA == CapNative {
		keep |= FUA
	}
	if c.Compressed == CapNative {
		keep |= Compressed
	}
	if c.WriteUnchanged == CapNative {
		keep |= WriteUnchanged
	}
	if c.OnlyUnallocated == CapNative {
		keep |= OnlyUnallocated
	}
	return flags & keep
}

// written notes a change after it landed. A failed write may have changed
// anything in its range.
func (n *Node) written(off, length int64, flags Flags, err error) {
	end := off + length
	if err == nil {
		storeMax(&n.wrHighest, end)
		if storeMax(&n.size, end) {
			growBits(n.State().Bitmaps, n.Size())
		}
	}
	if flags&WriteUnchanged == 0 {
		n.changed(off, length)
	}
}

// writeUnaligned widens a write to the driver's alignment by reading what lies
// around it, alone in the widened range.
func (n *Node) writeUnaligned(ctx context.Context, off int64, v *IOVec, flags Flags, align int64) error {
	start, end := alignDown(off, align), alignUp(off+v.Len(), align)
	h, err := n.tracker.begin(ctx, start, end-start, true)
	if err != nil {
		return err
	}
	defer n.tracker.end(h)
	b := ioengine.Bounce(int(2 * align))
	defer b.Release()
	head, tail := b.Bytes()[:align], b.Bytes()[align:]
	headLen, tailLen := off-start, end-(off+v.Len())
	// What is read of one piece, or of two that meet, is read at once.
	merged := end-start == align || end-start == 2*align && headLen > 0 && tailLen > 0
	switch {
	case merged:
		err = n.readAround(ctx, start, b.Bytes()[:end-start], headLen > 0, tailLen > 0)
		tail = b.Bytes()[end-start-align : end-start]
	case headLen > 0:
		err = n.readAround(ctx, start, head, true, false)
	}
	if err == nil && tailLen > 0 && !merged {
		err = n.readAround(ctx, end-align, tail, false, true)
	}
	if err != nil {
		return err
	}
	wide := &IOVec{}
	if headLen > 0 {
		wide.Append(head[:headLen])
	}
	wide.AppendRange(v, 0, v.Len())
	if tailLen > 0 {
		wide.Append(tail[align-tailLen:])
	}
	if size := n.size.Load(); !n.caps.Grow && end > size {
		wide = wide.Slice(0, size-start) // the node ends within the alignment
	}
	return n.writeAligned(ctx, start, wide, flags)
}

// readAround reads what an unaligned write leaves as it is before it, behind
// it, or both.
func (n *Node) readAround(ctx context.Context, off int64, p []byte, head, tail bool) error {
	points := func(headEvent, tailEvent string) {
		if head {
			n.event(headEvent)
		}
		if tail {
			n.event(tailEvent)
		}
	}
	points("pwritev_rmw_head", "pwritev_rmw_tail")
	if err := n.readAligned(ctx, off, MakeIOVec(p), 0); err != nil {
		return err
	}
	points("pwritev_rmw_after_head", "pwritev_rmw_after_tail")
	return nil
}

func (n *Node) writeZeroes(ctx context.Context, off, length int64, flags Flags) error {
	if length == 0 {
		return nil
	}
	if err := n.checkWrite(off, length); err != nil {
		return err
	}
	n.checkThreshold(off, length)
	if n.caps.WriteZeroes != CapNative && flags&NoFallback != 0 {
		return ErrNotSupported
	}
	err := n.zeroRange(ctx, off, length, flags)
	if err == nil && flags&FUA != 0 && n.caps.ZeroFUA != CapNative {
		return n.flush(ctx)
	}
	return err
}

// zeroRange zeroes piece by piece, each as its alignment and the driver allow.
func (n *Node) zeroRange(ctx context.Context, off, length int64, flags Flags) error {
	align := max(1, n.limits.RequestAlignment)
	zeroing := false // between the fault points of a zero write
	step := func(on bool) {
		switch {
		case on && !zeroing:
			n.event("pwritev_zero")
		case !on && zeroing:
			n.event("pwritev_done")
		}
		zeroing = on
	}
	defer step(false)
	for length > 0 {
		k := n.zeroPiece(off, length)
		aligned := (off|k)&(align-1) == 0
		step(aligned)
		err := ErrNotSupported
		if n.caps.WriteZeroes == CapNative && aligned {
			err = n.zeroNative(ctx, off, k, flags)
		}
		if errors.Is(err, ErrNotSupported) && flags&NoFallback == 0 {
			err = n.zeroByWriting(ctx, off, k, flags)
		}
		if err != nil {
			return err
		}
		off, length = off+k, length-k
	}
	return nil
}

// zeroPiece returns the length of the first piece of a zero write: up to the
// next boundary where zeroing gains, or whole units of it.
func (n *Node) zeroPiece(off, length int64) int64 {
	if m := n.limits.MaxZero; m > 0 {
		length = min(length, m)
	}
	a := max(n.limits.ZeroAlignment, n.limits.RequestAlignment, 1)
	if rest := off & (a - 1); rest != 0 {
		return min(length, a-rest)
	}
	if length > a {
		length &^= a - 1
	}
	return length
}

func (n *Node) zeroNative(ctx context.Context, off, length int64, flags Flags) error {
	df := n.driverFlags(flags) &^ (FUA | Compressed)
	if n.caps.ZeroFUA == CapNative {
		df |= flags & FUA
	}
	if n.caps.MayUnmap == CapNative {
		df |= flags & MayUnmap
	}
	if n.caps.NoFallback == CapNative {
		df |= flags & NoFallback
	}
	h, err := n.tracker.begin(ctx, off, length, flags&Serialising != 0)
	if err != nil {
		return err
	}
	if err = n.beforeChange(ctx, off, length, flags); err != nil {
		n.tracker.end(h)
		return err
	}
	err = n.drv.WriteZeroes(ctx, off, length, df)
	if !errors.Is(err, ErrNotSupported) {
		n.written(off, length, flags, err)
	}
	n.tracker.end(h)
	return err
}

func (n *Node) zeroByWriting(ctx context.Context, off, length int64, flags Flags) error {
	flags &= WriteUnchanged | OnlyUnallocated | Serialising
	align := max(1, n.limits.RequestAlignment)
	for length > 0 {
		z := ioengine.Zeroes(length)
		v := MakeIOVec(z)
		var err error
		if (off|int64(len(z)))&(align-1) != 0 {
			err = n.writeUnaligned(ctx, off, v, flags, align)
		} else {
			var h *RangeHold
			if h, err = n.tracker.begin(ctx, off, int64(len(z)), flags&Serialising != 0); err == nil {
				err = n.writeDriver(ctx, off, v, flags)
				n.tracker.end(h)
			}
		}
		if err != nil {
			return err
		}
		off, length = off+int64(len(z)), length-int64(len(z))
	}
	return nil
}

func (n *Node) discard(ctx context.Context, off, length int64) error {
	if err := n.checkWrite(off, length); err != nil {
		return err
	}
	if !n.Discards() {
		return nil
	}
	a := max(n.limits.DiscardAlignment, n.limits.RequestAlignment, 1)
	size := n.size.Load()
	end := min(off+length, size)
	if end < size { // the last piece of the node may be short
		end = alignDown(end, a)
	}
	off = alignUp(off, a)
	for off < end {
		k := end - off
		if m := n.limits.MaxDiscard; m > 0 {
			k = min(k, m)
		}
		h, err := n.tracker.begin(ctx, off, k, false)
		if err != nil {
			return err
		}
		if err = n.beforeChange(ctx, off, k, 0); err == nil {
			err = n.drv.Discard(ctx, off, k)
			n.written(off, k, 0, err)
		}
		n.tracker.end(h)
		if err != nil && !errors.Is(err, ErrNotSupported) {
			return err
		}
		off += k
	}
	return nil
}

// Discards tells whether a discard sent to the node may do something.
func (n *Node) Discards() bool { return n.caps.Discard != CapNone && discards(n.state.Load().Options) }

// discards tells whether the options let discards through.
func discards(o *qapi.BlockdevOptions) bool {
	return o.Discard != nil && *o.Discard == qapi.BlockdevDiscardOptionsUnmap
}

func (n *Node) flush(ctx context.Context) error {
	if c := n.state.Load().Options.Cache; c != nil && c.NoFlush != nil && *c.NoFlush && n.typ.Protocol {
		return nil
	}
	if e := n.primary(); e != nil && !n.ReadOnly() {
		e.DebugEvent("flush_to_os")
		if n.typ.Filter {
			e.DebugEvent("flush_to_disk")
		}
	}
	return n.drv.Flush(ctx)
}

func (n *Node) truncate(ctx context.Context, size int64, exact bool, prealloc qapi.PreallocMode, zeroed bool) error {
	if size < 0 {
		return Errorf(syscall.EINVAL, "Image size cannot be negative")
	}
	if size > MaxSize {
		return Errorf(syscall.EIO, "offset(%d) exceeds maximum(%d)", size, int64(MaxSize))
	}
	if n.ReadOnly() {
		return Errorf(syscall.EACCES, "Image is read-only")
	}
	if n.truncater == nil {
		if f := n.Filtered(); f != nil {
			err := f.Truncate(ctx, size, exact, prealloc, zeroed)
			if err == nil {
				n.setSize(f.child.Size())
			}
			return err
		}
		return Errorf(syscall.ENOTSUP, "Image format driver does not support resize")
	}
	if b := n.Backing(); b != nil && size > n.Size() && b.child.Size() > n.Size() {
		zeroed = true // the backing file must not show in what is new
	}
	if err := n.checkResize(size); err != nil {
		return err
	}
	if err := n.truncater.Truncate(ctx, size, exact, prealloc, zeroed); err != nil {
		return err
	}
	return n.refreshSize(ctx)
}

func (n *Node) refreshSize(ctx context.Context) error {
	size, err := n.drv.Size(ctx)
	if err != nil {
		return Errorf(Errno(err), "Could not refresh total sector count: %s", Strerror(err))
	}
	if size > MaxSize {
		return Errorf(syscall.EFBIG, "Could not refresh total sector count: %s", Strerror(syscall.EFBIG))
	}
	n.setSize(alignUp(size, sectorSize))
	return nil
}

// sectorSize is the unit of node lengths in bytes: a file of another length
// reads as if zeroes filled its last sector up.
const sectorSize = 512

func (n *Node) checkWrite(off, length int64) error {
	if err := checkRange(off, length); err != nil {
		return err
	}
	if n.ReadOnly() {
		return syscall.EPERM
	}
	if off+length > n.size.Load() {
		if !n.caps.Grow {
			return syscall.EIO
		}
		return n.checkGrowth(off + length)
	}
	return nil
}

// MaxSize is the largest length of a node in bytes (the field:
// BDRV_MAX_LENGTH).
const MaxSize = (1<<63 - 1) &^ (1<<30 - 1)

func checkRange(off, length int64) error {
	if off < 0 || length < 0 || off > MaxSize-length {
		return syscall.EIO
	}
	return nil
}

// storeMax tells whether v was more than what was there.
func storeMax(p *atomic.Int64, v int64) bool {
	for {
		old := p.Load()
		if v <= old {
			return false
		}
		if p.CompareAndSwap(old, v) {
			return true
		}
	}
}

func alignDown(x, a int64) int64 { return x &^ (a - 1) }
func alignUp(x, a int64) int64   { return (x + a - 1) &^ (a - 1) }
