package blockgraph

import "blockd/qapi"

// Resize changes a node's length in bytes, with the gates of its users closed.
func (tx *Tx) Resize(n *Node, size int64, exact bool, prealloc qapi.PreallocMode) error {
	r, err := tx.NewRoot(n, RootOptions{Perm: PermResize, Shared: PermAll})
	if err != nil {
		return err
	}
	if err := tx.resize(n, size, exact, prealloc, false); err != nil {
		return err
	}
	return tx.CloseRoot(r)
}

// ResizeRoot is Resize by a root that has PermResize already and may not share
// it. What is new reads as zeroes, as jobs rely on.
func (tx *Tx) ResizeRoot(r *Root, size int64, prealloc qapi.PreallocMode) error {
	return tx.resize(r.Node(), size, false, prealloc, !r.Node().Caps().FreshZero)
}

func (tx *Tx) resize(n *Node, size int64, exact bool, prealloc qapi.PreallocMode, zeroed bool) error {
	if err := tx.Drain(n); err != nil {
		return err
	}
	for _, below := range tx.below([]*Node{n}) {
		tx.anticipate(below)
	}
	if err := n.truncate(tx.ctx, size, exact, prealloc, zeroed); err != nil {
		return err
	}
	tx.resizeAbove(n) // filters above follow
	return nil
}

//blockd:global
func (tx *Tx) resizeAbove(n *Node) {
	for _, e := range tx.Parents(n) {
		if e.node != nil && e.role&RoleFiltered != 0 {
			e.node.setSize(n.size.Load())
			tx.resizeAbove(e.node)
		}
	}
}
