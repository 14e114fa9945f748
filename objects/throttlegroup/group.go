// Package throttlegroup limits the rate of requests: bytes and requests per
// second, in total or by direction, with bursts, for all members of a group
// together.
//
// Waiting requests stand in a queue for each member and direction. Whenever
// time or limits let one pass, it is the oldest of the member whose turn it
// is: members take turns request by request, so that none of them can keep
// another one out, and so do the two directions where both are due. One
// timer for the whole group fires when the next request becomes due; what else
// happens (a request comes or goes away, limits change, a member is released)
// looks at the queues at once. No request overtakes one that waits, in any
// direction: otherwise a steady stream of short requests could keep a group's
// budget spent for ever.
//
// Locks: Group.mu, under which the clock's own is taken and nothing else.
// Blocking: Member.Wait; everything else returns at once.
// Imports: the clock and qapi.
//
//blockd:io
package throttlegroup

import (
	"container/list"
	"context"
	"sync"
	"sync/atomic"
	"time"

	"blockd/clock"
	"blockd/qapi"
)

// Direction is what a request does. Zero writes and discards are writes.
type Direction int

// The directions.
const (
	Read Direction = iota
	Write
)

// counted are the limits that a request of each direction counts against:
// bytes and requests.
var counted = [2]struct{ bytes, requests [2]Limit }{
	Read:  {[2]Limit{BPSTotal, BPSRead}, [2]Limit{IOPSTotal, IOPSRead}},
	Write: {[2]Limit{BPSTotal, BPSWrite}, [2]Limit{IOPSTotal, IOPSWrite}},
}

// Group is limits and those who share them.
type Group struct {
	clock   clock.Clock
	limited atomic.Bool // any limit set; requests of a group without pass by

	mu sync.Mutex
	// +checklocks:mu
	buckets [limitCount]bucket
	// +checklocks:mu
	iopsSize uint64 // bytes
	// +checklocks:mu
	leaked time.Time // when the buckets leaked last
	// +checklocks:mu
	turns [2]*list.List // of *Member with waiting requests, who is next in front
	// +checklocks:mu
	served Direction // of the request admitted last
	// +checklocks:mu
	timer clock.Timer // pending, or nil
	// +checklocks:mu
	due time.Time // of timer
	// +checklocks:mu
	timerSeq uint64 // of timer; a callback of another one is late
}

// New returns a group. The clock is the virtual one. c is valid.
func New(clk clock.Clock, c Config) *Group {
	g := &Group{clock: clk, turns: [2]*list.List{list.New(), list.New()}}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.set(c)
	return g
}

// Config returns the present limits. Any goroutine.
func (g *Group) Config() Config {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.config()
}

// +checklocks:g.mu
func (g *Group) config() Config {
	c := Config{IOPSSize: g.iopsSize}
	for i := range g.buckets {
		c.Rates[i] = g.buckets[i].Rate
	}
	return c
}

// SetLimits changes the limits that are present in l and keeps the others, or
// fails and keeps all. Waiting requests are judged by the new limits at once;
// what was used up under the old ones is forgotten. Any goroutine. Errors are
// *qapi.Error.
func (g *Group) SetLimits(l *qapi.ThrottleLimits) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	c := g.config()
	if err := c.Apply(l); err != nil {
		return err
	}
	if err := c.Validate(); err != nil {
		return err
	}
	g.set(c)
	g.dispatch()
	return nil
}

// +checklocks:g.mu
func (g *Group) set(c Config) {
	for i := range g.buckets {
		g.buckets[i] = bucket{Rate: c.Rates[i]}
	}
	g.iopsSize = c.IOPSSize
	g.leaked = g.clock.Now()
	g.limited.Store(c.limited())
}

// Member is one user of a group: a throttle node. The zero value is not
// usable.
type Member struct {
	group *Group

	// Guarded by group.mu.
	queues   [2]list.List     // of *waiter, the oldest in front
	turn     [2]*list.Element // in group.turns, nil without waiting requests
	released int
}

type waiter struct {
	dir      Direction
	bytes    int64
	place    *list.Element // in the member's queue, nil once admitted
	admitted chan struct{} // closed then
}

// Join adds a member. It need not leave, but no request may wait when it is
// given up.
func (g *Group) Join() *Member { return &Member{group: g} }

// Wait returns when a request of n bytes may pass, and accounts for it. It
// fails only with the context's error. Data plane; blocks.
func (m *Member) Wait(ctx context.Context, dir Direction, n int64) error {
	w := m.submit(dir, n)
	if w == nil {
		return nil
	}
	select {
	case <-w.admitted:
		return nil
	case <-ctx.Done():
		if m.withdraw(w) {
			return ctx.Err()
		}
		return nil
	}
}

