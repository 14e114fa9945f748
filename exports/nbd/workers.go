package nbd

import (
	"runtime"
	"sync"
)

// workers are the goroutines that execute requests for all connections of a
// server. The one that became idle last is taken first, so that under a steady
// load the same few stay warm; more are started when all are busy, and end
// when more than idleMax have nothing to do: one connection's worth, so that a
// full queue of slow requests finds them all again. The number of busy ones is bounded
// by the requests in flight.
type workers struct {
	idleMax int // +checklocks:mu

	mu     sync.Mutex
	idle   []*worker // +checklocks:mu
	closed bool      // +checklocks:mu
	wg     sync.WaitGroup
}

// task is a request to execute, or, without one, the reader's role of a
// connection to take over.
type task struct {
	c *conn
	r *request
}

type worker struct{ next chan task }

func newWorkers() *workers {
	return &workers{idleMax: max(maxInFlight, 4*runtime.GOMAXPROCS(0))}
}

// submit has a worker do t soon. It does not wait.
func (w *workers) submit(t task) {
	w.mu.Lock()
	if n := len(w.idle); n > 0 {
		k := w.idle[n-1]
		w.idle = w.idle[:n-1]
		w.mu.Unlock()
		k.next <- t // has room: an idle worker's channel is empty
		return
	}
	w.wg.Add(1)
	w.mu.Unlock()
	go w.run(t)
}

func (w *workers) run(t task) {
	defer w.wg.Done()
	k := &worker{next: make(chan task, 1)}
	for {
		t.do()
		w.mu.Lock()
		if w.closed || len(w.idle) >= w.idleMax {
			w.mu.Unlock()
			return
		}
		w.idle = append(w.idle, k)
		w.mu.Unlock()
		var ok bool
		if t, ok = <-k.next; !ok {
			return
		}
	}
}

func (t task) do() {
	if t.r == nil {
		t.c.serve()
		return
	}
	t.c.runNow(t.r)
	t.c.finish(t.r)
	t.c.flush()
}

// close ends the idle workers and waits for the busy ones, which must have
// been given a reason to end. Nothing may be submitted by anybody else from
// here on.
func (w *workers) close() {
	w.mu.Lock()
	w.closed = true
	idle := w.idle
	w.idle = nil
	w.mu.Unlock()
	for _, k := range idle {
		close(k.next)
	}
	w.wg.Wait()
}
