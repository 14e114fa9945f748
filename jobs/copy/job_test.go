package copy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"blockd/clock"
	"blockd/ioengine"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeWork is a range of bytes of one kind; do copies a piece.
type fakeWork struct {
	unit, length int64
	kind         Kind
	do           func(ctx context.Context, p Piece, buf []byte) error

	mu     sync.Mutex
	cursor int64
	copied []Piece
	given  []Piece
	flight int
	most   int
	bytes  int64
	peak   int64
}

func (w *fakeWork) Unit() int64 { return w.unit }

func (w *fakeWork) Next(_ context.Context, l Limit) (Piece, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := l.Data
	if w.kind == Zero {
		n = l.Zero
	}
	p := Piece{Off: w.cursor, N: min(n, w.length-w.cursor), Kind: w.kind}
	w.cursor += p.N
	return p, nil
}

func (w *fakeWork) Do(ctx context.Context, p Piece, buf []byte) error {
	if p.Kind == Data && int64(len(buf)) != p.N {
		return fmt.Errorf("buffer of %d for %d", len(buf), p.N)
	}
	w.mu.Lock()
	w.flight++
	w.most = max(w.most, w.flight)
	w.bytes += p.N
	w.peak = max(w.peak, w.bytes)
	w.mu.Unlock()
	var err error
	if w.do != nil {
		err = w.do(ctx, p, buf)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.flight--
	w.bytes -= p.N
	if err != nil {
		return err
	}
	w.copied = append(w.copied, p)
	return nil
}

func (w *fakeWork) Skip(p Piece, _ bool) {
	w.mu.Lock()
	w.given = append(w.given, p)
	w.mu.Unlock()
}

func (w *fakeWork) Settle(context.Context) (bool, error) { return false, nil }

// whole holds that each byte was copied or given up exactly once.
func (w *fakeWork) whole(t *testing.T) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	all := slices.Concat(w.copied, w.given)
	slices.SortFunc(all, func(a, b Piece) int { return int(a.Off>>10 - b.Off>>10) })
	var end int64
	for _, p := range all {
		if p.Off != end {
			t.Fatalf("piece at %d, expected %d", p.Off, end)
		}
		end += p.N
	}
	if end != w.length {
		t.Fatalf("ends at %d of %d", end, w.length)
	}
}

func options() Options {
	return Options{Clock: clock.Real(), Scheduler: NewScheduler(clock.Real(), 4, DefaultShare), Budget: ioengine.NewBudget(64 << 20)}
}

func sleepFor(d time.Duration) func(ctx context.Context, p Piece, buf []byte) error {
	return func(ctx context.Context, p Piece, buf []byte) error { return clock.Real().Sleep(ctx, d) }
}

func TestRunCopiesEachByteOnceWithinItsWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := options()
		o.Window = 4 << 20
		w := &fakeWork{unit: 65536, length: 24<<20 + 12345, do: sleepFor(time.Millisecond)}
		j := NewJob(w, o)
		if err := j.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		<-j.Drained()
		w.whole(t)
		if w.peak > o.Window {
			t.Errorf("%d bytes in flight, window %d", w.peak, o.Window)
		}
		if used, _ := o.Budget.Usage(); used != 0 || j.Usage() != (Usage{}) {
			t.Errorf("left in use: %d, %+v", used, j.Usage())
		}
	})
}

func TestSourceWithLatencyIsCopiedInParallel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &fakeWork{unit: 65536, length: 128 << 20, do: sleepFor(5 * time.Millisecond)}
		start := time.Now()
		if err := NewJob(w, options()).Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		// One step of 512 KiB at a time would take 1.3 s.
		if took := time.Since(start); took > 1280*time.Millisecond/6 {
			t.Errorf("took %v, %d at once", took, w.most)
		}
	})
}

func TestSpeedIsKeptInSmallSteps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var at []time.Duration
		w := &fakeWork{unit: 65536, length: 1 << 20, do: func(context.Context, Piece, []byte) error {
			at = append(at, time.Since(start))
			return nil
		}}
		o := options()
		o.Speed, o.SpeedChunk = 256<<10, MirrorChunk
		if err := NewJob(w, o).Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		for i, p := range w.copied {
			if p.N != 65536 {
				t.Errorf("piece of %d", p.N)
			}
			// 64 KiB are 2.5 slices' quotas; the first goes at once.
			if want := time.Duration(i) * 250 * time.Millisecond; at[i] < want-time.Millisecond || at[i] > want+time.Millisecond {
				t.Errorf("step %d at %v, want %v", i, at[i], want)
			}
		}
	})
}

