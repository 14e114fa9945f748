package blockgraph

import "blockd/qapi"

// This file keeps which iothread each node belongs to. The threads of the field
// steer nothing here, since I/O runs on all cores; but its rules hold: nodes
// that are connected belong to one thread, a user may insist on its thread, and
// a thread that somebody belongs to is in use.

// Iothread is a thread that nodes belong to. nil stands for the main one.
type Iothread struct {
	id      string
	release func()

	//blockd:global
	users int // nodes
}

// UseIothread makes a thread known within a change. release is called when
// nothing belongs to it any more, after the change at the earliest; on a worker.
func (tx *Tx) UseIothread(id string, release func()) *Iothread {
	t := &Iothread{id: id, release: release}
	tx.threads = append(tx.threads, t)
	return t
}

func (t *Iothread) same(o *Iothread) bool { return t == o || t != nil && o != nil && t.id == o.id }

// iothread returns Node.iothread as of this change.
func (tx *Tx) iothread(n *Node) *Iothread {
	if t, staged := tx.iothreads[n]; staged {
		return t
	}
	return n.iothread
}

// SetIothread has a node and all that is connected with it belong to a thread.
// It fails when one of their users insists on another.
func (tx *Tx) SetIothread(n *Node, t *Iothread) error {
	if tx.iothread(n).same(t) {
		return nil
	}
	connected := tx.connected(n)
	for _, m := range connected {
		for _, e := range tx.Parents(m) {
			if e.root != nil && e.root.fixedIothread {
				return qapi.Errorf("Cannot change iothread of active block backend")
			}
		}
	}
	for _, m := range connected {
		tx.iothreads[m] = t
	}
	return nil
}

// connected returns the nodes that can be reached from n by links in either
// direction.
func (tx *Tx) connected(n *Node) []*Node {
	list := []*Node{n}
	seen := map[*Node]struct{}{n: {}}
	for i := 0; i < len(list); i++ {
		for _, next := range append(tx.childrenOf(list[i]), tx.parentsOf(list[i])...) {
			if _, ok := seen[next]; !ok {
				seen[next] = struct{}{}
				list = append(list, next)
			}
		}
	}
	return list
}

// joinIothreads has what a new link is to connect belong to one thread: the
// parent's, or else the child's.
func (tx *Tx) joinIothreads(parent, child *Node) error {
	p, c := tx.iothread(parent), tx.iothread(child)
	if p.same(c) {
		return nil
	}
	err := tx.SetIothread(child, p)
	if err != nil && tx.SetIothread(parent, c) == nil {
		return nil
	}
	return err
}

// publishIothreads puts nodes into their threads, and takes the dead ones out.
//
//blockd:global
func (tx *Tx) publishIothreads(dead []*Node) {
	for n, t := range tx.iothreads {
		tx.leaveIothread(n)
		if n.iothread = t; t != nil {
			t.users++
		}
	}
	for _, n := range dead {
		tx.leaveIothread(n)
	}
}

//blockd:global
func (tx *Tx) leaveIothread(n *Node) {
	if t := n.iothread; t != nil {
		t.users--
		tx.threads = append(tx.threads, t)
		n.iothread = nil
	}
}

// releaseIothreads gives threads up that nothing belongs to any more. At the end
// of a change, whether it was made or undone.
func (tx *Tx) releaseIothreads() {
	for _, t := range tx.threads {
		if t.users == 0 && t.release != nil {
			t.release()
			t.release = nil
		}
	}
}
