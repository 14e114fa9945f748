package jobs

import (
	"errors"
	"slices"

	"blockd/qapi"
)

// This file is the way back of a job whose end has failed on its last I/O.

// Unfinished is an error of Prepare: I/O that the job had left to its end has
// failed, and the policy decides what that means. Under report the job fails
// with Err. Otherwise the change is undone and the job is ready again, or
// standby under stop: its body runs once more, and goes through the end again
// when it has done what is left. Other jobs of the transaction wait for it.
//
// Only a job that was ready before may return it.
type Unfinished struct {
	Policy qapi.BlockdevOnError
	Op     qapi.IoOperationType
	Err    error // its text is the field's
}

// Error returns the cause's text.
func (u *Unfinished) Error() string { return u.Err.Error() }

// Unwrap returns the cause.
func (u *Unfinished) Unwrap() error { return u.Err }

// goBack has a job work again whose Prepare has failed as Unfinished. It
// returns false when the transaction is to fail. Control plane.
func (t *Txn) goBack(j *Job, err error) bool {
	var u *Unfinished
	if j == nil || !errors.As(err, &u) || slices.ContainsFunc(t.jobs, func(x *Job) bool { return x.forced }) {
		return false
	}
	if j.failedIO(u.Policy, u.Op, u.Err) == qapi.BlockErrorActionReport {
		return false
	}
	t.ending = false
	for _, other := range t.jobs {
		if other != j {
			other.move(waiting)
		}
	}
	j.ended = false
	j.move(ready)
	j.work()
	return true
}
