package clock

import (
	"context"
	"time"
)

type realClock struct{}

// Real is the clock of the machine. Times carry a monotonic reading, so
// differences between them survive a change of the wall clock.
func Real() Clock { return realClock{} }

func (realClock) Now() time.Time { return time.Now() }

func (realClock) NewTimer(d time.Duration) Timer { return realTimer{time.NewTimer(d)} }

func (realClock) AfterFunc(d time.Duration, f func()) Timer {
	return realTimer{time.AfterFunc(d, f)}
}

func (c realClock) Sleep(ctx context.Context, d time.Duration) error {
	return sleep(ctx, c, d)
}

type realTimer struct{ t *time.Timer }

func (t realTimer) C() <-chan time.Time { return t.t.C }

func (t realTimer) Stop() bool { return t.t.Stop() }
