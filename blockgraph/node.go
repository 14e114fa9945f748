package blockgraph

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"

	"blockd/qapi"
)

// Node is one block node: an opened driver and its place in the graph (the
// field: BlockDriverState). Its name and type never change. The rest of what
// readers need is in an immutable state that a commit replaces, so the data
// plane and queries read it without a lock.
type Node struct {
	graph *Graph
	name  string
	typ   *DriverType
	auto  bool // the name was generated
	// implicit: a filter that a job inserted for itself, which names and look-ups
	// pass over.
	implicit bool
	// headerOnly: its content is not read, so what it was opened over says nothing.
	headerOnly bool

	drv       Driver
	inspected sync.RWMutex // held for reading while a query asks the driver
	closed    bool         // guarded by inspected
	truncater Truncater
	debug     DebugEventer // nil nearly always
	limits    Limits
	caps      Caps

	state     atomic.Pointer[NodeState]
	size      atomic.Int64  // length in bytes
	wrHighest atomic.Int64  // end of the highest write, in bytes
	threshold atomic.Uint64 // see SetWriteThreshold
	tracker   tracker
	marks     atomic.Pointer[marking]

	// Control plane: changed by a commit on the loop, read there and by the
	// holder of the token.
	parents      []*Edge //blockd:global // each edge knows its index
	monitorOwned bool    //blockd:global
	// inherits is the parent within whose options the node was defined: what the
	// node's own do not say is as in the parent's, and a reopen of the parent
	// concerns it, too. It is nil for a node defined by itself.
	inherits  *Node      //blockd:global
	iothread  *Iothread  //blockd:global
	blockers  []*Blocker //blockd:global
	published bool       //blockd:global
	// freezes is what the driver has frozen below the node, or nil.
	freezes *FrozenChain //blockd:global
	seq     uint64       // order among the named nodes
}

// NodeState is what a graph change may replace in a node. It is immutable.
type NodeState struct {
	Edges   []*Edge // in order of attachment
	file    *Edge
	backing *Edge
	// ReadOnly: writes are refused.
	ReadOnly bool
	// Inactive: another program may have the image; see activity.go.
	Inactive bool
	// remaking: between BeginRemake and EndRemake; see remake.go.
	remaking bool
	// Options are the effective ones, Explicit those of them that the user, or
	// whoever opened the node, has chosen.
	Options, Explicit *qapi.BlockdevOptions
	// spelt are the flat options that the node was opened with where they may be
	// strings, or nil; its name keeps the words.
	spelt *qapi.Object
	// ExplicitBacking: the user chose the backing file (or none), not the
	// image's header.
	ExplicitBacking bool
	// BackingName and BackingFormat are the header's, as blockd last saw them.
	BackingName, BackingFormat string
	// AutoBacking is the file name of the backing file that opening the image
	// by name would find (the field: auto_backing_file), as far as it is known:
	// BackingName until it was opened from the header.
	AutoBacking  string
	DetectZeroes qapi.BlockdevDetectZeroesOptions
	// Bitmaps are the dirty bitmaps, the newest first.
	Bitmaps []*DirtyBitmap
	markers []Marker // of jobs
}

func (s *NodeState) clone() *NodeState {
	c := *s
	c.Edges = slices.Clone(s.Edges)
	return &c
}

func (s *NodeState) edge(name string) *Edge {
	for _, e := range s.Edges {
		if e.name == name {
			return e
		}
	}
	return nil
}

// File returns the edge to the child named "file", or nil.
func (s *NodeState) File() *Edge { return s.file }

// Backing returns the edge to the backing file, or nil.
func (s *NodeState) Backing() *Edge { return s.backing }

// setEdges replaces the list of edges.
func (s *NodeState) setEdges(edges []*Edge) {
	s.Edges, s.file, s.backing = edges, nil, nil
	for _, e := range edges {
		switch e.name {
		case "file":
			s.file = e
		case "backing":
			s.backing = e
		}
	}
}

// Marker is told of every change of a node's content after it landed and
// before it is reported complete (dirty bitmaps, mirrors). Data plane; it must
// not block.
//
//blockd:any
type Marker interface {
	MarkDirty(off, n int64)
}

// Name returns the node-name.
func (n *Node) Name() string { return n.name }

// AutoNamed tells whether the name was generated.
func (n *Node) AutoNamed() bool { return n.auto }

// Type returns the driver's type.
func (n *Node) Type() *DriverType { return n.typ }

// Driver returns the opened driver.
func (n *Node) Driver() Driver { return n.drv }

// Size returns the length in bytes.
func (n *Node) Size() int64 { return n.size.Load() }

// Limits returns the request limits of the driver.
func (n *Node) Limits() Limits { return n.limits }

// Caps returns what the driver can do.
func (n *Node) Caps() Caps { return n.caps }

// State returns the present state. Any goroutine.
func (n *Node) State() *NodeState { return n.state.Load() }

// ReadOnly tells whether the node refuses writes.
func (n *Node) ReadOnly() bool { return n.state.Load().ReadOnly }

// File returns the edge to the child named "file", or nil.
func (n *Node) File() *Edge { return n.state.Load().file }

// Backing returns the edge to the backing file, or nil.
func (n *Node) Backing() *Edge { return n.state.Load().backing }

// Child returns the edge to the child of that name, or nil.
func (n *Node) Child(name string) *Edge { return n.state.Load().edge(name) }

// Filtered returns the child that a filter passes through, or nil when the
// node is no filter.
func (n *Node) Filtered() *Edge { return n.filteredIn(n.state.Load()) }

func (n *Node) filteredIn(s *NodeState) *Edge {
	if !n.typ.Filter {
		return nil
	}
	for _, e := range s.Edges {
		if e.role&RoleFiltered != 0 {
			return e
		}
	}
	return nil
}

