package blockgraph

import (
	"slices"
	"syscall"

	"blockd/qapi"
)

// This file changes options and children of open nodes, several nodes at once
// (the field: bdrv_reopen_multiple). A reopen of a node concerns the children
// that were defined within it, too: the options that it gives for them, and
// those that they inherit from it. So a list of nodes becomes a queue of all
// nodes concerned, parents first. All are prepared, then all are applied, then
// the permissions are checked over the whole result. From there on the new
// options are in force within the change, and taken back if it is undone.

// reopening is a node in the queue.
type reopening struct {
	node *Node
	// given are the explicit options, without what went to children; nil: those
	// that the node has.
	given *qapi.Object
	// readOnly overrides the option, if not nil.
	readOnly *bool
	// keep: options that are not given stay as they are.
	keep bool
	// flat: strings do for scalars in what is given.
	flat bool
	// backingMissing: the options do not say what the backing file is, though
	// all are to be given.
	backingMissing bool
	// parent is the entry that the node inherits from, or nil.
	parent *reopening
	role   Role

	// incomplete is why the given options could not be read.
	incomplete          error
	explicit, effective *qapi.BlockdevOptions
	fresh, was          *qapi.Object // flat: what is given, and what the node has of its own
	changed             bool
	replaced            bool // a child
	old                 []*Node
	prepared            *Reopening
}

// Reopen gives nodes new options and children (blockdev-reopen). Each element
// has the node's name, and all of its options: those left out get their default
// values.
func (tx *Tx) Reopen(list []*qapi.BlockdevOptions) error {
	var q reopenQueue
	for _, o := range list {
		if o.NodeName == nil {
			return qapi.Errorf("node-name not specified")
		}
		n := tx.Find(*o.NodeName)
		if n == nil {
			return qapi.Errorf("Failed to find node with node-name='%s'", *o.NodeName)
		}
		if err := q.add(tx, &reopening{node: n, given: qapi.ToObject(o)}); err != nil {
			return err
		}
	}
	return tx.reopen(q, false)
}

// ReopenKeeping gives a node, and the nodes that were defined within it, some new
// options, and keeps the others. They are as in a `json:` file name: flat, with
// strings for scalars. Children that they name stay where they are.
func (tx *Tx) ReopenKeeping(n *Node, options *qapi.Object) error {
	given, err := qapi.Nest(options)
	if err != nil {
		return err
	}
	var q reopenQueue
	if err := q.add(tx, &reopening{node: n, given: given, keep: true, flat: true}); err != nil {
		return err
	}
	return tx.reopen(q, false)
}

// SetReadOnly makes a node read-only or writable, and with it the children that
// were defined within it and have no read-only option of their own. The node's
// roots are drained first; a node that becomes read-only is flushed.
func (tx *Tx) SetReadOnly(n *Node, readOnly bool) error {
	if tx.State(n).ReadOnly == readOnly {
		return nil
	}
	var q reopenQueue
	if err := q.add(tx, &reopening{node: n, readOnly: &readOnly, keep: true}); err != nil {
		return err
	}
	return tx.reopen(q, true)
}

// reopenQueue has parents before the children that inherit from them.
type reopenQueue []*reopening

// add puts an entry at the end, or in the place of an earlier one of the same
// node, whose explicit options it completes; and then the node's children.
func (q *reopenQueue) add(tx *Tx, r *reopening) error {
	s := tx.State(r.node)
	i := slices.IndexFunc(*q, func(x *reopening) bool { return x.node == r.node })
	switch {
	case i < 0:
		if r.keep && r.given != nil {
			joinOptions(r.given, explicitOptions(r.node, s))
		}
		*q = append(*q, r)
	default:
		was := (*q)[i].given
		if was == nil {
			was = explicitOptions(r.node, s)
		}
		if r.given == nil {
			r.given = &qapi.Object{}
		}
		joinOptions(r.given, was)
		r.backingMissing = (*q)[i].backingMissing
		(*q)[i] = r
	}
	if !r.keep {
		r.backingMissing = !r.given.Has("backing")
	}
	var children []*reopening
	for _, e := range slices.Backward(s.Edges) { // the field's order, which tells whose mistake is named
		if tx.inheritedFrom(e.child) != r.node {
			continue
		}
		if c := r.child(e); c != nil {
			children = append(children, c)
		}
	}
	if err := r.options(tx); err != nil {
		return err
	}
	for _, c := range children {
		if err := q.add(tx, c); err != nil {
			return err
		}
	}
	return nil
}

// explicitOptions are a node's explicit options, without its children.
func explicitOptions(n *Node, s *NodeState) *qapi.Object {
	return n.withoutChildren(qapi.ToObject(s.Explicit), s.Options, s)
}

// child returns the entry of a child that inherits from the node, or nil when
// another node is to take its place. What was given for it moves there.
func (r *reopening) child(e *Edge) *reopening {
	c := &reopening{node: e.child, parent: r, role: e.role, keep: r.keep, flat: r.flat}
	value, said := r.given.Get(e.name)
	switch v := value.(type) {
	case string:
		if v != e.child.name {
			return nil
		}
		c.keep = true
	case *qapi.Object:
		r.given.Delete(e.name)
		c.given = v
	default:
		if said {
			return nil // null
		}
	}
	if c.given == nil && !c.keep {
		c.given = &qapi.Object{}
	}
	return c
}

