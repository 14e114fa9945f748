package blockgraph

// This file tells when a write goes beyond a place that somebody set, so that
// the storage below can be made larger in time (block-set-write-threshold).

// OnWriteThreshold sets who is told of a write that goes past a node's
// threshold, by how many bytes it does so, and what the threshold was; it is
// off then. f is called on the data plane before the write, and must not wait.
// Before the first node is opened.
func (g *Graph) OnWriteThreshold(f func(node string, exceeded, threshold uint64)) { g.crossed = f }

// SetWriteThreshold sets the place, in bytes, past which no write may go
// unnoticed; 0 is none. Any goroutine.
func (n *Node) SetWriteThreshold(threshold uint64) { n.threshold.Store(threshold) }

// WriteThreshold returns the place, 0 when there is none or it was passed. Any
// goroutine.
func (n *Node) WriteThreshold() uint64 { return n.threshold.Load() }

// checkThreshold notes a write of bytes [off, off+length), as the driver's
// alignment widens it.
func (n *Node) checkThreshold(off, length int64) {
	if n.threshold.Load() != 0 {
		n.crossThreshold(off + length)
	}
}

func (n *Node) crossThreshold(end int64) {
	end = alignUp(end, max(1, n.limits.RequestAlignment))
	t := n.threshold.Load()
	if t == 0 || uint64(end) <= t || !n.threshold.CompareAndSwap(t, 0) {
		return
	}
	if n.graph.crossed != nil {
		n.graph.crossed(n.name, uint64(end)-t, t)
	}
}
