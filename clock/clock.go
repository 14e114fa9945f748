// Package clock is where blockd reads and waits for time.
//
// Two clocks are passed in wherever time matters. The real one drives job
// speed limits and timeouts. The virtual one drives throttle groups, request
// accounting and the rate limits of events; in a normal run it is the real
// clock again, in tests and under a qtest clock it is a Virtual that only Step
// moves. Because of that no other package may call time.Now, time.After and
// their kin; lint_test.go holds the whole module to it.
//
// Locks: Virtual.mu, a leaf; no callback runs while it is held.
// Blocking: Sleep and Virtual.Step block; everything else returns at once.
// Imports: the standard library only.
//
//blockd:any
package clock

import (
	"context"
	"time"
)

// Clock tells the time and wakes its callers. Its methods may be called from
// any goroutine, on the control and on the data plane; Sleep only where
// blocking is allowed.
type Clock interface {
	// Now is the present time of this clock.
	Now() time.Time
	// NewTimer returns a timer whose channel receives one value after d. A
	// duration of zero or less fires at once.
	NewTimer(d time.Duration) Timer
	// AfterFunc calls f once d has passed. The timer's channel is nil. The real
	// clock calls f on a goroutine of its own, Virtual on the one that calls
	// Step.
	//
	//blockd:handoff io
	AfterFunc(d time.Duration, f func()) Timer
	// Sleep waits for d or for ctx, and returns nil or the context's error. A
	// context that has already ended wins over a duration of zero.
	//
	//blockd:io
	Sleep(ctx context.Context, d time.Duration) error
}

// Timer is one pending wake-up.
type Timer interface {
	// C receives the clock's time when the timer fires; nil for AfterFunc.
	C() <-chan time.Time
	// Stop cancels the timer and reports whether it was still pending. After
	// Stop no value arrives on C.
	Stop() bool
}

// Since is the time that has passed on c since t.
func Since(c Clock, t time.Time) time.Duration { return c.Now().Sub(t) }

// Until is the time that remains on c before t; negative once t has passed.
func Until(c Clock, t time.Time) time.Duration { return t.Sub(c.Now()) }

// sleep waits on a timer of c; both clocks share it.
//
//blockd:io
func sleep(ctx context.Context, c Clock, d time.Duration) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if d <= 0 {
		return nil
	}
	t := c.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C():
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
