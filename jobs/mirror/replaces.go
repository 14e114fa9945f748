package mirror

import (
	"context"

	"blockd/blockgraph"
	"blockd/jobs/chain"
	"blockd/qapi"
)

// This file decides which node the target may take the place of.

// Replacer is a driver that knows which of its children may be replaced by a
// node that shows the same as itself (quorum).
type Replacer interface {
	CanReplace(tx *blockgraph.Tx, child *blockgraph.Node) bool
}

// canReplace tells whether a node that shows the same as n may take the place of
// another one without anybody seeing other data than before.
func canReplace(tx *blockgraph.Tx, n, other *blockgraph.Node) bool {
	for n != other {
		if r, ok := n.Driver().(Replacer); ok {
			return r.CanReplace(tx, other)
		}
		if !n.Type().Filter {
			return false
		}
		if n = chain.Below(tx, n); n == nil {
			return false
		}
	}
	return true
}

// checkReplaces makes the field's checks on the node to be replaced.
func (m *mirror) checkReplaces(tx *blockgraph.Tx) error {
	if m.replaces == nil {
		// Implicit filters over the source stay where they are.
		if n := m.source.SkipImplicit(); n != m.source {
			name := n.Name()
			m.replaces = &name
		}
	}
	if m.replaces == nil {
		return nil
	}
	n := tx.Find(*m.replaces)
	if n == nil {
		return qapi.Errorf("Failed to find node with node-name='%s'", *m.replaces)
	}
	if err := tx.CheckBlocked(n, blockgraph.OpReplace); err != nil {
		return err
	}
	if !canReplace(tx, m.source, n) {
		return qapi.Errorf("Cannot replace '%s' by a node mirrored from '%s', because it cannot be guaranteed that doing so would not lead to an abrupt change of visible data", *m.replaces, m.source.Name())
	}
	if n.Size() != m.source.Size() {
		return qapi.Errorf("cannot replace image with a mirror image of different size")
	}
	return nil
}

// guardReplaced keeps others from reshaping the node whose place the target is
// to take, from when the job was asked to complete until it leaves the graph.
// The body.
func (m *mirror) guardReplaced(ctx context.Context) error {
	if !m.completing.Load() || m.toReplace == nil || m.guard != nil {
		return nil
	}
	return m.job.Change(ctx, func(tx *blockgraph.Tx) error {
		if m.nodes.Left() || tx.Find(m.toReplace.Name()) != m.toReplace {
			return nil // the end will say so
		}
		b := &blockgraph.Blocker{Reason: "block device is in use by block-job-complete"}
		tx.Block(m.toReplace, b)
		tx.OnCommit(func() { m.guard = b })
		return nil
	})
}

// belowOverlay returns what is right below the image at or below n, a filter
// perhaps, or nil.
func belowOverlay(tx *blockgraph.Tx, n *blockgraph.Node) *blockgraph.Node {
	if e := tx.State(chain.SkipFilters(tx, n)).Backing(); e != nil {
		return e.Child()
	}
	return nil
}
