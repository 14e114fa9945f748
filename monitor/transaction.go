package monitor

import (
	"context"

	"blockd/blockgraph"
	"blockd/jobs"
	"blockd/qapi"
	"blockd/qmp"
)

// action is one member of a transaction. A single command runs as a
// transaction of one.
type action interface {
	kind() string
	// source returns the node whose users the action concerns, or nil if it
	// cannot be told yet.
	source(tx *blockgraph.Tx) *blockgraph.Node
	// prepare does everything that can fail. What it did is undone by the graph
	// change that it is part of.
	prepare(tx *blockgraph.Tx) error
}

// finisher is an action that does something when all are prepared, because it
// depends on what the others make of its nodes.
type finisher interface {
	finish(tx *blockgraph.Tx) error
}

func (m *Monitor) registerTransaction(r *qmp.Registry) {
	qmp.Register(r, "transaction", qmp.CommandOptions{}, m.transaction)
}

func (m *Monitor) transaction(c *qmp.Context, a *qapi.TransactionArg) (struct{}, error) {
	grouped := a.Properties != nil && a.Properties.CompletionMode != nil && *a.Properties.CompletionMode == qapi.ActionCompletionModeGrouped
	var txn *jobs.Txn
	if grouped {
		txn = m.jobs.NewTxn()
	}
	var actions []action
	for i := range a.Actions {
		act := m.newAction(&a.Actions[i], txn)
		switch act.(type) {
		case *blockdevBackup, *driveBackup, abort:
		default:
			if grouped {
				act = ungrouped{act}
			}
		}
		actions = append(actions, act)
	}
	return struct{}{}, m.runActions(c, "transaction", actions)
}

func (m *Monitor) newAction(a *qapi.TransactionAction, txn *jobs.Txn) action {
	switch {
	case a.BlockdevBackup != nil:
		return &blockdevBackup{m: m, txn: txn, BlockdevBackup: *a.BlockdevBackup}
	case a.DriveBackup != nil:
		return &driveBackup{m: m, txn: txn, DriveBackup: *a.DriveBackup}
	case a.BlockdevSnapshot != nil:
		return &snapshot{m: m, node: a.BlockdevSnapshot.Node, overlay: a.BlockdevSnapshot.Overlay}
	case a.BlockdevSnapshotSync != nil:
		return &snapshotSync{m: m, BlockdevSnapshotSync: *a.BlockdevSnapshotSync}
	case a.BlockdevSnapshotInternalSync != nil:
		return &internalSnapshot{*a.BlockdevSnapshotInternalSync}
	case a.XBlockdevSnapshotRevert != nil:
		return &snapshotRevert{*a.XBlockdevSnapshotRevert}
	case a.XBlockdevAdd != nil:
		return nodeAction{"x-blockdev-add", func(tx *blockgraph.Tx) error { return addNode(tx, a.XBlockdevAdd) }}
	case a.XBlockdevDel != nil:
		return nodeAction{"x-blockdev-del", func(tx *blockgraph.Tx) error { return deleteNode(tx, a.XBlockdevDel.NodeName) }}
	case a.XBlockdevReopen != nil:
		return nodeAction{"x-blockdev-reopen", func(tx *blockgraph.Tx) error { return reopenNodes(tx, a.XBlockdevReopen) }}
	case a.XBlockdevMirror != nil:
		return &blockdevMirror{m, a.XBlockdevMirror}
	case a.XBlockCommit != nil:
		return &blockCommit{m, a.XBlockCommit}
	case a.XBlockExportAdd != nil:
		return &exportAdd{m, a.XBlockExportAdd}
	case a.XBlockStream != nil:
		return &blockStream{m, a.XBlockStream}
	case a.BlockDirtyBitmapAdd != nil:
		return &bitmapAdd{m, *a.BlockDirtyBitmapAdd}
	case a.BlockDirtyBitmapMerge != nil:
		return &bitmapMerge{*a.BlockDirtyBitmapMerge}
	case a.BlockDirtyBitmapRemove != nil:
		return bitmapActionOf(string(a.Type), *a.BlockDirtyBitmapRemove)
	case a.BlockDirtyBitmapClear != nil:
		return bitmapActionOf(string(a.Type), *a.BlockDirtyBitmapClear)
	case a.BlockDirtyBitmapEnable != nil:
		return bitmapActionOf(string(a.Type), *a.BlockDirtyBitmapEnable)
	case a.BlockDirtyBitmapDisable != nil:
		return bitmapActionOf(string(a.Type), *a.BlockDirtyBitmapDisable)
	default:
		return abort{}
	}
}

// runActions makes one graph change of all actions: every user concerned is
// drained before the first is prepared, and all of it happens or nothing.
func (m *Monitor) runActions(ctx context.Context, command string, actions []action) error {
	return m.update(ctx, command, func(tx *blockgraph.Tx) error {
		var nodes []*blockgraph.Node
		for _, a := range actions {
			if n := a.source(tx); n != nil {
				nodes = append(nodes, n)
			}
		}
		if err := tx.Drain(nodes...); err != nil {
			return err
		}
		for i, a := range actions {
			if i > 0 {
				// What users that do not get along have led to is that action's fault, not the next one's.
				if err := tx.CheckPerms(); err != nil {
					return err
				}
			}
			if err := a.prepare(tx); err != nil {
				return err
			}
		}
		return finish(tx, actions)
	})
}

// finish has the actions finish: first those that an image must be writable
// for, which others may end.
func finish(tx *blockgraph.Tx, actions []action) error {
	for _, early := range []bool{true, false} {
		for _, a := range actions {
			f, ok := a.(finisher)
			if _, removes := a.(*bitmapRemove); !ok || removes != early {
				continue
			}
			if err := f.finish(tx); err != nil {
				return err
			}
		}
	}
	return nil
}

// ungrouped is an action that cannot end together with others: it fails when its
// turn comes.
type ungrouped struct{ action }

func (u ungrouped) prepare(*blockgraph.Tx) error {
	return qapi.Errorf("Action '%s' does not support Transaction property completion-mode = %s", u.kind(), qapi.ActionCompletionModeGrouped)
}

// abort always fails, for tests of what surrounds it.
type abort struct{}

func (abort) kind() string                           { return "abort" }
func (abort) source(*blockgraph.Tx) *blockgraph.Node { return nil }
func (abort) prepare(*blockgraph.Tx) error {
	return qapi.Errorf("Transaction aborted using Abort action")
}

// nodeAction opens, closes or changes nodes, which needs no more than a graph
// change gives. What it drains it finds by itself.
type nodeAction struct {
	name string
	do   func(tx *blockgraph.Tx) error
}

func (n nodeAction) kind() string                           { return n.name }
func (n nodeAction) source(*blockgraph.Tx) *blockgraph.Node { return nil }
func (n nodeAction) prepare(tx *blockgraph.Tx) error        { return n.do(tx) }
