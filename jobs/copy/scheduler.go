package copy

import (
	"context"
	"runtime"
	"slices"
	"sync"
	"time"

	"blockd/clock"
)

// DefaultShare is how many bytes all jobs of a scheduler have in flight, half
// of the process's budget, so that guests' requests never wait for copies
// that hang.
const DefaultShare = 128 << 20

// lendAfter is how long a step may take before its turn goes to another: it
// waits for I/O then, not for a core.
const lendAfter = 2 * time.Millisecond

// Process is the scheduler of the whole process: 2 x GOMAXPROCS turns.
var Process = NewScheduler(clock.Real(), 2*runtime.GOMAXPROCS(0), DefaultShare)

// Scheduler gives turns to the steps of all jobs. At most a fixed number of
// steps is runnable at once. Jobs that want a turn wait in one queue, each
// with one request at a time, so turns go round over the jobs. A step that
// waits for I/O no longer counts as runnable: after lendAfter its turn goes to
// the next in the queue. So a job over a source with long latency has as many
// steps in flight as its window holds, and a stuck target stops nobody else.
type Scheduler struct {
	clock clock.Clock
	turns int
	share int64

	mu      sync.Mutex
	running []*turn // granted and not lent
	bytes   int64   // of all granted turns
	// +checklocks:mu
	queue  []*turn     // in order of arrival
	lender clock.Timer // +checklocks:mu
}

// member is a job as the scheduler knows it.
type member struct {
	held int // turns; guarded by Scheduler.mu
}

// turn is a request for a turn, and then the turn. Its job uses it again.
type turn struct {
	of          *member
	want, least int64

	bytes int64 // granted
	since time.Time
	lent  bool
	ready chan struct{} // capacity 1
}

// NewScheduler returns a scheduler of the given number of turns, with share
// bytes in flight. clk is the real clock.
func NewScheduler(clk clock.Clock, turns int, share int64) *Scheduler {
	return &Scheduler{clock: clk, turns: turns, share: share}
}

// request asks for a turn of want bytes, at least least; t.ready receives when
// it was granted, unless request returns true: granted at once.
func (s *Scheduler) request(t *turn, want, least int64) bool {
	now := s.clock.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	t.want, t.least, t.lent, t.bytes = want, least, false, 0
	if len(s.queue) == 0 && s.grant(t, now) {
		return true
	}
	s.queue = append(s.queue, t)
	s.serve(now)
	return false
}

// grant gives a turn, if one is free and the share has room; a job that holds
// nothing gets the least it can use beyond the share, so that
// stuck jobs, whose bytes fill the share, do not stop it. mu is held.
func (s *Scheduler) grant(t *turn, now time.Time) bool {
	if len(s.running) >= s.turns {
		return false
	}
	n := min(t.want, (s.share-s.bytes)/t.least*t.least)
	if n < t.least {
		if t.of.held > 0 {
			return false
		}
		n = t.least
	}
	t.bytes, t.since = n, now
	s.bytes += n
	t.of.held++
	s.running = append(s.running, t)
	return true
}

// serve grants what can be granted; a request that its job's bytes hold back
// does not hold back those behind it. mu is held.
//
// +checklocks:s.mu
func (s *Scheduler) serve(now time.Time) {
	if len(s.queue) == 0 {
		return
	}
	s.queue = slices.DeleteFunc(s.queue, func(t *turn) bool {
		if len(s.running) >= s.turns || !s.grant(t, now) {
			return false
		}
		t.ready <- struct{}{}
		return true
	})
	s.lendLater()
}

// lendLater arms the lender while somebody waits. mu is held.
//
// +checklocks:s.mu
func (s *Scheduler) lendLater() {
	if len(s.queue) > 0 && s.lender == nil && len(s.running) > 0 {
		s.lender = s.clock.AfterFunc(lendAfter, s.lend)
	}
}

// lend gives the turns of steps that wait for I/O to others.
func (s *Scheduler) lend() {
	now := s.clock.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lender = nil
	s.running = slices.DeleteFunc(s.running, func(t *turn) bool {
		t.lent = now.Sub(t.since) >= lendAfter
		return t.lent
	})
	s.serve(now)
	s.lendLater()
}

// cut gives back all but n of a turn's bytes.
func (s *Scheduler) cut(t *turn, n int64) {
	if n >= t.bytes {
		return
	}
	s.mu.Lock()
	s.bytes -= t.bytes - n
	t.bytes = n
	if len(s.queue) > 0 {
		s.serve(s.clock.Now())
	}
	s.mu.Unlock()
}

// withdraw takes a request back, or the turn if it was granted meanwhile.
func (s *Scheduler) withdraw(t *turn) {
	s.mu.Lock()
	if i := slices.Index(s.queue, t); i >= 0 {
		s.queue = slices.Delete(s.queue, i, i+1)
		s.mu.Unlock()
		return
	}
	s.mu.Unlock()
	<-t.ready
	s.release(t)
}

// release ends a turn.
func (s *Scheduler) release(t *turn) {
	s.mu.Lock()
	s.bytes -= t.bytes
	t.of.held--
	t.bytes = 0
	if !t.lent {
		i := slices.Index(s.running, t)
		last := len(s.running) - 1
		s.running[i] = s.running[last]
		s.running[last] = nil
		s.running = s.running[:last]
	}
	if len(s.queue) > 0 {
		s.serve(s.clock.Now())
	}
	s.mu.Unlock()
}

// wait waits for a requested turn. It returns false when wake received first;
// the request then stands.
func (t *turn) wait(ctx context.Context, wake <-chan struct{}) (granted bool, err error) {
	select {
	case <-t.ready:
		return true, nil
	case <-wake:
		return false, nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
}
