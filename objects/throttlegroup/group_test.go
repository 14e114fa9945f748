package throttlegroup

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"blockd/clock"
)

func mustSet(t testing.TB, g *Group, json string) {
	t.Helper()
	if err := g.SetLimits(limits(t, json)); err != nil {
		t.Fatal(err)
	}
}

// order notes in which order requests were admitted.
type order struct {
	t    *testing.T
	open map[string]*waiter
	got  []string
}

func (o *order) submit(name string, m *Member, dir Direction, n int64) {
	o.t.Helper()
	w := m.submit(dir, n)
	if w == nil {
		o.got = append(o.got, name)
		return
	}
	o.open[name] = w
}

// collect adds what was admitted since. Of several at once the order is not
// known, so the test steps from one to the next.
func (o *order) collect() {
	o.t.Helper()
	var now []string
	for name, w := range o.open {
		if w.place == nil {
			now = append(now, name)
			delete(o.open, name)
		}
	}
	if len(now) > 1 {
		o.t.Fatalf("admitted together: %v", now)
	}
	o.got = append(o.got, now...)
}

// run steps the clock from timer to timer until nothing waits.
func (o *order) run(v *clock.Virtual) {
	o.t.Helper()
	for i := 0; len(o.open) > 0; i++ {
		d, ok := v.Next()
		if !ok || i > 1000 {
			o.t.Fatalf("%d requests wait for ever", len(o.open))
		}
		v.Step(d)
		o.collect()
	}
}

func TestMembersTakeTurns(t *testing.T) {
	v := clock.NewVirtual()
	g := New(v, config(t, `{"iops-total":10}`))
	a, b, c := g.Join(), g.Join(), g.Join()
	o := &order{t: t, open: map[string]*waiter{}}
	o.submit("first", a, Write, 512)
	o.submit("second", a, Write, 512) // a bucket of 0.1 s holds one request
	for _, n := range []string{"a1", "a2", "a3", "a4"} {
		o.submit(n, a, Write, 512)
	}
	o.submit("b1", b, Write, 512)
	o.submit("b2", b, Write, 512)
	o.submit("c1", c, Write, 512)
	o.run(v)
	if got, want := strings.Join(o.got, " "), "first second a1 b1 c1 a2 b2 a3 a4"; got != want {
		t.Fatalf("%s, want %s", got, want)
	}
	if v.Elapsed() != 700*time.Millisecond {
		t.Fatalf("took %v", v.Elapsed())
	}
}

func TestDirectionsTakeTurnsUnderATotal(t *testing.T) {
	v := clock.NewVirtual()
	g := New(v, config(t, `{"bps-total":1000}`))
	m := g.Join()
	o := &order{t: t, open: map[string]*waiter{}}
	o.submit("first", m, Read, 1000)
	for _, n := range []string{"r1", "r2", "r3"} {
		o.submit(n, m, Read, 1000)
	}
	o.submit("w1", m, Write, 1000)
	o.submit("w2", m, Write, 1000)
	o.run(v)
	if got, want := strings.Join(o.got, " "), "first w1 r1 w2 r2 r3"; got != want {
		t.Fatalf("%s, want %s", got, want)
	}
}

func TestDirectionsWithOwnLimitsDoNotWaitForEachOther(t *testing.T) {
	v := clock.NewVirtual()
	g := New(v, config(t, `{"bps-read":1,"bps-write":1000}`))
	m := g.Join()
	if m.submit(Read, 1000) != nil {
		t.Fatal("the first read waits")
	}
	stuck := m.submit(Read, 1)
	if m.submit(Write, 100) != nil {
		t.Fatal("a write waits for the readers' limit")
	}
	second := m.submit(Write, 100)
	if second != nil {
		t.Fatal("a bucket that is just full stops a request")
	}
	third := m.submit(Write, 100)
	if third == nil {
		t.Fatal("the limit on writes is not held")
	}
	v.Step(100 * time.Millisecond)
	if third.place != nil || stuck.place == nil {
		t.Fatalf("after 100 ms: write waits %v, read waits %v", third.place != nil, stuck.place != nil)
	}
}

// TestNewcomerDoesNotOvertake has the clock past the moment when a waiting
// write is due, but its timer late, and a read arrive just then.
func TestNewcomerDoesNotOvertake(t *testing.T) {
	c := &unreliableClock{}
	g := New(c, config(t, `{"bps-total":1000}`))
	a, b := g.Join(), g.Join()
	a.submit(Read, 1000)
	waiting := a.submit(Write, 1000)
	c.now = c.now.Add(time.Second)
	newcomer := b.submit(Read, 1000)
	if waiting.place != nil {
		t.Fatal("the newcomer took the waiting request's turn")
	}
	if newcomer == nil {
		t.Fatal("both passed")
	}
}

