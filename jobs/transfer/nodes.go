package transfer

import (
	"blockd/blockgraph"
	"blockd/jobs"
	"blockd/qapi"
)

// JobOptions returns the options of a block job from the arguments that all of
// them have.
func JobOptions(typ qapi.JobType, id *string, speed *int64, autoFinalize, autoDismiss *bool) jobs.Options {
	return jobs.Options{
		ID:             qapi.Or(id, ""),
		Type:           typ,
		Block:          true,
		Speed:          qapi.Or(speed, 0),
		ManualFinalize: !qapi.Or(autoFinalize, true),
		ManualDismiss:  !qapi.Or(autoDismiss, true),
	}
}

// Nodes is part of a job's driver: what the job holds in the graph, from the
// change that sets it up to the one that ends it. Its methods are called on a
// worker with the graph token held.
type Nodes struct {
	job     *jobs.Job
	blocker *blockgraph.Blocker
	roots   []*blockgraph.Root
	blocked []*blockgraph.Node
	frozen  []*blockgraph.FrozenChain
	left    *blockgraph.Tx // the change in which the job gave them up
}

// Start creates a job within a graph change, has attach make it a user of its
// nodes, and has the change's commit start it; drained is that of Job.StartIn.
// If it fails nothing is left of the job, and the change is to be undone.
func (n *Nodes) Start(tx *blockgraph.Tx, set *jobs.Set, o jobs.Options, d jobs.Driver, drained bool, attach func(j *jobs.Job) error) (*jobs.Job, error) {
	o.Request = qapi.RequestOf(tx.Context())
	j, err := set.Create(o, d)
	if err != nil {
		return nil, err
	}
	n.job, n.blocker = j, jobs.Blocker(o.Type, blockgraph.OpDataplane)
	if err := attach(j); err != nil {
		j.Fail()
		return nil, err
	}
	j.StartIn(tx, drained)
	return j, nil
}

// Use makes the job a user of a node by name, and blocks what would reshape the
// node for others.
func (n *Nodes) Use(tx *blockgraph.Tx, node *blockgraph.Node, name string, perm, shared blockgraph.Perm) (*blockgraph.Root, error) {
	r, err := tx.NewRoot(node, blockgraph.RootOptions{
		Name: name, Desc: string(n.job.Type()) + " job '" + n.job.ID() + "'",
		Perm: perm, Shared: shared, StayAtNode: true, Job: n.job.ID(),
	})
	if err != nil {
		return nil, err
	}
	n.roots = append(n.roots, r)
	n.blocked = append(n.blocked, node)
	tx.Block(node, n.blocker)
	return r, nil
}

// Open returns another root over a node, for the job's own requests.
func (n *Nodes) Open(tx *blockgraph.Tx, node *blockgraph.Node, perm, shared blockgraph.Perm) (*blockgraph.Root, error) {
	r, err := tx.NewRoot(node, blockgraph.RootOptions{Label: "job " + n.job.ID(), Perm: perm, Shared: shared, StayAtNode: true})
	if err == nil {
		n.roots = append(n.roots, r)
	}
	return r, err
}

// Freeze keeps the links from top down to base as they are.
func (n *Nodes) Freeze(tx *blockgraph.Tx, top, base *blockgraph.Node) error {
	c, err := tx.FreezeChain(top, base)
	if err == nil {
		n.frozen = append(n.frozen, c)
	}
	return err
}

// Left tells whether the job has given its nodes up, in this change or before.
func (n *Nodes) Left() bool { return n.left != nil }

// Leave gives them all up. If the change is undone they are held again.
func (n *Nodes) Leave(tx *blockgraph.Tx) error {
	was := n.left
	n.left = tx
	tx.OnAbort(func() { n.left = was })
	for _, c := range n.frozen {
		tx.Thaw(c)
	}
	for _, r := range n.roots {
		if err := tx.CloseRoot(r); err != nil {
			return err
		}
	}
	for _, node := range n.blocked {
		tx.Unblock(node, n.blocker)
	}
	return nil
}
