package blockgraph

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/tidwall/btree"

	"blockd/clock"
	"blockd/qapi"
)

// Graph is all nodes and roots of a daemon. Changes are made by Update, one at
// a time; see Tx.
type Graph struct {
	loop     *Loop
	clock    clock.Clock // virtual: accounting
	types    map[string]*DriverType
	maxChain int // MaxChain, but for tests
	ordered  []*DriverType

	// Control plane.
	names   map[string]*Node         //blockd:global
	order   btree.Map[uint64, *Node] //blockd:global // published nodes by seq
	roots   map[*Root]struct{}       //blockd:global
	waiting []*tokenWait             //blockd:global loop
	held    bool                     //blockd:global loop
	history *History
	orphans int //blockd:global loop

	devices    Devices // nil: none
	corruption func(node, msg string, off, n int64, fatal bool)
	crossed    func(node string, exceeded, threshold uint64)

	drains atomic.Int64
	// drainNs is the time that changes have spent in drains, in nanoseconds.
	drainNs atomic.Int64
	// latencies: KeepLatencies was called.
	latencies atomic.Bool

	// Held by the token.
	seq     uint64 //blockd:global
	autoSeq uint64 //blockd:global
	// permVisits counts the nodes that permission checks have looked at.
	permVisits uint64 //blockd:global
}

type tokenWait struct {
	granted chan struct{}
	gone    bool //blockd:global loop
}

// NewGraph returns an empty graph whose control plane is loop. clk is the
// virtual clock, for accounting. The drivers are fixed from here on.
func NewGraph(loop *Loop, clk clock.Clock, drivers ...*DriverType) *Graph {
	g := &Graph{loop: loop, clock: clk, maxChain: MaxChain, types: map[string]*DriverType{}, names: map[string]*Node{}, roots: map[*Root]struct{}{}, history: newHistory(clk)}
	for _, d := range drivers {
		g.types[d.Name] = d
		g.ordered = append(g.ordered, d)
	}
	return g
}

// OnCorruption sets who is told when a node finds its image damaged; see
// CorruptionReporter. Before the first node is opened.
func (g *Graph) OnCorruption(f func(node, msg string, off, n int64, fatal bool)) { g.corruption = f }

// Loop returns the control plane's loop.
func (g *Graph) Loop() *Loop { return g.loop }

// Drains returns how often graph changes have waited for requests in flight and
// for nodes' own work, and for how long in all. Drains that still wait are not
// counted. Any goroutine.
func (g *Graph) Drains() (n int64, waited time.Duration) {
	return g.drains.Load(), time.Duration(g.drainNs.Load())
}

// DriverType returns a driver by name, or nil.
func (g *Graph) DriverType(name string) *DriverType { return g.types[name] }

// DriverNames returns the names of all drivers, in the order of NewGraph.
func (g *Graph) DriverNames() []string {
	names := make([]string, len(g.ordered))
	for i, t := range g.ordered {
		names[i] = t.Name
	}
	return names
}

// Node returns the published node of that name, or nil. Control plane.
//
//blockd:global
func (g *Graph) Node(name string) *Node {
	return g.names[name]
}

// Nodes returns the published nodes, the newest first, which is the field's
// order in queries. Control plane.
//
//blockd:global
func (g *Graph) Nodes() []*Node {
	nodes := make([]*Node, 0, g.order.Len())
	g.order.Reverse(func(_ uint64, n *Node) bool {
		nodes = append(nodes, n)
		return true
	})
	return nodes
}

// Roots returns the roots, in no order. Control plane.
//
//blockd:global
func (g *Graph) Roots() []*Root {
	roots := make([]*Root, 0, len(g.roots))
	for r := range g.roots {
		roots = append(roots, r)
	}
	return roots
}

// Parents returns the edges that use n. Control plane.
//
//blockd:global
func (n *Node) Parents() []*Edge { return n.parents }

// MonitorOwned tells whether the node stays without users until blockdev-del.
// Control plane.
//
//blockd:global
func (n *Node) MonitorOwned() bool { return n.monitorOwned }

// Update makes one graph change: fn prepares it and may do I/O; when fn
// returns nil the change is committed at once, else undone in reverse order.
// Changes take turns; ctx ends the wait for the turn and what the change
// waits for before its commit. A cause that is no job gives way to the origin
// that ctx knows (qapi.OriginOf).
//
// A panic before the commit is an error like others: the change is undone, and
// the log has the stack. From the commit on, or while a change is undone, it
// ends the process: nobody could say what the graph is then.
//
// Called on a worker, never on the loop, and never from within fn.
//
//blockd:blocking
func (g *Graph) Update(ctx context.Context, cause Cause, fn func(tx *Tx) error) error {
	orphans, err := g.change(ctx, cause, fn)
	if orphans != nil {
		select {
		case <-orphans:
		case <-ctx.Done():
		}
	}
	return err
}

// change is Update up to the end of its turn. orphans, if not nil, is closed
// when the nodes that it has left without users have closed.
//
//blockd:blocking
func (g *Graph) change(ctx context.Context, cause Cause, fn func(tx *Tx) error) (orphans <-chan struct{}, err error) {
	if o, ok := qapi.OriginOf(ctx); ok {
		cause = cause.of(o)
	}
	w := &tokenWait{granted: make(chan struct{})}
	if !g.loop.Do(func() { g.await(w) }) {
		return nil, qapi.Errorf("The daemon is shutting down")
	}
	select {
	case <-w.granted:
	case <-ctx.Done():
		g.loop.Do(func() {
			w.gone = true
			select {
			case <-w.granted:
				g.release()
			default:
			}
		})
		return nil, ctx.Err()
	}
	tx := newTx(ctx, g, cause)
	defer g.loop.Do(g.release)
	defer tx.end()
	if err := tx.attempt(fn); err != nil {
		tx.rollback()
		slog.DebugContext(tx.ctx, "graph_undone", "change", cause.String(), "error", err)
		return nil, err
	}
	if tx.step != 0 {
		slog.DebugContext(tx.ctx, "graph_step", "number", tx.step, "change", cause.String())
	}
	return tx.orphans, nil
}

// await and release are the queue for the token. Control plane.
//
//blockd:global loop
func (g *Graph) await(w *tokenWait) {
	if !g.held {
		g.held = true
		close(w.granted)
		return
	}
	g.waiting = append(g.waiting, w)
}

//blockd:global loop
func (g *Graph) release() {
	for len(g.waiting) > 0 {
		w := g.waiting[0]
		g.waiting = g.waiting[1:]
		if !w.gone {
			close(w.granted)
			return
		}
	}
	g.held = false
}

// NewName returns a node name that no user can choose.
func (tx *Tx) NewName() string {
	for {
		name := fmt.Sprintf("#block%d%02d", tx.g.autoSeq, rand.IntN(100))
		tx.g.autoSeq++
		if tx.named(name) == nil {
			return name
		}
	}
}

func logClose(ctx context.Context, n *Node, err error) {
	if err != nil {
		slog.ErrorContext(ctx, "closing a node failed", "node", n.name, "error", err)
	}
}
