package jobs

import (
	"strings"
	"testing"

	"blockd/qapi"
)

var allStates = []qapi.JobStatus{undefined, created, running, paused, ready, standby, waiting, pending, aborting, concluded, null}

// bare returns a job in a state, outside any set's machinery.
func bare(b *bench, s qapi.JobStatus) *Job {
	t := b.set.NewTxn()
	j := &Job{set: b.set, id: "m", block: true, status: s, driver: newFake(b, "m"), over: make(chan struct{}), stop: func() {}}
	j.started = s != created && s != undefined
	t.join(j)
	return j
}

// TestTransitionsAreTheFields holds the table of states against the field's
// matrix, cell by cell. The two ways back from pending are blockd's own.
func TestTransitionsAreTheFields(t *testing.T) {
	want := map[qapi.JobStatus]string{ // columns: created running paused ready standby waiting pending aborting concluded null
		undefined: "x.........",
		created:   ".x.....x.x",
		running:   "..xx.x.x..",
		paused:    ".x........",
		ready:     "....xx.x..",
		standby:   "...x......",
		waiting:   "......xx..",
		pending:   "...x.x.xx.",
		aborting:  ".......xx.",
		concluded: ".........x",
		null:      "..........",
	}
	b := newBench(t)
	defer b.close()
	for _, from := range allStates {
		for i, to := range allStates[1:] {
			legal := want[from][i] == 'x'
			func() {
				j := &Job{set: b.set, id: "m", status: from}
				defer func() {
					if p := recover(); (p == nil) != legal {
						t.Errorf("%s -> %s: legal %v, panic %v", from, to, legal, p)
					}
				}()
				j.move(to)
				ev := b.take()
				if from == to && len(ev) != 0 || from != to && (len(ev) != 1 || ev[0] != "m "+string(to)) {
					t.Errorf("%s -> %s: events %q", from, to, ev)
				}
			}()
		}
	}
}

// TestEveryVerbInEveryState holds verbs against the field's matrix: a verb is
// refused with the field's text or taken.
func TestEveryVerbInEveryState(t *testing.T) {
	columns := []qapi.JobStatus{created, running, paused, ready, standby, waiting, pending, aborting, concluded}
	verbs := []struct {
		verb Verb
		row  string
		call func(*Job) error
	}{
		{VerbCancel, "xxxxxxx..", func(j *Job) error { return j.Cancel(true) }},
		{VerbPause, "xxxxx....", (*Job).Pause},
		{VerbResume, "xxxxx....", (*Job).Resume},
		{VerbSetSpeed, "xxxxx....", func(j *Job) error { return j.SetSpeed(1) }},
		{VerbChange, "xxxxx....", func(j *Job) error { return j.accepts(VerbChange) }},
		{VerbComplete, "...xx....", (*Job).Complete},
		{VerbFinalize, "......x..", (*Job).Finalize},
		{VerbDismiss, "........x", (*Job).Dismiss},
	}
	b := newBench(t)
	defer b.close()
	for _, v := range verbs {
		for i, state := range columns {
			j := bare(b, state)
			if v.verb == VerbResume {
				j.userPaused, j.pauses = true, 1
			}
			var err error
			b.on(func() { err = v.call(j) })
			refusal := "Job 'm' in state '" + string(state) + "' cannot accept command verb '" + string(v.verb) + "'"
			refused := err != nil && err.Error() == refusal
			if allowed := v.row[i] == 'x'; allowed == refused {
				t.Errorf("%s in %s: allowed %v, error %v", v.verb, state, allowed, err)
			}
			if err != nil && !refused && v.verb != VerbComplete {
				t.Errorf("%s in %s: %v", v.verb, state, err)
			}
			if v.verb == VerbComplete && !refused && (err == nil || !strings.Contains(err.Error(), "cannot be completed")) {
				t.Errorf("%s in %s by a job that cannot complete: %v", v.verb, state, err)
			}
		}
	}
	b.set.workers.Wait()
}

func TestErrorPolicies(t *testing.T) {
	for policy, want := range map[qapi.BlockdevOnError][2]qapi.BlockErrorAction{
		qapi.BlockdevOnErrorReport: {qapi.BlockErrorActionReport, qapi.BlockErrorActionReport},
		qapi.BlockdevOnErrorIgnore: {qapi.BlockErrorActionIgnore, qapi.BlockErrorActionIgnore},
		qapi.BlockdevOnErrorStop:   {qapi.BlockErrorActionStop, qapi.BlockErrorActionStop},
		qapi.BlockdevOnErrorEnospc: {qapi.BlockErrorActionReport, qapi.BlockErrorActionStop},
		qapi.BlockdevOnErrorAuto:   {qapi.BlockErrorActionReport, qapi.BlockErrorActionStop},
	} {
		if got := errorAction(policy, false); got != want[0] {
			t.Errorf("%s, EIO: %s", policy, got)
		}
		if got := errorAction(policy, true); got != want[1] {
			t.Errorf("%s, ENOSPC: %s", policy, got)
		}
	}
}
