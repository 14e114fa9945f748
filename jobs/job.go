package jobs

import (
	"context"
	"slices"
	"sync/atomic"
	"syscall"

	"blockd/blockgraph"
	"blockd/qapi"
)

// Driver is what a kind of job does. The optional interfaces below are found
// when the job is created.
//
//blockd:io
type Driver interface {
	// Run is the body. It runs on a goroutine of its own on the data plane, from
	// the job's start until its work is done; nil is success. ctx ends when the
	// job is cancelled by force, and Run then returns as soon as it can. It
	// calls PausePoint wherever it is at rest, or watches PauseRequested.
	//
	// The text of the error is what clients get to see.
	Run(ctx context.Context, j *Job) error
}

// The phases of a job's end. All of them run on a worker with the graph token
// held: those of one transaction in one change, jobs in the order of the
// events (the last one created first).
//
// After the bodies of all jobs of a transaction have succeeded, one change runs
// Prepare of each, then Commit and Clean of each. If anything in it fails, it
// is undone as a whole, and a second one runs Abort and Clean of each. When a
// body fails or a job is cancelled, only the second one happens. So Prepare,
// Commit and Clean change nothing but the staged graph, and what they do
// elsewhere they undo with Tx.OnAbort.

// Preparer does what may still fail.
//
//blockd:blocking
type Preparer interface {
	Prepare(tx *blockgraph.Tx) error
}

// Committer makes the success final.
//
//blockd:blocking
type Committer interface {
	Commit(tx *blockgraph.Tx) error
}

// Aborter undoes the job's work after a failure or a cancel.
//
//blockd:blocking
type Aborter interface {
	Abort(tx *blockgraph.Tx) error
}

// Cleaner gives up what the job holds, after Commit or Abort.
//
//blockd:blocking
type Cleaner interface {
	Clean(tx *blockgraph.Tx) error
}

// Completer is a job that goes on until it is asked to complete. Complete runs
// on the loop and must not wait.
//
//blockd:global loop
type Completer interface {
	Complete() error
}

// SoftCanceller is a job for which a cancel without force may mean something
// else than giving up. Cancel returns whether it counts as forced. It runs on
// the loop and must not wait.
//
//blockd:global loop
type SoftCanceller interface {
	Cancel(force bool) bool
}

// Changer is a job some of whose options can be changed. CheckChange runs on the
// loop; Change, if that has no objection, on a worker, and may block.
//
//blockd:blocking
type Changer interface {
	//blockd:global loop
	CheckChange(o *qapi.BlockJobChangeOptions) error
	Change(ctx context.Context, o *qapi.BlockJobChangeOptions) error
}

// Informer adds what it knows of itself to what queries tell, and brings the
// job's Progress up to date before. Its methods run on the loop and must not
// wait.
//
//blockd:global loop
type Informer interface {
	Refresh()
	JobInfo(info *qapi.JobInfo)
	BlockJobInfo(info *qapi.BlockJobInfo)
}

// Reporter is a job with a result, which it adds to the event that tells of the
// job's end. It runs on the loop and must not wait.
//
//blockd:global loop
type Reporter interface {
	Completed(event *qapi.BlockJobCompleted)
}

// SpeedSetter is told of a new speed in bytes per second, 0 for no limit. It
// runs on the loop and must not wait.
//
//blockd:global loop
type SpeedSetter interface {
	SetSpeed(speed int64)
}

// Kicker is told that a pause is wanted, so that a body that sleeps comes to its
// pause point. It runs on the loop and must not wait.
//
//blockd:global loop
type Kicker interface {
	Kick()
}

// Busier tells whether the body has requests in flight, for query-block-jobs;
// without it, and while a pause is wanted, a body is busy whenever it is not at a
// pause point. It runs on the loop and must not wait.
//
//blockd:global loop
type Busier interface {
	Busy() bool
}

// Orphaner is a job whose body may return before its last request has: after a
// cancel, when storage does not answer. Drained is called once, on a worker, after
// Run; the result is closed when nothing is in flight any more, and nil when
// nothing was left. It may wait as long as Run would for what others have begun
// on the job's behalf. The job's end is told at once, but what it holds in the
// graph stays until then.
//
//blockd:blocking
type Orphaner interface {
	Drained() <-chan struct{}
	// Orphans is how many requests the body left behind. Any goroutine.
	//
	//blockd:any
	Orphans() int
}

// Scratcher is a job that may have a scratch. Scratch returns what queries tell
// about it, nil for nothing. It runs on the loop and must not wait.
//
//blockd:global loop
type Scratcher interface {
	Scratch() *qapi.JobScratch
}

// Options are what is common to the creation of all jobs.
type Options struct {
	// ID is the user's name for the job.
	ID   string
	Type qapi.JobType
	// Block makes it a block job: known to the block-job-* commands, with
	// BLOCK_JOB_* events and a speed.
	Block bool
	// Speed in bytes per second; 0 is no limit.
	Speed int64
	// ManualFinalize and ManualDismiss turn auto-finalize and auto-dismiss off.
	ManualFinalize, ManualDismiss bool
	// Txn is the transaction that the job joins; nil: one of its own.
	Txn *Txn
	// Request is the number of the command that begins it (qapi.RequestOf), 0 if
	// there is none.
	Request uint64
}

