package blockgraph

import (
	"context"
	"iter"
	"log/slog"
	"runtime/debug"
	"slices"
	"syscall"

	"blockd/qapi"
)

// This file ends a change: permissions over the whole result, then the new
// graph at once, or everything undone.

// attempt makes the change up to its commit, and with it. On an error nothing
// was published.
func (tx *Tx) attempt(fn func(tx *Tx) error) (err error) {
	defer func() {
		if tx.published {
			return // a panic goes on
		}
		if p := recover(); p != nil {
			slog.ErrorContext(tx.ctx, "a graph change panicked and is undone", "change", tx.cause.String(), "panic", p, "stack", string(debug.Stack()))
			err = qapi.Errorf("Internal error: %v", p)
		}
	}()
	if err := fn(tx); err != nil {
		return err
	}
	return tx.commit()
}

// commit publishes the staged graph. On an error nothing was published.
func (tx *Tx) commit() error {
	if err := tx.drainReplaced(); err != nil {
		return err
	}
	dead := tx.collect()
	tx.dying = dead
	if err := tx.refresh(tx.touchedAlive(dead)); err != nil {
		return err
	}
	if err := tx.storeBitmaps(); err != nil {
		return err
	}
	tx.published = true
	tx.g.loop.Do(func() { tx.publish(dead) })
	tx.bury(dead)
	for _, f := range tx.after {
		f()
	}
	return nil
}

// drainReplaced closes the gates of the roots that can reach an edge that is
// replaced.
func (tx *Tx) drainReplaced() error {
	var nodes []*Node
	var roots []*Root
	for e := range tx.removed {
		if e.root != nil {
			roots = append(roots, e.root)
		} else {
			nodes = append(nodes, e.node)
		}
	}
	for n := range tx.states {
		if n.published {
			nodes = append(nodes, n)
		}
	}
	for n := range tx.serialised() {
		nodes = append(nodes, n)
	}
	if err := tx.Drain(nodes...); err != nil {
		return err
	}
	return tx.drainRoots(roots)
}

// serialised yields the nodes that get a user who sends Serialising requests, or
// locks ranges.
//
//blockd:global
func (tx *Tx) serialised() iter.Seq[*Node] {
	return func(yield func(*Node) bool) {
		for n, list := range tx.added {
			if n.tracker.serialised {
				continue
			}
			for _, e := range list {
				locks := e.root != nil && e.root.locks
				if e.node != nil {
					s, ok := e.node.drv.(Serialiser)
					locks = ok && s.Serialises(e)
				}
				if locks {
					if !yield(n) {
						return
					}
					break
				}
			}
		}
	}
}

// collect returns the nodes that nobody uses any more, parents before
// children. They keep their own edges until they are closed.
func (tx *Tx) collect() []*Node {
	var dead []*Node
	isDead := map[*Node]bool{}
	var visit func(n *Node)
	visit = func(n *Node) {
		if isDead[n] || tx.MonitorOwned(n) {
			return
		}
		for _, e := range tx.Parents(n) {
			if e.root != nil || !isDead[e.node] {
				return
			}
		}
		isDead[n] = true
		dead = append(dead, n)
		for _, e := range tx.State(n).Edges {
			visit(e.child)
		}
	}
	for _, n := range slices.Concat(tx.touched, tx.newNodes) {
		visit(n)
	}
	return dead
}

func (tx *Tx) touchedAlive(dead []*Node) []*Node {
	return slices.DeleteFunc(slices.Clone(tx.touched), func(n *Node) bool { return slices.Contains(dead, n) })
}

