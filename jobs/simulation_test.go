package jobs

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"blockd/blockgraph"
	"blockd/blockgraph/graphtest"
	"blockd/qapi"
)

var (
	schedules = flag.Int("schedules", 0, "random schedules of jobs, of each kind; 0: 5,000, under make test-all 500,000")
	firstSeed = flag.Uint64("seed", 1, "seed of the first schedule")
)

// TestRandomSchedulesFollowTheModel runs random steps over random
// transactions. After each step, when nothing moves any more, every job is
// where the model says, and every trace of events is one that the state
// machine allows.
func TestRandomSchedulesFollowTheModel(t *testing.T) {
	for i := range sample(t) {
		runSchedule(t, *firstSeed+i, true)
		if t.Failed() {
			return
		}
	}
}

// TestRacingSchedulesEndAllOrNothing does the same without waiting between
// steps, so that they race with each other. Then only what must hold in any
// order is checked: legal traces, every job ends, a group's jobs all end well
// or none does, and what was committed fits.
func TestRacingSchedulesEndAllOrNothing(t *testing.T) {
	for i := range sample(t) {
		runSchedule(t, *firstSeed+i, false)
		if t.Failed() {
			return
		}
	}
}

func sample(t *testing.T) uint64 {
	n := *schedules
	if n == 0 {
		n = graphtest.Sample(t, 5_000, 500_000)
	}
	if testing.Short() {
		n /= 10
	}
	return uint64(n)
}

type schedule struct {
	b     *bench
	rng   *rand.Rand
	seed  uint64
	calm  bool // wait until nothing moves after each step
	model []*modelJob
	fakes map[string]*fake
	trace []string // of steps
	all   []string // of events
	own   map[string]*ownEvents
	seen  int // of the bench's phases
}

func runSchedule(t *testing.T, seed uint64, calm bool) {
	synctest.Test(t, func(t *testing.T) {
		s := &schedule{b: newBench(t), rng: rand.New(rand.NewPCG(seed, 0)), seed: seed, calm: calm, fakes: map[string]*fake{}, own: map[string]*ownEvents{}}
		for range 4 + s.rng.IntN(30) {
			s.step()
			if calm {
				synctest.Wait()
				s.compare()
			}
			if t.Failed() {
				break
			}
		}
		synctest.Wait()
		s.check()
		// What is left is cancelled, and all of it ends.
		s.b.close()
		s.note("shutdown")
		s.calm = false // the model does not know of it
		s.check()
		for _, j := range s.model {
			if last := s.of(j.id).events; len(last) > 0 && last[len(last)-1] != "null" {
				s.fail("job %s ended as %q", j.id, last)
			}
		}
		if s.b.deep > 1 {
			s.fail("phases nested %d deep", s.b.deep)
		}
	})
}

func (s *schedule) fail(format string, args ...any) {
	s.b.t.Helper()
	s.b.t.Errorf("seed %d: %s\nsteps %s\nevents %q\nphases %q", s.seed, fmt.Sprintf(format, args...), strings.Join(s.trace, ", "), s.all, s.b.phases)
}

func (s *schedule) note(format string, args ...any) {
	s.trace = append(s.trace, fmt.Sprintf(format, args...))
}

func (s *schedule) step() {
	if len(s.model) == 0 || len(s.model) < 12 && s.rng.IntN(8) == 0 {
		s.createGroup()
		return
	}
	j := s.model[s.rng.IntN(len(s.model))]
	switch k := s.rng.IntN(12); {
	case k < 4:
		s.body(j, false)
	case k == 4:
		s.body(j, true)
	default:
		verbs := []Verb{VerbPause, VerbPause, VerbResume, VerbFinalize, VerbFinalize, VerbDismiss, VerbCancel}
		s.verb(j, verbs[k-5])
	}
}

// createGroup makes a transaction of some jobs, sometimes one that is undone.
func (s *schedule) createGroup() {
	g := &modelGroup{}
	var txn *Txn
	n := 1 + s.rng.IntN(4)
	if n > 1 {
		txn = s.b.set.NewTxn()
	}
	undone := s.rng.IntN(6) == 0
	drained := s.rng.IntN(2) == 0
	err := s.b.graph.Update(context.Background(), blockgraph.Cause{Command: "test"}, func(tx *blockgraph.Tx) error {
		for range n {
			m := &modelJob{
				id: fmt.Sprintf("j%d", len(s.model)), status: running, group: g,
				manualFin: s.rng.IntN(3) == 0, manualDis: s.rng.IntN(3) == 0, badPrepare: s.rng.IntN(8) == 0,
			}
			f := newFake(s.b, m.id)
			if m.badPrepare {
				f.prepareErr = errBody
			} else if s.rng.IntN(4) == 0 {
				m.unfinished = []qapi.BlockdevOnError{qapi.BlockdevOnErrorStop, qapi.BlockdevOnErrorIgnore, qapi.BlockdevOnErrorReport}[s.rng.IntN(3)]
				f.unfinished = &Unfinished{Policy: m.unfinished, Op: qapi.IoOperationTypeWrite, Err: errBody}
			}
			j, err := s.b.set.Create(Options{ID: m.id, Type: qapi.JobTypeBackup, Block: true, Txn: txn, ManualFinalize: m.manualFin, ManualDismiss: m.manualDis}, f)
			if err != nil {
				return err
			}
			j.StartIn(tx, drained)
			s.fakes[m.id] = f
			s.model = append(s.model, m)
			g.jobs = slices.Insert(g.jobs, 0, m)
		}
		if undone {
			return errBody
		}
		return nil
	})
	if undone != (err != nil) {
		s.fail("create: %v", err)
	}
	if undone {
		for _, m := range g.jobs {
			m.status = null
		}
	}
	s.note("create %d undone=%v drained=%v", n, undone, drained)
}

