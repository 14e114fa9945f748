package jobs

import (
	"context"

	"blockd/blockgraph"
	"blockd/qapi"
)

// StartIn has the job started by the commit of a graph change, together with
// all others of that change, and given up if the change is undone. Worker,
// with the token held.
//
// drained tells that the change holds the job's nodes drained: the job is then
// paused from its start until all jobs of the change have started, which
// clients see as running, paused, running.
func (j *Job) StartIn(tx *blockgraph.Tx, drained bool) {
	tx.OnCommit(func() { j.start(drained) })
	tx.OnAbort(func() { j.set.loop.Do(j.undo) })
	if drained {
		tx.After(func() { j.set.loop.Do(j.unpause) })
	}
}

// Start starts a job that was created outside a graph change. Worker.
//
//blockd:blocking
func (j *Job) Start() { j.set.loop.Do(func() { j.start(false) }) }

// start begins the body. Control plane.
func (j *Job) start(drained bool) {
	j.started = true
	j.pauses--
	if drained {
		j.pauses++
	}
	j.move(running)
	j.work()
}

// context is what is done for the job runs in.
func (j *Job) context() context.Context { return qapi.WithRequest(context.Background(), j.request) }

// work has the body run, at rest if the job should be. Control plane.
func (j *Job) work() {
	ctx, stop := context.WithCancel(j.context())
	j.stop = stop
	if j.forced {
		stop()
	}
	j.signalPause()
	rest := j.rest()
	j.set.workers.Go(func() { j.body(ctx, rest) })
}

// body runs the driver on the data plane.
//
//blockd:io
func (j *Job) body(ctx context.Context, rest <-chan struct{}) {
	if rest != nil {
		<-rest
	}
	j.PausePoint(ctx)
	err := j.driver.Run(ctx, j)
	j.set.loop.Do(func() { j.finished(err) })
}

// finished takes the body's result. Control plane.
func (j *Job) finished(err error) {
	j.ended = true
	j.tellRest()
	j.stop()
	if j.forced {
		err = canceled
	}
	if err != nil {
		j.err = err
		j.move(aborting)
		j.txn.abort(j)
		return
	}
	j.move(waiting)
	j.txn.succeeded()
}