// publish makes the staged graph the graph. Control plane.
//
//blockd:global loop
func (tx *Tx) publish(dead []*Node) {
	g := tx.g
	g.loop.assertOn()
	step := tx.differences(dead)
	for _, n := range tx.newNodes {
		g.names[n.name] = n
		g.order.Set(n.seq, n)
		n.published = true
	}
	for n, owned := range tx.owned {
		n.monitorOwned = owned
	}
	for n, from := range tx.inherits {
		n.inherits = from
	}
	for n, list := range tx.blockers {
		n.blockers = list
	}
	for _, n := range dead {
		tx.ThawBelow(n)
	}
	for e, c := range tx.frozen {
		e.frozen = c
	}
	for e := range tx.removed {
		e.unlink()
	}
	for child, list := range tx.added {
		for _, e := range list {
			e.index = len(child.parents)
			child.parents = append(child.parents, e)
			if e.root != nil {
				e.root.edge.Store(e)
			}
		}
	}
	for _, r := range tx.newRoots {
		g.roots[r] = struct{}{}
	}
	for _, r := range tx.oldRoots {
		r.edge.Store(nil)
		delete(g.roots, r)
	}
	for r, p := range tx.rested {
		r.rested = p
	}
	tx.publishIothreads(dead)
	for e, p := range tx.perms {
		e.setPerms(p[0], p[1])
	}
	for n := range tx.serialised() {
		n.tracker.serialised = true
		n.tracker.refresh(n.limits.RequestAlignment)
	}
	for n, s := range tx.states {
		n.state.Store(s)
		n.mark(s)
	}
	for n := range tx.states {
		if !slices.Contains(dead, n) {
			n.limitsChanged(dead) // its children may be other ones
		}
	}
	for _, n := range dead {
		delete(g.names, n.name)
		g.order.Delete(n.seq)
		for _, e := range n.State().Edges {
			if e.child.inherits == n {
				e.child.inherits = nil
			}
		}
	}
	tx.step = g.history.add(tx.cause, step)
	for _, f := range tx.onCommit {
		f()
	}
}

// unlink takes the edge off its child's list of users. Control plane.
//
//blockd:global loop
func (e *Edge) unlink() {
	p := e.child.parents
	last := p[len(p)-1]
	p[e.index] = last
	last.index = e.index
	p[len(p)-1] = nil
	e.child.parents = p[:len(p)-1]
}

// closeAll closes nodes. What they write meanwhile is not held up on purpose:
// it may be far more than a throttle lets pass in a day.
//
//blockd:blocking
func closeAll(nodes []*Node, f func(n *Node)) {
	defer released(nodes...)()
	for _, n := range nodes {
		f(n)
	}
}

// released has nothing hold up the nodes' own requests until what it returns is called.
//
//blockd:blocking
func released(nodes ...*Node) (end func()) {
	rs := releasers(nil, nodes)
	for _, r := range rs {
		r.ReleaseBegin()
	}
	return func() {
		for _, r := range rs {
			r.ReleaseEnd()
		}
	}
}

// forget ends the staging.
func (tx *Tx) forget() {
	clear(tx.states)
	clear(tx.added)
	clear(tx.removed)
	clear(tx.perms)
	clear(tx.frozen)
	clear(tx.owned)
	clear(tx.inherits)
	clear(tx.rested)
	clear(tx.iothreads)
	clear(tx.blockers)
	tx.dying = nil
	tx.newNodes, tx.newRoots, tx.oldRoots, tx.touched, tx.unchecked = nil, nil, nil, nil, nil
}

// loosen recomputes permissions that can only have become less, and applies
// them to the published graph.
func (tx *Tx) loosen(nodes []*Node) {
	if len(nodes) == 0 {
		return
	}
	tx.ctx = context.WithoutCancel(tx.ctx)
	if err := tx.refresh(nodes); err != nil {
		logClose(tx.ctx, nodes[0], err)
	}
	tx.g.loop.Do(func() {
		step := tx.differences(nil)
		for e, p := range tx.perms {
			e.setPerms(p[0], p[1])
		}
		tx.g.history.add(tx.cause, step)
	})
	clear(tx.perms)
}

