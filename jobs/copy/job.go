package copy

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"blockd/clock"
	"blockd/ioengine"
)

const (
	// DefaultMaxWorkers is how many steps of one job may be in flight.
	DefaultMaxWorkers = 64
	// DefaultWindow is how many bytes of one job may be in flight.
	DefaultWindow = 16 << 20
	// Grace is how long Run waits for steps in flight after its context ended.
	Grace = 500 * time.Millisecond
	// SliceTime is the period of the speed limit.
	SliceTime = 100 * time.Millisecond

	// MirrorChunk and StreamChunk are the pieces in bytes under a speed limit:
	// the field's for backup and mirror, and for stream and commit.
	MirrorChunk = 64 << 10
	StreamChunk = 512 << 10
	// CarefulStart is how much stream and commit copy carefully, in bytes: their
	// first two pieces.
	CarefulStart = 2 * StreamChunk
)

// Options of a Job.
type Options struct {
	// Clock is the real clock: speed, adaptation, the grace of a cancel.
	Clock clock.Clock
	// Scheduler is nil for the process's.
	Scheduler *Scheduler
	// Budget is where buffers come from, nil for the process's.
	Budget *ioengine.Budget
	// Speed in bytes per second, 0 for no limit.
	Speed int64
	// SpeedChunk is the longest piece while a speed is set: MirrorChunk or
	// StreamChunk. It is rounded up to the work's unit.
	SpeedChunk int64
	// Careful is how many bytes the job copies one piece after the other, each of
	// SpeedChunk at most, before several steps are in flight: a copy that fails
	// soon then has not gone past what failed, as in the field.
	Careful int64
	// FreeZeroes: pieces of zeroes are not counted against the speed.
	FreeZeroes bool
	// MaxWorkers is the most steps in flight, 0 for DefaultMaxWorkers.
	MaxWorkers int
	// MaxChunk is the longest piece in bytes, 0 for no limit but the engine's.
	MaxChunk int64
	// Window is the most bytes in flight, 0 for DefaultWindow.
	Window int64

	// PauseRequested tells without blocking that the job shall rest; nil is
	// never. It is asked before each piece, and again after Job.Kick.
	PauseRequested func() bool
	// PausePoint is called, with no step in flight and nothing held, when a
	// pause was requested; it returns when the job may go on. An error ends
	// the run with it.
	PausePoint func(ctx context.Context) error

	// OnError is the error policy; nil aborts. It is called on Run's
	// goroutine with no step in flight and nothing held, and may block (stop:
	// wait for the user's resume, then Retry). Of several steps that failed
	// together it sees the one with the lowest offset first; after Retry the
	// others are retried unasked, after Give it is asked about the next.
	OnError func(ctx context.Context, f *Fault) Action
}

// Usage is what a job has in flight.
type Usage struct {
	Steps   int   // in flight, orphans among them
	Bytes   int64 // of these, in bytes
	Orphans int   // requests that had not returned when Run did
}

// Job runs one Work. It is made for one Run. Its methods may be called from
// any goroutine, on both planes; all but Run return at once.
type Job struct {
	w      Work
	o      Options
	sched  *Scheduler
	member member
	limit  limiter
	wake   chan struct{} // capacity 1: something changed for the dispatcher
	steps  chan *step    // to workers that are free
	done   chan struct{} // closed when all is over, orphans too

	// Of the dispatcher.
	again []Piece // to be retried
	spare []*step

	mu    sync.Mutex //blockd:short
	adapt adaptation
	// +checklocks:mu
	flight  int   // steps
	bytes   int64 // of these
	workers int   // +checklocks:mu
	// +checklocks:mu
	idle     int         // workers that wait for a step
	finished []*step     // +checklocks:mu
	faults   []stepFault // +checklocks:mu
	// +checklocks:mu
	fatal error // of a step, no Fault: it ends the run
	// +checklocks:mu
	over    bool // Run has returned
	orphans int  // +checklocks:mu
}

type step struct {
	turn  turn
	piece Piece
	bytes int64 // counted in Job.bytes
	// ctx is Run's, and tells sched when the step waits.
	ctx   context.Context
	sched *Scheduler
}

