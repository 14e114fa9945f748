package blockgraph

import (
	"context"
	"slices"

	"blockd/qapi"
)

// Tx is one graph change in the making, and the right to make it: whoever has
// it holds the graph's only token. It stages what is to become: readers and
// queries see the old graph until the commit, and then the new one.
//
// A Tx is used on the goroutine of the Update that made it. New nodes are real
// at once, but nobody can reach them before the commit.
//
//blockd:token
type Tx struct {
	g     *Graph
	ctx   context.Context
	cause Cause
	step  uint64 // its number in the history, 0 for none; from its commit on

	states   map[*Node]*NodeState // staged
	added    map[*Node][]*Edge    // staged parents of a node
	removed  map[*Edge]struct{}
	perms    map[*Edge][2]Perm      // staged permissions of published edges
	frozen   map[*Edge]*FrozenChain // staged Edge.frozen
	owned    map[*Node]bool         // staged monitor references
	inherits map[*Node]*Node        // staged Node.inherits
	rested   map[*Root]*[2]Perm     // staged Root.rested
	// anticipated are read-only nodes whose published state lets them be written
	// to already.
	anticipated map[*Node]struct{}
	iothreads   map[*Node]*Iothread // staged Node.iothread
	threads     []*Iothread         // that this change gives or takes users
	blockers    map[*Node][]*Blocker
	touched     []*Node // whose users changed
	unchecked   []*Node // since CheckPerms
	drained     map[*Root]struct{}
	quiesced    []Quiescer
	locked      map[*Node]struct{} // whose drivers were told of staged permissions

	published bool // the commit has begun
	// orphans is closed when nodes that did not close in time have; nil: all did.
	orphans chan struct{}

	newNodes []*Node
	deleted  []*Node // by Delete
	newRoots []*Root
	oldRoots []*Root

	undo     []undoStep
	onCommit []commitStep
	after    []afterStep
	dying    []*Node // nobody uses them; closed after the commit
}

// Each kind of step has a type of its own: where its functions may run differs.
type (
	undoStep   func() // on the worker, last first
	commitStep func() // on the loop
	afterStep  func() // on the worker
)

func newTx(ctx context.Context, g *Graph, cause Cause) *Tx {
	return &Tx{
		g: g, ctx: ctx, cause: cause,
		states: map[*Node]*NodeState{}, added: map[*Node][]*Edge{}, removed: map[*Edge]struct{}{},
		perms: map[*Edge][2]Perm{}, frozen: map[*Edge]*FrozenChain{}, owned: map[*Node]bool{}, inherits: map[*Node]*Node{}, rested: map[*Root]*[2]Perm{}, anticipated: map[*Node]struct{}{}, iothreads: map[*Node]*Iothread{}, blockers: map[*Node][]*Blocker{}, drained: map[*Root]struct{}{},
		locked: map[*Node]struct{}{},
	}
}

// Graph returns the graph that is being changed.
func (tx *Tx) Graph() *Graph { return tx.g }

// Context returns the context of the change.
func (tx *Tx) Context() context.Context { return tx.ctx }

// OnCommit has the loop run f when the change is published, in the order of
// the calls, before anything else sees it. f must not wait.
//
//blockd:handoff global loop
func (tx *Tx) OnCommit(f func()) { tx.onCommit = append(tx.onCommit, f) }

// OnAbort has f run, last first, if the change is undone.
func (tx *Tx) OnAbort(f func()) { tx.undo = append(tx.undo, f) }

// After has f run on the worker after the commit, before the gates open.
func (tx *Tx) After(f func()) { tx.after = append(tx.after, f) }

// Find returns the node of that name as of this change, or nil.
func (tx *Tx) Find(name string) *Node {
	n := tx.named(name)
	if slices.Contains(tx.deleted, n) {
		return nil
	}
	return n
}

// named is Find, with what this change deletes: it has its name until the
// commit.
func (tx *Tx) named(name string) *Node {
	for _, n := range tx.newNodes {
		if n.name == name {
			return n
		}
	}
	return tx.g.names[name]
}

// Delete takes the monitor's reference to a node without users away. Nobody
// finds it any more within this change; it is closed after the commit.
func (tx *Tx) Delete(n *Node) {
	tx.SetMonitorOwned(n, false)
	tx.ThawBelow(n)
	tx.deleted = append(tx.deleted, n)
}

// State returns a node's state as of this change. The caller must not change
// it.
func (tx *Tx) State(n *Node) *NodeState {
	if s := tx.states[n]; s != nil {
		return s
	}
	return n.state.Load()
}

