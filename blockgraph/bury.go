package blockgraph

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"blockd/qapi"
)

// This file closes the nodes that a change has left without users: parents
// before children, so that each can still flush through its children, and
// otherwise side by side, so that storage that hangs under one image does not
// keep others from being flushed and closed. What has not closed after a while
// is orphaned: it keeps its files, its locks and its children, and the token
// goes on to others; whoever made the change still waits for it.

// burial is the closing of some nodes.
type burial struct {
	nodes  []*Node                 // parents before children
	closed map[*Node]chan struct{} // closed when the node is
	over   chan struct{}           // closed when all are, and what held them up may again
}

// startBurial begins to close the nodes.
//
//blockd:blocking
func startBurial(ctx context.Context, nodes []*Node) *burial {
	b := &burial{nodes: nodes, closed: make(map[*Node]chan struct{}, len(nodes)), over: make(chan struct{})}
	let := releasers(nil, nodes) // as closeAll
	for _, r := range let {
		r.ReleaseBegin()
	}
	var all sync.WaitGroup
	above := map[*Node][]chan struct{}{}
	for _, n := range nodes {
		c := make(chan struct{})
		b.closed[n] = c
		parents := above[n] // all are there: parents come first
		for _, e := range n.state.Load().Edges {
			above[e.child] = append(above[e.child], c)
		}
		all.Go(func() {
			defer close(c)
			for _, p := range parents {
				<-p
			}
			logClose(ctx, n, n.close(ctx))
		})
	}
	go func() {
		all.Wait()
		for _, r := range let {
			r.ReleaseEnd()
		}
		close(b.over)
	}()
	return b
}

func (b *burial) isClosed(n *Node) bool {
	select {
	case <-b.closed[n]:
		return true
	default:
		return false
	}
}

// bury closes the nodes, and ends their hold on their children. Those that do
// not close in time are left to orphaned.
func (tx *Tx) bury(dead []*Node) {
	if len(dead) == 0 {
		return
	}
	b := startBurial(context.WithoutCancel(tx.ctx), dead)
	late := tx.g.clock.NewTimer(waitWarning)
	defer late.Stop()
	select {
	case <-b.over:
	case <-late.C():
	}
	closed, open := split(dead, b.isClosed)
	tx.forget()
	tx.letGo(b, closed)
	if len(open) > 0 {
		tx.orphaned(b, open)
	}
}

func split(nodes []*Node, is func(*Node) bool) (yes, no []*Node) {
	for _, n := range nodes {
		if is(n) {
			yes = append(yes, n)
		} else {
			no = append(no, n)
		}
	}
	return yes, no
}

// orphaned has nodes that take long to close let go of their children when they
// have, in a change of its own.
func (tx *Tx) orphaned(b *burial, open []*Node) {
	names := make([]string, len(open))
	for i, n := range open {
		names[i] = n.name
	}
	slog.WarnContext(tx.ctx, "nodes do not close, and keep their files until they do", "change", tx.cause.String(), "nodes", strings.Join(names, ","))
	g, cause, done := tx.g, tx.cause, make(chan struct{})
	ctx := qapi.WithRequest(context.Background(), cause.Request)
	g.loop.Do(func() { g.orphans += len(open) })
	tx.orphans = done
	go func() {
		defer close(done)
		<-b.over
		slog.InfoContext(ctx, "nodes have closed at last", "nodes", strings.Join(names, ","))
		_ = g.Update(ctx, cause, func(tx *Tx) error { // fails when the loop has stopped
			for _, n := range tx.letGo(b, open) {
				tx.touch(n) // it may have been kept by this alone
			}
			return nil
		})
		g.loop.Do(func() { g.orphans -= len(open) })
	}()
}

// letGo ends the hold of closed nodes on their children, and returns the ones
// that stay.
func (tx *Tx) letGo(b *burial, closed []*Node) (stay []*Node) {
	tx.g.loop.Do(func() {
		for _, n := range closed {
			for _, e := range n.state.Load().Edges {
				e.unlink()
			}
		}
	})
	for _, n := range closed {
		for _, e := range n.state.Load().Edges {
			if b.closed[e.child] == nil && !slices.Contains(stay, e.child) {
				stay = append(stay, e.child)
			}
		}
	}
	tx.loosen(stay)
	return stay
}

// Orphans returns how many nodes are still being closed though their change is
// over, because their storage does not answer. Control plane.
//
//blockd:global loop
func (g *Graph) Orphans() int { return g.orphans }

// Flush flushes every node as it is, without a graph change, and returns when
// that is done or ctx ends. It is for the end of a daemon whose changes hang:
// what can be made durable is to be.
//
//blockd:blocking
func (g *Graph) Flush(ctx context.Context) {
	var nodes []*Node
	g.loop.Do(func() { nodes = g.Nodes() })
	done := make(chan struct{}, len(nodes))
	for _, n := range nodes {
		go func() {
			n.Inspect(func(d Driver) {
				if err := d.Flush(ctx); err != nil {
					slog.ErrorContext(ctx, "flushing a node at the end failed", "node", n.name, "error", err)
				}
			})
			done <- struct{}{}
		}()
	}
	for range nodes {
		select {
		case <-done:
		case <-ctx.Done():
			return
		}
	}
}
