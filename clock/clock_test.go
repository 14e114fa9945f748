package clock

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func TestVirtualStandsStillUntilStepped(t *testing.T) {
	v := NewVirtual()
	if got := v.Now().UnixNano(); got != 0 {
		t.Fatalf("starts at %d ns", got)
	}
	tm := v.NewTimer(5)
	v.Step(4)
	select {
	case <-tm.C():
		t.Fatal("fired early")
	default:
	}
	v.Step(1)
	if got := (<-tm.C()).UnixNano(); got != 5 {
		t.Fatalf("fired at %d", got)
	}
	if v.Elapsed() != 5 {
		t.Fatalf("elapsed %d", v.Elapsed())
	}
}

func TestVirtualFiresInDeadlineOrderEachAtItsOwnTime(t *testing.T) {
	v := NewVirtual()
	var got []int64
	note := func() { got = append(got, v.Now().UnixNano()) }
	v.AfterFunc(30, note)
	v.AfterFunc(10, func() {
		note()
		v.AfterFunc(10, note) // falls due within the same step
		v.AfterFunc(100, note)
	})
	v.Step(50)
	if want := []int64{10, 20, 30}; !slices.Equal(got, want) {
		t.Fatalf("fired at %v, want %v", got, want)
	}
	if d, ok := v.Next(); !ok || d != 60 {
		t.Fatalf("next in %v %v", d, ok)
	}
}

func TestVirtualStopKeepsTimerFromFiring(t *testing.T) {
	v := NewVirtual()
	fired := false
	tm := v.AfterFunc(1, func() { fired = true })
	if !tm.Stop() || tm.Stop() {
		t.Fatal("Stop must be true once")
	}
	v.Step(2)
	if fired {
		t.Fatal("fired after Stop")
	}
	ch := v.NewTimer(1)
	v.Step(1)
	if ch.Stop() {
		t.Fatal("Stop after firing")
	}
	select {
	case <-ch.C():
		t.Fatal("value left after Stop")
	default:
	}
}

func TestSleepEndsWithItsContext(t *testing.T) {
	for name, c := range map[string]Clock{"real": Real(), "virtual": NewVirtual()} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error)
			go func() { done <- c.Sleep(ctx, time.Hour) }()
			cancel()
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
			if err := c.Sleep(ctx, 0); !errors.Is(err, context.Canceled) {
				t.Fatalf("ended context: %v", err)
			}
		})
	}
}

func TestVirtualSleepEndsWithStep(t *testing.T) {
	v := NewVirtual()
	done := make(chan error)
	go func() { done <- v.Sleep(t.Context(), time.Second) }()
	if err := v.WaitForTimers(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	v.Step(time.Second)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestRealClockPasses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := Real()
		start := c.Now()
		if err := c.Sleep(t.Context(), 3*time.Second); err != nil {
			t.Fatal(err)
		}
		if got := Since(c, start); got != 3*time.Second {
			t.Fatalf("slept %v", got)
		}
		if got := Until(c, start); got != -3*time.Second {
			t.Fatalf("until %v", got)
		}
		fired := make(chan struct{})
		c.AfterFunc(time.Second, func() { close(fired) })
		<-fired
		if tm := c.NewTimer(time.Second); !tm.Stop() {
			t.Fatal("timer not pending")
		}
	})
}