// body has a job's body end.
func (s *schedule) body(j *modelJob, bad bool) {
	if s.calm && j.status != j.atWork() {
		return
	}
	f := s.fakes[j.id]
	if len(f.steps) == cap(f.steps) {
		return
	}
	s.note("%s ends bad=%v", j.id, bad)
	if bad {
		f.fail()
		if j.status == j.atWork() {
			j.group.end(false, j)
		}
		return
	}
	f.finish()
	if j.status == j.atWork() {
		j.finish()
	}
}

func (s *schedule) verb(j *modelJob, v Verb) {
	calls := map[Verb]func(*Job) error{
		VerbCancel: forced, VerbPause: (*Job).Pause, VerbResume: (*Job).Resume,
		VerbFinalize: (*Job).Finalize, VerbDismiss: (*Job).Dismiss,
	}
	s.note("%s %s", v, j.id)
	text := s.b.do(j.id, calls[v])
	if !s.calm {
		return
	}
	if accepted := j.verb(v); accepted != (text == "") {
		s.fail("%s of %s: model accepts %v, got %q", v, j.id, accepted, text)
	}
}

// compare holds the jobs against the model.
func (s *schedule) compare() {
	got := make([]qapi.JobStatus, len(s.model))
	s.b.on(func() {
		for i, m := range s.model {
			got[i] = null
			if j, err := s.b.set.Find(m.id); err == nil {
				got[i] = j.status
			}
		}
	})
	for i, j := range s.model {
		if got[i] != j.status {
			s.fail("job %s is %s, the model says %s", j.id, got[i], j.status)
			return
		}
	}
	s.check()
}

// ownEvents is one job's part of what happened, without its id, and what it
// came to.
type ownEvents struct {
	events, phases   []string
	outcome, problem string
}

// of returns one job's part of what happened.
func (s *schedule) of(id string) *ownEvents {
	o := s.own[id]
	if o == nil {
		o = &ownEvents{}
		s.own[id] = o
	}
	return o
}

// take adds what is new to the jobs' parts.
func (s *schedule) take() {
	events := s.b.take()
	s.all = append(s.all, events...)
	for _, e := range events {
		id, rest, _ := strings.Cut(e, " ")
		o := s.of(id)
		o.events = append(o.events, rest)
		o.outcome, o.problem = legalTrace(o.events)
	}
	phases := s.b.phases[s.seen:]
	s.seen += len(phases)
	for _, p := range phases {
		id, rest, _ := strings.Cut(p, " ")
		o := s.of(id)
		o.phases = append(o.phases, rest)
	}
}

// check holds the events and phases so far against what must hold always.
func (s *schedule) check() {
	s.take()
	var byGroup map[*modelGroup][]string
	for _, j := range s.model {
		own := s.of(j.id)
		outcome := own.outcome
		if own.problem != "" {
			s.fail("job %s: %s", j.id, own.problem)
			return
		}
		if s.calm && j.outcome != outcome {
			s.fail("job %s ended as %q, the model says %q", j.id, outcome, j.outcome)
			return
		}
		if outcome != "" {
			if byGroup == nil {
				byGroup = map[*modelGroup][]string{}
			}
			byGroup[j.group] = append(byGroup[j.group], outcome)
		}
		s.checkPhases(j.id, own)
	}
	for g, outcomes := range byGroup {
		if len(outcomes) != len(g.jobs) || slices.Contains(outcomes, "ok") && slices.ContainsFunc(outcomes, func(o string) bool { return o != "ok" }) {
			s.fail("a group of %d ended as %q", len(g.jobs), outcomes)
		}
	}
}

// checkPhases: a job that ended well was committed, any other aborted, and each
// was cleaned once.
func (s *schedule) checkPhases(id string, own *ownEvents) {
	want := map[string]string{"": "", "ok": "prepare commit clean", "error": "abort clean", "cancelled": "abort clean"}[own.outcome]
	if strings.Join(own.phases, " ") != want {
		s.fail("job %s ended as %q with the phases %q", id, own.outcome, own.phases)
	}
}