func TestBurstsHoldTheirRateAndLength(t *testing.T) {
	v := clock.NewVirtual()
	g := New(v, config(t, `{"iops-total":10,"iops-total-max":100,"iops-total-max-length":5}`))
	m := g.Join()
	var admitted int
	var waiting *waiter
	serve := func(d time.Duration) (n int) {
		before := admitted
		for end := v.Elapsed() + d; ; {
			for waiting == nil || waiting.place == nil {
				if waiting != nil {
					admitted++
				}
				if waiting = m.submit(Write, 512); waiting == nil {
					admitted++
				}
			}
			next, _ := v.Next()
			if v.Elapsed()+next > end {
				v.Step(end - v.Elapsed())
				return admitted - before
			}
			v.Step(next)
		}
	}
	within := func(what string, got, low, high int) {
		t.Helper()
		if got < low || got > high {
			t.Errorf("%s: %d requests, want %d to %d", what, got, low, high)
		}
	}
	// The bucket of 500 fills by 100-10 a second, 10 of it at once: 5.44 s.
	within("first second of the burst", serve(time.Second), 100, 112)
	within("the next four", serve(4*time.Second), 399, 401)
	within("the burst's end", serve(time.Second), 48, 52)
	within("after the burst", serve(10*time.Second), 99, 101)
	// Without requests 9 s empty 90 of the bucket: one more second of burst.
	if waiting.place != nil {
		m.withdraw(waiting)
	}
	waiting = nil
	v.Step(9 * time.Second)
	within("a short burst", serve(time.Second), 98, 112)
	within("and its end", serve(10*time.Second), 99, 103)
}

func TestBurstOfOneSecondPassesAtOnce(t *testing.T) {
	v := clock.NewVirtual()
	g := New(v, config(t, `{"bps-write":10,"bps-write-max":1000}`))
	m := g.Join()
	for i := range 11 { // the one that overfills passes
		if m.submit(Write, 100) != nil {
			t.Fatalf("request %d waits", i)
		}
	}
	if m.submit(Write, 100) == nil {
		t.Fatal("the burst has no end")
	}
	if d, _ := v.Next(); d != 10*time.Second {
		t.Fatalf("waits %v, want 100 bytes' worth", d)
	}
}

func TestLongRequestsCountByIOPSSize(t *testing.T) {
	for _, c := range []struct {
		limits string
		bytes  int64
		wait   time.Duration
	}{
		{`{"iops-write":10,"iops-size":4096}`, 4096, 0},
		{`{"iops-write":10,"iops-size":4096}`, 6144, 50 * time.Millisecond},
		{`{"iops-write":10,"iops-size":4096}`, 40960, 900 * time.Millisecond},
		{`{"iops-write":10,"iops-size":4096}`, 100, 0},
		{`{"iops-write":10,"iops-size":-1}`, 1 << 30, 0},
		{`{"iops-write":10}`, 1 << 30, 0},
	} {
		v := clock.NewVirtual()
		m := New(v, config(t, c.limits)).Join()
		m.submit(Write, c.bytes)
		w := m.submit(Write, 1)
		if (w != nil) != (c.wait > 0) {
			t.Fatalf("%+v: waits %v", c, w != nil)
		}
		if d, _ := v.Next(); w != nil && d != c.wait {
			t.Errorf("%+v: waits %v", c, d)
		}
	}
}

func TestNewLimitsApplyToWhatWaits(t *testing.T) {
	v := clock.NewVirtual()
	g := New(v, config(t, `{"iops-total":1}`))
	m := g.Join()
	m.submit(Write, 1)
	var ws []*waiter
	for range 30 {
		ws = append(ws, m.submit(Write, 1))
	}
	if err := g.SetLimits(limits(t, `{"iops-read":1}`)); err == nil {
		t.Fatal("a contradiction was accepted")
	}
	if got := m.Waiting(); got != 30 {
		t.Fatalf("%d wait after a refused change", got)
	}
	mustSet(t, g, `{"iops-total":100}`)
	if got := m.Waiting(); got != 19 { // a bucket of 10, and one that overfills
		t.Fatalf("%d wait under 100 a second", got)
	}
	v.Step(100 * time.Millisecond)
	if got := m.Waiting(); got != 9 {
		t.Fatalf("%d wait 100 ms later", got)
	}
	mustSet(t, g, `{"iops-total":0}`)
	for i, w := range ws {
		if w.place != nil {
			t.Fatalf("request %d waits without limits", i)
		}
	}
	if _, pending := v.Next(); pending {
		t.Fatal("a timer is left over")
	}
}

