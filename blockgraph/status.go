package blockgraph

import (
	"context"
)

// BlockStatus describes the range at off as this node decides it, backing
// files left aside; StatusAllocated says whether it decides at all. Data plane.
func (n *Node) blockStatus(ctx context.Context, off, length int64, mode StatusMode) (Status, error) {
	size := n.size.Load()
	if off >= size {
		return Status{Flags: StatusEOF}, nil
	}
	length = min(length, size-off)
	align := max(1, n.limits.RequestAlignment)
	start := alignDown(off, align)
	ask := alignUp(off+length, align) - start
	st, err := n.drv.BlockStatus(ctx, start, ask, mode)
	if err != nil {
		return Status{}, err
	}
	st.N -= off - start
	if st.Flags&StatusOffsetValid != 0 {
		st.Offset += off - start
	}
	st.N = min(st.N, length)
	if st.N <= 0 {
		st.N = min(length, align)
	}
	if st.Flags&StatusRecurse != 0 {
		return n.recurseStatus(ctx, off, st, mode)
	}
	if st.Flags&(StatusData|StatusZero) != 0 {
		st.Flags |= StatusAllocated
	} else if n.caps.Backing && mode == StatusPrecise {
		// Unallocated here and nothing behind it: zeroes.
		b := n.Backing()
		if b == nil || off >= b.child.Size() {
			st.Flags |= StatusZero
		} else {
			st.N = min(st.N, b.child.Size()-off)
		}
	}
	if mode == StatusPrecise && st.Flags&(StatusData|StatusZero|StatusOffsetValid) == StatusData|StatusOffsetValid && st.File != nil && st.File != n && mayHaveHoles(ctx, st.File) {
		st, err = lowerZeroes(ctx, st, mode)
		if err != nil {
			return Status{}, err
		}
	}
	if off+st.N >= size {
		st.Flags |= StatusEOF
	}
	return st, nil
}

// recurseStatus asks the node that a driver passes the range through to.
func (n *Node) recurseStatus(ctx context.Context, off int64, st Status, mode StatusMode) (Status, error) {
	low, err := st.File.blockStatus(ctx, st.Offset, st.N, mode)
	if err != nil {
		return Status{}, err
	}
	if low.N == 0 { // past the child's end
		return Status{Flags: StatusZero | StatusAllocated | StatusEOF, N: st.N}, nil
	}
	low.Flags &^= StatusEOF
	if !n.typ.Filter && low.Flags&StatusAllocated == 0 && st.File.BackingChain() != nil {
		low.Flags |= StatusRecurse // see StatusAbove
	}
	if off+low.N >= n.size.Load() {
		low.Flags |= StatusEOF
	}
	return low, nil
}

// mayHaveHoles tells whether it is worth while to look for holes below what a
// format has allocated: only where its file has clearly less space than length
// (metadata preallocation), since the look-up is not free. A file that does not
// tell its space, on a network say, is not asked, as in the field.
func mayHaveHoles(ctx context.Context, file *Node) bool {
	a, ok := file.drv.(AllocatedSizer)
	if !ok {
		return false
	}
	size := file.Size()
	allocated, err := a.AllocatedSize(ctx)
	return err == nil && size-allocated > size/10
}

// lowerZeroes looks for holes in the file below allocated data.
func lowerZeroes(ctx context.Context, st Status, mode StatusMode) (Status, error) {
	low, err := st.File.blockStatus(ctx, st.Offset, st.N, mode)
	if err != nil {
		return st, nil // the upper answer stands
	}
	switch {
	case low.N == 0 && low.Flags&StatusEOF != 0: // beyond the file's end
		st.Flags |= StatusZero
	case low.Flags&StatusZero != 0:
		st.Flags |= StatusZero
		st.N = min(st.N, low.N)
	case low.N > 0:
		st.N = min(st.N, low.N)
	}
	return st, nil
}

// maxSerialisedStatus is how much of a node with Serialising requests is described
// at a time, in bytes: they wait for it.
const maxSerialisedStatus = 64 << 20

// StatusAbove describes the range at off as n and the nodes below it, down to
// but without base, decide it; base nil means the whole chain. depth tells
// which one decided: 1 for n, counting non-filters, and 0 for none.
// StatusAllocated is set when one of them decides. Data plane.
func (n *Node) StatusAbove(ctx context.Context, base *Node, off, length int64, mode StatusMode) (st Status, depth int, err error) {
	cur := n
	eof := n.size.Load()
	if off >= eof {
		return Status{Flags: StatusEOF}, 0, nil
	}
	length = min(length, eof-off)
	for cur != nil && cur != base {
		if !cur.typ.Filter {
			depth++
		}
		if t := &cur.tracker; t.serialised {
			// Old data may be saved here before it changes below: either this sees it
			// here, or what is below is still the old data when this gets there.
			length = min(length, maxSerialisedStatus)
			h, err := t.begin(ctx, off, length, false)
			if err != nil {
				return Status{}, 0, err
			}
			defer t.end(h)
		}
		st, err = cur.blockStatus(ctx, off, length, mode)
		if err != nil {
			return Status{}, 0, err
		}
		if st.N == 0 {
			// A short backing file: what lies past its end reads as zeroes, and
			// it is the one that decides so.
			st = Status{Flags: StatusZero | StatusAllocated, N: length}
		}
		if st.Flags&StatusAllocated != 0 {
			if cur.typ.Filter {
				depth++ // it has asked the one below, which is what decides
			}
			st.Flags &^= StatusEOF
			if off+st.N >= eof {
				st.Flags |= StatusEOF
			}
			return st, depth, nil
		}
		length = min(length, st.N)
		next := cur.FilterOrCOW()
		if next == nil {
			break
		}
		cur = next.child
	}
	switch {
	case st.Flags&(StatusRecurse|StatusZero) == StatusRecurse:
		// The last node shows a chain that is not its own: what that leaves to its
		// backing file is content here, and there is nobody below who could say so.
		st = Status{Flags: StatusAllocated, N: length}
	case base == nil:
		st, depth = Status{Flags: StatusZero, N: length}, 0
	default:
		st, depth = Status{N: length}, 0
	}
	if off+st.N >= eof {
		st.Flags |= StatusEOF
	}
	return st, depth, nil
}
