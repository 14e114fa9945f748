package nbd

import (
	"context"
	"math/bits"
	"slices"
	"sync"
	"time"

	"blockd/ioengine"
)

// memory is a server's share of the process's buffer budget: whatever clients
// do, jobs and other exports keep the rest. A client can tie memory up by
// asking for much and then hardly sending or receiving. Two things keep that
// from stopping the others. While anybody waits for memory, the guard closes
// connections that hold some and, in the middle of a message, move less than
// guardRate for guardPatience; without such need, a slow client may take its
// time. And each connection has a little of its own, for when the share is
// used up: small requests go on meanwhile.
type memory struct {
	limit int64

	mu   sync.Mutex
	room sync.Cond // on mu
	used int64
	// +checklocks:mu
	queue   []*conn       // those who wait, first come first served
	pressed chan struct{} // capacity 1: somebody waits
}

const (
	// memoryShare of ioengine.DefaultBudget is the most that the data of NBD
	// requests takes, in bytes.
	memoryShare = ioengine.DefaultBudget / 4 * 3

	// ownBytes is what a connection may have in use beside the share.
	ownBytes = 64 << 10

	guardTick     = time.Second
	guardPatience = 10       // ticks
	guardRate     = 64 << 10 // bytes per tick
)

func newMemory(limit int64) *memory {
	m := &memory{limit: limit, pressed: make(chan struct{}, 1)}
	m.room.L = &m.mu
	return m
}

// charge is what a buffer of n bytes costs: the size class that it comes from.
func charge(n int64) int64 {
	if n == 0 {
		return 0
	}
	return max(ioengine.Alignment, int64(1)<<bits.Len64(uint64(n-1)))
}

// tryTake takes n bytes unless that takes time.
func (m *memory) tryTake(n int64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.queue) > 0 || !m.fits(n) {
		return false
	}
	m.used += n
	return true
}

// take waits for its turn and for n bytes. It returns false when the
// connection was closed meanwhile.
func (m *memory) take(c *conn, n int64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.queue = append(m.queue, c)
	for m.queue[0] != c || !m.fits(n) {
		if c.ctx.Err() != nil {
			m.leaveQueue(c)
			return false
		}
		select {
		case m.pressed <- struct{}{}:
		default:
		}
		m.room.Wait()
	}
	m.used += n
	m.leaveQueue(c)
	return true
}

// leaveQueue lets the next one look. Called with mu held.
//
// +checklocks:m.mu
func (m *memory) leaveQueue(c *conn) {
	m.queue = slices.DeleteFunc(m.queue, func(x *conn) bool { return x == c })
	m.room.Broadcast()
}

func (m *memory) fits(n int64) bool { return m.used == 0 || m.used+n <= m.limit }

func (m *memory) give(n int64) {
	m.mu.Lock()
	m.used -= n
	if len(m.queue) > 0 {
		m.room.Broadcast()
	}
	m.mu.Unlock()
}

// wake has those who wait look whether their connection is closed.
func (m *memory) wake() {
	m.mu.Lock()
	m.room.Broadcast()
	m.mu.Unlock()
}

func (m *memory) pressure() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.queue) > 0
}

// guard is the server's goroutine that closes stalled connections.
func (s *Server) guard(ctx context.Context) {
	type state struct {
		since uint64 // what had moved in all when the count of ticks began
		ticks int    // in which it was found waiting for its client
	}
	for {
		select {
		case <-s.memory.pressed:
		case <-ctx.Done():
			return
		}
		seen := map[*conn]state{}
		for s.memory.pressure() {
			if s.clock.Sleep(ctx, guardTick) != nil {
				return
			}
			for _, c := range s.connections() {
				moved := c.t.Moved()
				w, ok := seen[c]
				switch {
				case !c.holdsMemory():
					delete(seen, c)
					continue
				case !ok || moved-w.since >= guardPatience*guardRate:
					w = state{since: moved}
				case c.t.Stalled():
					w.ticks++
				}
				if w.ticks >= guardPatience {
					s.log.Warn("NBD client holds memory and hardly moves; disconnecting it", "export", c.export.name)
					c.close()
				}
				seen[c] = w
			}
		}
	}
}

func (c *conn) holdsMemory() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bytes > 0
}

// takeOwn takes n bytes of what the connection has beside the share.
func (c *conn) takeOwn(n int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.own+n > ownBytes {
		return false
	}
	c.own += n
	return true
}

// reserve takes n more bytes for a request that is being executed, unless that
// takes time or is more than the connection may have.
func (c *conn) reserve(r *request, n int64) bool {
	if !c.server.memory.tryTake(n) {
		return false
	}
	c.mu.Lock()
	ok := c.bytes+n <= maxInFlightBytes
	if ok {
		c.bytes += n
	}
	c.mu.Unlock()
	if !ok {
		c.server.memory.give(n)
		return false
	}
	r.bytes += n
	r.memory += n
	return true
}

// expired makes Acquire fail where it would wait.
var expired = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

// obtain gets the buffer of a request of n bytes, which was charged.
func (c *conn) obtain(r *request, n int64) error {
	cost := r.bytes
	switch {
	case c.server.memory.tryTake(cost):
		r.memory = cost
	case c.takeOwn(cost):
		r.own = cost
	default:
		c.flushBurst()
		if !c.server.memory.take(c, cost) {
			return c.ctx.Err()
		}
		r.memory = cost
	}
	var err error
	if r.buf, err = ioengine.Process.Acquire(expired, int(n)); err != nil {
		c.flushBurst()
		r.buf, err = ioengine.Process.Acquire(c.ctx, int(n))
	}
	return err
}
