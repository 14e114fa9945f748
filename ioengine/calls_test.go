package ioengine

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

// hang takes slots of c for s until it may have no more at once.
func hang(t *testing.T, c *Calls, s *share) int {
	t.Helper()
	n := 0
	for c.try(s) {
		n++
	}
	return n
}

func TestHangingFileLeavesSlotsToOthers(t *testing.T) {
	c := NewCalls(64)
	var files [4]share
	for i, want := range []int{32, 16, 8, 4} {
		if n := hang(t, c, &files[i]); n != want {
			t.Errorf("file %d got %d slots, want %d", i, n, want)
		}
	}
}

func TestSlotsNeverExceedTheBound(t *testing.T) {
	c := NewCalls(5)
	var files [3]share
	var now, most atomic.Int64
	var wg sync.WaitGroup
	for i := range 24 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(1, uint64(i)))
			for range 300 {
				s := &files[rnd.IntN(len(files))]
				ctx, cancel := context.WithCancel(context.Background())
				if rnd.IntN(4) == 0 {
					cancel()
				}
				if err := c.acquire(ctx, s); err == nil {
					n := now.Add(1)
					for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
					}
					now.Add(-1)
					c.release(s)
				}
				cancel()
			}
		})
	}
	wg.Wait()
	if most.Load() > 5 || most.Load() == 0 {
		t.Errorf("%d at once", most.Load())
	}
	if c.taken.Load() != 0 || c.waiting.Load() != 0 || len(c.queue) != 0 {
		t.Errorf("left: %d taken, %d waiting, %d queued", c.taken.Load(), c.waiting.Load(), len(c.queue))
	}
	for i := range files {
		if n := files[i].taken.Load(); n != 0 || len(files[i].waiters) != 0 {
			t.Errorf("file %d keeps %d slots", i, n)
		}
	}
}

func TestWaitingFilesTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewCalls(1)
		var holder, a, b share
		if err := c.acquire(t.Context(), &holder); err != nil {
			t.Fatal(err)
		}
		got := make(chan string, 8)
		wait := func(s *share, name string) {
			go func() {
				if err := c.acquire(t.Context(), s); err != nil {
					t.Error(err)
				}
				got <- name
				c.release(s)
			}()
			synctest.Wait()
		}
		for _, name := range []string{"a1", "a2", "a3"} {
			wait(&a, name)
		}
		wait(&b, "b1")
		c.release(&holder)
		var order []string
		for range 4 {
			order = append(order, <-got)
		}
		if order[0] != "a1" || order[1] != "b1" || order[2] != "a2" || order[3] != "a3" {
			t.Errorf("order %v", order)
		}
	})
}

func TestWaitForSlotEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewCalls(1)
		var a, b share
		if err := c.acquire(t.Context(), &a); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- c.acquire(ctx, &b) }()
		synctest.Wait()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		c.release(&a)
		if err := c.acquire(t.Context(), &b); err != nil {
			t.Error(err)
		}
		if s := c.Stats(); s.SlotWaits != 1 || s.InFlight != 1 || s.Waiting != 0 {
			t.Errorf("%+v", s)
		}
	})
}
