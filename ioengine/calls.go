package ioengine

import (
	"context"
	"sync"
	"sync/atomic"
)

// This file bounds the system calls that may block. A process has one Calls,
// with DefaultCalls slots; a call that cannot be made without waiting for
// storage takes a slot for its duration.
//
// Files get a fair share by a dynamic threshold: a file may take one more slot
// while it holds fewer than are free. A file on its own gets half of the
// slots, the next one half of the rest, and so on: a file whose storage hangs
// leaves slots to those that come later, without anybody having to be told
// that it is slow. When slots come back, files with waiting requests take
// turns, and requests of one file go in their order of arrival.

// DefaultCalls is how many blocking system calls the process makes at a time.
const DefaultCalls = 64

// Calls is a bound on concurrent blocking system calls. The order of its
// fields keeps the two that every call touches off the mutex's cache line.
type Calls struct {
	limit   int64
	taken   atomic.Int64 // slots in use; a refused attempt counts for a moment
	waiting atomic.Int64 // requests in queues
	_       [40]byte

	mu sync.Mutex
	// +checklocks:mu
	queue []*share // those with waiting requests, in turn

	stats [statStripes]counters
}

// share is one file's part in a Calls.
type share struct {
	taken   atomic.Int64
	waiters []*slotWait // guarded by Calls.mu
}

// slotWait is a request that waits for a slot.
type slotWait struct {
	ready chan struct{} // capacity 1
}

// ProcessCalls bounds the calls of the whole process.
var ProcessCalls = NewCalls(DefaultCalls)

// NewCalls returns a bound of limit slots, at least 1.
func NewCalls(limit int) *Calls { return &Calls{limit: int64(max(1, limit))} }

// try takes a slot if the share may have one. An attempt that fails is undone,
// but others may have seen it and given up because of it: whoever fails goes
// on to the queue, where grant looks again.
func (c *Calls) try(s *share) bool {
	// mine < free, both as they were before, is own-1 < limit-(all-1).
	own := s.taken.Add(1)
	all := c.taken.Add(1)
	if own+all <= c.limit+1 {
		return true
	}
	s.taken.Add(-1)
	c.taken.Add(-1)
	return false
}

// acquire takes a slot, waiting for one where it must. It fails only with the
// context's error, and only while waiting.
func (c *Calls) acquire(ctx context.Context, s *share) error {
	if c.waiting.Load() == 0 && c.try(s) {
		return nil
	}
	return c.wait(ctx, s)
}

func (c *Calls) wait(ctx context.Context, s *share) error {
	c.mu.Lock()
	if len(s.waiters) == 0 && c.try(s) {
		c.mu.Unlock()
		return nil
	}
	w := &slotWait{ready: make(chan struct{}, 1)}
	if len(s.waiters) == 0 {
		c.queue = append(c.queue, s)
	}
	s.waiters = append(s.waiters, w)
	c.waiting.Add(1)
	c.stats[0].slotWaits.Add(1)
	// A slot that came back before waiting was counted woke nobody.
	c.grant()
	c.mu.Unlock()
	select {
	case <-w.ready:
		return nil
	case <-ctx.Done():
		c.abandon(s, w)
		return ctx.Err()
	}
}

// release gives a slot back.
func (c *Calls) release(s *share) {
	s.taken.Add(-1)
	c.taken.Add(-1)
	if c.waiting.Load() != 0 {
		c.mu.Lock()
		c.grant()
		c.mu.Unlock()
	}
}

// grant gives free slots to waiting requests, file by file. Called with mu
// held.
//
// +checklocks:c.mu
func (c *Calls) grant() {
	for refused := 0; refused < len(c.queue); {
		s := c.queue[0]
		copy(c.queue, c.queue[1:])
		c.queue[len(c.queue)-1] = s
		if !c.try(s) {
			refused++
			continue
		}
		refused = 0
		w := s.waiters[0]
		c.drop(s, 0)
		w.ready <- struct{}{}
	}
}

// drop takes the i-th waiter of s out of the queues. Called with mu held.
//
// +checklocks:c.mu
func (c *Calls) drop(s *share, i int) {
	s.waiters = append(s.waiters[:i], s.waiters[i+1:]...)
	c.waiting.Add(-1)
	if len(s.waiters) > 0 {
		return
	}
	for k, q := range c.queue {
		if q == s {
			c.queue = append(c.queue[:k], c.queue[k+1:]...)
			return
		}
	}
}

// abandon withdraws a request, or gives back the slot that it got meanwhile.
func (c *Calls) abandon(s *share, w *slotWait) {
	c.mu.Lock()
	for i, x := range s.waiters {
		if x == w {
			c.drop(s, i)
			c.mu.Unlock()
			return
		}
	}
	c.mu.Unlock()
	<-w.ready
	c.release(s)
}
