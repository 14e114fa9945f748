package jobs

import (
	"context"
	"sync"

	"blockd/blockgraph"
	"blockd/qapi"
)

// This file is what a job's body calls, on the data plane, and the part of the
// loop that answers it.

// pauseSignal tells a body that it should come to rest.
//
//blockd:any
type pauseSignal struct {
	mu     sync.Mutex //blockd:short
	wanted bool       // +checklocks:mu
	// +checklocks:mu
	c chan struct{} // closed while a pause is wanted
}

func (p *pauseSignal) channel() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.c == nil {
		p.c = make(chan struct{})
	}
	return p.c
}

func (p *pauseSignal) set(wanted bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if wanted == p.wanted {
		return
	}
	p.wanted = wanted
	if !wanted || p.c == nil {
		p.c = make(chan struct{})
	}
	if wanted {
		close(p.c)
	}
}

func (p *pauseSignal) isSet() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.wanted
}

// signalPause tells the body whether it is to rest. Control plane.
func (j *Job) signalPause() {
	wanted := j.pauses > 0 && !j.forced
	j.pausing.set(wanted)
	if d, ok := j.driver.(Kicker); ok && wanted {
		d.Kick()
	}
}

// OnWorker runs f on a worker, where it may change the graph, and waits for it.
// Data plane; the body has nothing in flight: a change might wait for it.
//
//blockd:io
//blockd:handoff blocking
func (j *Job) OnWorker(f func() error) error {
	done := make(chan error, 1)
	//blockd:blocking
	j.set.workers.Go(func() { done <- f() })
	return <-done
}

// Change makes a graph change on behalf of the body and waits for it. Data
// plane; the body has nothing in flight.
//
//blockd:io
func (j *Job) Change(ctx context.Context, fn func(tx *blockgraph.Tx) error) error {
	return j.OnWorker(func() error { return j.set.graph.Update(ctx, blockgraph.Cause{Job: j.id}, fn) })
}

// PauseWanted tells whether the body should come to rest. Data plane.
//
//blockd:any
func (j *Job) PauseWanted() bool { return j.pausing.isSet() }

// PauseRequested returns a channel that is closed when the body should come to
// rest and call PausePoint. It is good until PausePoint returns. Data plane.
//
//blockd:any
func (j *Job) PauseRequested() <-chan struct{} { return j.pausing.channel() }

// PausePoint is called by the body while it has nothing in flight. If a pause
// is wanted the job is paused (standby when it was ready) until it is resumed
// or cancelled. It returns ctx.Err(). Data plane.
//
//blockd:io
func (j *Job) PausePoint(ctx context.Context) error {
	if !j.pausing.isSet() {
		return ctx.Err()
	}
	var rest <-chan struct{}
	j.set.loop.Do(func() { rest = j.rest() })
	if rest != nil {
		<-rest
	}
	return ctx.Err()
}

// rest pauses the job if it should be; the result is closed when it goes on,
// and nil when it is not to pause. Control plane.
func (j *Job) rest() <-chan struct{} {
	if j.pauses == 0 || j.forced {
		return nil
	}
	if j.status == ready {
		j.move(standby)
	} else {
		j.move(paused)
	}
	j.resumed = make(chan struct{})
	j.tellRest()
	return j.resumed
}

// isBusy tells whether the body is at work. One that is to come to rest is until it
// does: what it has in flight still changes its progress, and it may begin more
// before it knows of the pause. Control plane.
func (j *Job) isBusy() bool {
	if !j.started || j.ended || j.resumed != nil {
		return false
	}
	if d, ok := j.driver.(Busier); ok && !j.pausing.isSet() {
		return d.Busy()
	}
	return true
}

// goOn ends a rest. Control plane.
func (j *Job) goOn() {
	if j.resumed == nil {
		return
	}
	if j.status == standby {
		j.move(ready)
	} else {
		j.move(running)
	}
	close(j.resumed)
	j.resumed = nil
}

// unpause takes back one reason to pause. Control plane.
func (j *Job) unpause() {
	j.pauses--
	if j.pauses > 0 {
		return
	}
	j.signalPause()
	j.goOn()
}

// Ready tells that the job could complete now. Data plane.
//
//blockd:io
func (j *Job) Ready() {
	j.set.loop.Do(func() {
		j.move(ready)
		if j.block {
			j.set.emit("BLOCK_JOB_READY", j.progressEvent())
		}
	})
}

// Canceled tells whether a cancel was asked for, by force or not. Data plane.
//
//blockd:io
func (j *Job) Canceled() bool {
	var c bool
	j.set.loop.Do(func() { c = j.cancelled })
	return c
}

// OnError decides what is to be done about a failed request, as the policy
// says, and tells clients. After stop the body calls PausePoint and then
// tries again; after report it ends with an error. Once the body has ended
// nobody is told any more, and the answer is ignore. Data plane.
//
//blockd:io
func (j *Job) OnError(policy qapi.BlockdevOnError, op qapi.IoOperationType, err error) qapi.BlockErrorAction {
	action := qapi.BlockErrorActionIgnore
	j.set.loop.Do(func() {
		if !j.ended { // else a request has outlived the body
			action = j.failedIO(policy, op, err)
		}
	})
	return action
}

// failedIO does what the policy says about a failed request. Control plane.
func (j *Job) failedIO(policy qapi.BlockdevOnError, op qapi.IoOperationType, err error) qapi.BlockErrorAction {
	nospace := blockgraph.Errno(err) == noSpace
	action := errorAction(policy, nospace)
	j.set.emit("BLOCK_JOB_ERROR", qapi.BlockJobError{Device: j.id, Operation: op, Action: action})
	if action != qapi.BlockErrorActionStop {
		return action
	}
	if !j.userPaused {
		j.userPaused = true
		j.pauses++
		j.signalPause()
	}
	if j.ioStatus == qapi.BlockDeviceIoStatusOk {
		j.ioStatus = qapi.BlockDeviceIoStatusFailed
		if nospace {
			j.ioStatus = qapi.BlockDeviceIoStatusNospace
		}
	}
	return action
}
