package ioengine

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

func TestBuffersAreAlignedAndOfTheAskedLength(t *testing.T) {
	for _, n := range []int{0, 1, 511, 4096, 4097, 65536, 1<<20 + 1, 1<<maxClass + 1} {
		b := Bounce(n)
		if len(b.Bytes()) != n || misaligned(b.mem) != 0 || len(b.mem)%Alignment != 0 || len(b.mem) < n {
			t.Errorf("Bounce(%d): %d bytes of %d, off alignment by %d", n, len(b.Bytes()), len(b.mem), misaligned(b.mem))
		}
		b.Release()
	}
	if got := InUse(); got != 0 {
		t.Errorf("%d bytes in use after all releases", got)
	}
}

func TestBufferReleasedTwicePanics(t *testing.T) {
	b := Bounce(1)
	b.Release()
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	b.Release()
}

func TestBudgetPushesBackInOrderOfArrival(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := NewBudget(8192)
		a, _ := u.Acquire(t.Context(), 8192)
		got := make(chan int, 2)
		for i, n := range []int{8192, 4096} {
			go func() {
				b, err := u.Acquire(t.Context(), n)
				if err != nil {
					t.Error(err)
					return
				}
				got <- i
				b.Release()
			}()
			synctest.Wait() // it waits now
		}
		if _, waits := u.Usage(); waits != 2 {
			t.Fatalf("%d waits", waits)
		}
		a.Release()
		if first, second := <-got, <-got; first != 0 || second != 1 {
			t.Errorf("granted %d before %d", first, second)
		}
		synctest.Wait()
		if used, _ := u.Usage(); used != 0 {
			t.Errorf("%d bytes used at the end", used)
		}
	})
}

func TestBudgetGrantsMoreThanAllWhenNothingIsInUse(t *testing.T) {
	u := NewBudget(4096)
	b, err := u.Acquire(t.Context(), 1<<20)
	if err != nil || len(b.Bytes()) != 1<<20 {
		t.Fatal(err)
	}
	b.Release()
}

func TestBudgetAcquireEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := NewBudget(4096)
		a, _ := u.Acquire(t.Context(), 4096)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			_, err := u.Acquire(ctx, 4096)
			done <- err
		}()
		synctest.Wait()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		a.Release()
		if b, err := u.Acquire(t.Context(), 4096); err != nil {
			t.Error(err)
		} else {
			b.Release()
		}
	})
}

func TestZeroesAreZeroAndBounded(t *testing.T) {
	if len(Zeroes(7)) != 7 || len(Zeroes(1<<40)) != maxZeroes {
		t.Fatal("lengths")
	}
	for i, b := range Zeroes(maxZeroes) {
		if b != 0 {
			t.Fatalf("byte %d is %d", i, b)
		}
	}
}