// Waits implements ioengine.Waiter.
func (s *step) Waits() uint64 { return s.sched.leave(&s.turn) }

// Resumes implements ioengine.Waiter.
func (s *step) Resumes(ctx context.Context, wait uint64) { s.sched.rejoin(ctx, &s.turn, wait) }

type stepFault struct {
	piece Piece
	fault *Fault
}

// NewJob returns a job that is ready to Run.
func NewJob(w Work, o Options) *Job {
	if o.Scheduler == nil {
		o.Scheduler = Process
	}
	if o.Budget == nil {
		o.Budget = ioengine.Process
	}
	if o.MaxWorkers <= 0 {
		o.MaxWorkers = DefaultMaxWorkers
	}
	if o.Window <= 0 {
		o.Window = DefaultWindow
	}
	if o.SpeedChunk <= 0 {
		o.SpeedChunk = MirrorChunk
	}
	j := &Job{w: w, o: o, sched: o.Scheduler, wake: make(chan struct{}, 1), steps: make(chan *step), done: make(chan struct{})}
	j.limit.clock = o.Clock
	j.limit.set(o.Speed)
	return j
}

// SetSpeed changes the limit, in bytes per second, 0 for none. It takes effect
// on the next piece, and ends a sleep for the old one.
//
//blockd:any
func (j *Job) SetSpeed(bytesPerSecond int64) {
	j.limit.set(bytesPerSecond)
	j.Kick()
}

// Kick ends a sleep of the dispatcher for the speed limit, so that it looks at
// PauseRequested; it sleeps on afterwards if there is no pause.
//
//blockd:any
func (j *Job) Kick() {
	select {
	case j.wake <- struct{}{}:
	default:
	}
}

// Usage returns what is in flight.
//
//blockd:any
func (j *Job) Usage() Usage {
	j.mu.Lock()
	defer j.mu.Unlock()
	return Usage{Steps: j.flight, Bytes: j.bytes, Orphans: j.orphans}
}

// Drained is closed when Run has returned and the last orphan has, too.
//
//blockd:any
func (j *Job) Drained() <-chan struct{} { return j.done }

// Run copies until the work has nothing left, and returns nil; or until the
// policy aborts (the *Fault), the pause point, Settle or a step fails with
// something else (that error), or ctx ends (its error). No step is in flight
// when it returns, except for orphans after ctx ended. It blocks.
func (j *Job) Run(ctx context.Context) error {
	j.adapt = newAdaptation(j.w.Unit(), j.mostData(), j.o.Clock.Now())
	err := j.dispatch(ctx)
	if ctx.Err() != nil {
		j.graceful()
		if err != nil {
			err = ctx.Err()
		}
	}
	close(j.steps)
	j.mu.Lock()
	j.over = true
	j.orphans = j.flight
	last := j.flight == 0
	j.mu.Unlock()
	if last {
		close(j.done)
	}
	return err
}

// mostData is the longest piece of data that options allow.
func (j *Job) mostData() int64 {
	most := j.o.Window / 4
	if j.o.MaxChunk > 0 {
		most = min(most, j.o.MaxChunk)
	}
	return most
}

// dispatch is Run without the end of it.
func (j *Job) dispatch(ctx context.Context) error {
	for {
		if err := j.checkpoint(ctx); err != nil {
			return err
		}
		s, err := j.admit(ctx)
		if err != nil {
			return err
		}
		if s == nil {
			continue // something else comes first
		}
		p, err := j.plan(ctx, s.turn.bytes)
		if err != nil || p.N == 0 || p.Kind == Skip {
			j.sched.release(&s.turn)
			j.spare = append(j.spare, s)
			more, err := j.unplanned(ctx, p, err)
			if err != nil || !more {
				return err
			}
			continue
		}
		j.start(ctx, s, p)
	}
}

