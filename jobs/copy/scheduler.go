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

const (
	// lendAfter is how long a step may take before its turn goes to another: it
	// waits for I/O then, not for a core.
	lendAfter = 2 * time.Millisecond
	// lendFull is the same while the cores are full: a step that takes long may
	// wait for one of them then.
	lendFull = 25 * lendAfter
)

// cores is how many processors Go had at the start: those of the machine, what
// a cgroup leaves of them, or what the user said by GOMAXPROCS.
var cores = runtime.GOMAXPROCS(0)

// Process is the scheduler of the whole process: a turn for each core.
var Process = func() *Scheduler {
	s := NewScheduler(clock.Real(), cores, DefaultShare)
	s.spent = clock.ProcessTime
	return s
}()

// KeepProcessorFree gives Go one processor more than Process has turns. The
// control loop and guests' connections then find a free one whenever they have
// something to do, and the kernel, which knows who slept, runs it at once beside the
// copying threads. Without it Go would look for new requests of a socket only
// when a step ends with no other to run, or every 10 ms: a thousand jobs that
// keep all cores busy delayed a query by 10 to 100 ms, and now by no more than two do
// (docs/performance.md). For the start of the daemon; to call it again changes
// nothing.
func KeepProcessorFree() { runtime.GOMAXPROCS(cores + 1) }

// Scheduler gives turns to the steps of all jobs. At most a fixed number of
// steps is runnable at once. Jobs that want a turn wait in one queue, each
// with one request at a time, so turns go round over the jobs. A step that
// waits for I/O no longer counts as runnable: its turn goes to the next in the
// queue, at once when a driver says that it waits (ioengine.Waits), and after
// lendAfter in any case. With its answer it takes a turn again, before those that
// begin; else a thousand jobs whose answers come together would all be runnable,
// and keep everything else from running. So a job over a source with long latency has as many
// steps in flight as its window holds, and a stuck target stops nobody else.
// While the process keeps its cores full a step takes long because it wants a
// core itself, and more steps would only make all of them wait; then turns are
// lent after lendFull.
type Scheduler struct {
	clock clock.Clock
	turns int
	share int64
	// spent tells the time of processors that was used; nil: the cores are
	// never full.
	spent func() time.Duration

	mu      sync.Mutex
	running []*turn // granted and not lent
	bytes   int64   // of all granted turns
	// +checklocks:mu
	queue []*turn // in order of arrival
	// returning are turns that were left and are wanted back, in order.
	// +checklocks:mu
	returning []*turn
	lender    clock.Timer // +checklocks:mu
	// since and spentBy are the time and the time of processors when the lender
	// was armed.
	since   time.Time     // +checklocks:mu
	spentBy time.Duration // +checklocks:mu
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
	ready chan struct{} // capacity 1
	// left counts how often the turn was left, or ended; guarded by Scheduler.mu.
	left uint64
	// back is there while its step wants it again, and closed when it may go on.
	// Guarded by Scheduler.mu.
	back chan struct{}
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
	t.want, t.least, t.bytes = want, least, 0
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
	for len(s.returning) > 0 && len(s.running) < s.turns {
		t := s.returning[0]
		t.since = now
		s.running = append(s.running, t)
		s.goOn(t)
	}
	if len(s.queue) > 0 && len(s.running) < s.turns {
		s.queue = slices.DeleteFunc(s.queue, func(t *turn) bool {
			if len(s.running) >= s.turns || !s.grant(t, now) {
				return false
			}
			t.ready <- struct{}{}
			return true
		})
	}
	s.lendLater(now)
}

// lendLater arms the lender while somebody waits. mu is held.
//
// +checklocks:s.mu
func (s *Scheduler) lendLater(now time.Time) {
	if len(s.queue)+len(s.returning) == 0 || s.lender != nil || len(s.running) == 0 {
		return
	}
	s.since = now
	if s.spent != nil {
		s.spentBy = s.spent()
	}
	s.lender = s.clock.AfterFunc(lendAfter, s.lend)
}

// lend gives the turns of steps that wait for I/O to others.
func (s *Scheduler) lend() {
	now := s.clock.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lender = nil
	after := lendAfter
	if s.full(now) {
		after = lendFull
	}
	s.running = slices.DeleteFunc(s.running, func(t *turn) bool {
		return now.Sub(t.since) >= after
	})
	s.serve(now) // arms it again while somebody waits
}

// full tells whether the process has kept its cores busy since the lender was
// armed: with three quarters of them in use what is missing may be the gaps
// between steps, or go to other programs. mu is held.
//
// +checklocks:s.mu
func (s *Scheduler) full(now time.Time) bool {
	if s.spent == nil {
		return false
	}
	wall := now.Sub(s.since) * time.Duration(s.turns)
	return s.spent()-s.spentBy >= wall/4*3
}

// leave gives a turn to the next in the queue at once, as lend does after a time:
// its step says that it waits. It returns what rejoin takes; 0 when there was no
// turn to give, because of lend or because another request of the same step waits
// already. A request that its filter left behind may come when the turn is no
// longer its.
func (s *Scheduler) leave(t *turn) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.drop(t) {
		return 0
	}
	t.left++
	s.serve(s.clock.Now())
	return t.left
}

// rejoin waits until a step that has left its turn may run again. It returns
// without one when the step has ended meanwhile, which had left a request of it
// behind, and when ctx ends. Turns of steps that take long are lent to it as to
// those in the queue, so a step that hangs does not hold it up.
func (s *Scheduler) rejoin(ctx context.Context, t *turn, left uint64) {
	if left == 0 {
		return
	}
	s.mu.Lock()
	if t.left != left {
		s.mu.Unlock()
		return
	}
	now := s.clock.Now()
	if len(s.running) < s.turns {
		t.since = now
		s.running = append(s.running, t)
		s.mu.Unlock()
		return
	}
	back := make(chan struct{})
	t.back = back
	s.returning = append(s.returning, t)
	s.lendLater(now)
	s.mu.Unlock()
	select {
	case <-back:
	case <-ctx.Done():
		s.mu.Lock()
		if t.back == back { // else it came just now, or is another step's
			s.goOn(t)
		}
		s.mu.Unlock()
	}
}

// goOn ends the wait of a step that wants its turn back, if one does. mu is held.
//
// +checklocks:s.mu
func (s *Scheduler) goOn(t *turn) {
	if t.back == nil {
		return
	}
	i := slices.Index(s.returning, t)
	s.returning = slices.Delete(s.returning, i, i+1)
	close(t.back)
	t.back = nil
}

// drop takes a turn out of those that run, if it is one of them. mu is held.
func (s *Scheduler) drop(t *turn) bool {
	i := slices.Index(s.running, t)
	if i < 0 {
		return false
	}
	last := len(s.running) - 1
	s.running[i] = s.running[last]
	s.running[last] = nil
	s.running = s.running[:last]
	return true
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
	t.left++
	s.goOn(t)
	s.drop(t)
	s.serve(s.clock.Now())
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
