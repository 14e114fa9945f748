package clock

import (
	"container/heap"
	"context"
	"sync"
	"time"
)

// Virtual is a clock that stands still until Step moves it. It starts at the
// Unix epoch, so Elapsed and Now().UnixNano() are both "nanoseconds since 0",
// which is what the qtest protocol reports.
type Virtual struct {
	stepping sync.Mutex // one Step at a time; taken before mu

	mu     sync.Mutex //blockd:short
	now    time.Duration
	seq    uint64    // +checklocks:mu
	timers timerHeap // +checklocks:mu
	// +checklocks:mu
	waited chan struct{} // closed and replaced whenever a timer is added
}

// NewVirtual returns a clock that shows 0.
func NewVirtual() *Virtual {
	return &Virtual{waited: make(chan struct{})}
}

func epochPlus(d time.Duration) time.Time { return time.Unix(0, int64(d)) }

// Now is the epoch plus the sum of all steps.
func (v *Virtual) Now() time.Time { return epochPlus(v.Elapsed()) }

// Elapsed is the sum of all steps.
func (v *Virtual) Elapsed() time.Duration {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.now
}

// NewTimer implements Clock.
func (v *Virtual) NewTimer(d time.Duration) Timer {
	return v.add(&virtualTimer{clock: v, c: make(chan time.Time, 1)}, d)
}

// AfterFunc implements Clock. A duration of zero or less waits for the next
// Step, even one by zero, so that f never runs inside AfterFunc.
func (v *Virtual) AfterFunc(d time.Duration, f func()) Timer {
	return v.add(&virtualTimer{clock: v, f: f}, d)
}

// Sleep implements Clock.
func (v *Virtual) Sleep(ctx context.Context, d time.Duration) error {
	return sleep(ctx, v, d)
}

func (v *Virtual) add(t *virtualTimer, d time.Duration) Timer {
	v.mu.Lock()
	defer v.mu.Unlock()
	t.when = v.now + max(d, 0)
	t.index = -1
	if d <= 0 && t.f == nil {
		t.fire()
		return t
	}
	v.seq++
	t.seq = v.seq
	heap.Push(&v.timers, t)
	close(v.waited)
	v.waited = make(chan struct{})
	return t
}

// Step moves the clock forward by d and fires what falls due, in the order of
// the deadlines; each callback sees the clock at its own deadline. Callbacks
// run before Step returns and on its goroutine, so they must not call Step.
// Timers that a callback adds fire in the same Step when they fall within it.
// A negative d panics: time does not go back.
//
//blockd:io
func (v *Virtual) Step(d time.Duration) {
	if d < 0 {
		panic("clock: negative step")
	}
	v.stepping.Lock()
	defer v.stepping.Unlock()
	v.mu.Lock()
	end := v.now + d
	for len(v.timers) > 0 && v.timers[0].when <= end {
		t := heap.Pop(&v.timers).(*virtualTimer)
		v.now = max(v.now, t.when)
		if t.f == nil {
			t.fire()
			continue
		}
		v.mu.Unlock()
		t.f()
		v.mu.Lock()
	}
	v.now = end
	v.mu.Unlock()
}

// Next is the time until the earliest pending timer; false without one.
func (v *Virtual) Next() (time.Duration, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.timers) == 0 {
		return 0, false
	}
	return v.timers[0].when - v.now, true
}

// WaitForTimers blocks until at least n timers are pending. A test calls it
// before Step, to know that the code under test has begun to wait.
//
//blockd:io
func (v *Virtual) WaitForTimers(ctx context.Context, n int) error {
	for {
		v.mu.Lock()
		enough, more := len(v.timers) >= n, v.waited
		v.mu.Unlock()
		if enough {
			return nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

type virtualTimer struct {
	clock *Virtual
	c     chan time.Time
	f     func()

	// guarded by clock.mu
	when  time.Duration
	seq   uint64 // breaks ties: first added, first fired
	index int    // in the heap, -1 outside
}

// fire sends the time. There is room for it: a timer fires once. Called with
// clock.mu held.
func (t *virtualTimer) fire() {
	select {
	case t.c <- epochPlus(t.clock.now):
	default:
	}
}

func (t *virtualTimer) C() <-chan time.Time { return t.c }

func (t *virtualTimer) Stop() bool {
	t.clock.mu.Lock()
	defer t.clock.mu.Unlock()
	if t.index < 0 {
		// Fired already: what nobody has read yet must not be read later.
		select {
		case <-t.c:
		default:
		}
		return false
	}
	heap.Remove(&t.clock.timers, t.index)
	return true
}

type timerHeap []*virtualTimer

func (h timerHeap) Len() int { return len(h) }

func (h timerHeap) Less(i, j int) bool {
	if h[i].when != h[j].when {
		return h[i].when < h[j].when
	}
	return h[i].seq < h[j].seq
}

func (h timerHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *timerHeap) Push(x any) {
	t := x.(*virtualTimer)
	t.index = len(*h)
	*h = append(*h, t)
}

func (h *timerHeap) Pop() any {
	old := *h
	t := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	t.index = -1
	return t
}
