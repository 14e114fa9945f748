package copy

import (
	"context"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"blockd/clock"
	"blockd/ioengine"
)

func TestTurnsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		if most := stepsAtOnce(t, 0, lendAfter/2); most != 3 {
			t.Errorf("%d steps at once", most)
		}
	})
}

func TestStepThatWaitsGivesItsTurnAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		o := options()
		o.Scheduler = NewScheduler(clock.Real(), 1, DefaultShare)
		o.Window = 8 << 20
		all := make(chan struct{})
		var mu sync.Mutex
		var now int
		w := &fakeWork{unit: 65536, length: 8 << 20, do: func(ctx context.Context, _ Piece, _ []byte) error {
			ioengine.Waits(ctx)
			ioengine.Waits(ctx) // the second of its requests
			mu.Lock()
			if now++; now == 8 {
				close(all)
			}
			mu.Unlock()
			<-all
			return nil
		}}
		if err := NewJob(w, o).Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took != 0 {
			t.Errorf("the last of 8 steps began after %v", took)
		}
		if n := len(o.Scheduler.running); n != 0 {
			t.Errorf("%d turns left", n)
		}
	})
}

// Steps whose answers come together go on one after the other, as far as there are
// turns.
func TestStepWithAnAnswerTakesATurnAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := options()
		o.Scheduler = NewScheduler(clock.Real(), 2, DefaultShare)
		o.Window = 8 << 20
		answers := make(chan struct{})
		var mu sync.Mutex
		var asked, now, most int
		w := &fakeWork{unit: 65536, length: 8 << 20, do: func(ctx context.Context, _ Piece, _ []byte) error {
			waiter, wait := ioengine.Waits(ctx)
			mu.Lock()
			if asked++; asked == 8 {
				close(answers)
			}
			mu.Unlock()
			<-answers
			waiter.Resumes(ctx, wait)
			mu.Lock()
			now++
			most = max(most, now)
			mu.Unlock()
			time.Sleep(lendAfter / 4)
			mu.Lock()
			now--
			mu.Unlock()
			return nil
		}}
		if err := NewJob(w, o).Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		if most != 2 {
			t.Errorf("%d steps at once", most)
		}
		checkUnused(t, o.Scheduler)
	})
}

func TestStepWithAnAnswerDoesNotWaitForOneThatIsStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewScheduler(clock.Real(), 1, DefaultShare)
		first := &turn{of: &member{}, ready: make(chan struct{}, 1)}
		stuck := &turn{of: &member{}, ready: make(chan struct{}, 1)}
		if !s.request(first, 65536, 65536) {
			t.Fatal("not granted")
		}
		left := s.leave(first)
		if !s.request(stuck, 65536, 65536) {
			t.Fatal("a turn that was left is not granted")
		}
		began := time.Now()
		s.rejoin(t.Context(), first, left)
		if took := time.Since(began); took != lendAfter {
			t.Errorf("went on after %v", took)
		}
		checkRuns(t, s, first)
		s.release(first)
		s.release(stuck)
		checkUnused(t, s)
	})
}

// What no longer concerns the step neither waits nor takes a turn from its successor.
func TestNobodyWaitsForATurnInVain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewScheduler(clock.Real(), 1, DefaultShare)
		s.spent = func() time.Duration { return time.Duration(time.Now().UnixNano()) } // turns are kept
		var m, other member
		first := &turn{of: &m, ready: make(chan struct{}, 1)}
		second := &turn{of: &other, ready: make(chan struct{}, 1)}
		began := time.Now()
		s.request(first, 65536, 65536)
		left := s.leave(first)
		if left == 0 || s.leave(first) != 0 {
			t.Error("a turn is left once")
		}
		s.request(second, 65536, 65536)

		// The step ends while a request that it left behind waits.
		gone := make(chan struct{})
		go func() { s.rejoin(t.Context(), first, left); close(gone) }()
		synctest.Wait()
		s.release(first)
		<-gone
		s.rejoin(t.Context(), first, left) // and one that comes later still

		// A cancelled one.
		s.request(first, 65536, 65536)
		s.release(second)
		<-first.ready
		left = s.leave(first)
		s.request(second, 65536, 65536)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		s.rejoin(ctx, first, left)
		if took := time.Since(began); took != 0 {
			t.Errorf("waited for %v", took)
		}
		checkRuns(t, s, second)
		s.release(first)
		s.release(second)
		checkUnused(t, s)
	})
}

// checkUnused demands that nobody has a turn or wants one.
func checkUnused(t *testing.T, s *Scheduler) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.running)+len(s.returning)+len(s.queue) != 0 || s.bytes != 0 {
		t.Errorf("left: %d running, %d returning, %d queued, %d bytes", len(s.running), len(s.returning), len(s.queue), s.bytes)
	}
}

// checkRuns demands that a turn is the only one, and that nobody wants one back.
func checkRuns(t *testing.T, s *Scheduler, only *turn) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.running) != 1 || s.running[0] != only || len(s.returning) != 0 {
		t.Errorf("%d running, %d returning", len(s.running), len(s.returning))
	}
}