// FilterOrCOW returns the next edge of a backing chain: the filtered child of a
// filter or the backing file of a format, or nil at the end.
func (n *Node) FilterOrCOW() *Edge { return n.FilterOrCOWIn(n.state.Load()) }

// FilterOrCOWIn is FilterOrCOW of the node in a given state.
func (n *Node) FilterOrCOWIn(s *NodeState) *Edge {
	if e := n.filteredIn(s); e != nil {
		return e
	}
	return s.backing
}

// Blockers returns what forbids operations on the node, the oldest first. The
// caller must not change the list. Control plane.
//
//blockd:global
func (n *Node) Blockers() []*Blocker { return n.blockers }

// Implicit tells whether a job inserted the node for itself, without a name
// from the user.
func (n *Node) Implicit() bool { return n.implicit }

// SetImplicit makes a new filter node implicit.
func (tx *Tx) SetImplicit(n *Node) { n.implicit = true }

// SkipImplicit returns the first node at or below n that the user knows of.
func (n *Node) SkipImplicit() *Node {
	for n.implicit {
		n = n.Filtered().child
	}
	return n
}

// SkipFilters returns the first node at or below n that is no filter.
func (n *Node) SkipFilters() *Node {
	for {
		e := n.Filtered()
		if e == nil {
			return n
		}
		n = e.child
	}
}

// BackingChain returns the first non-filter node that n's data may come from
// besides n, or nil.
func (n *Node) BackingChain() *Node {
	e := n.SkipFilters().Backing()
	if e == nil {
		return nil
	}
	return e.child.SkipFilters()
}

// ChainContains tells whether base is n or below it along filters and backing
// files.
func (n *Node) ChainContains(base *Node) bool {
	for n != base {
		e := n.FilterOrCOW()
		if e == nil {
			return false
		}
		n = e.child
	}
	return true
}

// Inspect has f ask the driver of something, for a query outside of requests
// and graph changes; the node stays open meanwhile. It returns false, without
// having called f, when the node is closed or about to be. f may do I/O. Any
// goroutine; never from within f.
//
// The checker of locks does not know TryRLock.
// +checklocksignore
func (n *Node) Inspect(f func(d Driver)) bool {
	if !n.inspected.TryRLock() {
		return false
	}
	defer n.inspected.RUnlock()
	if n.closed {
		return false
	}
	f(n.drv)
	return true
}

// close closes the driver once nobody inspects it any more.
//
//blockd:blocking
func (n *Node) close(ctx context.Context) error {
	n.inspected.Lock()
	n.closed = true
	n.inspected.Unlock()
	err := n.drv.Close(ctx)
	slog.DebugContext(ctx, "node_closed", "node", n.name)
	return err
}

// WriteHighest returns the end of the highest write so far, in bytes.
func (n *Node) WriteHighest() int64 { return n.wrHighest.Load() }

// Edge is a use of a node: by a parent node or by a root (the field:
// BdrvChild). The child of an edge never changes; a graph change makes a new
// edge. Permissions change at a commit.
type Edge struct {
	name   string
	role   Role
	node   *Node // the parent node, or nil
	root   *Root // the parent root, or nil
	child  *Node
	seq    uint64        // order of attachment
	frozen *FrozenChain  //blockd:global // what the link is part of, or nil; control plane
	perms  atomic.Uint32 // perm | shared<<8
	ahead  atomic.Uint32 // what a change in the making lets its driver use before the commit

	traffic atomic.Pointer[edgeTraffic] // nil: nobody watches

	index int //blockd:global // in child.parents; control plane
}

// Name returns the edge's name ("file", "backing", "root").
func (e *Edge) Name() string { return e.name }

// Role returns what the child is used for.
func (e *Edge) Role() Role { return e.role }

// Child returns the node that is used.
func (e *Edge) Child() *Node { return e.child }

// Parent returns the parent node, or nil for a root's edge.
func (e *Edge) Parent() *Node { return e.node }

// Root returns the parent root, or nil for a node's edge.
func (e *Edge) Root() *Root { return e.root }

// Perms returns the permissions used and shared.
func (e *Edge) Perms() (perm, shared Perm) {
	p := e.perms.Load()
	return Perm(p), Perm(p >> 8)
}

//blockd:any
func (e *Edge) setPerms(perm, shared Perm) {
	e.perms.Store(uint32(perm) | uint32(shared)<<8)
}

// user describes the parent as the field's error texts do.
func (e *Edge) user() string {
	if e.root != nil {
		return e.root.desc
	}
	return "node '" + e.node.name + "'"
}

// Blocker forbids operations on a node while it is in place.
type Blocker struct {
	// Reason ends the error text: `Node 'x' is busy: ` + Reason.
	Reason string
	// Except lists the operations that stay allowed.
	Except map[Operation]bool
}

// Operation is something that a blocker may forbid (the field: BlockOpType).
type Operation string

// The operations.
const (
	OpBackupSource    Operation = "backup-source"
	OpBackupTarget    Operation = "backup-target"
	OpChange          Operation = "change"
	OpCommitSource    Operation = "commit-source"
	OpCommitTarget    Operation = "commit-target"
	OpExternalSnap    Operation = "external-snapshot"
	OpInternalSnap    Operation = "internal-snapshot"
	OpMirrorSource    Operation = "mirror-source"
	OpMirrorTarget    Operation = "mirror-target"
	OpResize          Operation = "resize"
	OpStream          Operation = "stream"
	OpReplace         Operation = "replace"
	OpInternalSnapDel Operation = "internal-snapshot-delete"
	OpDriveDel        Operation = "drive-del"
	OpEject           Operation = "eject"
	OpDataplane       Operation = "dataplane"
)