// Job is one job. Its fields belong to the loop except where said.
type Job struct {
	set    *Set
	id     string
	typ    qapi.JobType
	block  bool
	driver Driver
	// request is Options.Request.
	request uint64

	autoFinalize, autoDismiss bool

	// Any goroutine.
	progress Progress
	speed    atomic.Int64
	pausing  pauseSignal

	// Control plane.
	status     qapi.JobStatus           //blockd:global loop
	past       *past                    //blockd:global loop
	txn        *Txn                     //blockd:global loop
	started    bool                     //blockd:global loop
	ended      bool                     //blockd:global loop // the body has returned
	cancelled  bool                     //blockd:global loop
	forced     bool                     //blockd:global loop // cancelled by force
	userPaused bool                     //blockd:global loop
	late       bool                     //blockd:global loop // it is over, but requests of it are not
	pauses     int                      //blockd:global loop // how many reasons there are to pause; 1 until the start
	ioStatus   qapi.BlockDeviceIoStatus //blockd:global loop
	err        error                    //blockd:global loop
	stop       context.CancelFunc       //blockd:global loop
	resumed    chan struct{}            //blockd:global loop // while paused or standby: closed to go on
	rested     chan struct{}            //blockd:global loop // closed when it rests next; nil: nobody waits
	over       chan struct{}            // closed when the job has concluded
}

// Create adds a job in the state created. It fails for a bad or used id and
// for a negative speed; then nothing is left of the job. Worker.
//
// The job must then either be started or given up: by StartIn within a graph
// change, by Start, or by Fail.
//
//blockd:blocking
func (s *Set) Create(o Options, d Driver) (*Job, error) {
	j := &Job{
		set: s, id: o.ID, typ: o.Type, block: o.Block, driver: d, request: o.Request,
		autoFinalize: !o.ManualFinalize, autoDismiss: !o.ManualDismiss,
		status: undefined, pauses: 1, ioStatus: qapi.BlockDeviceIoStatusOk,
		over: make(chan struct{}),
	}
	var err error
	if !s.loop.Do(func() { err = s.create(j, o) }) {
		err = errShutdown
	}
	if err != nil {
		return nil, err
	}
	return j, nil
}

var errShutdown = qapi.Errorf("The daemon is shutting down")

func (s *Set) create(j *Job, o Options) error {
	if err := s.check(j.id); err != nil {
		return err
	}
	txn := o.Txn
	if txn == nil {
		txn = s.NewTxn()
	}
	if err := txn.join(j); err != nil {
		return err
	}
	j.move(created)
	s.jobs = slices.Insert(s.jobs, 0, j)
	if o.Block {
		if err := j.setSpeed(o.Speed); err != nil {
			j.fail()
			return err
		}
	}
	return nil
}

// ID returns the job's id.
func (j *Job) ID() string { return j.id }

// Type returns the kind of job.
func (j *Job) Type() qapi.JobType { return j.typ }

// Driver returns what the job does.
func (j *Job) Driver() Driver { return j.driver }

// Progress returns the job's progress.
func (j *Job) Progress() *Progress { return &j.progress }

// Speed returns the limit in bytes per second, 0 for none. Any goroutine.
func (j *Job) Speed() int64 { return j.speed.Load() }

// Set returns the set that the job belongs to.
func (j *Job) Set() *Set { return j.set }

// Status returns the state. Control plane.
func (j *Job) Status() qapi.JobStatus { return j.status }

// Over returns a channel that is closed when the job has concluded, or was
// given up before it started. Any goroutine.
func (j *Job) Over() <-chan struct{} { return j.over }

// Fail gives up a job that could not be set up. Worker.
//
//blockd:blocking
func (j *Job) Fail() { j.set.loop.Do(j.fail) }

// fail ends a job that never was complete. Control plane.
func (j *Job) fail() {
	if j.status == created {
		j.drop()
		j.leave()
	}
}

// undo ends a job that was complete but is not to start. Control plane.
func (j *Job) undo() {
	if j.status == created {
		j.err = canceled
		j.move(aborting)
		j.conclude()
	}
}

// conclude ends the job's part in its transaction. Control plane.
func (j *Job) conclude() {
	j.move(concluded)
	j.dismissOver()
	j.leave()
}

// dismissOver forgets a job that has concluded, if nobody else is to do it. One
// with requests that do not return stays to be seen. Control plane.
func (j *Job) dismissOver() {
	if j.set.closing || !j.late && (j.autoDismiss || !j.started) {
		j.drop()
	}
}

// leave lets those go on who wait for the job, after they have its last
// event. Control plane.
func (j *Job) leave() {
	close(j.over)
	j.txn.leave(j)
}

// drop forgets the job. Control plane.
func (j *Job) drop() {
	j.move(null)
	j.set.remove(j)
}

// canceled is the error of a job that was cancelled.
var canceled = blockgraph.Errorf(syscall.ECANCELED, "%s", blockgraph.Strerror(syscall.ECANCELED))
