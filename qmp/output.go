package qmp

import (
	"sync"

	"blockd/chardev"
)

// MaxBacklog bounds the bytes that wait for one client to read them. A client
// that lets more gather is disconnected. A single message may be larger, when
// nothing else waits.
const MaxBacklog = 64 << 20

// outputKeepBytes is the size up to which a buffer is kept for reuse.
const outputKeepBytes = 64 << 10

// output is the queue of what goes to one client. append never waits; one
// writer goroutine empties the queue.
type output struct {
	limit int // MaxBacklog

	mu      sync.Mutex //blockd:short
	pending []byte     // +checklocks:mu
	// +checklocks:mu
	writing int // bytes that the writer holds
	// +checklocks:mu
	ended bool // nothing more may be appended
	// +checklocks:mu
	stopped bool // the writer has returned
	// +checklocks:mu
	waiters []chan struct{} // for the queue to be empty
	wake    chan struct{}
}

func newOutput(limit int) *output {
	return &output{limit: limit, wake: make(chan struct{}, 1)}
}

// append queues a whole message. It reports false when the client is to be
// disconnected for not reading; what is appended after the end is dropped.
//
//blockd:any
func (o *output) append(msg []byte) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended {
		return true
	}
	if backlog := len(o.pending) + o.writing; backlog > 0 && backlog+len(msg) > o.limit {
		return false
	}
	o.pending = append(o.pending, msg...)
	o.signal()
	return true
}

//blockd:any
func (o *output) signal() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// end lets the writer stop once the queue is empty; with drop the queue is
// emptied now.
//
//blockd:any
func (o *output) end(drop bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ended = true
	if drop {
		o.pending = nil
	}
	o.signal()
}

// written returns a channel that is closed when the queue was empty once, or
// its writer has returned. An ended queue is written, too.
func (o *output) written() <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	c := make(chan struct{})
	if o.stopped || len(o.pending)+o.writing == 0 {
		close(c)
		return c
	}
	o.waiters = append(o.waiters, c)
	return c
}

// release ends the waiting. mu is held.
//
// +checklocks:o.mu
func (o *output) release() {
	for _, c := range o.waiters {
		close(c)
	}
	o.waiters = nil
}

// run writes to conn until the queue has ended and is empty, or writing fails.
func (o *output) run(conn chardev.Conn) error {
	var buf []byte
	defer func() {
		o.mu.Lock()
		o.writing, o.stopped = 0, true
		o.release()
		o.mu.Unlock()
	}()
	for {
		o.mu.Lock()
		buf, o.pending = o.pending, buf[:0]
		o.writing = len(buf)
		ended := o.ended
		if len(buf) == 0 {
			o.release()
		}
		o.mu.Unlock()
		if len(buf) == 0 {
			if ended {
				return nil
			}
			<-o.wake
			continue
		}
		if _, err := conn.Write(buf); err != nil {
			return err
		}
		if cap(buf) > outputKeepBytes {
			buf = nil
		}
	}
}
