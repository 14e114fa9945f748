package blockgraph

import (
	"context"
	"sync/atomic"
	"syscall"
)

// Root is a user of the graph (the field: BlockBackend): an export, a job, a
// named drive. It is the only way in: its gate is where a graph change holds
// new requests back.
//
// Its name and description never change; its node may, at a commit.
type Root struct {
	graph  *Graph
	id     uint64
	name   string // of the edge: "root", "source"
	desc   string // for error texts: "an unnamed block device"
	label  string // for the log, or ""
	device string // that commands name, or ""
	edge   atomic.Pointer[Edge]
	// latencies are nil while nobody asks for them.
	latencies atomic.Pointer[rootLatencies]
	gate      gate
	stats     [gateStripes]rootStats

	// Control plane.
	perm, shared Perm
	stay         bool   // keeps its node when that is replaced elsewhere
	job          string // the id of the job that it belongs to, or ""
	locks        bool   // its user calls LockRange
	// fixedIothread: its node stays in its thread.
	fixedIothread bool
	// allowInactive: it may lose its permissions while its node is inactive.
	allowInactive bool
	rested        *[2]Perm // what it has as soon as its node is active again, or nil
}

// OpStats counts operations of one kind.
type OpStats struct {
	Bytes, Ops, Failed, TimeNs int64
}

// RootStats is what went through a root.
type RootStats struct {
	Read, Write, Flush, Unmap, Zero OpStats
}

type rootStats struct {
	op [5]struct{ bytes, ops, failed, ns atomic.Int64 }
	_  [64]byte
}

type opKind int

const (
	opRead opKind = iota
	opWrite
	opFlush
	opUnmap
	opZero
)

// Node returns the present node, or nil. Data plane callers use it within an
// admission only.
func (r *Root) Node() *Node {
	if e := r.edge.Load(); e != nil {
		return e.child
	}
	return nil
}

// ID is the root's number, which no other root has and none will have.
func (r *Root) ID() uint64 { return r.id }

// String names the root for the log.
func (r *Root) String() string {
	s := r.label
	switch {
	case s != "":
	case r.job != "":
		s = "job " + r.job
	default:
		s = r.desc
	}
	if n := r.Node(); n != nil {
		s += " over node " + n.name
	}
	return s
}

// Label is what the log calls the root, or "".
func (r *Root) Label() string { return r.label }

// Job returns the id of the job that the root belongs to, or "".
func (r *Root) Job() string { return r.job }

// Size returns the length in bytes, 0 without a node.
func (r *Root) Size() int64 {
	if n := r.Node(); n != nil {
		return n.Size()
	}
	return 0
}

// Waits returns how often a request had to wait, or to try again, because a
// graph change had closed the gate.
func (r *Root) Waits() int64 { return r.gate.waits.Load() }

// InFlight returns the number of admitted requests.
func (r *Root) InFlight() int64 { return r.gate.inFlight() }

// Admission is the right to use a root's node until Leave. Whatever is done
// under it sees one graph.
type Admission struct {
	r      *Root
	edge   *Edge
	stripe int
	start  int64
}

// Enter waits until no graph change keeps the root's gate closed, and admits a
// request that may consist of several calls. Data plane; the caller must not
// hold an admission or a range lock already.
func (r *Root) Enter(ctx context.Context) (Admission, error) {
	i, err := r.gate.enter(ctx)
	if err != nil {
		return Admission{}, err
	}
	e := r.edge.Load()
	if e == nil {
		r.gate.leave(i)
		return Admission{}, ErrNoMedium
	}
	return Admission{r: r, edge: e, stripe: i}, nil
}

// Edge returns the root's edge as of this admission.
func (a *Admission) Edge() *Edge { return a.edge }

// Node returns the root's node as of this admission.
func (a *Admission) Node() *Node { return a.edge.child }

// Leave ends the admission.
func (a *Admission) Leave() { a.r.gate.leave(a.stripe) }

func (a *Admission) account(k opKind, n int64, err error) {
	s := &a.r.stats[a.stripe].op[k]
	took := a.r.graph.clock.Now().UnixNano() - a.start
	s.ns.Add(took)
	if l := a.r.latencies.Load(); l != nil {
		l.count(a.stripe, k, took)
	}
	if err != nil {
		s.failed.Add(1)
		return
	}
	s.ops.Add(1)
	s.bytes.Add(n)
}