// rollback undoes the change: what was prepared in reverse order, then new
// nodes are closed, then locks go back to what the published graph needs.
func (tx *Tx) rollback() {
	tx.ctx = context.WithoutCancel(tx.ctx)
	for _, f := range slices.Backward(tx.undo) {
		f()
	}
	nodes := tx.newNodes
	locked := tx.locked
	// Parents were opened after their children, except for backing files.
	closeAll(tx.parentsFirst(nodes), func(n *Node) {
		if n.drv != nil {
			logClose(tx.ctx, n, n.close(tx.ctx))
		}
	})
	tx.forget()
	var alive []*Node
	for n := range locked {
		if n.published {
			alive = append(alive, n)
		}
	}
	tx.loosen(alive)
}

// Dispose closes a node that this change opened and nobody uses, and what was
// opened with it, at once, so that its file can be opened again within the
// change.
func (tx *Tx) Dispose(n *Node) error {
	if n.published || len(tx.Parents(n)) > 0 {
		return qapi.Errorf("Node %s is in use", n.name)
	}
	tx.newNodes = slices.DeleteFunc(tx.newNodes, func(x *Node) bool { return x == n })
	tx.touched = slices.DeleteFunc(tx.touched, func(x *Node) bool { return x == n })
	tx.unchecked = slices.DeleteFunc(tx.unchecked, func(x *Node) bool { return x == n })
	err := n.close(tx.ctx)
	tx.ThawBelow(n)
	s := tx.State(n)
	delete(tx.states, n)
	for _, e := range s.Edges {
		tx.dropEdge(e)
		if !e.child.published && len(tx.Parents(e.child)) == 0 {
			if e := tx.Dispose(e.child); err == nil {
				err = e
			}
		}
	}
	return err
}

// parentsFirst orders nodes so that each comes before its children.
func (tx *Tx) parentsFirst(nodes []*Node) []*Node {
	var post []*Node
	seen := map[*Node]struct{}{}
	var walk func(n *Node)
	walk = func(n *Node) {
		if _, ok := seen[n]; ok {
			return
		}
		seen[n] = struct{}{}
		for _, e := range tx.State(n).Edges {
			if slices.Contains(nodes, e.child) {
				walk(e.child)
			}
		}
		post = append(post, n)
	}
	for _, n := range nodes {
		walk(n)
	}
	slices.Reverse(post)
	return post
}

// end opens the gates again.
func (tx *Tx) end() {
	for _, q := range tx.quiesced {
		q.QuiesceEnd()
	}
	for r := range tx.drained {
		r.gate.open()
	}
	tx.releaseIothreads()
}

// refresh computes permissions from the given nodes down to wherever they
// change, checks them over the staged graph, and has drivers take their locks.
// On an error the drivers are as before; staged permissions are then those of
// a change that will be undone.
func (tx *Tx) refresh(from []*Node) error {
	order := tx.below(from)
	dirty := map[*Node]struct{}{}
	for _, n := range from {
		dirty[n] = struct{}{}
	}
	type locking struct {
		p            Permissioner
		perm, shared Perm
	}
	var prepared []locking
	granted := false
	defer func() { // after a panic, too
		if granted {
			return
		}
		for _, l := range slices.Backward(prepared) {
			l.p.AbortPerms()
		}
	}()
	for _, n := range order {
		tx.g.permVisits++
		if _, ok := dirty[n]; !ok {
			continue
		}
		perm, shared, err := tx.cumulate(n)
		if err != nil {
			return err
		}
		s := tx.State(n)
		if (s.ReadOnly || s.Inactive) && perm&(PermWrite|PermWriteUnchanged) != 0 {
			if was := n.State(); n.published && !was.ReadOnly && !was.Inactive {
				return Errorf(syscall.EPERM, "Read-only block node '%s' cannot support read-write users", n.name)
			}
			return Errorf(syscall.EPERM, "Block node is read-only")
		}
		if p, ok := n.drv.(Permissioner); ok {
			tx.locked[n] = struct{}{}
			if err := p.PreparePerms(tx.ctx, perm, shared); err != nil {
				return err
			}
			prepared = append(prepared, locking{p, perm, shared})
		}
		for _, e := range s.Edges {
			np, ns := tx.childPerms(n, s, e, perm, shared)
			if op, os := tx.Perms(e); op != np || os != ns || !n.published {
				tx.setPerms(e, np, ns)
				dirty[e.child] = struct{}{}
			}
		}
	}
	granted = true
	for _, l := range prepared {
		l.p.CommitPerms(l.perm, l.shared)
	}
	return nil
}