// Stage returns a copy of the node's state that the caller may change until
// the commit; edges are changed by SetChild only.
func (tx *Tx) Stage(n *Node) *NodeState {
	s := tx.states[n]
	if s == nil {
		s = n.state.Load().clone()
		tx.states[n] = s
	}
	return s
}

// Parents returns the users of a node as of this change.
//
//blockd:global
func (tx *Tx) Parents(n *Node) []*Edge {
	if len(tx.added[n]) == 0 && len(tx.removed) == 0 {
		return n.parents
	}
	var parents []*Edge
	for _, e := range n.parents {
		if _, gone := tx.removed[e]; !gone {
			parents = append(parents, e)
		}
	}
	return append(parents, tx.added[n]...)
}

// Perms returns an edge's permissions as of this change.
func (tx *Tx) Perms(e *Edge) (perm, shared Perm) {
	if p, ok := tx.perms[e]; ok {
		return p[0], p[1]
	}
	return e.Perms()
}

// SetMonitorOwned gives or takes the monitor's reference to a node.
func (tx *Tx) SetMonitorOwned(n *Node, owned bool) {
	tx.owned[n] = owned
	tx.touch(n)
}

// MonitorOwned is Node.MonitorOwned as of this change.
func (tx *Tx) MonitorOwned(n *Node) bool {
	if o, ok := tx.owned[n]; ok {
		return o
	}
	return n.monitorOwned
}

func (tx *Tx) touch(n *Node) {
	if !slices.Contains(tx.unchecked, n) {
		tx.unchecked = append(tx.unchecked, n)
	}
	if !slices.Contains(tx.touched, n) {
		tx.touched = append(tx.touched, n)
	}
}

func (tx *Tx) newEdge(name string, role Role, node *Node, root *Root, child *Node) *Edge {
	tx.g.seq++
	e := &Edge{name: name, role: role, node: node, root: root, child: child, seq: tx.g.seq}
	e.setPerms(0, PermAll) // until they are computed
	tx.added[child] = append(tx.added[child], e)
	tx.touch(child)
	return e
}

func (tx *Tx) dropEdge(e *Edge) {
	if list := tx.added[e.child]; slices.Contains(list, e) {
		tx.added[e.child] = slices.DeleteFunc(list, func(x *Edge) bool { return x == e })
	} else {
		tx.removed[e] = struct{}{}
	}
	tx.touch(e.child)
}

// SetChild makes child the parent's child of that name, in place of the one
// that it has; child nil: none. It fails for a frozen link and for a cycle.
func (tx *Tx) SetChild(parent *Node, name string, role Role, child *Node) error {
	var old *Node
	if e := tx.State(parent).edge(name); e != nil {
		old = e.child
	}
	// What was defined within the old child takes its place.
	follows := child != nil && tx.inheritsFrom(child, parent)
	if err := tx.replaceChild(parent, name, role, child); err != nil {
		return err
	}
	if old != nil && tx.inheritedFrom(old) == parent && !slices.ContainsFunc(tx.State(parent).Edges, func(e *Edge) bool { return e.child == old }) {
		tx.setInherits(old, nil)
	}
	if follows {
		tx.setInherits(child, parent)
	}
	return nil
}

// replaceChild is SetChild without consequences for what inherits from whom.
func (tx *Tx) replaceChild(parent *Node, name string, role Role, child *Node) error {
	s := tx.Stage(parent)
	edges := slices.Clone(s.Edges)
	i := slices.IndexFunc(edges, func(e *Edge) bool { return e.name == name })
	if i >= 0 {
		old := edges[i]
		if old.child == child {
			return nil
		}
		if tx.frozenIn(old) != nil {
			return qapi.Errorf("Cannot change frozen '%s' link from '%s' to '%s'", name, parent.name, old.child.name)
		}
	}
	if child != nil && tx.reaches(child, parent) {
		return cycle(child, name, parent)
	}
	if child != nil && tx.tooDeep(parent, child) {
		return tx.g.errTooDeep()
	}
	if child != nil && tx.State(child).Inactive && !tx.State(parent).Inactive {
		return qapi.Errorf("Inactive '%s' can't be a %s child of active '%s'", child.name, name, parent.name)
	}
	if child != nil {
		if err := tx.joinIothreads(parent, child); err != nil {
			return err
		}
	}
	if i >= 0 {
		tx.dropEdge(edges[i])
	}
	switch {
	case child == nil && i < 0:
		return nil
	case child == nil:
		edges = slices.Delete(edges, i, i+1)
	default:
		e := tx.newEdge(name, role, parent, nil, child)
		if i >= 0 {
			e.setPerms(tx.Perms(edges[i]))
			edges[i] = e
		} else {
			edges = append(edges, e)
		}
	}
	s.setEdges(edges)
	if parent.published {
		tx.touch(parent) // what it needs of the new child is yet to be computed
	} else {
		parent.state.Store(s.clone())
	}
	return nil
}

