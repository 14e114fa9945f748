package blockgraph

import (
	"cmp"
	"slices"
	"time"

	"github.com/google/uuid"

	"blockd/clock"
	"blockd/qapi"
)

// This file keeps the history: each published change of the graph is a numbered
// step that says what became different, so that the steps lead from any state
// to any other, forward and backward. A step costs what its change costs; no
// request knows of it.
//
// The state that steps describe is what Nodes, Roots, the edges and their
// permissions show: nodes that nobody uses any more are gone at once, though
// they are closed a little later. What that closing gives back in permissions
// is a step of its own.
//
// Everything here is control plane.

// DefaultHistory is how many steps are kept unless KeepHistory says otherwise.
const DefaultHistory = 4096

// stepBytes is the memory that the steps may take on average, by estimate:
// past that, old ones go before their number is reached.
const stepBytes = 4096

// maxCauseID is the largest command id that a step keeps, in bytes of JSON.
const maxCauseID = 1024

// History is the recent past of a graph.
//
//blockd:global loop
type History struct {
	instance string
	clock    clock.Clock // real
	onStep   func(*Step)

	ring        []*Step //blockd:global loop // by number modulo its length
	first, last uint64  //blockd:global loop // numbers of the steps kept; first > last: none
	weights     int     //blockd:global loop // of the steps kept, in bytes
}

// Step is one published change. It is immutable.
type Step struct {
	// Number counts from 1, without gaps, per instance.
	Number uint64
	At     time.Time
	Cause  Cause
	// Changes in an order in which they can be made; in reverse they can be
	// taken back.
	Changes []Change

	weight int
}

// ChangeKind says what a Change did.
type ChangeKind string

// The kinds of changes.
const (
	NodeAdded    ChangeKind = "node-added"
	NodeRemoved  ChangeKind = "node-removed"
	RootAdded    ChangeKind = "root-added"
	RootRemoved  ChangeKind = "root-removed"
	Linked       ChangeKind = "linked"
	Unlinked     ChangeKind = "unlinked"
	Relinked     ChangeKind = "relinked"    // same user and name, another node
	PermsChanged ChangeKind = "permissions" // of an edge that stayed
)

// Change is one difference between two states. For nodes: Node and Driver. For
// roots: Root, Job and Label. For edges: the user, which is Node or, when that is "",
// Root with its Job; Name and Child; for Linked the permissions, for Unlinked
// the old ones, else both.
type Change struct {
	Kind ChangeKind
	Node string
	// Driver is the name of the node's type.
	Driver string
	// Root is the root's number; see Root.ID.
	Root uint64
	Job  string
	// Label is what the log calls the root, or "".
	Label string

	Name, Child string
	// OldChild is what a Relinked edge led to.
	OldChild           string
	Perm, Shared       Perm
	OldPerm, OldShared Perm
}

func newHistory(clk clock.Clock) *History {
	return &History{instance: uuid.NewString(), clock: clk, ring: make([]*Step, DefaultHistory), first: 1}
}

// KeepHistory sets how many steps are kept, at least one, which clock their
// times are of, and who is told of each, on the loop. Before the first change.
func (g *Graph) KeepHistory(steps int, real clock.Clock, onStep func(*Step)) {
	g.history = &History{instance: g.history.instance, clock: real, onStep: onStep, ring: make([]*Step, steps), first: 1}
}

// History returns the graph's history. Control plane.
func (g *Graph) History() *History { return g.history }

// Instance is an identifier of this daemon's run: numbers of steps mean nothing
// in another.
func (h *History) Instance() string { return h.instance }

// Last returns the number of the last step, 0 when there was none.
func (h *History) Last() uint64 { return h.last }

// First returns the number of the oldest step that is kept, one more than Last
// when there is none.
func (h *History) First() uint64 { return h.first }

// Since returns the steps after the given number; complete is false when the
// first of these are no longer kept.
func (h *History) Since(number uint64) (steps []*Step, complete bool) {
	complete = number+1 >= h.first
	for n := max(number+1, h.first); n <= h.last; n++ {
		steps = append(steps, h.step(n))
	}
	return steps, complete
}

func (h *History) step(number uint64) *Step { return h.ring[number%uint64(len(h.ring))] }

// add records a step, and returns its number, 0 if nothing has changed.
func (h *History) add(cause Cause, changes []Change) uint64 {
	if len(changes) == 0 {
		return 0
	}
	size := uint64(len(h.ring))
	s := &Step{Number: h.last + 1, At: h.clock.Now(), Cause: cause, Changes: changes, weight: weigh(changes)}
	h.weights += s.weight
	for h.first < s.Number && (s.Number-h.first >= size || h.weights > len(h.ring)*stepBytes) {
		h.weights -= h.step(h.first).weight
		h.ring[h.first%size] = nil
		h.first++
	}
	h.ring[s.Number%size] = s
	h.last = s.Number
	if h.onStep != nil {
		h.onStep(s)
	}
	return s.Number
}

// weigh estimates the memory of a step in bytes. Names of nodes are short and
// mostly the graph's; ids of jobs are the clients'.
func weigh(changes []Change) int {
	w := 256 + maxCauseID
	for i := range changes {
		w += 208 + len(changes[i].Job) + len(changes[i].Label)
	}
	return w
}

// link is an edge with the permissions that it has in one state.
type link struct {
	e            *Edge
	perm, shared Perm
}

