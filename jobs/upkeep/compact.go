package upkeep

import (
	"blockd/blockgraph"
	"blockd/jobs"
	"blockd/jobs/transfer"
	"blockd/qapi"
)

// PrepareCompact sets up a compaction of a node within a graph change.
func PrepareCompact(tx *blockgraph.Tx, set *jobs.Set, n *blockgraph.Node, a *qapi.XBlockdevCompactArg) (*jobs.Job, error) {
	d, ok := n.Driver().(blockgraph.Compacter)
	if !ok {
		return nil, qapi.Errorf("This image format does not support compaction")
	}
	if tx.State(n).ReadOnly {
		return nil, errReadOnly
	}
	// What the disk holds does not change, where it is stored does.
	root := blockgraph.RootOptions{Perm: blockgraph.PermConsistentRead | blockgraph.PermWriteUnchanged, Locks: true}
	options := transfer.JobOptions(qapi.JobTypeXCompact, &a.JobID, a.Speed, a.AutoFinalize, a.AutoDismiss)
	return start(tx, set, options, root, n, func(root *blockgraph.Root) (blockgraph.Upkeep, func(r *results), error) {
		c, err := d.StartCompact(blockgraph.CompactOptions{Lock: root.LockRange})
		if err != nil {
			return nil, nil, startError(err)
		}
		return c, func(r *results) {
			did := c.Result()
			r.compact = &qapi.ImageCompact{
				FileSizeBefore: did.FileSizeBefore, FileSizeAfter: did.FileSizeAfter,
				MovedClusters: did.Moved, UnmovableClusters: did.Unmovable, DiscardedBytes: did.Discarded,
			}
		}, nil
	})
}
