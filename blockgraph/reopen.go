package blockgraph

import (
	"context"

	"blockd/qapi"
)

// SetReadOnly makes a node read-only or writable, and with it the children
// that were opened for it alone and have no read-only option of their own.
// The node's roots are drained first; a node that becomes read-only is
// flushed. Undone with the change.
func (tx *Tx) SetReadOnly(n *Node, readOnly bool) error {
	if tx.State(n).ReadOnly == readOnly {
		return nil
	}
	if err := tx.Drain(n); err != nil {
		return err
	}
	var child *Node
	if e := tx.State(n).file; e != nil && e.child.inherits && e.child.inheritsReadOnly {
		child = e.child
	}
	if child != nil && !readOnly {
		if err := tx.SetReadOnly(child, false); err != nil {
			return err
		}
	}
	if readOnly {
		if err := tx.reopenReadOnly(n, true); err != nil {
			return err
		}
	}
	tx.Stage(n).ReadOnly = readOnly
	if err := tx.refresh([]*Node{n}); err != nil {
		return err
	}
	tx.touch(n)
	if !readOnly {
		tx.anticipate(n)
		return tx.reopenReadOnly(n, false)
	}
	if child != nil {
		return tx.SetReadOnly(child, true)
	}
	return nil
}

// anticipate gives a node what it is to need of its children at once: its
// driver may write to its file before the commit.
func (tx *Tx) anticipate(n *Node) {
	for _, e := range tx.State(n).Edges {
		perm, shared := e.Perms()
		e.setPerms(tx.Perms(e))
		tx.OnAbort(func() { e.setPerms(perm, shared) })
	}
}

func (tx *Tx) reopenReadOnly(n *Node, readOnly bool) error {
	if readOnly {
		if err := n.flush(tx.ctx); err != nil {
			return Errorf(Errno(err), "Error flushing drive: %s", Strerror(err))
		}
	}
	s := tx.Stage(n)
	o := *s.Options
	o.ReadOnly = ptr(readOnly)
	s.Options = &o
	r, ok := n.drv.(Reopener)
	switch {
	case ok:
	case readOnly || n.typ.Filter:
		return nil
	default:
		return qapi.Errorf("Block format '%s' used by node '%s' does not support reopening files", n.typ.Name, n.name)
	}
	commit, _, err := r.PrepareReopen(tx.ctx, &o, readOnly)
	if err != nil {
		return err
	}
	commit()
	refresh := func() { tx.g.loop.Do(func() { n.limitsChanged(nil) }) }
	refresh()
	tx.OnAbort(func() {
		back := *n.state.Load().Options
		if commit, _, err := r.PrepareReopen(context.WithoutCancel(tx.ctx), &back, !readOnly); err == nil {
			commit()
			refresh()
		}
	})
	return nil
}

// Resize changes a node's length in bytes, with the gates of its users closed.
func (tx *Tx) Resize(n *Node, size int64, exact bool, prealloc qapi.PreallocMode) error {
	r, err := tx.NewRoot(n, RootOptions{Perm: PermResize, Shared: PermAll})
	if err != nil {
		return err
	}
	if err := tx.Drain(n); err != nil {
		return err
	}
	for _, below := range tx.below([]*Node{n}) {
		tx.anticipate(below)
	}
	if err := n.truncate(tx.ctx, size, exact, prealloc, false); err != nil {
		return err
	}
	// Filters above follow.
	tx.resizeAbove(n)
	return tx.CloseRoot(r)
}

func (tx *Tx) resizeAbove(n *Node) {
	for _, e := range tx.Parents(n) {
		if e.node != nil && e.role&RoleFiltered != 0 {
			e.node.size.Store(n.size.Load())
			tx.resizeAbove(e.node)
		}
	}
}