// submit admits a request at once and returns nil, or puts it in the queue.
func (m *Member) submit(dir Direction, n int64) *waiter {
	g := m.group
	if !g.limited.Load() {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.leak()
	if m.released > 0 || g.turns[Read].Len()+g.turns[Write].Len() == 0 && g.wait(dir) == 0 {
		g.account(dir, n)
		return nil
	}
	w := &waiter{dir: dir, bytes: n, admitted: make(chan struct{})}
	w.place = m.queues[dir].PushBack(w)
	if m.turn[dir] == nil {
		m.turn[dir] = g.turns[dir].PushBack(m)
	}
	g.dispatch()
	if w.place == nil {
		return nil
	}
	return w
}

// withdraw takes a request out of the queue. It returns false when the request
// was admitted meanwhile.
func (m *Member) withdraw(w *waiter) bool {
	g := m.group
	g.mu.Lock()
	defer g.mu.Unlock()
	if w.place == nil {
		return false
	}
	m.queues[w.dir].Remove(w.place)
	w.place = nil
	g.settleTurn(m, w.dir)
	g.dispatch()
	return true
}

// settleTurn takes a member out of the round if it has nothing waiting.
//
// +checklocks:g.mu
func (g *Group) settleTurn(m *Member, dir Direction) {
	if m.turn[dir] != nil && m.queues[dir].Len() == 0 {
		g.turns[dir].Remove(m.turn[dir])
		m.turn[dir] = nil
	}
}

// Release lets requests of this member that wait pass, and those that come,
// until as many calls of Restrain. They are accounted for, so the limits hold
// in the long run. Any goroutine.
func (m *Member) Release() {
	g := m.group
	g.mu.Lock()
	defer g.mu.Unlock()
	m.released++
	g.leak()
	for dir := range m.queues {
		for m.queues[dir].Len() > 0 {
			g.admitOldest(m, Direction(dir))
		}
		g.settleTurn(m, Direction(dir))
	}
	g.dispatch()
}

// Restrain ends a Release.
func (m *Member) Restrain() {
	m.group.mu.Lock()
	defer m.group.mu.Unlock()
	if m.released == 0 {
		panic("throttlegroup: Restrain without Release")
	}
	m.released--
}

// Waiting returns how many requests of the member wait. Any goroutine.
func (m *Member) Waiting() int {
	m.group.mu.Lock()
	defer m.group.mu.Unlock()
	return m.queues[Read].Len() + m.queues[Write].Len()
}

// admitOldest admits the first waiting request of a member.
//
// +checklocks:g.mu
func (g *Group) admitOldest(m *Member, dir Direction) {
	w := m.queues[dir].Remove(m.queues[dir].Front()).(*waiter)
	w.place = nil
	g.account(dir, w.bytes)
	close(w.admitted)
}

// leak lets the time since the last leak take effect.
//
// +checklocks:g.mu
func (g *Group) leak() {
	now := g.clock.Now()
	d := now.Sub(g.leaked)
	g.leaked = now
	if d <= 0 {
		return
	}
	for i := range g.buckets {
		g.buckets[i].leak(d)
	}
}

// wait returns how long the next request of that direction has to wait.
//
// +checklocks:g.mu
func (g *Group) wait(dir Direction) time.Duration {
	c := &counted[dir]
	return max(
		g.buckets[c.bytes[0]].wait(), g.buckets[c.bytes[1]].wait(),
		g.buckets[c.requests[0]].wait(), g.buckets[c.requests[1]].wait())
}

// account counts a request that is admitted now.
//
// +checklocks:g.mu
func (g *Group) account(dir Direction, n int64) {
	requests := 1.0
	if g.iopsSize > 0 && uint64(n) > g.iopsSize {
		requests = float64(n) / float64(g.iopsSize)
	}
	c := &counted[dir]
	for k := range 2 {
		g.buckets[c.bytes[k]].fill(float64(n))
		g.buckets[c.requests[k]].fill(requests)
	}
	g.served = dir
}

// dispatch admits whoever is due and sets the timer for whoever is next.
//
// +checklocks:g.mu
func (g *Group) dispatch() {
	g.leak()
	for {
		dir, wait, any := g.next()
		switch {
		case !any:
			g.stopTimer()
			return
		case wait > 0:
			g.setTimer(wait)
			return
		}
		turns := g.turns[dir]
		m := turns.Front().Value.(*Member)
		g.admitOldest(m, dir)
		turns.MoveToBack(m.turn[dir])
		g.settleTurn(m, dir)
	}
}

// next returns the direction whose turn it is, among those with waiting
// requests the one that is due first, and how long that takes.
//
// +checklocks:g.mu
func (g *Group) next() (dir Direction, wait time.Duration, any bool) {
	for _, d := range [2]Direction{1 - g.served, g.served} {
		if g.turns[d].Len() == 0 {
			continue
		}
		if w := g.wait(d); !any || w < wait {
			dir, wait, any = d, w, true
		}
	}
	return dir, wait, any
}

// setTimer has dispatch called after d, or earlier if that is under way
// already.
//
// +checklocks:g.mu
func (g *Group) setTimer(d time.Duration) {
	due := g.leaked.Add(d)
	if g.timer != nil && !g.due.After(due) {
		return
	}
	g.stopTimer()
	g.timerSeq++
	seq := g.timerSeq
	g.due = due
	g.timer = g.clock.AfterFunc(d, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.timer != nil && g.timerSeq == seq {
			g.timer = nil
			g.dispatch()
		}
	})
}

// +checklocks:g.mu
func (g *Group) stopTimer() {
	if g.timer != nil {
		g.timer.Stop()
		g.timer = nil
	}
}
