package jobs

import (
	"slices"
	"strings"

	"blockd/qapi"
)

// This file is the rules of jobs, written down once more as a model that knows
// no goroutines: what has become of every job once everything that could
// happen after a step has happened.

type modelJob struct {
	id                     string
	status                 qapi.JobStatus
	group                  *modelGroup
	manualFin, manualDis   bool
	badPrepare, userPaused bool
	unfinished             qapi.BlockdevOnError // how prepare fails once; "": not
	ready                  bool                 // it has gone back to its work
	outcome                string               // "", "ok", "error", "cancelled"
}

type modelGroup struct{ jobs []*modelJob } // the last one created first

// end ends a whole group: jobs named in failed with an error, the others
// cancelled; nil failed and ok: all well.
func (g *modelGroup) end(ok bool, failed *modelJob) {
	for _, j := range g.jobs {
		switch {
		case ok:
			j.outcome = "ok"
		case j == failed:
			j.outcome = "error"
		default:
			j.outcome = "cancelled"
		}
		j.status, j.userPaused = null, false
		if j.manualDis {
			j.status = concluded
		}
	}
}

// commit ends a pending group: the first in the order of the phases whose
// prepare fails makes all fail, or has all wait while it does its work again.
func (g *modelGroup) commit() {
	for _, j := range g.jobs {
		switch {
		case j.badPrepare || j.unfinished == qapi.BlockdevOnErrorReport:
			g.end(false, j)
			return
		case j.unfinished != "":
			for _, x := range g.jobs {
				x.status = waiting
			}
			j.ready, j.status = true, ready
			if j.unfinished == qapi.BlockdevOnErrorStop {
				j.userPaused, j.status = true, standby
			}
			j.unfinished = ""
			return
		}
	}
	g.end(true, nil)
}

// atWork and atRest are the states of a job whose body has not ended.
func (j *modelJob) atWork() qapi.JobStatus {
	if j.ready {
		return ready
	}
	return running
}

func (j *modelJob) atRest() qapi.JobStatus {
	if j.ready {
		return standby
	}
	return paused
}

func (j *modelJob) finish() {
	j.status = waiting
	if slices.ContainsFunc(j.group.jobs, func(x *modelJob) bool { return x.status != waiting }) {
		return
	}
	manual := false
	for _, x := range j.group.jobs {
		x.status = pending
		manual = manual || x.manualFin
	}
	if !manual {
		j.group.commit()
	}
}

// verb does what a client asks, and returns whether it is accepted.
func (j *modelJob) verb(v Verb) bool {
	live := j.status == j.atWork() || j.status == j.atRest()
	switch v {
	case VerbCancel:
		if !live && j.status != waiting && j.status != pending {
			return false
		}
		j.group.end(false, nil)
	case VerbPause:
		if !live || j.userPaused {
			return false
		}
		j.userPaused, j.status = true, j.atRest()
	case VerbResume:
		if !live || !j.userPaused {
			return false
		}
		j.userPaused, j.status = false, j.atWork()
	case VerbFinalize:
		if j.status != pending {
			return false
		}
		j.group.commit()
	case VerbDismiss:
		if j.status != concluded {
			return false
		}
		j.status = null
	}
	return true
}

// nextEvents is what may follow an event in the trace of one job.
var nextEvents = map[string][]string{
	"":           {"created"},
	"created":    {"running", "aborting", "null"},
	"running":    {"paused", "waiting", "aborting"},
	"paused":     {"running"},
	"waiting":    {"pending", "aborting"},
	"pending":    {"PENDING", "aborting", "COMPLETED", "ERROR", "waiting"},
	"PENDING":    {"aborting", "COMPLETED", "ERROR", "waiting"},
	"ERROR":      {"ready", "aborting"},
	"ready":      {"standby", "waiting", "aborting"},
	"standby":    {"ready"},
	"aborting":   {"COMPLETED:", "CANCELLED", "concluded"},
	"COMPLETED":  {"concluded"},
	"COMPLETED:": {"concluded"},
	"CANCELLED":  {"concluded"},
	"concluded":  {"null"},
}

// legalTrace holds one job's events against the state machine and says how it
// ended.
func legalTrace(events []string) (outcome string, problem string) {
	at := ""
	for _, e := range events {
		word, _, _ := strings.Cut(e, " ")
		if !slices.Contains(nextEvents[at], word) {
			return "", at + " -> " + word
		}
		switch word {
		case "COMPLETED":
			outcome = "ok"
		case "COMPLETED:":
			outcome = "error"
		case "CANCELLED":
			outcome = "cancelled"
		}
		at = word
	}
	return outcome, ""
}