func TestChangedSpeedEndsTheSleepForTheOldOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &fakeWork{unit: 65536, length: 8 << 20}
		o := options()
		o.Speed, o.SpeedChunk = 1, StreamChunk
		j := NewJob(w, o)
		ended := make(chan error)
		go func() { ended <- j.Run(t.Context()) }()
		synctest.Wait()
		if k := len(w.copied); k != 1 || w.copied[0].N != StreamChunk {
			t.Fatalf("first pieces: %v", w.copied)
		}
		start := time.Now()
		j.SetSpeed(0)
		if err := <-ended; err != nil || time.Since(start) > 0 {
			t.Fatal(err, time.Since(start))
		}
		w.whole(t)
	})
}

func TestPauseComesWithNothingInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var pause atomic.Bool
		resumed := make(chan struct{})
		paused := make(chan Usage)
		var j *Job
		o := options()
		o.Speed = 1 << 20
		o.PauseRequested = pause.Load
		o.PausePoint = func(ctx context.Context) error {
			paused <- j.Usage()
			<-resumed
			return nil
		}
		w := &fakeWork{unit: 65536, length: 4 << 20, do: sleepFor(30 * time.Millisecond)}
		j = NewJob(w, o)
		ended := make(chan error)
		go func() { ended <- j.Run(t.Context()) }()
		time.Sleep(time.Second)
		pause.Store(true)
		j.Kick()
		if u := <-paused; u.Steps != 0 {
			t.Errorf("paused with %+v", u)
		}
		k := len(w.copied)
		time.Sleep(time.Minute)
		if len(w.copied) != k {
			t.Error("went on while paused")
		}
		pause.Store(false)
		close(resumed)
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		w.whole(t)
	})
}

func TestCancelReturnsWithinGraceFromStuckTarget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stuck := make(chan struct{})
		w := &fakeWork{unit: 65536, length: 1 << 30, do: func(ctx context.Context, p Piece, buf []byte) error {
			if p.Off > 8<<20 {
				<-stuck // deaf to the context
			}
			return nil
		}}
		o := options()
		j := NewJob(w, o)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- j.Run(ctx) }()
		time.Sleep(time.Second)
		start := time.Now()
		cancel()
		if err := <-ended; err != context.Canceled {
			t.Error(err)
		}
		if took := time.Since(start); took > Grace {
			t.Errorf("took %v", took)
		}
		u := j.Usage()
		used, _ := o.Budget.Usage()
		if u.Orphans == 0 || u.Orphans != u.Steps || u.Bytes > DefaultWindow || used < u.Bytes {
			t.Errorf("%+v, budget %d", u, used)
		}
		close(stuck)
		<-j.Drained()
		if used, _ := o.Budget.Usage(); used != 0 || j.Usage() != (Usage{}) {
			t.Errorf("left in use: %d, %+v", used, j.Usage())
		}
	})
}

func TestCancelEndsSleepsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := options()
		o.Speed = 1
		for _, do := range []func(context.Context, Piece, []byte) error{nil, sleepFor(time.Hour)} {
			w := &fakeWork{unit: 65536, length: 1 << 30, do: do}
			j := NewJob(w, o)
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error)
			go func() { ended <- j.Run(ctx) }()
			synctest.Wait()
			start := time.Now()
			cancel()
			if err := <-ended; err != context.Canceled || time.Since(start) > 0 {
				t.Error(err, time.Since(start))
			}
			<-j.Drained()
		}
	})
}

