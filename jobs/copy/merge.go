package copy

import (
	"context"

	"blockd/blockgraph"
)

// MergeOptions say what an intermediate commit copies.
type MergeOptions struct {
	// Top reads the chain; Base is what it is merged into and needs PermWrite.
	Top, Base *blockgraph.Root
	// Overlay is the lowest image (no filter) of what is merged; below it is the
	// base. The links from the top down to the base are frozen.
	Overlay *blockgraph.Node
	// Length is the top's, in bytes, at most the base's. What the base has
	// beyond it becomes zeroes, as which an overlay longer than the top has
	// read it so far.
	Length int64
	// Cluster is the base's cluster size in bytes, a power of two, so that
	// pieces end with clusters; 0: DefaultCluster.
	Cluster int64
	// Progress is told of every byte of the top, copied or not, as (n, -n), as
	// the field's commit does.
	Progress Progress
}

// NewMerge returns the Work of an intermediate commit: what is allocated from
// the top down to Overlay is written to the base, zeroes as zeroes. Nobody
// else writes to any of them.
func NewMerge(o MergeOptions) Work {
	w := &merge{o: o, enter: EnterRoots(o.Top, o.Base)}
	w.scan = scan{root: o.Top, length: max(o.Length, o.Base.Size()), unit: max(o.Cluster, DefaultCluster), progress: o.Progress, status: w.status}
	return w
}

type merge struct {
	scan
	o     MergeOptions
	enter func(ctx context.Context) (Ends, func(), error)
}

func (w *merge) status(ctx context.Context, top *blockgraph.Node, off, n int64) (Piece, error) {
	if off >= w.o.Length {
		return Piece{Off: off, N: n, Kind: Zero}, nil
	}
	p := Piece{Off: off, N: min(n, w.o.Length-off), Kind: Skip}
	st, _, err := top.StatusAbove(ctx, child(w.o.Overlay), off, min(p.N, maxStatus), blockgraph.StatusPrecise)
	if err != nil {
		return p, err
	}
	if st.N > 0 {
		p.N = min(p.N, st.N)
	}
	switch {
	case st.Flags&blockgraph.StatusAllocated == 0:
	case st.Flags&blockgraph.StatusZero != 0:
		p.Kind = Zero
	default:
		p.Kind = Data
	}
	return p, nil
}

// Do implements Work.
func (w *merge) Do(ctx context.Context, p Piece, buf []byte) error {
	ends, leave, err := w.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	op, err := CopyRange(ctx, ends, p.Off, p.N, p.Kind, buf, 0, blockgraph.MayUnmap)
	if err != nil {
		return &Fault{Op: op, Off: p.Off, N: p.N, Err: err}
	}
	w.Skip(p, false)
	return nil
}

// Skip implements Work: it counts what belongs to the top.
func (w *merge) Skip(p Piece, _ bool) {
	if p.Off < w.o.Length {
		w.tell(min(p.N, w.o.Length-p.Off))
	}
}
