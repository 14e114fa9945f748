package blockgraph

import (
	"context"

	"blockd/qapi"
)

// This file prepares the reopen of one node: what may change, and which
// children.

// replaces tells whether the entry gives the node another child.
func (r *reopening) replaces(tx *Tx) bool {
	for _, name := range []string{"file", "backing"} {
		value, said := r.given.Get(name)
		if !said {
			continue
		}
		e := tx.State(r.node).edge(name)
		switch v := value.(type) {
		case string:
			if e == nil || e.child.name != v {
				return true
			}
		case nil:
			if e != nil {
				return true
			}
		}
	}
	return false
}

// prepareReopen checks an entry, stages the node's new state, and prepares its
// driver.
func (tx *Tx) prepareReopen(r *reopening, lenient bool) error {
	n := r.node
	if err := checkDetectZeroes(r.effective); err != nil {
		return err
	}
	driver, ok := n.drv.(Reopener)
	if !ok && !(lenient && (*r.effective.ReadOnly || n.typ.Filter)) {
		return qapi.Errorf("Block format '%s' used by node '%s' does not support reopening files", n.typ.Name, n.name)
	}
	if err := r.checkResets(); err != nil {
		return err
	}
	if s := tx.State(n); r.backingMissing && n.typ.BackingOption != nil && (s.backing != nil || s.BackingName != "") {
		return qapi.Errorf("backing is missing for '%s'", n.name)
	}
	if r.incomplete != nil {
		return r.incomplete
	}
	if err := tx.reopenChild(r, "backing"); err != nil {
		return err
	}
	if err := tx.reopenChild(r, "file"); err != nil {
		return err
	}
	if err := r.checkRest(tx); err != nil {
		return err
	}
	if r.changed || r.replaced || r.chosenAnew(tx) {
		s := tx.Stage(n)
		s.ReadOnly = r.isReadOnly(s)
		s.Explicit, s.Options = r.explicit, r.effective
		s.DetectZeroes = *r.effective.DetectZeroes
	}
	if ok && (r.changed || r.replaced) {
		return tx.prepareDriver(r, driver)
	}
	return nil
}

// chosenAnew tells whether other options than before are explicit, though the
// effective ones may be the same.
func (r *reopening) chosenAnew(tx *Tx) bool {
	s := tx.State(r.node)
	return r.given != nil && !sameOptions(r.node.ownOptions(r.explicit, s), r.node.ownOptions(s.Explicit, s))
}

// prepareDriver has the driver prepare, and sees to the end of that.
func (tx *Tx) prepareDriver(r *reopening, driver Reopener) error {
	s := tx.State(r.node)
	p, err := driver.PrepareReopen(tx.ctx, &ReopenRequest{Options: s.Options, ReadOnly: s.ReadOnly || s.Inactive, State: s})
	if err != nil {
		return err
	}
	r.prepared = p
	tx.settleReopening(r.node, p)
	tx.followSize(r.node)
	return nil
}

// settleReopening sees to the end of what a driver has prepared.
func (tx *Tx) settleReopening(n *Node, p *Reopening) {
	tx.OnAbort(func() {
		if p.Undo != nil {
			p.Undo(context.WithoutCancel(tx.ctx))
		}
		tx.limitsChanged(n)
	})
	tx.After(func() {
		if p.Keep != nil {
			p.Keep()
		}
	})
}

// followSize has the node's length, and that of the filters above it, follow
// what its driver says after the commit, when it sees its new child.
func (tx *Tx) followSize(n *Node) {
	tx.After(func() {
		if err := n.refreshSize(context.WithoutCancel(tx.ctx)); err != nil {
			logClose(tx.ctx, n, err)
			return
		}
		tx.g.loop.Do(func() { tx.resizeAbove(n) })
	})
}

// checkResets fails when an option was left out that cannot get its default
// value back while the node is open.
func (r *reopening) checkResets() error {
	if r.fresh == nil || r.keep {
		return nil
	}
	for option := range r.was.InOrder() {
		if option != "node-name" && !r.fresh.Has(option) && !r.node.mayChange(option) {
			return qapi.Errorf("Option '%s' cannot be reset to its default value", option)
		}
	}
	return nil
}

// checkRest fails when an option is given with a new value that must stay as
// it is, options for a child that the node's are not the place for included.
func (r *reopening) checkRest(tx *Tx) error {
	if r.fresh == nil {
		return nil
	}
	s := tx.State(r.node)
	for option, value := range r.fresh.InOrder() {
		if option == "active" {
			if value != !s.Inactive {
				return cannotChange(option)
			}
			continue
		}
		if option == "backing" || option == "file" || r.node.mayChange(option) {
			continue
		}
		if e := s.edge(option); e != nil && value == e.child.name {
			continue
		}
		if was, ok := r.was.Get(option); !ok || was != value {
			return cannotChange(option)
		}
	}
	return nil
}

// reopenChild replaces the node's child of that name, which is "file" or
// "backing", by the one that the options refer to.
func (tx *Tx) reopenChild(r *reopening, name string) error {
	n := r.node
	value, said := r.given.Get(name)
	var child *Node
	switch v := value.(type) {
	case string:
		if child = tx.Find(v); child == nil {
			return qapi.Errorf("Cannot find device='' nor node-name='%s'", v)
		}
		if tx.reaches(child, n) {
			return cycle(child, name, n)
		}
	case nil:
		if !said {
			return nil
		}
	default:
		return nil // a definition, for checkRest
	}
	s := tx.State(n)
	var old *Node
	if e := s.edge(name); e != nil {
		old = e.child
	}
	switch {
	case old == child:
		return nil
	case old != nil && old.SkipImplicit() == child:
		return nil
	case old != nil && old.implicit:
		return qapi.Errorf("Cannot replace implicit %s child of %s", name, n.name)
	case old == nil && n.typ.Filter:
		return qapi.Errorf("'%s' is a %s filter node that does not support a %s child", n.name, n.typ.Name, name)
	case name == "backing" && !n.typ.Filter && n.typ.BackingOption == nil:
		return qapi.Errorf("Driver '%s' of node '%s' does not support backing files", n.typ.Name, n.name)
	}
	role := RoleCOW
	if name == "file" {
		if old == nil {
			return qapi.Errorf("Cannot set file child to format node without file child")
		}
		role = s.edge(name).role
	}
	if old != nil {
		r.old = append(r.old, old)
	}
	r.replaced = true
	return tx.SetChild(n, name, role, child)
}