func (tx *Tx) childPerms(n *Node, s *NodeState, e *Edge, perm, shared Perm) (Perm, Perm) {
	var np, ns Perm
	writable := !s.ReadOnly && !s.Inactive
	c, own := n.drv.(ChildPermissioner)
	switch {
	case own:
		np, ns = c.ChildPerms(e, writable, perm, shared)
	case n.drv == nil && n.typ.OpeningPerms != nil:
		np, ns = n.typ.OpeningPerms(e, writable, perm, shared)
	default:
		np, ns = DefaultChildPerms(e.role, writable, perm, shared)
	}
	if s.Inactive && e.role&RoleFiltered == 0 {
		ns |= PermWrite | PermResize
	}
	if forceShare(tx.State(e.child).Options) {
		ns = PermAll
	}
	return np, ns
}

// Used returns what all users of a node together need, as of this change.
func (tx *Tx) Used(n *Node) Perm {
	var perm Perm
	for _, e := range tx.Parents(n) {
		p, _ := tx.Perms(e)
		perm |= p
	}
	return perm
}

// cumulate returns what all users of a node together need and share. It fails
// when one needs what another does not share.
func (tx *Tx) cumulate(n *Node) (perm, shared Perm, err error) {
	shared = PermAll
	parents := tx.Parents(n)
	for _, e := range parents {
		p, s := tx.Perms(e)
		perm |= p
		shared &= s
	}
	if perm&^shared == 0 {
		return perm, shared, nil
	}
	// What is about to be closed excludes nobody any more.
	parents = slices.DeleteFunc(slices.Clone(parents), func(e *Edge) bool { return e.node != nil && slices.Contains(tx.dying, e.node) })
	sorted := slices.SortedFunc(slices.Values(parents), func(a, b *Edge) int { return int(int64(b.seq) - int64(a.seq)) })
	for _, a := range sorted {
		for _, b := range sorted {
			if a == b {
				continue
			}
			_, share := tx.Perms(a)
			need, _ := tx.Perms(b)
			if bad := need &^ share; bad != 0 {
				return 0, 0, conflict(n, bad, b, a)
			}
		}
	}
	return perm, shared, nil
}

func conflict(n *Node, bad Perm, a, b *Edge) error {
	return qapi.Errorf("Permission conflict on node '%s': permissions '%s' are both required by %s (uses node '%s' as '%s' child) and unshared by %s (uses node '%s' as '%s' child).",
		n.name, bad, a.user(), n.name, a.name, b.user(), n.name, b.name)
}

// below returns the nodes reachable from the given ones, parents before
// children, and a node's children in their order: of several conflicts the first
// one's is told.
func (tx *Tx) below(from []*Node) []*Node {
	var post []*Node
	seen := map[*Node]struct{}{}
	var walk func(n *Node)
	walk = func(n *Node) {
		if _, ok := seen[n]; ok {
			return
		}
		seen[n] = struct{}{}
		for _, e := range slices.Backward(tx.State(n).Edges) {
			walk(e.child)
		}
		post = append(post, n)
	}
	for _, n := range from {
		walk(n)
	}
	slices.Reverse(post)
	return post
}

func forceShare(o *qapi.BlockdevOptions) bool { return o.ForceShare != nil && *o.ForceShare }
