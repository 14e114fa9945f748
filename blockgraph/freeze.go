package blockgraph

import "blockd/qapi"

// This file holds chains in place. Who relies on the links from a node down to
// another freezes them, all or none; no change replaces a frozen link until who
// froze it lets go. Jobs do so for as long as they run, and drivers, from Open on,
// for as long as their node is there. Like everything about edges it is staged: a
// change that is undone has neither frozen nor thawed anything.

// FrozenChain is links of a chain that stay as they are. A link is part of one at
// most.
type FrozenChain struct {
	links []*Edge
}

// FreezeChain keeps the links from top down to base as they are until Thaw. It
// fails when one is frozen already, or leads to a node that must stay free to go.
func (tx *Tx) FreezeChain(top, base *Node) (*FrozenChain, error) {
	c := &FrozenChain{}
	for n := top; n != base; {
		e := n.FilterOrCOWIn(tx.State(n))
		if e == nil {
			break
		}
		if tx.frozenIn(e) != nil {
			return nil, qapi.Errorf("Cannot change '%s' link from '%s' to '%s'", e.name, n.name, e.child.name)
		}
		c.links = append(c.links, e)
		n = e.child
	}
	for _, e := range c.links {
		if e.child.typ.NeverFreeze {
			return nil, qapi.Errorf("Cannot freeze '%s' link to '%s'", e.name, e.child.name)
		}
	}
	for _, e := range c.links {
		tx.frozen[e] = c
	}
	return c, nil
}

// Thaw ends a FreezeChain, in the same change or in a later one. Once more does
// nothing.
//
//blockd:global
func (tx *Tx) Thaw(c *FrozenChain) {
	for _, e := range c.links {
		if tx.frozenIn(e) == c {
			tx.frozen[e] = nil
		}
	}
}

// FindBelow returns the node of that name in the chain below the node, as of the
// change that opens it, or nil. Only within DriverType.Open.
//
//blockd:blocking
func (r *OpenRequest) FindBelow(name string) *Node {
	for n := r.Node; ; {
		s := n.State()
		if r.tx != nil {
			s = r.tx.State(n)
		}
		e := n.FilterOrCOWIn(s)
		if e == nil {
			return nil
		}
		if n = e.child; n.name == name {
			return n
		}
	}
}

// FreezeDownTo keeps the links from the node down to one below it as they are
// until the node goes, or ThawBelow. It fails as FreezeChain does. Only within
// DriverType.Open, once.
//
//blockd:blocking
func (r *OpenRequest) FreezeDownTo(base *Node) error {
	if r.tx == nil {
		return nil // opened again in its place: they are frozen
	}
	return r.tx.freezeBelow(r.Node, base)
}

func (tx *Tx) freezeBelow(n, base *Node) (err error) {
	n.freezes, err = tx.FreezeChain(n, base)
	return err
}

// ThawBelow ends what a driver's FreezeDownTo began: the node is about to leave
// the chain.
//
//blockd:global
func (tx *Tx) ThawBelow(n *Node) {
	if n.freezes != nil {
		tx.Thaw(n.freezes)
	}
}

// frozenIn returns Edge.frozen as of this change.
//
//blockd:global
func (tx *Tx) frozenIn(e *Edge) *FrozenChain {
	if c, staged := tx.frozen[e]; staged {
		return c
	}
	return e.frozen
}

// Frozen tells whether a job or a driver relies on the edge, so that it stays.
// Control plane.
//
//blockd:global
func (e *Edge) Frozen() bool { return e.frozen != nil }
