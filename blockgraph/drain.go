package blockgraph

import (
	"log/slog"
	"slices"
	"time"

	"blockd/clock"
)

// This file brings to rest what a change is about to touch: first the roots
// that can reach it, whose gates it closes, then the background work of the
// nodes from there down to it. Other roots go on.

// waitWarning is how long a change may wait for something before the log names
// what that is.
const waitWarning = 5 * time.Second

// Drain closes the gates of every root that can reach one of the nodes, waits
// until their requests have ended, and has the nodes, and those above them,
// rest their background work. All of it stays so until the end of the change.
// A change that needs several calls its Drain once, so that all begin before
// any is waited for.
func (tx *Tx) Drain(nodes ...*Node) error {
	above, roots := reaching(nodes)
	var quiescers []*Node
	for _, n := range above {
		if q, ok := n.drv.(Quiescer); ok && !slices.Contains(tx.quiesced, q) {
			quiescers = append(quiescers, n)
		}
	}
	return tx.drain(roots, quiescers)
}

// reaching returns the nodes and what lies above them, parents before
// children, and the roots over these.
//
//blockd:global
func reaching(nodes []*Node) (above []*Node, roots []*Root) {
	seen := map[*Node]struct{}{}
	var walk func(n *Node)
	walk = func(n *Node) {
		if _, ok := seen[n]; ok {
			return
		}
		seen[n] = struct{}{}
		for _, e := range n.parents {
			if e.root != nil {
				roots = append(roots, e.root)
			} else {
				walk(e.node)
			}
		}
		above = append(above, n)
	}
	for _, n := range nodes {
		walk(n)
	}
	return above, roots
}

func (tx *Tx) drainRoots(roots []*Root) error { return tx.drain(roots, nil) }

// drain closes the roots' gates and waits, and then has the nodes rest, which
// are Quiescers: what outlived its request, such as a copy that nobody waits
// for any more, holds the change up as requests do.
func (tx *Tx) drain(roots []*Root, nodes []*Node) error {
	var fresh []*Root
	for _, r := range roots {
		if _, ok := tx.drained[r]; !ok {
			tx.drained[r] = struct{}{}
			r.gate.close()
			fresh = append(fresh, r)
		}
	}
	if len(fresh)+len(nodes) == 0 {
		return nil
	}
	began := tx.g.clock.Now()
	defer func() {
		took := clock.Since(tx.g.clock, began)
		tx.g.drains.Add(1)
		tx.g.drainNs.Add(int64(took))
		slog.DebugContext(tx.ctx, "graph_drain", "change", tx.cause.String(), "users", len(fresh), "nodes", len(nodes), "seconds", took.Seconds())
	}()
	for _, r := range releasers(fresh, nodes) {
		r.ReleaseBegin()
		defer r.ReleaseEnd()
	}
	for _, r := range fresh {
		stop := tx.warnLate("a graph change waits for requests in flight", func() []any {
			return []any{"user", r.String(), "requests", r.InFlight()}
		})
		err := r.gate.quiet(tx.ctx)
		stop()
		if err != nil {
			return err
		}
	}
	for _, n := range nodes {
		q := n.drv.(Quiescer)
		tx.quiesced = append(tx.quiesced, q)
		stop := tx.warnLate("a graph change waits for a node's own work", func() []any { return []any{"node", n.name} })
		q.QuiesceBegin(tx.ctx)
		stop()
		if err := tx.ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

// warnLate has the log say what the change waits for, once it has waited for
// long, unless stop is called before.
func (tx *Tx) warnLate(what string, details func() []any) (stop func()) {
	t := tx.g.clock.AfterFunc(waitWarning, func() {
		slog.WarnContext(tx.ctx, what, append([]any{"change", tx.cause.String()}, details()...)...)
	})
	return func() { t.Stop() }
}

// releasers returns those that may hold up the requests of the roots, or the
// nodes' own, each once.
func releasers(roots []*Root, nodes []*Node) []Releaser {
	var found []Releaser
	seen := map[*Node]struct{}{}
	var walk func(n *Node)
	walk = func(n *Node) {
		if _, ok := seen[n]; ok {
			return
		}
		seen[n] = struct{}{}
		if r, ok := n.drv.(Releaser); ok {
			found = append(found, r)
		}
		for _, e := range n.State().Edges {
			walk(e.child)
		}
	}
	for _, r := range roots {
		if n := r.Node(); n != nil {
			walk(n)
		}
	}
	for _, n := range nodes {
		walk(n)
	}
	return found
}