func cycle(child *Node, name string, parent *Node) error {
	return qapi.Errorf("Making '%s' a %s child of '%s' would create a cycle", child.name, name, parent.name)
}

// inheritedFrom returns Node.inherits as of this change.
func (tx *Tx) inheritedFrom(n *Node) *Node {
	if from, staged := tx.inherits[n]; staged {
		return from
	}
	return n.inherits
}

func (tx *Tx) setInherits(n, from *Node) { tx.inherits[n] = from }

// inheritsFrom tells whether n was defined within from, directly or not.
func (tx *Tx) inheritsFrom(n, from *Node) bool {
	for n != nil && n != from {
		n = tx.inheritedFrom(n)
	}
	return n != nil
}

// reaches tells whether to is from or below it.
func (tx *Tx) reaches(from, to *Node) bool {
	if from == to {
		return true
	}
	seen := map[*Node]struct{}{}
	var walk func(n *Node) bool
	walk = func(n *Node) bool {
		for _, e := range tx.State(n).Edges {
			if e.child == to {
				return true
			}
			if _, ok := seen[e.child]; ok {
				continue
			}
			seen[e.child] = struct{}{}
			if walk(e.child) {
				return true
			}
		}
		return false
	}
	return walk(from)
}

// Inherit has n inherit where from does, if it was defined within from, directly
// or not: from is about to leave the chain.
func (tx *Tx) Inherit(n, from *Node) {
	if n != from && tx.inheritsFrom(n, from) {
		tx.setInherits(n, tx.inheritedFrom(from))
	}
}

// ReplaceNode points every use of from at to, except where it must stay: roots
// made with StayAtNode, and edges that to itself depends on. If to was defined
// within from, it inherits from then on where from did.
func (tx *Tx) ReplaceNode(from, to *Node) error {
	tx.Inherit(to, from)
	for _, e := range slices.Clone(tx.Parents(from)) {
		switch {
		case e.root != nil && e.root.stay:
			continue
		case e.node != nil && tx.reaches(to, e.node):
			continue
		case tx.frozenIn(e) != nil:
			return qapi.Errorf("Cannot change '%s' link to '%s'", e.name, from.name)
		}
		if e.root != nil {
			if err := tx.SetRootNode(e.root, to); err != nil {
				return err
			}
		} else if err := tx.replaceChild(e.node, e.name, e.role, to); err != nil {
			return err
		}
	}
	return nil
}

// Append puts overlay on top of node: it becomes the overlay's backing file,
// and its users become the overlay's.
func (tx *Tx) Append(overlay, node *Node) error {
	if err := tx.ReplaceNode(node, overlay); err != nil {
		return err
	}
	return tx.SetChild(overlay, "backing", RoleCOW, node)
}

// RootOptions says how a root uses its node.
type RootOptions struct {
	// Name is the edge's name in queries and error texts; "root" if empty.
	Name string
	// Desc describes the user in error texts; "an unnamed block device" if
	// empty.
	Desc string
	// Guest is the id or path of the guest's device that the root belongs to, or "".
	Guest string
	// Device is the name by which commands find the device that the root belongs
	// to, or "".
	Device string
	// Label names the user in the log; the job, else Desc, if empty.
	Label        string
	Perm, Shared Perm
	// StayAtNode: the root keeps its node when that is replaced elsewhere.
	StayAtNode bool
	// Job is the id of the job that the root belongs to, or "".
	Job string
	// Locks: the root's user calls LockRange. Requests to the node are tracked from
	// then on.
	Locks bool
	// FixedIothread: the node must stay in the thread that it is in.
	FixedIothread bool
	// AllowInactive: the root may lose its permissions while its node is inactive.
	AllowInactive bool
}

// NewRoot makes a root over a node.
func (tx *Tx) NewRoot(n *Node, o RootOptions) (*Root, error) {
	tx.g.seq++
	r := &Root{graph: tx.g, id: tx.g.seq, name: o.Name, desc: o.Desc, label: o.Label, device: o.Device, perm: o.Perm, shared: o.Shared, allowInactive: o.AllowInactive, fixedIothread: o.FixedIothread, stay: o.StayAtNode, job: o.Job, locks: o.Locks}
	if tx.g.latencies.Load() {
		r.latencies.Store(new(rootLatencies))
	}
	if r.name == "" {
		r.name = "root"
	}
	switch {
	case r.desc != "":
	case r.device != "":
		r.desc = "block device '" + r.device + "'"
	case o.Guest != "":
		r.desc = "block device '" + o.Guest + "'"
	default:
		r.desc = "an unnamed block device"
	}
	tx.newRoots = append(tx.newRoots, r)
	e := tx.newEdge(r.name, 0, nil, r, n)
	e.setPerms(r.perm, r.shared)
	r.edge.Store(e)
	if tx.State(n).Inactive {
		if r.mayRest() {
			tx.rest(r, e)
		} else if err := checkInactive(n, r.perm); err != nil {
			return nil, err
		}
	}
	return r, tx.refresh([]*Node{n})
}

