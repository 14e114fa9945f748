package throttlegroup

import (
	"context"
	"testing"
	"time"

	"pgregory.net/rapid"

	"blockd/clock"
)

// unreliableClock goes where it is told, backwards too, and its timers fire
// when they are told.
type unreliableClock struct {
	now    time.Time
	timers []*unreliableTimer
}

type unreliableTimer struct {
	c   *unreliableClock
	due time.Time
	f   func() // nil: fired or stopped
}

func (c *unreliableClock) Now() time.Time                             { return c.now }
func (c *unreliableClock) NewTimer(time.Duration) clock.Timer         { panic("not used") }
func (c *unreliableClock) Sleep(context.Context, time.Duration) error { panic("not used") }

func (c *unreliableClock) AfterFunc(d time.Duration, f func()) clock.Timer {
	t := &unreliableTimer{c: c, due: c.now.Add(d), f: f}
	c.timers = append(c.timers, t)
	return t
}

func (t *unreliableTimer) C() <-chan time.Time { return nil }

func (t *unreliableTimer) Stop() bool {
	pending := t.f != nil
	t.f = nil
	return pending
}

// pending returns the timers that have not fired and were not stopped.
func (c *unreliableClock) pending() []*unreliableTimer {
	var p []*unreliableTimer
	for _, t := range c.timers {
		if t.f != nil {
			p = append(p, t)
		}
	}
	c.timers = p
	return p
}

// fire runs one pending timer, whether it is due or not.
func (t *unreliableTimer) fire() {
	f := t.f
	t.f = nil
	f()
}

func drawRate(t *rapid.T, set bool) Rate {
	r := Rate{Length: 1}
	if !set {
		return r
	}
	r.Avg = rapid.SampledFrom([]uint64{1, 3, 10, 1000, 999_983, 1 << 30, ValueMax}).Draw(t, "avg")
	if rapid.Bool().Draw(t, "bursts") {
		r.Max = min(ValueMax, r.Avg*rapid.SampledFrom([]uint64{1, 2, 50}).Draw(t, "factor"))
		if n := ValueMax / r.Max; n > 1 {
			r.Length = rapid.Uint64Range(1, min(n, 100)).Draw(t, "length")
		}
	}
	return r
}

func drawConfig(t *rapid.T) Config {
	c := NewConfig()
	for _, total := range []Limit{BPSTotal, IOPSTotal} {
		kind := rapid.IntRange(0, 4).Draw(t, "kind")
		c.Rates[total] = drawRate(t, kind == 1)
		c.Rates[total+1] = drawRate(t, kind == 2 || kind == 4)
		c.Rates[total+2] = drawRate(t, kind == 3 || kind == 4)
	}
	if c.Rates[IOPSTotal].Avg+c.Rates[IOPSRead].Avg+c.Rates[IOPSWrite].Avg > 0 {
		c.IOPSSize = rapid.SampledFrom([]uint64{0, 512, 65536}).Draw(t, "iops-size")
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	return c
}

// passed is one admission.
type passed struct {
	at       time.Time
	dir      Direction
	bytes    int64
	requests float64
	free     bool // released, so no limit held it
}

// model is a group under test and what it did.
type model struct {
	g       *Group
	c       Config
	now     func() time.Time
	members []*Member
	open    map[*waiter]*Member
	got     []passed
}

func newModel(clk clock.Clock, c Config, members int) *model {
	m := &model{g: New(clk, c), c: c, now: clk.Now, open: map[*waiter]*Member{}}
	for range members {
		m.members = append(m.members, m.g.Join())
	}
	return m
}

func (m *model) note(dir Direction, n int64, free bool) {
	p := passed{at: m.now(), dir: dir, bytes: n, requests: 1, free: free}
	if m.c.IOPSSize > 0 {
		p.requests = max(1, float64(n)/float64(m.c.IOPSSize))
	}
	m.got = append(m.got, p)
}

func (m *model) submit(member int, dir Direction, n int64) {
	w := m.members[member].submit(dir, n)
	if w == nil {
		m.note(dir, n, m.members[member].released > 0)
	} else {
		m.open[w] = m.members[member]
	}
	m.collect(false)
}

func (m *model) collect(free bool) {
	for w := range m.open {
		if w.place == nil {
			m.note(w.dir, w.bytes, free)
			delete(m.open, w)
		}
	}
}

// check holds every window between two admissions to every limit: what was
// admitted from the first one to before the time of the second is at most the
// bucket and what leaked meanwhile. (Of one moment the order is not known.)
func (m *model) check(t *rapid.T) {
	t.Helper()
	for i := range m.c.Rates {
		r := m.c.Rates[i]
		if r.Avg == 0 {
			continue
		}
		size := float64(r.Avg) / 10
		if r.Max > 0 {
			size = float64(r.Max) * float64(r.Length)
		}
		m.checkLimit(t, Limit(i), size, float64(r.Avg))
		if r.Length > 1 {
			m.checkLimit(t, Limit(i), float64(r.Max)/10, float64(r.Max))
		}
	}
}

func (m *model) checkLimit(t *rapid.T, l Limit, size, rate float64) {
	t.Helper()
	for i := range m.got {
		var sum, moment float64 // before now, and now
		at := m.got[i].at
		for _, p := range m.got[i:] {
			if l%3 != 0 && Direction(l%3-1) != p.dir {
				continue
			}
			if p.at.After(at) {
				sum, moment, at = sum+moment, 0, p.at
			}
			most := size + rate*at.Sub(m.got[i].at).Seconds()
			if slack := most*1e-9 + rate*2e-9; !p.free && sum > most+slack {
				t.Fatalf("%s: %v admitted within %v, at most %v (%+v)", Names[l], sum, at.Sub(m.got[i].at), most, m.c.Rates[l])
			}
			if l < IOPSTotal {
				moment += float64(p.bytes)
			} else {
				moment += p.requests
			}
		}
	}
}

// settled: whoever waits has a reason, and a timer.
func (m *model) settled(t *rapid.T, timers int) {
	t.Helper()
	waiting := m.g.turns[Read].Len() + m.g.turns[Write].Len()
	if (waiting > 0) != (timers == 1) || timers > 1 {
		t.Fatalf("%d members wait and %d timers are set", waiting, timers)
	}
}

func size(t *rapid.T) int64 {
	return rapid.SampledFrom([]int64{1, 512, 4096, 65537, 1 << 20}).Draw(t, "bytes")
}

// TestRatesHoldWhateverTheClockDoes drives a group with random requests,
// releases, withdrawals and steps of time, exact, short of a timer, and far
// beyond it; then it lets time pass until nothing waits.
func TestRatesHoldWhateverTheClockDoes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := clock.NewVirtual()
		m := newModel(v, drawConfig(t), rapid.IntRange(1, 4).Draw(t, "members"))
		timers := func() int {
			if _, ok := v.Next(); ok {
				return 1
			}
			return 0
		}
		member := func() int { return rapid.IntRange(0, len(m.members)-1).Draw(t, "member") }
		dir := func() Direction { return Direction(rapid.IntRange(0, 1).Draw(t, "dir")) }
		step := func(d time.Duration) {
			for end := v.Elapsed() + max(0, d); ; m.collect(false) {
				next, ok := v.Next()
				if !ok || v.Elapsed()+next > end {
					v.Step(end - v.Elapsed())
					return
				}
				v.Step(next)
			}
		}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			switch rapid.IntRange(0, 9).Draw(t, "what") {
			case 0, 1, 2, 3, 4:
				m.submit(member(), dir(), size(t))
			case 5:
				step(time.Duration(rapid.Int64Range(0, int64(3*time.Second)).Draw(t, "ns")))
			case 6, 7:
				if d, ok := v.Next(); ok {
					step(d + time.Duration(rapid.Int64Range(-1, 1).Draw(t, "off")))
				}
			case 8:
				x := m.members[member()]
				m.collect(false)
				x.Release()
				m.collect(true)
				m.submit(member(), dir(), size(t))
				x.Restrain()
			case 9:
				for w, x := range m.open {
					x.withdraw(w)
					delete(m.open, w)
					break
				}
			}
			m.collect(false)
			m.settled(t, timers())
		}
		for range 2 { // what is admitted last shows what came before
			for n := 0; len(m.open) > 0; n++ {
				d, ok := v.Next()
				if !ok || n > 1_000_000 {
					t.Fatalf("%d requests wait for ever", len(m.open))
				}
				v.Step(d)
				m.collect(false)
			}
			m.settled(t, timers())
			m.submit(0, Read, 1)
			m.submit(0, Write, 1)
		}
		m.check(t)
	})
}