func TestErrorPolicy(t *testing.T) {
	const bad = 3 << 20
	for _, c := range []struct {
		name   string
		action Action
		times  int32 // the piece fails
		want   bool  // Run succeeds
		given  int
	}{
		{"retry", Retry, 3, true, 0},
		{"give", Give, 1 << 30, true, 1},
		{"abort", Abort, 1, false, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var failures atomic.Int32
				w := &fakeWork{unit: 65536, length: 32 << 20}
				w.do = func(ctx context.Context, p Piece, _ []byte) error {
					if p.Off <= bad && bad < p.Off+p.N && failures.Add(1) <= c.times {
						return &Fault{Op: Write, Off: p.Off, N: p.N, Err: syscall.ENOSPC}
					}
					return clock.Real().Sleep(ctx, time.Millisecond)
				}
				var j *Job
				var asked []*Fault
				o := options()
				o.OnError = func(_ context.Context, f *Fault) Action {
					if u := j.Usage(); u.Steps != 0 {
						t.Errorf("asked with %+v", u)
					}
					asked = append(asked, f)
					return c.action
				}
				j = NewJob(w, o)
				err := j.Run(t.Context())
				if (err == nil) != c.want {
					t.Fatal(err)
				}
				if !c.want && !errors.Is(err, syscall.ENOSPC) {
					t.Error(err)
				}
				if c.want {
					w.whole(t)
				}
				if len(w.given) != c.given || len(asked) == 0 || asked[0].Op.String() != "write" {
					t.Errorf("given %v, asked %v", w.given, asked)
				}
				if c.action == Retry && len(asked) != int(c.times) {
					t.Errorf("asked %d times", len(asked))
				}
			})
		})
	}
}

func TestPolicySeesTheLowestOffsetAndRetriesTheRestUnasked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var down atomic.Bool
		down.Store(true)
		w := &fakeWork{unit: 65536, length: 32 << 20}
		w.do = func(ctx context.Context, p Piece, _ []byte) error {
			time.Sleep(time.Millisecond)
			if down.Load() {
				return &Fault{Op: Read, Off: p.Off, N: p.N, Err: syscall.EIO}
			}
			return nil
		}
		o := options()
		asked := 0
		o.OnError = func(_ context.Context, f *Fault) Action {
			asked++
			if f.Off != 0 {
				t.Errorf("asked about %d first", f.Off)
			}
			down.Store(false)
			return Retry
		}
		if err := NewJob(w, o).Run(t.Context()); err != nil || asked != 1 {
			t.Fatal(err, asked)
		}
		w.whole(t)
	})
}

func TestErrorThatIsNoFaultEndsTheRun(t *testing.T) {
	broken := errors.New("broken")
	w := &fakeWork{unit: 65536, length: 32 << 20, do: func(context.Context, Piece, []byte) error { return broken }}
	o := options()
	o.OnError = func(context.Context, *Fault) Action { t.Error("asked"); return Retry }
	if err := NewJob(w, o).Run(t.Context()); err != broken {
		t.Error(err)
	}
}

func TestZeroPiecesGrow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &fakeWork{unit: 65536, length: 64 << 40, kind: Zero}
		if err := NewJob(w, options()).Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.whole(t)
		if k := len(w.copied); k > 70000 {
			t.Errorf("%d steps for 64 TiB of zeroes", k)
		}
	})
}

func TestCarefulStartStopsAtTheFirstFault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const bad = StreamChunk
		w := &fakeWork{unit: 64 << 10, length: 64 << 20}
		w.do = func(_ context.Context, p Piece, _ []byte) error {
			if p.Off <= bad && bad < p.Off+p.N {
				return &Fault{Op: Read, Off: p.Off, N: p.N, Err: syscall.EIO}
			}
			return nil
		}
		err := NewJob(w, Options{Clock: clock.Real(), SpeedChunk: StreamChunk, Careful: CarefulStart}).Run(t.Context())
		if !errors.Is(err, syscall.EIO) {
			t.Fatal(err)
		}
		want := []Piece{{Off: 0, N: StreamChunk}}
		if !slices.Equal(w.copied, want) || w.most != 1 {
			t.Fatalf("copied %v, %d at once", w.copied, w.most)
		}
	})
}

func TestCarefulStartGoesOnInParallel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &fakeWork{unit: 64 << 10, length: 64 << 20}
		w.do = func(context.Context, Piece, []byte) error { return clock.Real().Sleep(t.Context(), time.Millisecond) }
		if err := NewJob(w, Options{Clock: clock.Real(), SpeedChunk: StreamChunk, Careful: CarefulStart}).Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		if w.most < 2 {
			t.Fatal("never two steps at once")
		}
	})
}
