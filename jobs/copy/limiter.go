package copy

import (
	"sync"
	"time"

	"blockd/clock"
)

// limiter is a job's speed limit, by the field's rule: time goes in slices of
// SliceTime, each with a quota; what goes beyond the quota makes the slice
// longer, so an overshoot delays what comes next and is never lost.
//
//blockd:any
type limiter struct {
	clock clock.Clock

	mu sync.Mutex //blockd:short
	// +checklocks:mu
	quota int64 // bytes per slice; 0: no limit
	// +checklocks:mu
	start time.Time
	// +checklocks:mu
	end time.Time
	// +checklocks:mu
	spent int64
}

// set changes the limit, in bytes per second.
func (l *limiter) set(speed int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if speed <= 0 {
		l.quota = 0
		return
	}
	l.quota = max(1, int64(float64(speed)*SliceTime.Seconds()))
}

// limited tells whether a limit is set.
func (l *limiter) limited() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.quota != 0
}

// spend counts n bytes that are about to be copied.
func (l *limiter) spend(n int64) {
	l.mu.Lock()
	if l.quota != 0 {
		l.roll(l.clock.Now())
		l.spent += n
	}
	l.mu.Unlock()
}

// delay returns how long the next bytes must wait.
func (l *limiter) delay() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.quota == 0 {
		return 0
	}
	now := l.clock.Now()
	l.roll(now)
	if l.spent < l.quota {
		return 0
	}
	l.end = l.start.Add(time.Duration(float64(l.spent) / float64(l.quota) * float64(SliceTime)))
	return l.end.Sub(now)
}

// roll begins a new slice when the present one, longer by what was spent
// beyond its quota, is over. mu is held.
//
// +checklocks:l.mu
func (l *limiter) roll(now time.Time) {
	if !now.Before(l.end) {
		l.start, l.end, l.spent = now, now.Add(SliceTime), 0
	}
}