// A filter may answer before all of its requests have: what these say concerns
// a turn that another step has, or waits for.
func TestRequestLeftBehindTakesNoTurn(t *testing.T) {
	s := NewScheduler(clock.Real(), 1, DefaultShare)
	var m, other member
	first := &turn{of: &m, ready: make(chan struct{}, 1)}
	second := &turn{of: &other, ready: make(chan struct{}, 1)}
	if !s.request(first, 65536, 65536) || s.request(second, 65536, 65536) {
		t.Fatal("a turn too few or too many")
	}
	s.leave(second) // which waits for its turn
	s.release(first)
	<-second.ready
	s.leave(first)
	s.release(second)
	if len(s.running) != 0 || s.bytes != 0 {
		t.Errorf("%d turns, %d bytes left", len(s.running), s.bytes)
	}
	if !s.request(first, 65536, 65536) {
		t.Error("no turn is free")
	}
	s.release(first)
}

// stepsAtOnce runs jobs whose steps take took each, on a scheduler of 3 turns
// in a process that uses busy cores all the time, and returns how many steps
// were in flight at once.
func stepsAtOnce(t *testing.T, busy int, took time.Duration) (most int) {
	s := NewScheduler(clock.Real(), 3, DefaultShare)
	began := time.Now().Add(-time.Hour) // what was spent long ago does not count
	s.spent = func() time.Duration { return time.Duration(busy) * time.Since(began) }
	var mu sync.Mutex
	var now int
	var wg sync.WaitGroup
	for range 20 {
		o := options()
		o.Scheduler = s
		w := &fakeWork{unit: 65536, length: 4 << 20, do: func(context.Context, Piece, []byte) error {
			mu.Lock()
			now++
			most = max(most, now)
			mu.Unlock()
			time.Sleep(took)
			mu.Lock()
			now--
			mu.Unlock()
			return nil
		}}
		wg.Go(func() {
			if err := NewJob(w, o).Run(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	return most
}

func TestTurnsAreLentWhileACoreIsFree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		if most := stepsAtOnce(t, 2, 5*lendAfter); most <= 3 {
			t.Errorf("%d steps at once", most)
		}
	})
}

func TestTurnsAreKeptWhileTheCoresAreFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		if most := stepsAtOnce(t, 3, lendFull-lendAfter); most != 3 {
			t.Errorf("%d steps at once", most)
		}
	})
}

func TestStuckTurnsAreLentThoughTheCoresAreFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		if most := stepsAtOnce(t, 3, 3*lendFull); most <= 3 {
			t.Errorf("%d steps at once", most)
		}
	})
}

func TestAProcessorIsKeptFree(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	for range 2 {
		KeepProcessorFree()
		if n := runtime.GOMAXPROCS(0); n != Process.turns+1 {
			t.Errorf("%d processors for %d turns", n, Process.turns)
		}
	}
}

func TestTurnsGoRoundOverJobs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewScheduler(clock.Real(), 2, DefaultShare)
		ctx, cancel := context.WithCancel(t.Context())
		const jobs = 10
		var works [jobs]*fakeWork
		var wg sync.WaitGroup
		for i := range jobs {
			o := options()
			o.Scheduler = s
			o.MaxChunk = 64 << 10
			if i == 0 {
				o.Window = 64 << 20 // greedy
			}
			works[i] = &fakeWork{unit: 65536, length: 1 << 40, do: sleepFor(time.Millisecond)}
			wg.Go(func() { NewJob(works[i], o).Run(ctx) })
		}
		time.Sleep(time.Second)
		cancel()
		wg.Wait()
		least, most := len(works[0].copied), len(works[0].copied)
		for _, w := range works {
			least, most = min(least, len(w.copied)), max(most, len(w.copied))
		}
		if least < most*9/10 || least == 0 {
			t.Errorf("steps per job: %d to %d", least, most)
		}
	})
}

func TestStuckJobsDoNotStopOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewScheduler(clock.Real(), 2, 32<<20)
		b := ioengine.NewBudget(64 << 20)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range 5 { // together more than the share
			o := options()
			o.Scheduler, o.Budget = s, b
			w := &fakeWork{unit: 65536, length: 1 << 40, do: func(ctx context.Context, _ Piece, _ []byte) error {
				<-ctx.Done()
				return ctx.Err()
			}}
			wg.Go(func() { NewJob(w, o).Run(ctx) })
		}
		time.Sleep(10 * time.Second)
		o := options()
		o.Scheduler, o.Budget = s, b
		w := &fakeWork{unit: 65536, length: 16 << 20, do: sleepFor(time.Millisecond)}
		start := time.Now()
		if err := NewJob(w, o).Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		t.Logf("took %v", time.Since(start))
		if time.Since(start) > 5*time.Second {
			t.Errorf("took %v", time.Since(start))
		}
		w.whole(t)
		cancel()
		wg.Wait()
		if s.bytes != 0 || len(s.running) != 0 || len(s.queue) != 0 {
			t.Errorf("left: %d bytes, %d running, %d queued", s.bytes, len(s.running), len(s.queue))
		}
	})
}

func TestCancelWhileWaitingForATurnGivesItBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewScheduler(clock.Real(), 1, DefaultShare)
		var hold turn
		hold.of = &member{}
		hold.ready = make(chan struct{}, 1)
		if !s.request(&hold, 65536, 65536) {
			t.Fatal("not granted")
		}
		hold.since = hold.since.Add(time.Hour) // never lent
		o := options()
		o.Scheduler = s
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- NewJob(&fakeWork{unit: 65536, length: 1 << 20}, o).Run(ctx) }()
		synctest.Wait()
		cancel()
		if err := <-ended; err != context.Canceled {
			t.Error(err)
		}
		s.release(&hold)
		if s.bytes != 0 || len(s.running) != 0 || len(s.queue) != 0 {
			t.Errorf("left: %d bytes, %d running, %d queued", s.bytes, len(s.running), len(s.queue))
		}
	})
}
