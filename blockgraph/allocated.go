package blockgraph

import (
	"context"
	"errors"
)

// ErrNodeClosed: the node is gone by now.
var ErrNodeClosed = errors.New("node closed")

// AllocatedSize returns what the node's own storage takes, in bytes: its
// driver's answer, that of what a filter filters, or that of the children that
// hold its data and metadata. Filters with file names of their own count as
// protocols, which have no answer but their own. state gives the states of nodes
// as the caller knows them.
func (n *Node) AllocatedSize(ctx context.Context, state func(*Node) *NodeState) (size int64, known bool, err error) {
	if !n.Inspect(func(drv Driver) {
		if d, ok := drv.(AllocatedSizer); ok {
			var err error
			size, err = d.AllocatedSize(ctx)
			known = err == nil
		}
	}) {
		return 0, false, ErrNodeClosed
	}
	if known || n.typ.Protocol || n.typ.ExactFilename != nil {
		return size, known, nil
	}
	size = 0
	wanted := RoleData | RoleMetadata | RoleFiltered
	if n.typ.Filter {
		wanted = RoleFiltered
	}
	for _, e := range state(n).Edges {
		if e.role&wanted == 0 {
			continue
		}
		k, known, err := e.child.AllocatedSize(ctx, state)
		if !known {
			return 0, false, err
		}
		size += k
	}
	return size, true, nil
}

// Allocated returns what the root's node takes on its storage, in bytes, if that
// is known; see Node.AllocatedSize. Data plane.
func (r *Root) Allocated(ctx context.Context) (n int64, ok bool) {
	a, err := r.Enter(ctx)
	if err != nil {
		return 0, false
	}
	defer a.Leave()
	n, ok, _ = a.edge.child.AllocatedSize(ctx, (*Node).State)
	return n, ok
}
