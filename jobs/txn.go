package jobs

import (
	"context"
	"log/slog"
	"slices"

	"blockd/blockgraph"
	"blockd/qapi"
)

// Txn ties jobs together (the field: JobTxn): none commits before all have
// succeeded, and when one fails or is cancelled all others are cancelled, too.
// A job alone has a transaction of its own.
//
// Its end has two shapes. Success: every body has ended well, every job goes
// pending, and one graph change prepares, commits and cleans all. Failure: the
// others are cancelled, and when every body has ended one graph change aborts
// and cleans all. A failing success turns into a failure.
type Txn struct {
	set *Set

	// Control plane.
	jobs     []*Job             //blockd:global loop // the last one created first
	closed   bool               //blockd:global loop // it is on its way to its end: no job can join
	aborting bool               //blockd:global loop
	ending   bool               //blockd:global loop // a worker runs the phases
	decided  bool               //blockd:global loop // they were committed
	stop     context.CancelFunc //blockd:global loop
	over     chan struct{}      // closed when the last job has left
}

// NewTxn returns a transaction for jobs that are to end together. Any
// goroutine.
func (s *Set) NewTxn() *Txn { return &Txn{set: s, over: make(chan struct{})} }

// Txn returns the job's transaction. Control plane.
func (j *Job) Txn() *Txn { return j.txn }

// Over returns a channel that is closed when every job of the transaction has
// concluded; jobs that never started do not count. Any goroutine.
func (t *Txn) Over() <-chan struct{} { return t.over }

func (t *Txn) join(j *Job) error {
	if t.closed {
		return qapi.Errorf("The transaction of job '%s' has ended already", j.id)
	}
	j.txn = t
	t.jobs = slices.Insert(t.jobs, 0, j)
	return nil
}

func (t *Txn) leave(j *Job) {
	t.jobs = slices.DeleteFunc(t.jobs, func(x *Job) bool { return x == j })
	if len(t.jobs) == 0 && j.started {
		t.closed = true
		close(t.over)
	}
}

// bodiesEnded tells whether no job of the transaction works any more.
func (t *Txn) bodiesEnded() bool {
	return !slices.ContainsFunc(t.jobs, func(j *Job) bool { return !j.ended })
}

// succeeded is called when a job has gone waiting. When it was the last one,
// all go pending, and finalize unless one of them waits for its user.
func (t *Txn) succeeded() {
	if !t.bodiesEnded() {
		return
	}
	if t.aborting {
		t.finishAborting()
		return
	}
	t.closed = true
	manual := false
	for _, j := range t.jobs {
		j.move(pending)
		if j.autoFinalize {
			continue
		}
		manual = true
		if j.block {
			t.set.emit("BLOCK_JOB_PENDING", qapi.BlockJobPending{Type: j.typ, ID: j.id})
		}
	}
	if !manual {
		t.finalize()
	}
}

// abort is called when a job has failed or was cancelled after its end.
func (t *Txn) abort(j *Job) {
	if !t.aborting {
		t.aborting, t.closed = true, true
		for _, other := range slices.Clone(t.jobs) {
			if other != j {
				other.cancel(true)
			}
		}
	}
	t.finishAborting()
}

// cancelEnded cancels a job whose body has ended already.
func (t *Txn) cancelEnded(j *Job) {
	switch {
	case t.decided || t.aborting:
	case t.ending:
		t.stop() // the phases fail if they still can
	default:
		t.abort(j)
	}
}

// finishAborting has the phases of a failure run when every body has ended.
func (t *Txn) finishAborting() {
	if t.ending || !t.bodiesEnded() {
		return
	}
	t.ending = true
	jobs := slices.Clone(t.jobs)
	t.set.workers.Go(func() { t.runAbort(jobs) })
}

// finalize has the phases of a success run.
func (t *Txn) finalize() {
	t.ending = true
	ctx, stop := context.WithCancel(context.Background())
	t.stop = stop
	jobs := slices.Clone(t.jobs)
	t.set.workers.Go(func() {
		defer stop()
		t.runCommit(ctx, jobs)
	})
}

// runCommit is the success on a worker.
//
//blockd:blocking
func (t *Txn) runCommit(ctx context.Context, jobs []*Job) {
	var failed *Job
	err := t.update(ctx, jobs, func(tx *blockgraph.Tx) error {
		var err error
		if failed, err = prepareAll(tx, jobs); err == nil {
			failed, err = commitAll(tx, jobs)
		}
		tx.OnCommit(func() { t.decided = true })
		return err
	})
	t.set.loop.Do(func() {
		if err == nil {
			t.decided = true
			t.concludeAll(jobs)
			return
		}
		if t.goBack(failed, err) {
			return
		}
		t.ending, t.aborting = false, true
		if !slices.ContainsFunc(jobs, func(j *Job) bool { return j.forced }) {
			if failed == nil {
				failed = jobs[0]
			}
			failed.err = err
			failed.move(aborting)
		}
		for _, j := range jobs {
			if j != failed || j.forced {
				j.cancelled, j.forced = true, true
			}
		}
		t.finishAborting()
	})
}

// runAbort is the failure on a worker. Jobs that still have requests in flight
// are cleaned after these have returned; clients hear of their end before, and
// still find them concluded.
//
//blockd:blocking
func (t *Txn) runAbort(jobs []*Job) {
	var at, late []*Job
	var rest []<-chan struct{} // of the late ones
	for _, j := range jobs {
		if c := j.draining(); c != nil {
			late, rest = append(late, j), append(rest, c)
		} else {
			at = append(at, j)
		}
	}
	t.abortNow(at)
	t.set.loop.Do(func() {
		t.decided = true
		for _, j := range late {
			j.late = true
		}
		t.failAll(jobs)
	})
	for i, j := range late {
		<-rest[i]
		t.abortNow([]*Job{j})
		t.set.loop.Do(func() {
			j.late = false
			if j.status == concluded {
				j.dismissOver()
			}
		})
	}
}

// abortNow has no way to fail: should the change of all be refused, each job is
// cleaned in a change of its own.
//
//blockd:blocking
func (t *Txn) abortNow(jobs []*Job) {
	err := t.update(context.Background(), jobs, func(tx *blockgraph.Tx) error { return abortAll(tx, jobs) })
	if err == nil {
		return
	}
	logAbort(jobs, err)
	for _, j := range jobs {
		one := []*Job{j}
		if err := t.update(context.Background(), one, func(tx *blockgraph.Tx) error { return abortAll(tx, one) }); err != nil {
			logAbort(one, err)
		}
	}
}

// draining returns a channel that is closed when nothing of the job is in flight
// any more, nil when nothing is. Worker.
//
//blockd:blocking
func (j *Job) draining() <-chan struct{} {
	d, ok := j.driver.(Orphaner)
	if !ok {
		return nil
	}
	c := d.Drained()
	select {
	case <-c:
		return nil
	default:
	}
	if c != nil {
		slog.WarnContext(j.context(), "a cancelled job has requests that do not return", "job", j.id)
	}
	return c
}

// concludeAll ends the jobs of a transaction that succeeded, also those that
// were cancelled after the commit. Control plane.
func (t *Txn) concludeAll(jobs []*Job) {
	for _, j := range jobs {
		j.completedEvent()
		j.conclude()
	}
}

// failAll ends the jobs of a transaction that failed. Control plane.
func (t *Txn) failAll(jobs []*Job) {
	for _, j := range jobs {
		if j.err == nil {
			j.err = canceled
		}
		j.move(aborting)
		if j.forced {
			j.cancelledEvent()
		} else {
			j.completedEvent()
		}
		j.conclude()
	}
}
