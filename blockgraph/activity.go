package blockgraph

import (
	"context"
	"slices"
	"syscall"

	"blockd/qapi"
)

// This file hands images over between programs (blockdev-set-active). An
// inactive node stays open but gives up its claims: its driver writes nothing,
// and needs and shares below it as if nobody else mattered, so that another
// program may lock the files and change the image. Users keep reading, or wait
// with what they are entitled to until the node is active again. Then what a
// driver remembers of its image is read anew.

// ErrInactive is returned for what users may not do to an inactive node.
var ErrInactive = Errorf(syscall.EPERM, "export is inactive")

// Inactivate has nodes rest, and what is below them unless an active node uses
// it. Their roots' permissions are withdrawn until they are active. It fails
// with EPERM for a root that may not lose them, and for a user that needs to
// write all the same.
func (tx *Tx) Inactivate(nodes ...*Node) error {
	order := tx.toInactivate(nodes)
	if err := tx.Drain(order...); err != nil {
		return err
	}
	for _, n := range order {
		if err := tx.inactivate(n); err != nil {
			return err
		}
	}
	return nil
}

// HasActiveParent tells whether an active node uses n.
func (tx *Tx) HasActiveParent(n *Node) bool { return tx.hasParentBut(n, nil) }

func (tx *Tx) hasParentBut(n *Node, inactive map[*Node]struct{}) bool {
	return slices.ContainsFunc(tx.Parents(n), func(e *Edge) bool {
		if e.node == nil || tx.State(e.node).Inactive {
			return false
		}
		_, so := inactive[e.node]
		return !so
	})
}

// toInactivate returns the nodes that are to be inactive and are not, parents
// before children.
func (tx *Tx) toInactivate(nodes []*Node) []*Node {
	var order []*Node
	chosen, asked := map[*Node]struct{}{}, map[*Node]struct{}{}
	for _, n := range nodes {
		asked[n] = struct{}{}
	}
	for _, n := range tx.below(nodes) {
		if tx.State(n).Inactive {
			continue
		}
		if _, ok := asked[n]; !ok && tx.hasParentBut(n, chosen) {
			continue
		}
		chosen[n] = struct{}{}
		order = append(order, n)
	}
	return order
}

func (tx *Tx) inactivate(n *Node) error {
	for _, e := range tx.Parents(n) {
		if r := e.root; r != nil && r.job == "" {
			if !r.mayRest() {
				return syscall.EPERM
			}
			tx.rest(r, e)
		}
	}
	if tx.Used(n)&(PermWrite|PermWriteUnchanged) != 0 {
		return syscall.EPERM
	}
	if !tx.State(n).ReadOnly {
		if err := n.flush(tx.ctx); err != nil {
			return err
		}
	}
	if err := tx.silence(n); err != nil {
		return err
	}
	tx.Stage(n).Inactive = true
	tx.touch(n)
	return tx.refresh([]*Node{n})
}

// silence has a node's driver store the dirty bitmaps, which are forgotten then, and
// write no more.
func (tx *Tx) silence(n *Node) error {
	if err := tx.tellDriver(n, true); err != nil {
		return err
	}
	return tx.forgetBitmaps(n)
}

// tellDriver has a driver write no more, or write again if the node's options
// allow it.
func (tx *Tx) tellDriver(n *Node, inactive bool) error {
	driver, ok := n.drv.(Reopener)
	if !ok || tx.State(n).ReadOnly {
		return nil
	}
	s := tx.State(n)
	p, err := driver.PrepareReopen(tx.ctx, &ReopenRequest{Options: s.Options, ReadOnly: inactive, State: s})
	if err != nil {
		return err
	}
	tx.settleReopening(n, p)
	if p.Apply != nil {
		p.Apply()
	}
	tx.limitsChanged(n)
	if p.Start != nil {
		return p.Start(tx.ctx)
	}
	return nil
}

