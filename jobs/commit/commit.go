// Package commit is the intermediate commit: it moves the data of images in the
// middle of a chain down into their base, and then takes them out of the
// chain, while guests go on using the image above.
//
// A filter over the top lets the overlays read on while the job has the chain
// between top and base to itself: nobody else may read an image there, which
// would change its content under him as the base does, and nobody may write.
// The links from the filter down to the base are frozen. What is above the
// filter is not the job's: other jobs may relink it meanwhile. So the overlays
// are whoever uses the filter at the end, looked up within the graph change
// that gives them the base, and each one's header is written in that change.
//
// A commit whose top may change under it, active commit, is a mirror and not
// here; Find tells which one a command asks for.
//
// Find and Prepare are called on a worker with the graph token held. It must
// not import formats, exports or qmp.
//
//blockd:io
package commit

import (
	"context"

	"blockd/blockgraph"
	"blockd/jobs"
	"blockd/jobs/chain"
	"blockd/jobs/copy"
	"blockd/jobs/transfer"
	"blockd/qapi"
)

// Prepare sets an intermediate commit up within a graph change: it creates the
// job, makes the base writable, puts the filter over the top and makes the job
// a user of its nodes; the job starts with the change's commit. r comes from
// Find within the same change. It fails with the field's texts; the change is
// then to be undone.
func Prepare(tx *blockgraph.Tx, set *jobs.Set, r Range, a *qapi.BlockCommitArg) (*jobs.Job, error) {
	if chain.SkipFilters(tx, r.Top) == chain.SkipFilters(tx, r.Base) {
		return nil, qapi.Errorf("Invalid files for merge: top and base are the same")
	}
	c := &commit{
		Range:   r,
		onError: qapi.Or(a.OnError, qapi.BlockdevOnErrorReport),
		mask:    qapi.Or(a.BackingMaskProtocol, false),
		backing: a.BackingFile,
		overlay: chain.Overlay(tx, r.Top, r.Base),
	}
	o := transfer.JobOptions(qapi.JobTypeCommit, a.JobID, a.Speed, a.AutoFinalize, a.AutoDismiss)
	return c.nodes.Start(tx, set, o, c, false, func(j *jobs.Job) error { return c.attach(tx, j, a.FilterNodeName) })
}

// commit is the driver of the job.
type commit struct {
	Range
	transfer.Body

	onError qapi.BlockdevOnError
	mask    bool // name the format of a protocol node "raw"
	backing *string
	// overlay is the lowest image that is merged.
	overlay *blockgraph.Node
	// readOnly: the base was, and is to be again.
	readOnly bool

	filter     *blockgraph.Node
	from, into *blockgraph.Root // over the top and the base
	nodes      transfer.Nodes
}

// attach makes the job a user of its nodes, in the field's order.
func (c *commit) attach(tx *blockgraph.Tx, j *jobs.Job, filterName *string) error {
	if _, err := c.nodes.Use(tx, c.Device, "main node", 0, blockgraph.PermAll); err != nil {
		return err
	}
	if c.readOnly = tx.State(c.Base).ReadOnly; c.readOnly {
		if err := tx.SetReadOnly(c.Base, false); err != nil {
			return err
		}
	}
	var err error
	if c.filter, err = insertAbove(tx, c.Top, filterName); err != nil {
		return err
	}
	// A write that is not shared on an image is not shared on its backing file
	// either, and the job itself writes to the base.
	shared := blockgraph.PermWriteUnchanged | blockgraph.PermWrite
	aboveBase := chain.Below(tx, c.overlay)
	for n := c.Top; n != c.Base; n = chain.Below(tx, n) {
		if n == aboveBase {
			shared |= blockgraph.PermConsistentRead // from here on filters of the base
		}
		if _, err := c.nodes.Use(tx, n, "intermediate node", 0, shared); err != nil {
			return err
		}
	}
	if err := c.nodes.Freeze(tx, c.filter, c.Base); err != nil {
		return err
	}
	if _, err := c.nodes.Use(tx, c.Base, "base", 0, blockgraph.PermAll); err != nil {
		return err
	}
	perm := blockgraph.PermConsistentRead | blockgraph.PermWrite
	if c.Base.Size() < c.Top.Size() {
		perm |= blockgraph.PermResize
	}
	c.into, err = c.nodes.Open(tx, c.Base, perm, blockgraph.PermConsistentRead|blockgraph.PermWriteUnchanged)
	if err != nil {
		return err
	}
	if c.from, err = c.nodes.Open(tx, c.Top, 0, blockgraph.PermAll); err != nil {
		return err
	}
	j.Progress().SetRemaining(c.Top.Size()) // which clients see once the command has its reply
	return nil
}

// Run moves the data down.
func (c *commit) Run(ctx context.Context, j *jobs.Job) error {
	length := c.Top.Size()
	if c.Base.Size() < length {
		err := j.Change(ctx, func(tx *blockgraph.Tx) error { return tx.ResizeRoot(c.into, length, qapi.PreallocModeOff) })
		if err != nil {
			return transfer.Error(err)
		}
	}
	err := c.Body.Run(ctx, j, copy.NewMerge(copy.MergeOptions{
		Top: c.from, Base: c.into, Overlay: c.overlay, Length: length, Progress: j.Progress().Report,
	}), transfer.Options{
		SpeedChunk: copy.StreamChunk, Careful: copy.CarefulStart,
		OnRead: c.onError, OnWrite: c.onError,
	})
	if err != nil {
		return err
	}
	// Headers may name the base only when the data is safe in it.
	return c.Flush(ctx, j, c.into, c.onError)
}

// Busy implements jobs.Busier.
func (c *commit) Busy() bool { return c.Usage().Steps > 0 }

// Prepare gives the base to the overlays, and says so in their headers.
func (c *commit) Prepare(tx *blockgraph.Tx) error {
	var overlays []*blockgraph.Node
	for _, e := range tx.Parents(c.filter) {
		if e.Role()&blockgraph.RoleCOW != 0 {
			overlays = append(overlays, e.Parent())
		}
	}
	// All that is to change is drained at once.
	if err := tx.Drain(append([]*blockgraph.Node{c.filter}, overlays...)...); err != nil {
		return err
	}
	tx.Inherit(c.Base, c.Top)
	if err := c.remove(tx, c.Base); err != nil {
		return err
	}
	name, format := chain.HeaderFor(tx, c.Base, c.backing, c.mask)
	for _, n := range overlays {
		if err := chain.WriteHeader(tx, n, name, format); err != nil {
			return err
		}
	}
	return nil
}

// Clean gives up what the job holds.
func (c *commit) Clean(tx *blockgraph.Tx) error {
	if !c.nodes.Left() {
		if err := c.remove(tx, c.Top); err != nil {
			return err
		}
	}
	if c.readOnly {
		return chain.MakeReadOnly(tx, c.Base)
	}
	return nil
}

// remove ends the job's use of its nodes, and gives the filter's users to
// another node.
func (c *commit) remove(tx *blockgraph.Tx, to *blockgraph.Node) error {
	if err := c.nodes.Leave(tx); err != nil {
		return err
	}
	return tx.ReplaceNode(c.filter, to)
}