// checkpoint waits where no step may be in flight: pauses and faults.
func (j *Job) checkpoint(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if j.failed() {
		if err := j.drain(ctx); err != nil {
			return err
		}
		if err := j.handleFaults(ctx); err != nil {
			return err
		}
	}
	if j.pausing() {
		if err := j.drain(ctx); err != nil {
			return err
		}
		if j.failed() {
			return nil // the policy first; the pause is still requested
		}
		if err := j.o.PausePoint(ctx); err != nil {
			return err
		}
		j.mu.Lock()
		j.adapt.restart(j.o.Clock.Now())
		j.mu.Unlock()
	}
	return nil
}

func (j *Job) pausing() bool { return j.o.PauseRequested != nil && j.o.PauseRequested() }

func (j *Job) failed() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.fatal != nil || len(j.faults) > 0
}

// sleep waits for a change, for d if positive, and for the context.
func (j *Job) sleep(ctx context.Context, d time.Duration) error {
	var fired <-chan time.Time
	if d > 0 {
		t := j.o.Clock.NewTimer(d)
		defer t.Stop()
		fired = t.C()
	}
	select {
	case <-j.wake:
		return nil
	case <-fired:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// drain waits until no step is in flight.
func (j *Job) drain(ctx context.Context) error {
	for j.Usage().Steps > 0 {
		if err := j.sleep(ctx, 0); err != nil {
			return err
		}
	}
	return nil
}

// graceful waits for steps in flight after a cancel, for at most Grace.
func (j *Job) graceful() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	t := j.o.Clock.AfterFunc(Grace, cancel)
	defer t.Stop()
	_ = j.drain(ctx)
}

// handleFaults asks the policy. No step is in flight.
func (j *Job) handleFaults(ctx context.Context) error {
	j.mu.Lock()
	faults, fatal := j.faults, j.fatal
	j.faults = nil
	j.mu.Unlock()
	if fatal != nil {
		return fatal
	}
	slices.SortFunc(faults, func(a, b stepFault) int { return int(min(1, max(-1, a.piece.Off-b.piece.Off))) })
	for i, f := range faults {
		action := Abort
		if j.o.OnError != nil {
			action = j.o.OnError(ctx, f.fault)
		}
		switch action {
		case Retry:
			for _, f := range faults[i:] {
				j.again = append(j.again, f.piece)
			}
			return nil
		case Give:
			j.w.Skip(f.piece, true)
		default:
			return f.fault
		}
	}
	return nil
}

// admit waits for the speed limit, the window and the scheduler. Without an
// error and a step, something changed that the caller looks at first.
func (j *Job) admit(ctx context.Context) (*step, error) {
	if d := j.limit.delay(); d > 0 {
		return nil, j.sleep(ctx, d)
	}
	want := j.room()
	if want == 0 {
		return nil, j.sleep(ctx, 0)
	}
	var s *step
	if k := len(j.spare); k > 0 {
		s = j.spare[k-1]
		j.spare = j.spare[:k-1]
	} else {
		s = &step{sched: j.sched, turn: turn{of: &j.member, ready: make(chan struct{}, 1)}}
		s.ctx = ioengine.WithWaiter(ctx, s)
	}
	granted := j.sched.request(&s.turn, want, j.w.Unit())
	for !granted {
		var err error
		granted, err = s.turn.wait(ctx, j.wake)
		if err == nil && !granted && (j.failed() || j.pausing()) {
			err = errChanged
		}
		if err != nil {
			j.sched.withdraw(&s.turn)
			j.spare = append(j.spare, s)
			if err == errChanged {
				err = nil
			}
			return nil, err
		}
	}
	return s, nil
}

// errChanged: a request for a turn was given up for something more urgent.
var errChanged = errors.New("changed")

// room returns how long the next piece of data may be: 0 for not now. It also
// takes back finished steps for use.
func (j *Job) room() int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.spare = append(j.spare, j.finished...)
	clear(j.finished)
	j.finished = j.finished[:0]
	unit := j.w.Unit()
	want := j.adapt.data
	careful := j.adapt.moved < j.o.Careful
	if careful && j.flight > 0 {
		return 0
	}
	if careful || j.limit.limited() {
		chunk := j.o.SpeedChunk
		if j.o.MaxChunk > 0 {
			chunk = min(chunk, j.o.MaxChunk)
		}
		want = (chunk + unit - 1) / unit * unit
	}
	if j.flight > 0 && (j.flight >= j.o.MaxWorkers || j.bytes+want > j.adapt.window(j.o.Window)) {
		return 0
	}
	return want
}