// SetRootNode points a root at another node.
func (tx *Tx) SetRootNode(r *Root, n *Node) error {
	staged := tx.rootEdge(r)
	if staged.child == n {
		return nil
	}
	tx.dropEdge(staged)
	e := tx.newEdge(r.name, 0, nil, r, n)
	e.setPerms(tx.Perms(staged))
	return nil
}

// rootEdge returns a root's edge as of this change, or nil.
func (tx *Tx) rootEdge(r *Root) *Edge {
	for _, list := range tx.added {
		for _, e := range list {
			if e.root == r {
				return e
			}
		}
	}
	e := r.edge.Load()
	if _, gone := tx.removed[e]; gone {
		return nil
	}
	return e
}

// SetRootPerms changes what a root uses and shares. It fails on a conflict,
// and then nothing has changed.
func (tx *Tx) SetRootPerms(r *Root, perm, shared Perm) error {
	e := tx.rootEdge(r)
	if tx.restedPerms(r) != nil {
		tx.rested[r] = &[2]Perm{perm, shared}
		return nil
	}
	oldPerm, oldShared := tx.Perms(e)
	if oldPerm&^perm != 0 {
		if err := tx.drainRoots([]*Root{r}); err != nil {
			return err
		}
	}
	tx.setPerms(e, perm, shared)
	if err := tx.refresh([]*Node{e.child}); err != nil {
		tx.setPerms(e, oldPerm, oldShared)
		return err
	}
	tx.touch(e.child)
	return nil
}

// RootPerms returns what a root uses and shares as of this change.
func (tx *Tx) RootPerms(r *Root) (perm, shared Perm) {
	if p := tx.restedPerms(r); p != nil {
		return p[0], p[1]
	}
	return tx.Perms(tx.rootEdge(r))
}

// FixIothread says whether a root's node must stay in the thread that it is in.
func (tx *Tx) FixIothread(r *Root, fixed bool) {
	was := r.fixedIothread
	r.fixedIothread = fixed
	tx.OnAbort(func() { r.fixedIothread = was })
}

// CloseRoot takes a root away. Requests in flight end first.
func (tx *Tx) CloseRoot(r *Root) error {
	if err := tx.drainRoots([]*Root{r}); err != nil {
		return err
	}
	if e := tx.rootEdge(r); e != nil {
		tx.dropEdge(e)
	}
	tx.oldRoots = append(tx.oldRoots, r)
	return nil
}

func (tx *Tx) setPerms(e *Edge, perm, shared Perm) {
	if slices.Contains(tx.added[e.child], e) {
		e.setPerms(perm, shared)
		return
	}
	tx.perms[e] = [2]Perm{perm, shared}
}

// Block forbids operations on a node until Unblock in a later change; in this
// change at once.
func (tx *Tx) Block(n *Node, b *Blocker) {
	tx.blockers[n] = append(slices.Clone(tx.blockersOf(n)), b)
}

// Unblock ends a Block.
func (tx *Tx) Unblock(n *Node, b *Blocker) {
	tx.blockers[n] = slices.DeleteFunc(slices.Clone(tx.blockersOf(n)), func(x *Blocker) bool { return x == b })
}

func (tx *Tx) blockersOf(n *Node) []*Blocker {
	if list, staged := tx.blockers[n]; staged {
		return list
	}
	return n.blockers
}

// CheckBlocked returns the field's error when op is forbidden on the node as of
// this change.
func (tx *Tx) CheckBlocked(n *Node, op Operation) error {
	for _, b := range slices.Backward(tx.blockersOf(n)) {
		if !b.Except[op] {
			return qapi.Errorf("Node '%s' is busy: %s", tx.deviceOrNode(n), b.Reason)
		}
	}
	if backingAllows[op] {
		return nil
	}
	for _, e := range slices.Backward(tx.Parents(n)) { // the newest first
		if e.role&RoleCOW != 0 {
			return qapi.Errorf("Node '%s' is busy: node is used as backing hd of '%s'", tx.deviceOrNode(n), tx.deviceOrNode(e.node))
		}
	}
	return nil
}

// backingAllows is what may be done with a backing file.
var backingAllows = map[Operation]bool{OpCommitTarget: true, OpStream: true, OpBackupSource: true, OpBackupTarget: true}
