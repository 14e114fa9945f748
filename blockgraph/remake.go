package blockgraph

// Changing an image in ways that its driver cannot follow while it is open: its
// layout, what its header says of it. Its driver rests meanwhile, and a new one takes
// its place.

// BeginRemake has a node's driver bring everything to the image and write no more; it
// is false when that has been done before, by one who could not end it.
// The caller has seen to it, by permissions, that nobody else uses the node, and calls
// EndRemake in a later change. Until then the node has no new dirty bitmaps: those of
// the image come back with their names.
func (tx *Tx) BeginRemake(n *Node) (first bool, err error) {
	if err := tx.Drain(n); err != nil || tx.State(n).remaking {
		return false, err
	}
	defer released(n)()
	if err := n.flush(tx.ctx); err != nil {
		return false, err
	}
	if err := tx.silence(n); err != nil {
		return false, err
	}
	tx.Stage(n).remaking = true
	return true, nil
}

// EndRemake opens a node's image anew. When it fails the node stays as it is, and
// BeginRemake may be called again.
func (tx *Tx) EndRemake(n *Node) error {
	if err := tx.Drain(n); err != nil {
		return err
	}
	defer released(n)()
	if err := tx.openDriverAgain(n); err != nil {
		return err
	}
	tx.Stage(n).remaking = false
	tx.followSize(n)
	size := n.Size()
	tx.OnAbort(func() { n.setSize(size) })
	return n.refreshSize(tx.ctx)
}