// ofEdge describes what a change of an edge is about.
func ofEdge(kind ChangeKind, e *Edge) Change {
	c := Change{Kind: kind, Name: e.name, Child: e.child.name}
	if e.node != nil {
		c.Node = e.node.name
	} else {
		c.Root, c.Job = e.root.id, e.root.job
	}
	return c
}

func ofNode(kind ChangeKind, n *Node) Change {
	return Change{Kind: kind, Node: n.name, Driver: n.typ.Name}
}

func ofRoot(kind ChangeKind, r *Root) Change {
	return Change{Kind: kind, Root: r.id, Job: r.job, Label: r.label}
}

// differences lists what publishing the staged graph changes: what comes first,
// then edges, then what goes.
//
//blockd:global
func (tx *Tx) differences(dead []*Node) []Change {
	gone := make(map[*Node]struct{}, len(dead))
	for _, n := range dead {
		gone[n] = struct{}{}
	}
	isGone := func(n *Node) bool { _, ok := gone[n]; return ok }
	var changes []Change
	for _, n := range tx.newNodes {
		if !isGone(n) {
			changes = append(changes, ofNode(NodeAdded, n))
		}
	}
	for _, r := range tx.newRoots {
		if !slices.Contains(tx.oldRoots, r) {
			changes = append(changes, ofRoot(RootAdded, r))
		}
	}
	changes = append(changes, tx.edgeDifferences(dead, isGone)...)
	for _, r := range tx.oldRoots {
		if !slices.Contains(tx.newRoots, r) {
			changes = append(changes, ofRoot(RootRemoved, r))
		}
	}
	for _, n := range dead {
		if n.published {
			changes = append(changes, ofNode(NodeRemoved, n))
		}
	}
	return changes
}

// edgeDifferences lists unlinked, relinked, linked, changed edges, each in the
// order in which they were attached.
//
//blockd:global
func (tx *Tx) edgeDifferences(dead []*Node, isGone func(*Node) bool) []Change {
	type place struct {
		node *Node
		root *Root
		name string
	}
	old := map[place]link{}
	for e := range tx.removed {
		perm, shared := e.Perms()
		old[place{e.node, e.root, e.name}] = link{e, perm, shared}
	}
	for _, n := range dead {
		for _, e := range n.state.Load().Edges {
			if n.published {
				perm, shared := e.Perms()
				old[place{n, nil, e.name}] = link{e, perm, shared}
			}
		}
	}
	type sorted struct {
		rank int
		seq  uint64
		c    Change
	}
	var list []sorted
	for _, added := range tx.added {
		for _, e := range added {
			if e.node != nil && isGone(e.node) {
				continue
			}
			c := ofEdge(Linked, e)
			c.Perm, c.Shared = e.Perms()
			rank := 2
			at := place{e.node, e.root, e.name}
			if o, ok := old[at]; ok {
				delete(old, at)
				c.Kind, rank = Relinked, 1
				c.OldChild, c.OldPerm, c.OldShared = o.e.child.name, o.perm, o.shared
			}
			list = append(list, sorted{rank, e.seq, c})
		}
	}
	for _, o := range old {
		c := ofEdge(Unlinked, o.e)
		c.OldPerm, c.OldShared = o.perm, o.shared
		list = append(list, sorted{0, o.e.seq, c})
	}
	for e, p := range tx.perms {
		_, removed := tx.removed[e]
		perm, shared := e.Perms()
		if removed || e.node != nil && isGone(e.node) || p == [2]Perm{perm, shared} {
			continue
		}
		c := ofEdge(PermsChanged, e)
		c.Perm, c.Shared, c.OldPerm, c.OldShared = p[0], p[1], perm, shared
		list = append(list, sorted{3, e.seq, c})
	}
	slices.SortFunc(list, func(a, b sorted) int { return cmp.Or(a.rank-b.rank, cmp.Compare(a.seq, b.seq)) })
	changes := make([]Change, len(list))
	for i := range list {
		changes[i] = list[i].c
	}
	return changes
}

// Cause says what a graph change is for: a job, or who asked for it.
type Cause struct {
	// Command is the QMP command, or "". Option, ID and Shutdown are the
	// context's; see qapi.Origin.
	Command  string
	ID       any
	HasID    bool
	Option   string
	Shutdown bool
	// Job is the id of the job, or "".
	Job string
	// Request is the number of the command that has led to it, 0 if there is none;
	// it is the context's, too.
	Request uint64
}

func (c Cause) String() string {
	switch {
	case c.Job != "":
		return "job " + c.Job
	case c.Option != "":
		return "--" + c.Option
	case c.Shutdown:
		return "shutdown"
	default:
		return c.Command
	}
}

// of completes a cause by the origin of what is done: Command is only what the
// caller takes it for.
func (c Cause) of(o qapi.Origin) Cause {
	if c.Job != "" || o.Command == "" && o.Option == "" && !o.Shutdown {
		c.Request = o.Request
		return c
	}
	c = Cause{Command: o.Command, ID: o.ID, HasID: o.HasID, Option: o.Option, Shutdown: o.Shutdown, Request: o.Request}
	if c.HasID && len(qapi.AppendJSON(nil, c.ID)) > maxCauseID {
		c.ID, c.HasID = nil, false
	}
	return c
}
