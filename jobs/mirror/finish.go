package mirror

import (
	"context"
	"fmt"
	"log/slog"
	"syscall"

	"blockd/blockgraph"
	"blockd/filters/mirrortop"
	"blockd/ioengine"
	"blockd/jobs"
	"blockd/jobs/chain"
	"blockd/jobs/copy"
	"blockd/jobs/transfer"
	"blockd/qapi"
)

// This file is the change of the graph that ends the job.

// Prepare copies what is still dirty while nobody writes, and pivots if the job
// was completed.
func (m *mirror) Prepare(tx *blockgraph.Tx) error {
	if err := tx.Drain(m.node, m.source, m.target); err != nil {
		return err
	}
	if err := m.copyRest(tx); err != nil {
		return err
	}
	m.job.Progress().SetRemaining(0)
	return m.leave(tx, true)
}

// copyRest makes the target what the source is. Both are drained. A failure goes
// through the job's policies.
func (m *mirror) copyRest(tx *blockgraph.Tx) error {
	if m.source.Size() == 0 {
		return nil
	}
	dirty := m.filter.Dirty()
	ends := copy.Ends{Source: m.node.Child(mirrortop.Edge), Target: tx.DrainedEdge(m.targetRoot)}
	if dirty.Count() > 0 {
		most := max(1<<20, m.filter.Granularity())
		b := ioengine.Bounce(int(most))
		defer b.Release()
		for off, size := int64(0), m.source.Size(); ; {
			start, n, ok := dirty.NextDirty(off, size)
			if !ok {
				break
			}
			n = min(n, most)
			if op, err := copy.CopyRange(tx.Context(), ends, start, n, copy.Data, b.Bytes(), 0, 0); err != nil {
				return m.unfinished(tx, op, err)
			}
			dirty.Clear(start, n)
			m.copied(n)
			off = start + n
		}
	}
	if err := ends.Target.Flush(tx.Context()); err != nil {
		return m.unfinished(tx, copy.Write, err)
	}
	return nil
}

// unfinished is a failure of copyRest as the job's end is to report it.
func (m *mirror) unfinished(tx *blockgraph.Tx, op copy.Op, err error) error {
	if tx.Context().Err() != nil {
		return tx.Context().Err()
	}
	u := &jobs.Unfinished{Policy: m.onRead, Op: qapi.IoOperationTypeRead, Err: transfer.Error(err)}
	if op == copy.Write {
		u.Policy, u.Op = m.onCopy, qapi.IoOperationTypeWrite
	}
	return u
}

// Clean gives up what the job holds.
func (m *mirror) Clean(tx *blockgraph.Tx) error {
	if !m.nodes.Left() {
		if err := m.leave(tx, false); err != nil {
			return err
		}
	}
	if m.readOnly && !m.pivoted {
		return chain.MakeReadOnly(tx, m.target)
	}
	return nil
}

// leave takes the filter out of the graph and ends the job's use of its nodes.
// After a success it gives the target its backing file, and if the job was
// completed the place of the source.
func (m *mirror) leave(tx *blockgraph.Tx, success bool) error {
	m.filter.SetStopped(true)
	tx.OnAbort(func() {
		m.filter.SetStopped(false)
		m.pivoted = false
	})
	if err := m.nodes.Leave(tx); err != nil {
		return err
	}
	if m.guard != nil {
		tx.Unblock(m.toReplace, m.guard)
	}
	tx.RemoveMarker(m.source, m.filter)
	if success {
		if err := m.giveBacking(tx); err != nil {
			return transfer.Error(err)
		}
		if m.completing.Load() {
			if err := m.pivot(tx); err != nil {
				return err
			}
		}
	}
	if err := tx.ReplaceNode(m.node, chain.Below(tx, m.node)); err != nil {
		return err
	}
	if err := tx.SetChild(m.node, mirrortop.Edge, 0, nil); err != nil {
		return err
	}
	if m.pivoted {
		// What the source's users need may be what the target's do not share.
		if err := tx.RefreshPerms(m.target); err != nil {
			return m.unreplaced(tx.Context(), err.Error())
		}
	}
	return nil
}

// giveBacking attaches the backing file that the target was made without.
func (m *mirror) giveBacking(tx *blockgraph.Tx) error {
	image := chain.SkipFilters(tx, m.target)
	switch m.backing {
	case HeaderBacking:
		return tx.OpenBacking(image)
	case SourceBacking:
		var backing *blockgraph.Node
		switch m.sync {
		case qapi.MirrorSyncModeNone:
			backing = m.source
		case qapi.MirrorSyncModeTop:
			backing = chain.SkipFilters(tx, belowOverlay(tx, m.source))
		}
		if backing == nil && tx.State(image).Backing() == nil {
			return nil
		}
		return tx.SetChild(image, "backing", blockgraph.RoleCOW, backing)
	}
	return nil
}

// unreplaced is the job's error when the target cannot take the place that it was
// to take; why is told to the operator alone, as in the field.
func (m *mirror) unreplaced(ctx context.Context, why string) error {
	slog.ErrorContext(ctx, why)
	return transfer.Error(syscall.EPERM)
}

// pivot puts the target into the place of the source, or of the node that the
// user named.
func (m *mirror) pivot(tx *blockgraph.Tx) error {
	from := m.source
	if m.replaces != nil {
		from = m.toReplace
	}
	switch {
	case from == nil || tx.Find(from.Name()) != from:
		return m.unreplaced(tx.Context(), "the node to be replaced is gone")
	case !canReplace(tx, m.source, from):
		return m.unreplaced(tx.Context(), fmt.Sprintf("Can no longer replace '%s' by '%s', because it can no longer be guaranteed that doing so would not lead to an abrupt change of visible data", from.Name(), m.target.Name()))
	}
	readOnly := tx.State(from).ReadOnly
	if err := tx.ReplaceNode(from, m.target); err != nil {
		return m.unreplaced(tx.Context(), err.Error())
	}
	m.pivoted = true
	if readOnly && !tx.State(m.target).ReadOnly {
		return tx.SetReadOnly(m.target, true)
	}
	return nil
}
