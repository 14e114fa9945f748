package jobs

import (
	"log/slog"

	"blockd/qapi"
)

// This file is the state machine: which state may follow which, and which verb
// is accepted in which state. Everything that changes a state goes through
// Job.move, everything that a client asks for through Job.accepts.

// Verb is something that a client asks of a job.
type Verb string

// The verbs.
const (
	VerbCancel   Verb = "cancel"
	VerbPause    Verb = "pause"
	VerbResume   Verb = "resume"
	VerbSetSpeed Verb = "set-speed"
	VerbComplete Verb = "complete"
	VerbFinalize Verb = "finalize"
	VerbDismiss  Verb = "dismiss"
	VerbChange   Verb = "change"
)

const (
	undefined = qapi.JobStatusUndefined
	created   = qapi.JobStatusCreated
	running   = qapi.JobStatusRunning
	paused    = qapi.JobStatusPaused
	ready     = qapi.JobStatusReady
	standby   = qapi.JobStatusStandby
	waiting   = qapi.JobStatusWaiting
	pending   = qapi.JobStatusPending
	aborting  = qapi.JobStatusAborting
	concluded = qapi.JobStatusConcluded
	null      = qapi.JobStatusNull
)

// stateRow is one state: the states that may follow it and the verbs that are
// accepted in it.
type stateRow struct {
	next  []qapi.JobStatus
	verbs []Verb
}

// live are the verbs of a job that has not ended its work.
var live = []Verb{VerbCancel, VerbPause, VerbResume, VerbSetSpeed, VerbChange}

// states is the table.
var states = map[qapi.JobStatus]stateRow{
	undefined: {next: []qapi.JobStatus{created}},
	created:   {next: []qapi.JobStatus{running, aborting, null}, verbs: live},
	running:   {next: []qapi.JobStatus{paused, ready, waiting, aborting}, verbs: live},
	paused:    {next: []qapi.JobStatus{running}, verbs: live},
	ready:     {next: []qapi.JobStatus{standby, waiting, aborting}, verbs: append([]Verb{VerbComplete}, live...)},
	standby:   {next: []qapi.JobStatus{ready}, verbs: append([]Verb{VerbComplete}, live...)},
	waiting:   {next: []qapi.JobStatus{pending, aborting}, verbs: []Verb{VerbCancel}},
	// The field has no way back from pending; see Unfinished.
	pending:   {next: []qapi.JobStatus{aborting, concluded, waiting, ready}, verbs: []Verb{VerbCancel, VerbFinalize}},
	aborting:  {next: []qapi.JobStatus{aborting, concluded}},
	concluded: {next: []qapi.JobStatus{null}, verbs: []Verb{VerbDismiss}},
	null:      {},
}

func has[T comparable](list []T, v T) bool {
	for _, x := range list {
		if x == v {
			return true
		}
	}
	return false
}

// move changes the job's state and tells it. A move that the table does not
// have is a bug of this package. Control plane.
func (j *Job) move(to qapi.JobStatus) {
	if !has(states[j.status].next, to) {
		panic("jobs: job '" + j.id + "' cannot go from " + string(j.status) + " to " + string(to))
	}
	if j.status == to {
		return
	}
	slog.DebugContext(j.context(), "job_state", "job", j.id, "type", string(j.typ), "from", string(j.status), "to", string(to))
	j.status = to
	j.set.note(j)
	j.set.emit("JOB_STATUS_CHANGE", qapi.JobStatusChange{ID: j.id, Status: to})
}

// accepts returns the field's error when the verb does not fit the job's
// state. Control plane.
func (j *Job) accepts(v Verb) error {
	if has(states[j.status].verbs, v) {
		return nil
	}
	return qapi.Errorf("Job '%s' in state '%s' cannot accept command verb '%s'", j.id, j.status, v)
}
