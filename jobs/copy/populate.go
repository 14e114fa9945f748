package copy

import (
	"context"

	"blockd/blockgraph"
)

// PopulateOptions say what a stream copies.
type PopulateOptions struct {
	// Root reads through the copy-on-read filter over the top node; it needs
	// PermConsistentRead and PermWriteUnchanged.
	Root *blockgraph.Root
	// Bottom is the lowest node (no filter) whose data is to end up in the top
	// node. The links from the top to it are frozen, so it stays in place.
	Bottom *blockgraph.Node
	// Length is how many bytes of the top are looked at.
	Length int64
	// Cluster is the top's cluster size in bytes, a power of two, so that
	// pieces end with clusters (copyonread.Filter.Cluster); 0: DefaultCluster.
	Cluster int64
	// Progress is told of every byte, copied or not, as (n, -n), as the
	// field's stream does.
	Progress Progress
}

// NewPopulate returns the Work of a stream: what is unallocated in the top
// node and allocated from there down to Bottom is populated through the
// filter, never over newer data of a guest.
func NewPopulate(o PopulateOptions) Work {
	w := &populate{o: o}
	w.scan = scan{root: o.Root, length: o.Length, unit: max(o.Cluster, DefaultCluster), progress: o.Progress, status: w.status}
	return w
}

type populate struct {
	scan
	o PopulateOptions
}

// status says what the range at off, n bytes at most, needs.
func (w *populate) status(ctx context.Context, filter *blockgraph.Node, off, n int64) (Piece, error) {
	p := Piece{Off: off, N: n, Kind: Skip}
	top := filter.SkipFilters()
	below := child(top)
	if top == w.o.Bottom || below == nil {
		return p, nil
	}
	st, _, err := top.StatusAbove(ctx, below, off, min(p.N, maxStatus), blockgraph.StatusAllocation)
	if err != nil {
		return p, err
	}
	if st.N > 0 {
		p.N = min(p.N, st.N)
	}
	if st.Flags&blockgraph.StatusAllocated != 0 || st.N == 0 {
		return p, nil
	}
	base := child(w.o.Bottom)
	if below.Size() <= off {
		// The next node is shorter than the top, which reads as zeroes here. A
		// longer base must not show through when it takes the next one's place.
		if base != nil && base.Size() > off {
			p.N, p.Kind = min(p.N, base.Size()-off), Zero
		}
		return p, nil
	}
	st, _, err = below.StatusAbove(ctx, base, off, min(p.N, maxStatus), blockgraph.StatusPrecise)
	if err != nil {
		return p, err
	}
	p.N = min(p.N, max(1, st.N))
	switch {
	case st.Flags&blockgraph.StatusAllocated == 0:
	case st.Flags&blockgraph.StatusZero != 0:
		p.Kind = Zero
	default:
		p.Kind = Data
	}
	return p, nil
}

// Do implements Work. The filter decides again, range by range, what is still
// unallocated.
func (w *populate) Do(ctx context.Context, p Piece, buf []byte) error {
	var err error
	if p.Kind == Zero {
		err = w.o.Root.WriteZeroes(ctx, p.Off, p.N, blockgraph.WriteUnchanged|blockgraph.OnlyUnallocated)
	} else {
		v := vectors.Get().(*blockgraph.IOVec)
		v.SetBytes(buf[:p.N])
		err = w.o.Root.ReadV(ctx, p.Off, v, blockgraph.Prefetch|blockgraph.CopyOnRead)
		v.Reset()
		vectors.Put(v)
	}
	if err != nil {
		return &Fault{Op: Read, Off: p.Off, N: p.N, Err: err}
	}
	w.tell(p.N)
	return nil
}
