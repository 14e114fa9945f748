package blockgraph

import (
	"context"
	"sync"
)

// RangeLock lets users of overlapping byte ranges take turns: shared users
// overlap with each other, exclusive ones with nobody. Waiters go in order of
// arrival, so neither kind starves. The zero value is unlocked.
//
// Whoever takes one was first admitted at every root that it will use, and
// does not wait for a gate while holding it.
type RangeLock struct {
	mu   sync.Mutex   //blockd:short
	reqs []*RangeHold // held and waiting, in order of arrival
	free []*RangeHold // +checklocks:mu
}

// RangeHold is a range taken or waited for.
type RangeHold struct {
	off, end  int64
	exclusive bool
	held      bool
	wake      chan struct{} // capacity 1
}

// Lock waits until bytes [off, off+n) are free for this kind of use. The hold
// is for Unlock.
func (l *RangeLock) Lock(ctx context.Context, off, n int64, exclusive bool) (*RangeHold, error) {
	l.mu.Lock()
	var h *RangeHold
	if k := len(l.free); k > 0 {
		h = l.free[k-1]
		l.free = l.free[:k-1]
	} else {
		h = &RangeHold{wake: make(chan struct{}, 1)}
	}
	h.off, h.end, h.exclusive, h.held = off, off+n, exclusive, false
	l.reqs = append(l.reqs, h)
	if !l.blocked(len(l.reqs) - 1) {
		h.held = true
		l.mu.Unlock()
		return h, nil
	}
	l.mu.Unlock()
	select {
	case <-h.wake:
		return h, nil
	case <-ctx.Done():
		l.Unlock(h)
		return nil, ctx.Err()
	}
}

// TryLock takes the range if nobody uses or awaits an overlapping one.
func (l *RangeLock) TryLock(off, n int64, exclusive bool) *RangeHold {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := &RangeHold{off: off, end: off + n, exclusive: exclusive, wake: make(chan struct{}, 1)}
	l.reqs = append(l.reqs, h)
	if l.blocked(len(l.reqs) - 1) {
		l.reqs = l.reqs[:len(l.reqs)-1]
		return nil
	}
	h.held = true
	return h
}

// Unlock gives a range back and wakes those who can go on.
func (l *RangeLock) Unlock(h *RangeHold) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, r := range l.reqs {
		if r == h {
			l.reqs = append(l.reqs[:i], l.reqs[i+1:]...)
			break
		}
	}
	for i, r := range l.reqs {
		if !r.held && !l.blocked(i) {
			r.held = true
			select {
			case r.wake <- struct{}{}:
			default: // never: it is woken once
			}
		}
	}
	select { // granted to a waiter that had given up
	case <-h.wake:
	default:
	}
	if len(l.free) < 64 {
		l.free = append(l.free, h)
	}
}

// blocked tells whether an earlier request stands in the way of the i-th.
func (l *RangeLock) blocked(i int) bool {
	h := l.reqs[i]
	for _, r := range l.reqs[:i] {
		if (h.exclusive || r.exclusive) && h.off < r.end && r.off < h.end {
			return true
		}
	}
	return false
}

// tracker is the request tracking of one node. Requests are tracked only when
// some of them may have to exclude others: where the driver's alignment makes
// the wrapper read, modify and write, and where a user sends Serialising
// requests. Who may send them says so in advance (Serialiser): what began
// untracked could not be waited for.
type tracker struct {
	// Both change only while no request is under way.
	on         bool
	serialised bool // by some user, now or once

	locks RangeLock
}

// refresh decides again whether requests are tracked.
//
//blockd:global
func (t *tracker) refresh(align int64) { t.on = t.serialised || align > 1 }

func (t *tracker) begin(ctx context.Context, off, n int64, exclusive bool) (*RangeHold, error) {
	if !t.on {
		assertTracked(exclusive)
		if !exclusive {
			return nil, nil
		}
	}
	return t.locks.Lock(ctx, off, n, exclusive)
}

func (t *tracker) end(h *RangeHold) {
	if h != nil {
		t.locks.Unlock(h)
	}
}