func (r *Root) begin(ctx context.Context, off, n int64) (Admission, error) {
	if off < 0 || n < 0 {
		return Admission{}, syscall.EIO
	}
	a, err := r.Enter(ctx)
	if err != nil {
		return a, err
	}
	if size := a.edge.child.Size(); off > size || n > size-off {
		a.Leave()
		return a, syscall.EIO
	}
	a.start = r.graph.clock.Now().UnixNano()
	return a, nil
}

// beginActive is begin for what must not be done to an inactive node.
func (r *Root) beginActive(ctx context.Context, off, n int64) (Admission, error) {
	a, err := r.begin(ctx, off, n)
	if err == nil && a.edge.child.State().Inactive {
		a.Leave()
		return a, ErrInactive
	}
	return a, err
}

// Inactive tells whether the root's node is, at the moment. Data plane.
func (r *Root) Inactive() bool {
	n := r.Node()
	return n != nil && n.State().Inactive
}

// ReadV reads bytes [off, off+v.Len()), all within the node. Data plane.
func (r *Root) ReadV(ctx context.Context, off int64, v *IOVec, flags Flags) error {
	a, err := r.begin(ctx, off, v.Len())
	if err != nil {
		return err
	}
	err = a.edge.ReadV(ctx, off, v, flags)
	a.account(opRead, v.Len(), err)
	a.Leave()
	return err
}

// WriteV writes bytes [off, off+v.Len()), all within the node. Data plane.
func (r *Root) WriteV(ctx context.Context, off int64, v *IOVec, flags Flags) error {
	a, err := r.beginActive(ctx, off, v.Len())
	if err != nil {
		return err
	}
	err = a.edge.WriteV(ctx, off, v, flags)
	a.account(opWrite, v.Len(), err)
	a.Leave()
	return err
}

// WriteZeroes makes bytes [off, off+n) zero. Data plane.
func (r *Root) WriteZeroes(ctx context.Context, off, n int64, flags Flags) error {
	a, err := r.beginActive(ctx, off, n)
	if err != nil {
		return err
	}
	err = a.edge.WriteZeroes(ctx, off, n, flags)
	a.account(opZero, n, err)
	a.Leave()
	return err
}

// Discard gives up bytes [off, off+n). Data plane.
func (r *Root) Discard(ctx context.Context, off, n int64) error {
	a, err := r.beginActive(ctx, off, n)
	if err != nil {
		return err
	}
	err = a.edge.Discard(ctx, off, n)
	a.account(opUnmap, n, err)
	a.Leave()
	return err
}

// Flush makes every completed write durable. Data plane.
func (r *Root) Flush(ctx context.Context) error {
	a, err := r.beginActive(ctx, 0, 0)
	if err != nil {
		return err
	}
	err = a.edge.Flush(ctx)
	a.account(opFlush, 0, err)
	a.Leave()
	return err
}

// BlockStatus describes the range at off through the whole chain below the
// root; see Node.StatusAbove. Data plane.
func (r *Root) BlockStatus(ctx context.Context, off, n int64, mode StatusMode) (Status, int, error) {
	a, err := r.begin(ctx, off, n)
	if err != nil {
		return Status{}, 0, err
	}
	st, depth, err := a.edge.child.StatusAbove(ctx, nil, off, n, mode)
	a.Leave()
	return st, depth, err
}

// LockRange waits until nobody reads or writes bytes [off, off+n) of the root's
// node, and keeps everybody from it until unlock. It is called within an
// admission, by who has set RootOptions.Locks, and returns early with the
// context's error. Data plane.
func (r *Root) LockRange(ctx context.Context, off, n int64) (unlock func(), err error) {
	t := &r.Node().tracker
	h, err := t.begin(ctx, off, n, true)
	if err != nil {
		return nil, err
	}
	return func() { t.end(h) }, nil
}

// Stats returns the sums of what went through the root.
func (r *Root) Stats() RootStats {
	var sum [5]OpStats
	for i := range r.stats {
		for k := range sum {
			s := &r.stats[i].op[k]
			sum[k].Bytes += s.bytes.Load()
			sum[k].Ops += s.ops.Load()
			sum[k].Failed += s.failed.Load()
			sum[k].TimeNs += s.ns.Load()
		}
	}
	return RootStats{Read: sum[opRead], Write: sum[opWrite], Flush: sum[opFlush], Unmap: sum[opUnmap], Zero: sum[opZero]}
}
