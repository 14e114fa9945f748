package jobs

import (
	"slices"
	"time"

	"blockd/qapi"
)

// The states that jobs went through are kept, for who comes later than their
// events: of each job that there is, and of the last ones that are gone. A job
// that changes without end (one that is paused and resumed, say) keeps its
// beginning and what is new.

const (
	// maxGone is how many jobs that are gone are kept.
	maxGone = 64
	// maxFirst and maxNewest are how many states of a job are kept.
	maxFirst, maxNewest = 8, 56
)

// past is what is kept of a job.
type past struct {
	id      string
	typ     qapi.JobType
	request uint64
	states  []stateSince
	dropped int64 // states behind the first maxFirst that are no longer kept
	err     *string
}

// stateSince is a state with the time of day of its beginning.
type stateSince struct {
	status qapi.JobStatus
	at     time.Time
}

// note keeps a state that the job is in from now on. Control plane.
func (s *Set) note(j *Job) {
	if j.past == nil {
		j.past = &past{id: j.id, typ: j.typ, request: j.request}
		s.pasts = append(s.pasts, j.past)
	}
	p := j.past
	if len(p.states) == maxFirst+maxNewest {
		p.states = slices.Delete(p.states, maxFirst, maxFirst+1)
		p.dropped++
	}
	p.states = append(p.states, stateSince{j.status, s.clock.Now()})
	p.err = j.errorText()
	if j.status != null {
		return
	}
	gone := 0
	for i := len(s.pasts) - 1; i >= 0; i-- {
		if !s.pasts[i].gone() {
			continue
		}
		if gone++; gone > maxGone {
			s.pasts = slices.Delete(s.pasts, i, i+1)
			return // one is too many at most
		}
	}
}

func (p *past) gone() bool { return p.states[len(p.states)-1].status == null }

// History is the result of x-query-job-history, the oldest job first. Control
// plane.
func (s *Set) History() []qapi.JobHistory {
	list := make([]qapi.JobHistory, 0, len(s.pasts))
	for _, p := range s.pasts {
		h := qapi.JobHistory{ID: p.id, Type: p.typ, Dropped: p.dropped, Error: p.err, States: make([]qapi.JobStateSince, 0, len(p.states))}
		if p.request != 0 {
			h.Request = &p.request
		}
		for _, st := range p.states {
			h.States = append(h.States, qapi.JobStateSince{
				Status:    st.status,
				Timestamp: qapi.JobStateTime{Seconds: st.at.Unix(), Microseconds: int64(st.at.Nanosecond()) / 1000},
			})
		}
		list = append(list, h)
	}
	return list
}