// TestNobodyStarvesOnAnUnreliableClock: time jumps in both directions, timers
// fire early, late or never, newcomers do not cease; still a request is passed
// by no more than turns allow, and its turn comes.
func TestNobodyStarvesOnAnUnreliableClock(t *testing.T) {
	waited := false
	rapid.Check(t, func(t *rapid.T) {
		c := &unreliableClock{now: time.Unix(1000, 0)}
		cfg := NewConfig()
		for _, l := range []Limit{BPSTotal, IOPSTotal} {
			if rapid.Bool().Draw(t, "total") {
				cfg.Rates[l].Avg = rapid.SampledFrom([]uint64{1000, 999_983}).Draw(t, "rate")
			} else {
				cfg.Rates[l+1].Avg = rapid.SampledFrom([]uint64{0, 1000, 999_983}).Draw(t, "rate")
				cfg.Rates[l+2].Avg = rapid.SampledFrom([]uint64{1000, 999_983}).Draw(t, "rate")
			}
		}
		m := newModel(c, cfg, rapid.IntRange(2, 4).Draw(t, "members"))
		for len(m.open) == 0 {
			m.submit(0, Write, 65536)
		}
		victim := m.members[len(m.members)-1].submit(Write, 512)
		if victim == nil {
			t.Fatal("a newcomer overtakes")
		}
		start := len(m.got)
		for forward := 0; victim.place != nil; {
			// Everybody keeps coming.
			for i := range m.members {
				m.submit(i, Read, 512)
				m.submit(i, Write, 512)
			}
			switch rapid.IntRange(0, 5).Draw(t, "clock") {
			case 0:
				c.now = c.now.Add(-time.Duration(rapid.Int64Range(0, int64(time.Minute)).Draw(t, "back")))
			case 1: // too early
				for _, timer := range c.pending() {
					timer.fire()
				}
			default:
				forward++
				for _, timer := range c.pending() {
					if timer.due.After(c.now) {
						c.now = timer.due
					}
					if rapid.Bool().Draw(t, "fires") {
						timer.fire()
					} else { // late
						c.now = c.now.Add(time.Duration(rapid.Int64Range(int64(time.Second), int64(time.Hour)).Draw(t, "late")))
					}
				}
			}
			m.collect(false)
			m.settled(t, len(c.pending()))
			writes := 0
			for _, p := range m.got[start:] {
				if p.dir == Write {
					writes++
				}
			}
			// One turn of each member, the one that waited included.
			if victim.place != nil && writes > len(m.members) {
				t.Fatalf("passed by %d writes of %d members", writes, len(m.members))
			}
			if forward > 400 { // 65 s of writes, half a second for a read
				t.Fatalf("still waiting when %d requests have been due", forward)
			}
		}
		waited = true
	})
	if !waited {
		t.Fatal("no case had a request wait")
	}
}
