// Package transfer is the body that backup, stream and their kind share: it
// runs a copy engine's work on behalf of a job, and connects the two: speed,
// pauses, error policies, what is in flight, and the errors' texts.
//
// Run blocks and is data plane; the other methods never block and are for the
// loop, through the interfaces of package jobs. It must not import formats,
// filters, exports or qmp.
//
//blockd:io
package transfer

import (
	"context"
	"errors"
	"sync/atomic"

	"blockd/blockgraph"
	"blockd/clock"
	"blockd/jobs"
	"blockd/jobs/copy"
	"blockd/qapi"
)

// Body is part of a job's driver. The zero value is ready.
type Body struct {
	engine atomic.Pointer[copy.Job]
}

// Options of Run.
type Options struct {
	// SpeedChunk, Careful, FreeZeroes, MaxWorkers and MaxChunk are the engine's.
	SpeedChunk int64
	Careful    int64
	FreeZeroes bool
	MaxWorkers int
	MaxChunk   int64
	// OnRead and OnWrite are the policies for the source and the target.
	OnRead, OnWrite qapi.BlockdevOnError
	// ReadsOnly: an error counts as one of reading, whichever side failed.
	ReadsOnly bool
	// LeaveIgnored: after an ignored error the piece is left uncopied, and Run
	// fails with the first such error in the end. Otherwise it is tried again.
	LeaveIgnored bool
	// PutOff: after an ignored error the piece is given back to the work (Skip
	// with failed), which plans it again later.
	PutOff bool
	// Window is the engine's.
	Window int64
}

// Run copies until nothing is left, and returns nil; or an error whose text is
// the field's. ctx ends it. Data plane; called again only after it has ended
// without orphans.
func (b *Body) Run(ctx context.Context, j *jobs.Job, w copy.Work, o Options) error {
	var ignored error
	engine := copy.NewJob(w, copy.Options{
		Clock:          j.Set().Clock(),
		Speed:          j.Speed(),
		SpeedChunk:     o.SpeedChunk,
		Careful:        o.Careful,
		FreeZeroes:     o.FreeZeroes,
		MaxWorkers:     o.MaxWorkers,
		MaxChunk:       o.MaxChunk,
		Window:         o.Window,
		PauseRequested: j.PauseWanted,
		PausePoint:     j.PausePoint,
		OnError: func(ctx context.Context, f *copy.Fault) copy.Action {
			op, policy := qapi.IoOperationTypeRead, o.OnRead
			if f.Op == copy.Write && !o.ReadsOnly {
				op, policy = qapi.IoOperationTypeWrite, o.OnWrite
			}
			switch j.OnError(policy, op, f.Err) {
			case qapi.BlockErrorActionStop:
				if j.PausePoint(ctx) != nil {
					return copy.Abort
				}
				return copy.Retry
			case qapi.BlockErrorActionIgnore:
				switch {
				case o.PutOff:
					return copy.Give
				case !o.LeaveIgnored:
					return copy.Retry
				}
				if ignored == nil {
					ignored = f.Err
				}
				return copy.Give
			default:
				return copy.Abort
			}
		},
	})
	b.engine.Store(engine)
	engine.SetSpeed(j.Speed()) // it may have changed meanwhile
	err := engine.Run(ctx)
	if err == nil {
		err = ignored
	}
	return Error(err)
}

// Flush makes what was written through a root durable; a failure goes through
// the policy for the target as often as it occurs.
func (b *Body) Flush(ctx context.Context, j *jobs.Job, target *blockgraph.Root, policy qapi.BlockdevOnError) error {
	for {
		if err := j.PausePoint(ctx); err != nil {
			return err
		}
		err := target.Flush(ctx)
		if err == nil || ctx.Err() != nil {
			return err
		}
		if j.OnError(policy, qapi.IoOperationTypeWrite, err) == qapi.BlockErrorActionReport {
			return Error(err)
		}
	}
}

// Error gives an I/O error the text that the field shows for a failed job.
func Error(err error) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	return blockgraph.Errorf(blockgraph.Errno(err), "%s", blockgraph.Strerror(err))
}

// SetSpeed implements jobs.SpeedSetter.
func (b *Body) SetSpeed(speed int64) {
	if e := b.engine.Load(); e != nil {
		e.SetSpeed(speed)
	}
}

// Kick implements jobs.Kicker.
func (b *Body) Kick() {
	if e := b.engine.Load(); e != nil {
		e.Kick()
	}
}

// Drained implements jobs.Orphaner.
func (b *Body) Drained() <-chan struct{} {
	if e := b.engine.Load(); e != nil {
		return e.Drained()
	}
	return nil
}

// DrainedWith is Drained of a job on whose behalf guests' requests have begun
// something, too. rest is closed when nothing of that is in flight any more, and
// nil when nothing is. Once no step is in flight it waits for rest as long as the
// engine waits for its own steps. Worker.
//
//blockd:blocking
func (b *Body) DrainedWith(c clock.Clock, rest <-chan struct{}) <-chan struct{} {
	steps := b.Drained()
	select {
	case <-steps:
		steps = nil
	default:
	}
	switch {
	case steps == nil:
		return await(c, rest)
	case rest == nil:
		return steps
	}
	both := make(chan struct{})
	go func() { // ends with the last request, which nobody can hasten
		<-steps
		<-rest
		close(both)
	}()
	return both
}

// await returns nil when rest is closed within the engine's time for that, or is
// nil, and else rest.
func await(c clock.Clock, rest <-chan struct{}) <-chan struct{} {
	if rest == nil {
		return nil
	}
	t := c.NewTimer(copy.Grace)
	defer t.Stop()
	select {
	case <-rest:
		return nil
	case <-t.C():
		return rest
	}
}

// Orphans implements jobs.Orphaner.
func (b *Body) Orphans() int { return b.Usage().Orphans }

// Usage returns what is in flight. Any goroutine.
//
//blockd:any
func (b *Body) Usage() copy.Usage {
	if e := b.engine.Load(); e != nil {
		return e.Usage()
	}
	return copy.Usage{}
}