// plan returns the next piece, a retried one first, within granted bytes.
func (j *Job) plan(ctx context.Context, granted int64) (Piece, error) {
	j.mu.Lock()
	zero := j.adapt.zero
	j.mu.Unlock()
	if j.limit.limited() && !j.o.FreeZeroes {
		zero = granted
	}
	if k := len(j.again); k > 0 {
		p := j.again[k-1]
		most := zero
		if p.Kind == Data {
			most = granted
		}
		if p.N > most {
			j.again[k-1] = Piece{Off: p.Off + most, N: p.N - most, Kind: p.Kind}
			p.N = most
		} else {
			j.again = j.again[:k-1]
		}
		return p, nil
	}
	return j.w.Next(ctx, Limit{Data: granted, Zero: zero})
}

// unplanned goes on after a plan without a step: nothing left, a piece to skip, an
// error. It returns whether there is more to do.
func (j *Job) unplanned(ctx context.Context, p Piece, err error) (more bool, _ error) {
	var f *Fault
	switch {
	case errors.As(err, &f) && ctx.Err() == nil:
		j.mu.Lock()
		j.faults = append(j.faults, stepFault{Piece{Off: f.Off, N: f.N}, f})
		j.mu.Unlock()
		return true, nil
	case err != nil:
		if derr := j.drain(ctx); derr != nil {
			return false, derr
		}
		return false, err
	case p.N > 0:
		j.w.Skip(p, false)
		return true, nil
	}
	if err := j.drain(ctx); err != nil {
		return false, err
	}
	if j.failed() || j.pausing() {
		return true, nil
	}
	return j.w.Settle(ctx)
}

// start hands a step to a worker.
func (j *Job) start(ctx context.Context, s *step, p Piece) {
	s.piece, s.bytes = p, 0
	if p.Kind == Data {
		s.bytes = p.N
	}
	j.sched.cut(&s.turn, s.bytes)
	if p.Kind == Data || !j.o.FreeZeroes {
		j.limit.spend(p.N)
	}
	j.mu.Lock()
	j.flight++
	j.bytes += s.bytes
	spawn := j.idle == 0
	if spawn {
		j.workers++
	} else {
		j.idle--
	}
	j.mu.Unlock()
	if spawn {
		go j.work(ctx, s)
	} else {
		j.steps <- s
	}
}

// work is a worker: it does steps until Run ends, or for an orphan until its
// request returns.
func (j *Job) work(ctx context.Context, s *step) {
	for s != nil {
		began := j.o.Clock.Now()
		err := j.do(s.ctx, s.piece)
		now := j.o.Clock.Now()
		j.sched.release(&s.turn)
		if j.finish(ctx, s, err, now.Sub(began), now) {
			return
		}
		s = <-j.steps
	}
}

// do is one step. Its turn is held.
func (j *Job) do(ctx context.Context, p Piece) error {
	if p.Kind != Data {
		return j.w.Do(ctx, p, nil)
	}
	b, err := j.o.Budget.Acquire(ctx, int(p.N))
	if err != nil {
		return err
	}
	defer b.Release()
	return j.w.Do(ctx, p, b.Bytes())
}

// finish accounts for a step, and tells the worker to end when Run has.
func (j *Job) finish(ctx context.Context, s *step, err error, took time.Duration, now time.Time) (end bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.flight--
	j.bytes -= s.bytes
	if err == nil {
		j.adapt.stepped(s.piece, took, now)
	} else if ctx.Err() == nil {
		var f *Fault
		if errors.As(err, &f) {
			j.faults = append(j.faults, stepFault{s.piece, f})
		} else if j.fatal == nil {
			j.fatal = err
		}
	}
	if j.over {
		j.orphans--
		if j.flight == 0 {
			close(j.done)
		}
		return true
	}
	j.finished = append(j.finished, s)
	j.idle++
	j.Kick()
	return false
}
