package upkeep

import (
	"syscall"

	"blockd/blockgraph"
	"blockd/jobs"
	"blockd/jobs/transfer"
	"blockd/qapi"
)

// PrepareCheck sets up a check of a node within a graph change.
func PrepareCheck(tx *blockgraph.Tx, set *jobs.Set, n *blockgraph.Node, a *qapi.XBlockdevCheckArg) (*jobs.Job, error) {
	d, ok := n.Driver().(blockgraph.Checker)
	if !ok {
		return nil, qapi.Errorf("This image format does not support checks")
	}
	o := blockgraph.CheckOptions{}
	root := blockgraph.RootOptions{Perm: blockgraph.PermConsistentRead}
	switch qapi.Or(a.Fix, qapi.ImageFixNone) {
	case qapi.ImageFixLeaks:
		o.Fix = blockgraph.CheckFixLeaks
	case qapi.ImageFixAll:
		o.Fix = blockgraph.CheckFixAll
	}
	if o.Fix != blockgraph.CheckFixNone {
		if tx.State(n).ReadOnly {
			return nil, errReadOnly
		}
		root.Perm |= blockgraph.PermWriteUnchanged
	}
	options := transfer.JobOptions(qapi.JobTypeXCheck, &a.JobID, a.Speed, a.AutoFinalize, a.AutoDismiss)
	name, format := n.Filename(), n.Type().Name
	return start(tx, set, options, root, n, func(*blockgraph.Root) (blockgraph.Upkeep, func(r *results), error) {
		c, err := d.StartCheck(o)
		if err != nil {
			return nil, nil, startError(err)
		}
		return c, func(r *results) { r.check = imageCheck(name, format, c.Result()) }, nil
	})
}

// rebuild makes structures anew that the check has found lost. The whole image is
// read meanwhile, and who uses it would wait for that; besides, what it has in
// memory would have to be trusted: so nobody else may.
func (b *job) rebuild(tx *blockgraph.Tx, c blockgraph.Check) error {
	n := b.root.Node()
	for _, e := range tx.Parents(n) {
		if e.Root() != b.root {
			return qapi.Errorf("Refcount structures of node '%s' must be rebuilt, which cannot be done while the node is in use; check it when nothing else uses it", n.Name())
		}
	}
	if err := tx.Drain(n); err != nil {
		return err
	}
	return transfer.Error(c.Rebuild(tx.Context()))
}

var errReadOnly = qapi.Errorf("Block node is read-only")

// startError leaves EBUSY alone, and gives other errors the field's text.
func startError(err error) error {
	if err == syscall.EBUSY {
		return err
	}
	return transfer.Error(err)
}

// imageCheck gives a result the field's shape: what is 0 is left out.
func imageCheck(name, format string, r blockgraph.CheckResult) *qapi.ImageCheck {
	n := func(v int64) *int64 {
		if v == 0 {
			return nil
		}
		return &v
	}
	return &qapi.ImageCheck{
		Filename: name, Format: format, CheckErrors: r.CheckErrors,
		ImageEndOffset: n(r.ImageEnd),
		Corruptions:    n(r.Corruptions), Leaks: n(r.Leaks),
		CorruptionsFixed: n(r.CorruptionsFixed), LeaksFixed: n(r.LeaksFixed),
		TotalClusters: n(r.Total), AllocatedClusters: n(r.Allocated),
		FragmentedClusters: n(r.Fragmented), CompressedClusters: n(r.Compressed),
		XMessages: r.Messages,
	}
}