func TestReleaseLetsAMemberPassAndOthersWait(t *testing.T) {
	v := clock.NewVirtual()
	g := New(v, config(t, `{"iops-total":10}`))
	a, b := g.Join(), g.Join()
	a.submit(Write, 1)
	a.submit(Write, 1)
	for range 5 {
		a.submit(Write, 1)
		a.submit(Read, 1)
		b.submit(Write, 1)
	}
	a.Release()
	a.Release()
	if a.Waiting() != 0 || b.Waiting() != 5 {
		t.Fatalf("%d and %d wait", a.Waiting(), b.Waiting())
	}
	a.Restrain()
	if a.submit(Write, 1) != nil {
		t.Fatal("waits while released")
	}
	a.Restrain()
	if a.submit(Write, 1) == nil {
		t.Fatal("passes after the last Restrain")
	}
	// What passed was accounted for: 13 requests, 1 of them free.
	v.Step(1200*time.Millisecond - 1)
	if b.Waiting() != 5 {
		t.Fatal("what passed was not accounted for")
	}
	v.Step(1)
	if b.Waiting() != 4 {
		t.Fatal("more than what passed was accounted for")
	}
}

func TestAnEndedContextLeavesTheQueue(t *testing.T) {
	v := clock.NewVirtual()
	g := New(v, config(t, `{"iops-total":10}`))
	a, b := g.Join(), g.Join()
	a.submit(Write, 1)
	a.submit(Write, 1)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- a.Wait(ctx, Write, 1) }()
	if err := v.WaitForTimers(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	w := b.submit(Write, 1)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	v.Step(100 * time.Millisecond)
	if w.place != nil {
		t.Fatal("the request behind still waits for one that is gone")
	}
	// What was withdrawn was not accounted for.
	if b.submit(Write, 1); b.Waiting() != 1 {
		t.Fatal("too few wait")
	}
	if d, _ := v.Next(); d != 100*time.Millisecond {
		t.Fatalf("waits %v", d)
	}
}

func TestGroupWithoutLimitsCostsNothing(t *testing.T) {
	for _, l := range []string{`{}`, `{"iops-total":1000000000000}`} {
		m := New(clock.Real(), config(t, l)).Join()
		n := testing.AllocsPerRun(100, func() {
			if err := m.Wait(t.Context(), Read, 4096); err != nil {
				t.Fatal(err)
			}
		})
		if n != 0 {
			t.Errorf("%s: %v allocations", l, n)
		}
	}
}

// TestManyGoroutinesShareARate runs on the machine's clock, in a bubble where
// time is fake.
func TestManyGoroutinesShareARate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(clock.Real(), config(t, `{"iops-total":100}`))
		first := g.Join()
		for range 11 { // what passes at once
			first.submit(Write, 512)
		}
		start := clock.Real().Now()
		const members, requests = 5, 40
		var wg sync.WaitGroup
		ends := make([]time.Duration, members)
		for i := range members {
			m := g.Join()
			var own sync.WaitGroup
			for k := range requests {
				own.Go(func() {
					if err := m.Wait(t.Context(), Direction(k%2), 512); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Go(func() { own.Wait(); ends[i] = clock.Since(clock.Real(), start) })
		}
		wg.Wait()
		total := clock.Since(clock.Real(), start)
		if want := members * requests * 10 * time.Millisecond; total < want-time.Millisecond || total > want+time.Millisecond {
			t.Errorf("200 requests at 100 a second took %v, want %v", total, want)
		}
		if d := slices.Max(ends) - slices.Min(ends); d > 100*time.Millisecond {
			t.Errorf("one member was done %v before another", d)
		}
	})
}

func BenchmarkWait(b *testing.B) {
	for name, l := range map[string]string{"unlimited": `{}`, "limited": `{"bps-total":1000000000000000}`} {
		b.Run(name, func(b *testing.B) {
			g := New(clock.Real(), config(b, l))
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				m := g.Join()
				for pb.Next() {
					if err := m.Wait(b.Context(), Read, 4096); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
	}
}