// options works out the explicit and effective options of an entry, whose
// parent's are known, and whether they are others than the node has.
func (r *reopening) options(tx *Tx) error {
	n := r.node
	s := tx.State(n)
	if r.given == nil {
		explicit := *s.Explicit
		r.explicit = &explicit
	} else {
		full := &qapi.Object{}
		joinOptions(full, r.given)
		r.fresh = full.Flatten()
		for _, e := range s.Edges {
			if !full.Has(e.name) {
				full.Set(e.name, e.child.name)
			}
		}
		if v, ok := full.Get("driver"); !ok {
			full.Set("driver", n.typ.Name)
		} else if v != n.typ.Name {
			return cannotChange("driver")
		}
		r.explicit = &qapi.BlockdevOptions{}
		if r.flat {
			r.incomplete = qapi.DecodeFlat(full, r.explicit)
		} else {
			r.incomplete = qapi.Decode(full, r.explicit)
		}
		if r.incomplete != nil {
			explicit := *s.Explicit
			r.explicit = &explicit
		} else if r.flat {
			r.fresh = n.ownOptions(r.explicit, s)
		}
	}
	if r.readOnly != nil {
		r.explicit.ReadOnly = r.readOnly
	}
	var parent, old *qapi.BlockdevOptions
	if r.parent != nil {
		parent = r.parent.effective
	}
	if r.keep {
		old = s.Options
	}
	r.effective = effective(r.explicit, parent, r.role, old)
	r.was = n.ownOptions(s.Options, s)
	r.changed = r.isReadOnly(s) != s.ReadOnly || !sameOptions(n.ownOptions(r.effective, s), r.was)
	return nil
}

// isReadOnly tells whether the node is to be read-only. One that has fallen
// back to that stays so, unless told otherwise.
func (r *reopening) isReadOnly(s *NodeState) bool {
	fellBack := s.ReadOnly && !*s.Options.ReadOnly && *r.effective.AutoReadOnly
	return *r.effective.ReadOnly || fellBack && r.readOnly == nil
}

func cannotChange(option string) error {
	return Errorf(syscall.EINVAL, "Cannot change the option '%s'", option)
}

// reopen prepares the whole queue, applies it and checks the permissions.
// lenient: a driver that knows of no reopening may become read-only, and a
// filter writable.
func (tx *Tx) reopen(q reopenQueue, lenient bool) error {
	var changed []*Node
	for _, r := range q {
		if r.changed || r.replaces(tx) {
			changed = append(changed, r.node)
		}
	}
	if err := tx.Drain(changed...); err != nil {
		return err
	}
	for _, n := range changed {
		if s := tx.State(n); s.ReadOnly || s.Inactive {
			continue
		}
		if err := n.flush(tx.ctx); err != nil {
			return Errorf(Errno(err), "Error flushing drive: %s", Strerror(err))
		}
	}
	concerned := changed
	for _, r := range q {
		if err := tx.prepareReopen(r, lenient); err != nil {
			return err
		}
		concerned = append(concerned, r.old...)
	}
	for _, r := range slices.Backward(q) {
		if r.prepared != nil && r.prepared.Apply != nil {
			r.prepared.Apply()
		}
		if r.changed {
			tx.limitsChanged(r.node)
		}
	}
	if err := tx.refresh(concerned); err != nil {
		return err
	}
	return tx.startReopened(q)
}

// limitsChanged has a node look at its driver's limits again, now and, should
// the change be undone, then.
func (tx *Tx) limitsChanged(n *Node) {
	refresh := func() { tx.g.loop.Do(func() { n.limitsChanged(nil) }) }
	refresh()
}

// startReopened has nodes that became writable begin to write. What a driver
// needs of a new child it has only after the commit.
func (tx *Tx) startReopened(q reopenQueue) error {
	for _, r := range slices.Backward(q) {
		if r.changed || r.replaced {
			tx.touch(r.node)
		}
		if r.changed && !r.replaced {
			tx.anticipate(r.node)
		}
		if r.prepared == nil || r.prepared.Start == nil {
			continue
		}
		if r.replaced {
			tx.After(func() { logClose(tx.ctx, r.node, r.prepared.Start(tx.ctx)) })
			continue
		}
		if err := r.prepared.Start(tx.ctx); err != nil {
			return err
		}
	}
	return nil
}

// anticipate gives a node what it is to need of its children at once, and lets
// it be written to if that is what it is to be: its driver, or that above it,
// may write before the commit.
func (tx *Tx) anticipate(n *Node) {
	if was := n.state.Load(); was.ReadOnly && !tx.State(n).ReadOnly {
		s := was.clone()
		s.ReadOnly = false
		n.state.Store(s)
		tx.anticipated[n] = struct{}{}
		tx.OnAbort(func() { n.state.Store(was) })
	}
	for _, e := range tx.State(n).Edges {
		perm, _ := tx.Perms(e)
		e.ahead.Store(uint32(perm))
		over := func() { e.ahead.Store(0) }
		tx.OnCommit(over)
		tx.OnAbort(over)
	}
}
