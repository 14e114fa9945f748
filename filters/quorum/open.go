package quorum

import (
	"context"
	"fmt"
	"math"
	"syscall"

	"blockd/blockgraph"
	"blockd/qapi"
)

// maxTransfer bounds what one read needs of memory for each child, in bytes.
const maxTransfer = 32 << 20

// Quorum is the driver of a quorum node.
type Quorum struct {
	node *blockgraph.Node
	emit func(event string, data any)

	threshold int
	blkverify bool
	rewrite   bool
	fifo      bool

	writing blockgraph.RangeLock // with rewrite

	// next is the number of the next child. On a worker, with the token.
	next int
}

// Type returns the driver type for the graph's registry. emit sends an event to
// all clients; it does not wait.
func Type(emit func(event string, data any)) *blockgraph.DriverType {
	return &blockgraph.DriverType{
		Name: string(qapi.BlockdevDriverQuorum),
		Required: []blockgraph.RequiredOption{
			{Name: "children", Text: errNoChildren},
			{Name: "vote-threshold", Text: errNoVotes},
		},
		Children: func(o *qapi.BlockdevOptions) []blockgraph.ChildSpec {
			var list []blockgraph.ChildSpec
			for i, ref := range o.Quorum.Children {
				list = append(list, blockgraph.ChildSpec{Name: childName(i), Role: blockgraph.RoleData, Ref: ref})
			}
			return list
		},
		ChildList: "children",
		Open: func(_ context.Context, r *blockgraph.OpenRequest) (blockgraph.Driver, error) {
			q := &Quorum{node: r.Node, emit: emit, next: len(r.Options.Quorum.Children)}
			return q, q.parse(r.Options.Quorum)
		},
		StrongOptions: strongOptions,
	}
}

// The field's texts.
const (
	errNoChildren = "Number of provided children must be 1 or more"
	errNoVotes    = "Parameter 'vote-threshold' expects a value >= 1"
)

func childName(i int) string { return fmt.Sprintf("children.%d", i) }

func (q *Quorum) parse(o *qapi.BlockdevOptionsQuorum) error {
	refuse := func(errno syscall.Errno, text string) error { return blockgraph.Errorf(errno, "%s", text) }
	switch n := int64(len(o.Children)); {
	case n < 1:
		return refuse(syscall.EINVAL, errNoChildren)
	case o.VoteThreshold < 1:
		return refuse(syscall.ERANGE, errNoVotes)
	case o.VoteThreshold > n:
		return refuse(syscall.ERANGE, "threshold may not exceed children count")
	}
	q.threshold = int(o.VoteThreshold)
	if o.ReadPattern != nil && *o.ReadPattern == qapi.QuorumReadPatternFifo {
		q.fifo = true
		return nil
	}
	q.blkverify = o.Blkverify != nil && *o.Blkverify
	q.rewrite = o.RewriteCorrupted != nil && *o.RewriteCorrupted
	if q.blkverify && (len(o.Children) != 2 || q.threshold != 2) {
		return refuse(syscall.EINVAL, "blkverify=on can only be set if there are exactly two files and vote-threshold is 2")
	}
	if q.blkverify && q.rewrite {
		return refuse(syscall.EINVAL, "rewrite-corrupted=on cannot be used with blkverify=on")
	}
	return nil
}

func strongOptions(o *qapi.BlockdevOptions) *qapi.Object {
	q := o.Quorum
	s := qapi.NewObject("vote-threshold", q.VoteThreshold)
	if q.Blkverify != nil {
		s.Set("blkverify", *q.Blkverify)
	}
	if q.RewriteCorrupted != nil {
		s.Set("rewrite-corrupted", *q.RewriteCorrupted)
	}
	if q.ReadPattern != nil {
		s.Set("read-pattern", string(*q.ReadPattern))
	}
	return s
}

func (q *Quorum) children() []*blockgraph.Edge { return q.node.State().Edges }

// AddChild implements blockgraph.ChildChanger.
func (q *Quorum) AddChild(tx *blockgraph.Tx, child *blockgraph.Node) error {
	switch {
	case q.blkverify:
		return qapi.Errorf("Cannot add a child to a quorum in blkverify mode")
	case q.next == math.MaxUint32:
		return qapi.Errorf("Too many children")
	}
	q.number(tx, q.next+1)
	return tx.SetChild(q.node, childName(q.next-1), blockgraph.RoleData, child)
}

// RemoveChild implements blockgraph.ChildChanger.
func (q *Quorum) RemoveChild(tx *blockgraph.Tx, e *blockgraph.Edge) error {
	if len(tx.State(q.node).Edges) <= q.threshold {
		return qapi.Errorf("The number of children cannot be lower than the vote threshold %d", q.threshold)
	}
	if e.Name() == childName(q.next-1) {
		q.number(tx, q.next-1)
	}
	return tx.SetChild(q.node, e.Name(), e.Role(), nil)
}

// number changes the number of the next child.
func (q *Quorum) number(tx *blockgraph.Tx, next int) {
	old := q.next
	q.next = next
	tx.OnAbort(func() { q.next = old })
}

// ChildPerms implements blockgraph.ChildPermissioner: whoever else wrote to a
// child or resized it would make it differ.
func (q *Quorum) ChildPerms(_ *blockgraph.Edge, _ bool, perm, shared blockgraph.Perm) (blockgraph.Perm, blockgraph.Perm) {
	if q.rewrite {
		perm |= blockgraph.PermWrite
	}
	return perm, shared & (blockgraph.PermConsistentRead | blockgraph.PermWriteUnchanged)
}

// Size is the children's, which all have the same; else it fails with EIO.
func (q *Quorum) Size(ctx context.Context) (int64, error) {
	size := int64(-1)
	for _, e := range q.children() {
		n, err := e.Child().Driver().Size(ctx)
		switch {
		case err != nil:
			return 0, err
		case size >= 0 && n != size:
			return 0, syscall.EIO
		}
		size = n
	}
	return size, nil
}

// Close has nothing to give up.
func (q *Quorum) Close(context.Context) error { return nil }

// Limits are the narrowest of the children's; their alignments are taken care
// of there.
func (q *Quorum) Limits() blockgraph.Limits {
	l := blockgraph.Limits{MaxTransfer: maxTransfer}
	for _, e := range q.children() {
		c := e.Child().Limits()
		if c.MaxTransfer > 0 {
			l.MaxTransfer = min(l.MaxTransfer, c.MaxTransfer)
		}
		l.OptTransfer = max(l.OptTransfer, c.OptTransfer)
		l.MemAlignment = max(l.MemAlignment, c.MemAlignment)
	}
	return l
}

// Caps are what all children can do. Discards are ignored: the children might
// differ afterwards.
func (q *Quorum) Caps() blockgraph.Caps {
	c := blockgraph.Caps{
		FUA: blockgraph.CapEmulate, WriteZeroes: blockgraph.CapNative, WriteUnchanged: blockgraph.CapNative,
		ZeroFUA: blockgraph.CapNative, MayUnmap: blockgraph.CapNative, NoFallback: blockgraph.CapNative,
	}
	for _, e := range q.children() {
		b := e.Child().Caps()
		c.ZeroFUA = min(c.ZeroFUA, b.ZeroFUA)
		c.MayUnmap = min(c.MayUnmap, b.MayUnmap)
		c.NoFallback = min(c.NoFallback, b.NoFallback)
	}
	return c
}

var (
	_ blockgraph.ChildChanger      = (*Quorum)(nil)
	_ blockgraph.ChildPermissioner = (*Quorum)(nil)
	_ blockgraph.LimitsReader      = (*Quorum)(nil)
)
