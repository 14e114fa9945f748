package copy

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"blockd/clock"
)

// device takes a fixed time per request and some per byte, for one request at
// a time. A mutex would keep the bubble's time from passing.
type device struct {
	turn    chan struct{} // capacity 1
	request time.Duration
	rate    atomic.Int64 // bytes per second
}

func newDevice(request time.Duration, rate int64) *device {
	d := &device{turn: make(chan struct{}, 1), request: request}
	d.rate.Store(rate)
	return d
}

func (d *device) do(ctx context.Context, p Piece, _ []byte) error {
	d.turn <- struct{}{}
	defer func() { <-d.turn }()
	return clock.Real().Sleep(ctx, d.request+time.Duration(float64(p.N)/float64(d.rate.Load())*1e9))
}

func TestPiecesGrowWhileThatGains(t *testing.T) {
	for _, c := range []struct {
		name    string
		request time.Duration
		most    int64 // of the last piece
		least   int64
	}{
		{"costly requests", 5 * time.Millisecond, 4 << 20, 4 << 20},
		{"cheap requests", 0, 1 << 20, 1 << 20},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newDevice(c.request, 1<<30)
				w := &fakeWork{unit: 65536, length: 768<<20 + 1, do: d.do}
				if err := NewJob(w, options()).Run(t.Context()); err != nil {
					t.Fatal(err)
				}
				if p := w.copied[len(w.copied)-20]; p.N < c.least || p.N > c.most {
					t.Errorf("pieces of %d at the end", p.N)
				}
			})
		})
	}
}

func TestSlowTargetHasLittleInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDevice(0, 1<<20)
		w := &fakeWork{unit: 65536, length: 1 << 30, do: d.do}
		j := NewJob(w, options())
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- j.Run(ctx) }()
		time.Sleep(time.Minute)
		if u := j.Usage(); u.Bytes > 1<<20 {
			t.Errorf("%+v over a target of 1 MiB/s", u)
		}
		d.rate.Store(1 << 30) // it recovers
		time.Sleep(2 * time.Second)
		cancel()
		<-ended
		w.mu.Lock()
		defer w.mu.Unlock()
		if last := w.copied[len(w.copied)-20]; last.N < 1<<20 {
			t.Errorf("pieces of %d after the recovery", last.N)
		}
	})
}

func TestOvershootDelaysTheNextSlice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := limiter{clock: clock.Real()}
		l.set(1000) // 100 per slice
		for _, step := range []struct {
			spend int64
			wait  time.Duration
		}{
			{0, 0},
			{99, 0},
			{1, 100 * time.Millisecond},
			{1050, 1050 * time.Millisecond},
			{50, 0},
		} {
			l.spend(step.spend)
			d := l.delay()
			if d != step.wait {
				t.Errorf("after %d: %v, want %v", step.spend, d, step.wait)
			}
			time.Sleep(d)
		}
		l.set(0)
		l.spend(1 << 40)
		if d := l.delay(); d != 0 {
			t.Errorf("without a limit: %v", d)
		}
	})
}
