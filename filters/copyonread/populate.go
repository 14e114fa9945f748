package copyonread

import (
	"context"

	"blockd/blockgraph"
	"blockd/ioengine"
)

// This file is the read: what has to be populated, and how.

// ReadV implements blockgraph.Driver. With Prefetch the vector is scratch
// memory: only what has to be populated is read, and its content is undefined
// afterwards.
func (f *Filter) ReadV(ctx context.Context, off int64, v *blockgraph.IOVec, flags blockgraph.Flags) error {
	for done := int64(0); done < v.Len(); {
		n, populate, err := f.lacks(ctx, off+done, v.Len()-done)
		if err != nil {
			return err
		}
		part := v
		if n < v.Len() {
			part = v.Slice(done, n)
		}
		switch {
		case populate:
			err = f.populate(ctx, off+done, part, flags)
		case flags&blockgraph.Prefetch == 0:
			err = f.node.File().ReadV(ctx, off+done, part, flags&^blockgraph.CopyOnRead)
		}
		if err != nil {
			return err
		}
		done += n
	}
	return nil
}

// lacks tells whether the range at off has to be populated, and for how many
// of its n bytes that holds. As in the field, a failing query of what lies
// below counts as yes: the read then tells. Its error is the context's.
func (f *Filter) lacks(ctx context.Context, off, n int64) (int64, bool, error) {
	below := f.node.File().Child()
	st, err := f.node.File().BlockStatus(ctx, off, n, blockgraph.StatusAllocation)
	switch {
	case err != nil:
		return n, true, ctx.Err()
	case st.N == 0: // past the end
		return n, false, nil
	case st.Flags&blockgraph.StatusAllocated != 0:
		return st.N, false, nil
	}
	n = st.N
	top := below.SkipFilters()
	if f.bottom == nil {
		return n, true, nil
	}
	next := top.BackingChain()
	if next == nil || top == f.bottom {
		return n, false, nil
	}
	var base *blockgraph.Node
	if e := f.bottom.FilterOrCOW(); e != nil {
		base = e.Child()
	}
	if next == base {
		return n, false, nil
	}
	st, _, err = next.StatusAbove(ctx, base, off, n, blockgraph.StatusAllocation)
	switch {
	case err != nil:
		return n, true, ctx.Err()
	case st.N == 0: // past the end of the next node: zeroes, as they are now
		return n, false, nil
	}
	return st.N, st.Flags&blockgraph.StatusAllocated != 0, nil
}

// populate reads bytes [off, off+v.Len()) and writes the clusters that they
// touch to the node below, where it still lacks them.
func (f *Filter) populate(ctx context.Context, off int64, v *blockgraph.IOVec, flags blockgraph.Flags) error {
	size := f.node.File().Child().Size()
	start := off &^ (f.cluster - 1)
	end := min((off+v.Len()+f.cluster-1)&^(f.cluster-1), size)
	h, err := f.populating.Lock(ctx, start, end-start, true)
	if err != nil {
		return err
	}
	defer f.populating.Unlock(h)
	if flags&blockgraph.Prefetch != 0 && f.present(ctx, off, v.Len()) {
		return nil // another one did it meanwhile
	}
	if start == off && end == off+v.Len() {
		return f.copyUp(ctx, off, v)
	}
	// Whole clusters at the edges, by way of a buffer; the middle in place.
	for at := start; at < end; {
		stop := min(at+f.cluster, end)
		switch {
		case at < off || stop > off+v.Len():
			if err := f.copyEdge(ctx, at, stop, off, v); err != nil {
				return err
			}
		default:
			stop = min((off+v.Len())&^(f.cluster-1), end)
			if err := f.copyUp(ctx, at, v.Slice(at-off, stop-at)); err != nil {
				return err
			}
		}
		at = stop
	}
	return nil
}

// present tells whether the node below decides all of [off, off+n).
func (f *Filter) present(ctx context.Context, off, n int64) bool {
	for end := off + n; off < end; {
		st, err := f.node.File().BlockStatus(ctx, off, end-off, blockgraph.StatusAllocation)
		if err != nil || st.N > 0 && st.Flags&blockgraph.StatusAllocated == 0 {
			return false
		}
		if st.N == 0 {
			return true
		}
		off += st.N
	}
	return true
}

// copyEdge populates one cluster [at, stop), of which v covers a part from off on.
func (f *Filter) copyEdge(ctx context.Context, at, stop, off int64, v *blockgraph.IOVec) error {
	b := ioengine.Bounce(int(stop - at))
	defer b.Release()
	if err := f.copyUp(ctx, at, blockgraph.MakeIOVec(b.Bytes())); err != nil {
		return err
	}
	from, to := max(at, off), min(stop, off+v.Len())
	v.CopyIn(from-off, b.Bytes()[from-at:to-at])
	return nil
}

// copyUp reads v and writes it back where the node below lacks it.
func (f *Filter) copyUp(ctx context.Context, off int64, v *blockgraph.IOVec) error {
	if err := f.node.File().ReadV(ctx, off, v, 0); err != nil {
		return err
	}
	f.node.File().DebugEvent("cor_write")
	const flags = blockgraph.WriteUnchanged | blockgraph.OnlyUnallocated
	if v.IsZero() {
		return f.WriteZeroes(ctx, off, v.Len(), flags)
	}
	return f.WriteV(ctx, off, v, flags)
}
