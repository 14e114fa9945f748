package jobs

import (
	"context"

	"blockd/qapi"
)

// This file is what clients ask of a job. All of it but ChangeOptions is control plane
// and returns at once; what a verb begins is told by events, and Over and
// Txn.Over wait for its end.

// Pause asks the job to pause: it is paused once its body has come to rest.
func (j *Job) Pause() error {
	if err := j.accepts(VerbPause); err != nil {
		return err
	}
	if j.userPaused {
		return qapi.Errorf("Job is already paused")
	}
	j.userPaused = true
	j.pauses++
	j.signalPause()
	return nil
}

// Resume ends a Pause, or the pause after an error.
func (j *Job) Resume() error {
	if !j.userPaused {
		return qapi.Errorf("Can't resume a job that was not paused")
	}
	if err := j.accepts(VerbResume); err != nil {
		return err
	}
	j.userResume()
	j.unpause()
	return nil
}

// userResume forgets why the job was paused.
func (j *Job) userResume() {
	j.ioStatus = qapi.BlockDeviceIoStatusOk
	j.userPaused = false
}

// SetSpeed limits the job to so many bytes per second; 0 is no limit.
func (j *Job) SetSpeed(speed int64) error { return j.setSpeed(speed) }

func (j *Job) setSpeed(speed int64) error {
	if err := j.accepts(VerbSetSpeed); err != nil {
		return err
	}
	if speed < 0 {
		return qapi.Errorf("Parameter 'speed' expects a non-negative value")
	}
	j.speed.Store(speed)
	if d, ok := j.driver.(SpeedSetter); ok {
		d.SetSpeed(speed)
	}
	return nil
}

// Cancel cancels the job. Without force a job that is ready may complete
// instead. This is job-cancel, always with force.
func (j *Job) Cancel(force bool) error {
	if err := j.accepts(VerbCancel); err != nil {
		return err
	}
	j.cancel(force)
	return nil
}

// BlockCancel is block-job-cancel: as Cancel, but refused without force when
// the user has paused the job.
func (j *Job) BlockCancel(force bool) error {
	if j.userPaused && !force {
		return qapi.Errorf("The block job for device '%s' is currently paused", j.id)
	}
	return j.Cancel(force)
}

// cancel marks the job as cancelled and has it end.
func (j *Job) cancel(force bool) {
	if d, ok := j.driver.(SoftCanceller); ok {
		force = d.Cancel(force)
	} else {
		force = true
	}
	if j.userPaused {
		j.userResume()
		j.pauses--
	}
	if j.ended && !force {
		return
	}
	j.cancelled = true
	j.forced = j.forced || force
	j.signalPause()
	if j.pauses == 0 || j.forced {
		j.goOn()
	}
	switch {
	case !j.forced || !j.started:
		// A job that is yet to start ends right after its start.
	case j.ended:
		j.txn.cancelEnded(j)
	default:
		j.stop()
	}
}

// Complete asks a job that is ready to end.
func (j *Job) Complete() error {
	if err := j.accepts(VerbComplete); err != nil {
		return err
	}
	d, ok := j.driver.(Completer)
	if !ok || j.cancelled {
		return qapi.Errorf("The active block job '%s' cannot be completed", j.id)
	}
	return d.Complete()
}

// CheckChange tells whether the job's options could be changed so; ChangeOptions, on a
// worker, then does it.
func (j *Job) CheckChange(o *qapi.BlockJobChangeOptions) error {
	if err := j.accepts(VerbChange); err != nil {
		return err
	}
	d, ok := j.driver.(Changer)
	if !ok {
		return qapi.Errorf("Job type does not support change")
	}
	return d.CheckChange(o)
}

// ChangeOptions changes the options of a job. Worker.
//
//blockd:blocking
func (j *Job) ChangeOptions(ctx context.Context, o *qapi.BlockJobChangeOptions) error {
	var err error
	j.set.loop.Do(func() { err = j.CheckChange(o) })
	if err != nil {
		return err
	}
	return j.driver.(Changer).Change(ctx, o)
}

// Finalize ends a pending job, and with it the others of its transaction.
func (j *Job) Finalize() error {
	if err := j.accepts(VerbFinalize); err != nil {
		return err
	}
	if j.txn.ending {
		return qapi.Errorf("Job '%s' in state '%s' cannot accept command verb '%s'", j.id, j.status, VerbFinalize)
	}
	j.txn.finalize()
	return nil
}

// Dismiss forgets a job that has concluded.
func (j *Job) Dismiss() error {
	if err := j.accepts(VerbDismiss); err != nil {
		return err
	}
	j.drop()
	return nil
}
