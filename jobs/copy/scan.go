package copy

import (
	"context"

	"blockd/blockgraph"
)

// DefaultCluster is the least unit of copying, in bytes.
const DefaultCluster = 64 << 10

// scan is the feed that stream and commit share: it looks at each byte of a
// chain once, from the start to the end.
type scan struct {
	root     *blockgraph.Root // over the chain
	length   int64
	unit     int64
	progress Progress
	// status says what the range at off, n bytes at most, needs. It is called
	// under an admission at root.
	status func(ctx context.Context, top *blockgraph.Node, off, n int64) (Piece, error)

	// Of the planner. The latest answer of status may describe far more than one
	// piece, and serves all of them: what is to be read does not change, and a
	// copy into an image that does decides for itself.
	cursor int64
	extent Piece
}

// Unit implements Work.
func (w *scan) Unit() int64 { return w.unit }

// Next implements Work.
func (w *scan) Next(ctx context.Context, l Limit) (Piece, error) {
	if w.cursor >= w.length {
		return Piece{}, nil
	}
	off := w.cursor
	if off >= w.extent.Off+w.extent.N {
		extent, err := w.ask(ctx, off)
		if err != nil {
			if ctx.Err() != nil {
				return Piece{}, ctx.Err()
			}
			n := min(l.Data, w.length-off)
			w.cursor += n
			return Piece{}, &Fault{Op: Read, Off: off, N: n, Err: err}
		}
		w.extent = extent
	}
	p := Piece{Off: off, N: w.extent.Off + w.extent.N - off, Kind: w.extent.Kind}
	switch p.Kind {
	case Data:
		p.N = w.cut(off, p.N, l.Data)
	case Zero:
		p.N = w.cut(off, p.N, l.Zero)
	}
	w.cursor += p.N
	return p, nil
}

// ask has status describe the range at off.
func (w *scan) ask(ctx context.Context, off int64) (Piece, error) {
	a, err := w.root.Enter(ctx)
	if err != nil {
		return Piece{}, err
	}
	defer a.Leave()
	return w.status(ctx, a.Node(), off, w.length-off)
}

// cut shortens a piece to the limit, ending at a multiple of the unit where
// that leaves something.
func (w *scan) cut(off, n, limit int64) int64 {
	if n <= limit {
		return n
	}
	if end := (off + limit) &^ (w.unit - 1); end > off {
		return end - off
	}
	return limit
}

func (w *scan) tell(n int64) {
	if w.progress != nil {
		w.progress(n, -n)
	}
}

// Skip implements Work.
func (w *scan) Skip(p Piece, _ bool) { w.tell(p.N) }

// Settle implements Work: each byte is looked at once.
func (w *scan) Settle(context.Context) (more bool, err error) { return false, nil }

// child returns the next node of a chain, or nil.
func child(n *blockgraph.Node) *blockgraph.Node {
	if e := n.FilterOrCOW(); e != nil {
		return e.Child()
	}
	return nil
}
