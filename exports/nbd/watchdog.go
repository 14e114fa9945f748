package nbd

import (
	"context"
	"sync"
	"time"

	"blockd/clock"
)

// watchdog sees to it that a request which a reader executes by itself and
// that turns out to be slow does not keep the socket unread. It looks at each
// connection that has executed something so of late; a reader that is in the
// same request at two looks loses its role.
//
// It sleeps while no connection does anything.
type watchdog struct {
	clock clock.Clock
	wake  chan struct{} // capacity 1

	mu    sync.Mutex
	conns []*conn // +checklocks:mu
}

const (
	// watchTick is the time between two looks.
	watchTick = time.Millisecond
	// watchIdle is how many looks a connection is watched without having done
	// anything.
	watchIdle = 100
)

// watch is a conn's part of the watchdog.
type watch struct {
	since uint64 // the reader's ticket at the last look
	idle  int    // looks since it changed
}

func newWatchdog(clk clock.Clock) *watchdog {
	return &watchdog{clock: clk, wake: make(chan struct{}, 1)}
}

// add puts a connection under watch.
func (w *watchdog) add(c *conn) {
	w.mu.Lock()
	if !c.watched.Load() {
		c.watched.Store(true)
		c.watch = watch{}
		w.conns = append(w.conns, c)
	}
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *watchdog) run(ctx context.Context) {
	for {
		w.mu.Lock()
		n := len(w.conns)
		w.mu.Unlock()
		if n == 0 {
			select {
			case <-w.wake:
			case <-ctx.Done():
				return
			}
		}
		if w.clock.Sleep(ctx, watchTick) != nil {
			return
		}
		w.look()
	}
}

// look is one round over the watched connections.
func (w *watchdog) look() {
	var stuck []*conn
	w.mu.Lock()
	kept := w.conns[:0]
	for _, c := range w.conns {
		seen := c.tickets.Load()
		if seen != c.watch.since {
			c.watch = watch{since: seen}
		} else {
			c.watch.idle++
			if c.watch.idle >= 1 && c.inline.CompareAndSwap(seen, 0) {
				stuck = append(stuck, c)
			}
		}
		if c.watch.idle > watchIdle {
			c.watched.Store(false)
			// A reader that began meanwhile either sees that it is not
			// watched, or is seen here.
			if c.inline.Load() == 0 {
				continue
			}
			c.watched.Store(true)
		}
		kept = append(kept, c)
	}
	clear(w.conns[len(kept):])
	w.conns = kept
	w.mu.Unlock()
	for _, c := range stuck {
		c.server.workers.submit(task{c: c})
	}
}