// Activate has nodes and all that is below them work again, children first. It
// fails when another program holds a lock, or an image cannot be read.
func (tx *Tx) Activate(nodes ...*Node) error {
	var order []*Node
	for _, n := range slices.Backward(tx.below(nodes)) {
		if tx.State(n).Inactive {
			order = append(order, n)
		}
	}
	if err := tx.Drain(order...); err != nil {
		return err
	}
	for _, n := range order {
		if err := tx.activate(n); err != nil {
			return err
		}
	}
	return nil
}

func (tx *Tx) activate(n *Node) error {
	tx.Stage(n).Inactive = false
	tx.touch(n)
	for _, e := range tx.Parents(n) {
		if e.root != nil {
			tx.wake(e.root, e)
		}
	}
	if err := tx.refresh([]*Node{n}); err != nil {
		return err
	}
	tx.anticipate(n)
	if a, ok := n.drv.(Activator); ok {
		if err := a.Activate(tx.ctx); err != nil {
			return err
		}
	}
	var err error
	if _, stores := n.drv.(BitmapStorer); stores || n.typ.Remembers {
		err = tx.openDriverAgain(n)
	} else {
		err = tx.tellDriver(n, false)
	}
	if err != nil {
		return err
	}
	tx.followSize(n)
	size := n.Size()
	tx.OnAbort(func() { n.setSize(size) })
	return n.refreshSize(tx.ctx) // the nodes above read it at once
}

// openDriverAgain puts a new driver into a node that has been inactive.
func (tx *Tx) openDriverAgain(n *Node) error {
	s := tx.State(n)
	marked, err := tx.bitmapFor(n.typ, s.Options)
	if err != nil {
		return err
	}
	drv, err := n.typ.Open(tx.ctx, &OpenRequest{Node: n, Options: s.Options, ReadOnly: s.ReadOnly, Bitmap: marked})
	if err != nil {
		return prefix("Could not reopen "+n.typ.Name+" layer: ", err)
	}
	was, state := n.drv, n.state.Load()
	tx.OnAbort(func() { n.state.Store(state) })
	tx.exchangeDriver(n, drv)
	tx.OnAbort(func() {
		tx.exchangeDriver(n, was)
		logClose(tx.ctx, n, drv.Close(context.WithoutCancel(tx.ctx)))
	})
	tx.After(func() { logClose(tx.ctx, n, was.Close(context.WithoutCancel(tx.ctx))) })
	if err := tx.loadBitmaps(n); err != nil {
		return err
	}
	// Should the change be undone, the driver stores what it finds in the node's
	// state: its bitmaps must be there already.
	ahead := n.state.Load().clone()
	ahead.Bitmaps = tx.State(n).Bitmaps
	n.state.Store(ahead)
	return nil
}

// exchangeDriver replaces a node's driver, while no request is in flight and
// nobody inspects it.
func (tx *Tx) exchangeDriver(n *Node, drv Driver) {
	n.inspected.Lock()
	defer n.inspected.Unlock()
	tx.g.loop.Do(func() {
		n.setDriver(drv)
		n.limitsChanged(nil)
	})
	tx.g.watchCorruption(n)
}

// mayRest tells whether a root's user can do without its permissions.
func (r *Root) mayRest() bool { return r.allowInactive || r.perm&^PermConsistentRead == 0 }

// rest withdraws a root's permissions until wake.
func (tx *Tx) rest(r *Root, e *Edge) {
	if tx.restedPerms(r) != nil {
		return
	}
	perm, shared := tx.Perms(e)
	tx.rested[r] = &[2]Perm{perm, shared}
	tx.setPerms(e, 0, PermAll)
}

func (tx *Tx) wake(r *Root, e *Edge) {
	if p := tx.restedPerms(r); p != nil {
		tx.rested[r] = nil
		tx.setPerms(e, p[0], p[1])
	}
}

// restedPerms returns what a root has as soon as its node is active, or nil when
// it has it.
func (tx *Tx) restedPerms(r *Root) *[2]Perm {
	if p, staged := tx.rested[r]; staged {
		return p
	}
	return r.rested
}

// checkInactive fails when a root cannot use an inactive node in that way.
func checkInactive(n *Node, perm Perm) error {
	if perm&^PermConsistentRead == 0 {
		return nil
	}
	return qapi.Errorf("Permission '%s' unavailable on inactive node", perm)
}
