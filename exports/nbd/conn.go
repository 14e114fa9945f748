package nbd

import (
	"context"
	"net"
	"sync"
	"sync/atomic"

	"blockd/nbdproto"
	"blockd/sockets"
)

const (
	// maxInFlight is how many requests of a connection may be under way, from
	// admission until their reply is sent.
	maxInFlight = 64
	// maxInFlightBytes bounds the data of those requests; a single larger one
	// cannot exist.
	maxInFlightBytes = 64 << 20
)

// conn is one client, from accept to the end of its last request.
type conn struct {
	server *Server
	number uint64   // of the server's clients, from 1
	socket net.Conn // below TLS, if that is used
	t      *sockets.Stream
	ctx    context.Context // ends with the connection
	cancel context.CancelFunc

	// Set during the handshake.
	secured    bool // by TLS
	export     *Export
	structured bool
	framing    nbdproto.Framing
	contexts   []statusContext // that block status reports

	// The reader's role. tickets counts what readers executed by themselves;
	// inline is the ticket of the present one, else 0. Whoever swaps it to 0
	// has the role.
	tickets atomic.Uint64
	inline  atomic.Uint64
	watched atomic.Bool
	watch   watch        // guarded by watchdog.mu
	cost    [nKinds]cost // of recent requests
	burst   burst        // the reader's

	mu sync.Mutex
	// +checklocks:mu
	idle     sync.Cond // on mu: something was released, or closed was set
	closed   bool      // +checklocks:mu
	inFlight int       // +checklocks:mu
	bytes    int64     // +checklocks:mu
	// +checklocks:mu
	own  int64    // of ownBytes
	free *request // +checklocks:mu
	// +checklocks:mu
	ready    *request // replies to send, first
	readyEnd *request // +checklocks:mu
	sending  bool     // +checklocks:mu

	segs [][]byte // the sender's
}

func newConn(s *Server, nc net.Conn) *conn {
	c := &conn{server: s, number: s.clients.Add(1), socket: nc, t: sockets.NewStream(nc)}
	c.idle.L = &c.mu
	c.cost[kindOther].ns.Store(costUnknown)
	c.ctx, c.cancel = context.WithCancel(s.ctx)
	return c
}

// close ends the connection: what it waits for fails, what is in flight is
// asked to end. It does not wait. Any goroutine.
func (c *conn) close() {
	c.mu.Lock()
	done := c.closed
	c.closed = true
	c.idle.Broadcast()
	c.mu.Unlock()
	if !done {
		c.cancel()
		c.socket.Close()
		c.server.memory.wake()
	}
}

// hangUp is the end of a connection with nothing in flight. A client that sees
// its socket closed does not count as a user of the export any more.
func (c *conn) hangUp() {
	if c.export != nil {
		c.export.detach(c)
	}
	c.close()
	c.t.ReleaseBuffer()
	c.server.leave(c)
}

// admit waits until the connection may have another request of n bytes in
// flight, and returns one; nil when the connection is closed. Reader only.
func (c *conn) admit(n int64) *request {
	c.mu.Lock()
	for !c.closed && !c.fits(n) {
		if c.ready != nil && !c.sending {
			c.mu.Unlock()
			c.flush()
			c.mu.Lock()
			continue
		}
		c.idle.Wait()
	}
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.inFlight++
	c.bytes += n
	r := c.free
	if r != nil {
		c.free, r.next = r.next, nil
	}
	c.mu.Unlock()
	if r == nil {
		r = &request{c: c}
	}
	r.bytes = n
	return r
}

// fits is called with mu held.
//
// +checklocks:c.mu
func (c *conn) fits(n int64) bool {
	return c.inFlight < maxInFlight && (c.bytes == 0 || c.bytes+n <= maxInFlightBytes)
}

// finish queues the reply of an ended request; flush sends it.
func (c *conn) finish(r *request) {
	r.next = nil
	c.mu.Lock()
	if c.readyEnd == nil {
		c.ready = r
	} else {
		c.readyEnd.next = r
	}
	c.readyEnd = r
	c.mu.Unlock()
}

// flush sends what is ready, and what becomes ready meanwhile, unless somebody
// is at it already.
func (c *conn) flush() {
	c.mu.Lock()
	if c.sending {
		c.mu.Unlock()
		return
	}
	c.sending = true
	for c.ready != nil {
		first := c.ready
		c.ready, c.readyEnd = nil, nil
		dead := c.closed
		c.mu.Unlock()

		if !dead {
			c.segs = c.segs[:0]
			for r := first; r != nil; r = r.next {
				c.segs = append(c.segs, r.segs...)
			}
			if err := c.t.WriteV(c.segs); err != nil {
				c.server.logEnd(c, err)
				c.close()
			}
			clear(c.segs)
		}
		c.release(first)
		c.mu.Lock()
	}
	c.sending = false
	c.idle.Broadcast()
	c.mu.Unlock()
}

// release gives back the requests of a list.
func (c *conn) release(first *request) {
	var n int
	var bytes, memory, own int64
	last := first
	for r := first; r != nil; r = r.next {
		n++
		bytes += r.bytes
		memory += r.memory
		own += r.own
		r.reset()
		last = r
	}
	if memory > 0 {
		c.server.memory.give(memory)
	}
	c.mu.Lock()
	c.inFlight -= n
	c.bytes -= bytes
	c.own -= own
	last.next = c.free
	c.free = first
	c.idle.Broadcast()
	c.mu.Unlock()
}

// drop takes back an admission that comes to no reply.
func (c *conn) drop(r *request) {
	r.next = nil
	c.release(r)
}

// drain waits until nothing is in flight. Reader only, as its last act: there
// is nobody left to add to it.
func (c *conn) drain() {
	c.flush()
	c.mu.Lock()
	for c.inFlight > 0 || c.sending {
		c.idle.Wait()
	}
	c.mu.Unlock()
}
