// Package amend is x-blockdev-amend: changing what was decided when an image
// was created, as a job, because deriving keys takes long on purpose. Like a
// job of blockdev-create it ends by itself and then stays until it is
// dismissed; it has no BLOCK_JOB_* events.
//
// Prepare is called on a worker with the graph token held. Amending itself is
// done on a worker, too, without it, and each of its I/Os is a request of a
// root of the job's, so that a graph change waits for one I/O and not for the
// job. What lays an image out anew needs it alone: the job's root allows nobody else,
// the node's driver rests, and a new one takes its place in the end.
//
//blockd:io
package amend

import (
	"context"

	"blockd/blockgraph"
	"blockd/jobs"
	"blockd/qapi"
)

// Prepare sets the job up within a graph change, whose commit starts it. It
// fails with the field's texts; the change is then to be undone.
//
//blockd:blocking
func Prepare(tx *blockgraph.Tx, set *jobs.Set, n *blockgraph.Node, a *qapi.XBlockdevAmendArg) error {
	if n.Type().Name != string(a.Options.Driver) {
		return qapi.Errorf("x-blockdev-amend doesn't support changing the block driver")
	}
	image, ok := n.Driver().(blockgraph.Amender)
	if !ok {
		return qapi.Errorf("Driver does not support x-blockdev-amend")
	}
	d := &amending{set: set, image: image, options: a.Options, force: a.Force != nil && *a.Force}
	j, err := set.Create(jobs.Options{ID: a.JobID, Type: qapi.JobTypeAmend, ManualDismiss: true, Request: qapi.RequestOf(tx.Context())}, d)
	if err != nil {
		return err
	}
	if err := d.begin(tx, n, j.ID()); err != nil {
		j.Fail()
		return err
	}
	j.StartIn(tx, false)
	return nil
}

// amending is the job's driver.
type amending struct {
	image   blockgraph.Amender
	options qapi.BlockdevAmendOptions
	force   bool
	set     *jobs.Set
	alone   bool
	root    *blockgraph.Root
}

// begin makes the job a user of the node, for as long as it runs.
//
//blockd:blocking
func (d *amending) begin(tx *blockgraph.Tx, n *blockgraph.Node, id string) error {
	var err error
	d.alone = d.image.AmendsAlone(&d.options)
	if d.meetsAnother(tx, n) {
		return qapi.Errorf("Node '%s' is busy: block device is in use by block job: amend", n.Name())
	}
	o := blockgraph.RootOptions{Desc: "amend job '" + id + "'", Shared: blockgraph.PermAll, StayAtNode: true, Job: id}
	if d.alone {
		o.Perm, o.Shared = blockgraph.PermConsistentRead|blockgraph.PermWrite|blockgraph.PermResize, 0
	}
	if d.root, err = tx.NewRoot(n, o); err != nil {
		return err
	}
	first := true
	if d.alone {
		if first, err = tx.BeginRemake(n); err != nil {
			return err
		}
	}
	if first {
		d.image.SetAmending(true, d.alone)
		tx.OnAbort(func() { d.image.SetAmending(false, d.alone) })
	}
	return tx.RefreshPerms(n)
}

// meetsAnother tells whether the node is amended already, where one of both jobs needs
// the image alone: the driver that the other one works with would be outdated.
func (d *amending) meetsAnother(tx *blockgraph.Tx, n *blockgraph.Node) bool {
	for _, e := range tx.Parents(n) {
		var other *amending
		if r := e.Root(); r != nil && r.Job() != "" {
			d.set.Graph().Loop().Do(func() {
				if j, err := d.set.Find(r.Job()); err == nil {
					other, _ = j.Driver().(*amending)
				}
			})
		}
		if other != nil && (d.alone || other.alone) {
			return true
		}
	}
	return false
}

// Run amends. Its progress is one step.
func (d *amending) Run(ctx context.Context, j *jobs.Job) error {
	j.Progress().SetRemaining(1)
	enter := d.enter
	if d.alone {
		enter = d.enterInTurn(ctx, j)
	}
	err := j.OnWorker(func() error { return d.image.Amend(ctx, enter, &d.options, d.force) })
	if d.alone {
		// Whatever has become of it, the image is as it says.
		again := j.Change(context.WithoutCancel(ctx), func(tx *blockgraph.Tx) error { return tx.EndRemake(d.root.Node()) })
		switch {
		case err == nil:
			err = again
		case again != nil:
			err = qapi.Errorf("%s; %s", err, again)
		}
	}
	j.Progress().Add(1)
	return err
}

func (d *amending) enter(ctx context.Context, f func() error) error {
	a, err := d.root.Enter(ctx)
	if err != nil {
		return err
	}
	defer a.Leave()
	return f()
}

// enterInTurn is enter of one after the other; between two the job rests if it is to.
// (A job that changes keys is never paused, like the field's.)
func (d *amending) enterInTurn(run context.Context, j *jobs.Job) blockgraph.EnterFunc {
	turn := make(chan struct{}, 1)
	return func(ctx context.Context, f func() error) error {
		turn <- struct{}{}
		defer func() { <-turn }()
		// What is done after a cancel has a context of its own, and does not rest.
		_ = j.PausePoint(run)
		if err := ctx.Err(); err != nil {
			return err
		}
		return d.enter(ctx, f)
	}
}

// Clean gives up what the job holds.
//
//blockd:blocking
func (d *amending) Clean(tx *blockgraph.Tx) error {
	n := d.root.Node()
	if n == nil {
		return nil
	}
	if !d.alone { // else the driver is not the node's any more, or is never to write again
		d.image.SetAmending(false, false)
		tx.OnAbort(func() { d.image.SetAmending(true, false) })
	}
	if err := tx.CloseRoot(d.root); err != nil {
		return err
	}
	return tx.RefreshPerms(n)
}
