package jobs

import "time"

// SettleTime is how long Settle waits at most.
const SettleTime = 100 * time.Millisecond

// Settle waits for a moment for what an accepted verb began: a pause until the
// body is at rest, a cancel until the job is over, a finalize until its
// transaction is. The field does these before it answers whenever the job is
// idle, and clients' logs show them before the reply; a job that takes longer
// does not hold the monitor up. Worker.
//
//blockd:blocking
func (j *Job) Settle(v Verb) {
	var done <-chan struct{}
	j.set.loop.Do(func() {
		switch v {
		case VerbPause:
			done = j.resting()
		case VerbCancel:
			// The end of a job that may also end well is told after the answer.
			if _, soft := j.driver.(SoftCanceller); j.forced && !soft {
				done = j.over
			}
		case VerbFinalize:
			done = j.txn.over
		}
	})
	if done == nil {
		return
	}
	t := j.set.clock.NewTimer(SettleTime)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C():
	}
}

// resting returns a channel that is closed when the body rests or has ended,
// nil when it does already. Control plane.
func (j *Job) resting() <-chan struct{} {
	if j.resumed != nil || j.ended || !j.started {
		return nil
	}
	if j.rested == nil {
		j.rested = make(chan struct{})
	}
	return j.rested
}

// tellRest wakes those that wait for the body to rest. Control plane.
func (j *Job) tellRest() {
	if j.rested != nil {
		close(j.rested)
		j.rested = nil
	}
}
