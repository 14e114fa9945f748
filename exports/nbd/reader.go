package nbd

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"sync/atomic"
	"syscall"

	"blockd/clock"
	"blockd/nbdproto"
)

// The reader's role: from the socket to an admitted request, and the choice of
// who executes it.

const (
	// quickAlone is the cost up to which the reader itself executes a request
	// when no other has arrived.
	quickAlone = 50_000
	// quickAmong is the same when others are waiting in the read buffer: there,
	// handing over pays earlier.
	quickAmong = 10_000
	// costUnknown is assumed of commands that are slow on most storage, until
	// they prove otherwise.
	costUnknown = 200_000
	// costSlack is what a sample may exceed four times the average by.
	costSlack = 4_000
	// maxBurst is how long a finished reply may wait for others, in ns of their
	// execution, and maxBurstBytes how much data may be held back so.
	maxBurst      = 100_000
	maxBurstBytes = 256 << 10
)

// kind groups commands by what they are likely to cost.
type kind uint8

const (
	kindRead kind = iota
	kindWrite
	kindStatus
	kindOther
	nKinds
)

func kindOf(c nbdproto.Command) kind {
	switch c {
	case nbdproto.CmdRead:
		return kindRead
	case nbdproto.CmdWrite:
		return kindWrite
	case nbdproto.CmdBlockStatus:
		return kindStatus
	}
	return kindOther
}

// cost is a moving average of execution times in ns. A sample counts for four
// times the average at most: on a busy machine now and then a request takes
// milliseconds because its thread does not run, which says nothing about the
// next one. Updates may overwrite each other, which an estimate can bear.
type cost struct{ ns atomic.Int64 }

func (c *cost) add(ns int64) {
	old := c.ns.Load()
	c.ns.Store(old + (min(ns, 4*old+costSlack)-old)/8)
}

var (
	errDisconnect = errors.New("nbd: client disconnects")
	errGarbage    = errors.New("nbd: the client lost its place")
)

// serve is the reader's loop. It returns when the connection has ended and
// been cleaned up, or when the role has passed to somebody else.
func (c *conn) serve() {
	for {
		r, err := c.receive()
		if err != nil {
			c.end(err)
			return
		}
		if !c.start(r) {
			return
		}
	}
}

// end cleans up after the last request was received.
func (c *conn) end(err error) {
	c.traceGone(err)
	if !errors.Is(err, errDisconnect) && !errors.Is(err, errGarbage) {
		// Nobody waits for replies; let go of gates and locks.
		c.server.logEnd(c, err)
		c.close()
	}
	c.drain()
	c.hangUp()
}

// receive returns the next request, admitted, with its data when it has any.
func (c *conn) receive() (*request, error) {
	size := c.framing.RequestSize()
	if c.t.Buffered() < size {
		c.flushBurst()
		if err := c.t.Need(size); err != nil {
			return nil, err
		}
	}
	var h nbdproto.Request
	err := h.Parse(c.t.Next(size), c.framing)
	if err == nil && h.Type == nbdproto.CmdDisc {
		return nil, errDisconnect
	}
	refuse, lost := c.check(&h, err)
	if lost {
		// What follows cannot be told apart: say why, and hang up.
		return nil, c.sayLost(&h, refuse)
	}
	if refuse == nil {
		return c.admitted(&h)
	}
	return c.refused(&h, refuse)
}

// refused passes over a request's payload and returns it, to be answered with an
// error.
func (c *conn) refused(h *nbdproto.Request, refuse error) (*request, error) {
	if n := h.PayloadLen(c.framing); n > 0 {
		if uint64(c.t.Buffered()) < n {
			c.flushBurst()
		}
		if err := c.t.Skip(int64(n)); err != nil {
			return nil, err
		}
	}
	r := c.admit(0)
	if r == nil {
		return nil, net.ErrClosed
	}
	r.Request, r.refuse = *h, refuse
	return r, nil
}

// check looks for what is wrong with a request, in the field's order. lost says
// that the stream cannot be followed any further.
func (c *conn) check(h *nbdproto.Request, parse error) (refuse error, lost bool) {
	e := c.export
	byPayload := h.Type == nbdproto.CmdBlockStatus && h.HasPayload(c.framing)
	switch {
	case parse != nil:
		return refusal("invalid magic"), true
	case h.PayloadLen(c.framing) > nbdproto.MaxPayload:
		return refusal(fmt.Sprintf("len (%d) is larger than max len (%d)", h.Length, nbdproto.MaxPayload)), true
	case h.Type.MovesData() && h.Length > nbdproto.MaxPayload:
		return refusal(fmt.Sprintf("len (%d) is larger than max len (%d)", h.Length, nbdproto.MaxPayload)), false
	case e.flags&nbdproto.ReadOnly != 0 && h.Type.Writes():
		return refusal("Export is read-only"), false
	case !byPayload && (h.Offset > uint64(e.size) || h.Length > uint64(e.size)-h.Offset):
		return refusal(fmt.Sprintf("operation past EOF; From: %d, Len: %d, Size: %d", h.Offset, h.Length, e.size)), false
	case h.Flags&^h.Type.Legal(c.structured, c.framing) != 0:
		return refusal(fmt.Sprintf("unsupported flags for command %s (got 0x%x)", h.Type, uint16(h.Flags))), false
	case !h.Type.Known():
		return refusal(fmt.Sprintf("invalid request type (%d) received", uint16(h.Type))), false
	case h.Type == nbdproto.CmdBlockStatus && h.Length == 0:
		return refusal("need non-zero length"), false
	case h.Type == nbdproto.CmdBlockStatus && len(c.contexts) == 0:
		return refusal("CMD_BLOCK_STATUS not negotiated"), false
	case byPayload && h.Length > nbdproto.MaxStatusPayload:
		return refusal("CMD_BLOCK_STATUS payload is too long"), false
	}
	return nil, false
}

func (c *conn) sayLost(h *nbdproto.Request, why error) error {
	r := c.admit(0)
	if r == nil {
		return net.ErrClosed
	}
	r.Request = *h
	r.fail(syscall.EINVAL, why.Error())
	c.finish(r)
	return errGarbage
}

// admitted waits for what the request needs, and reads its data.
func (c *conn) admitted(h *nbdproto.Request) (*request, error) {
	var n int64
	if h.Type == nbdproto.CmdRead || h.PayloadLen(c.framing) > 0 {
		n = int64(h.Length)
	}
	cost := charge(n)
	if h.Type == nbdproto.CmdBlockStatus {
		cost += int64(len(c.contexts)) * statusFirst // what its reply begins with
	}
	r := c.admit(cost)
	if r == nil {
		return nil, net.ErrClosed
	}
	r.Request = *h
	if n == 0 {
		return r, nil
	}
	if err := c.obtain(r, n); err != nil {
		c.drop(r)
		return nil, err
	}
	r.vec.SetBytes(r.buf.Bytes())
	if h.Type != nbdproto.CmdRead {
		if int64(c.t.Buffered()) < n {
			c.flushBurst()
		}
		if err := c.t.ReadFull(r.buf.Bytes()); err != nil {
			c.drop(r)
			return nil, err
		}
	}
	if h.Type == nbdproto.CmdBlockStatus {
		r.refuse = c.readStatusPayload(r)
	}
	return r, nil
}

// readStatusPayload has a block status report what its payload asks for: a range
// and some of the contexts.
func (c *conn) readStatusPayload(r *request) error {
	p, err := nbdproto.ParseStatusPayload(r.buf.Bytes())
	if err != nil {
		return refusal("CMD_BLOCK_STATUS payload has unexpected length")
	}
	r.asked = make([]statusContext, 0, min(len(p.Contexts), len(c.contexts)))
	for _, id := range p.Contexts {
		i := slices.IndexFunc(c.contexts, func(x statusContext) bool { return x.id == id })
		if i < 0 || slices.ContainsFunc(r.asked, func(x statusContext) bool { return x.id == id }) {
			return refusal(fmt.Sprintf("unknown or repeated context id %d in CMD_BLOCK_STATUS payload", id))
		}
		r.asked = append(r.asked, c.contexts[i])
	}
	r.Length, r.Flags = p.Length, r.Flags&^nbdproto.FlagPayloadLen
	refuse, _ := c.check(&r.Request, nil)
	return refuse
}

// start has an admitted request executed. It returns false when that took so
// long that somebody else has become the reader.
func (c *conn) start(r *request) bool {
	if r.refuse != nil {
		r.fail(syscall.EINVAL, r.refuse.Error())
		c.finish(r)
		return true
	}
	limit := int64(quickAlone)
	if c.t.Buffered() >= c.framing.RequestSize() {
		limit = quickAmong
	}
	if c.cost[kindOf(r.Type)].ns.Load() > limit {
		c.server.workers.submit(task{c: c, r: r})
		return true
	}
	ticket := c.tickets.Add(1)
	c.inline.Store(ticket)
	if !c.watched.Load() {
		c.server.watchdog.add(c)
	}
	ns := c.runNow(r)
	mine := c.inline.CompareAndSwap(ticket, 0)
	size := r.size
	c.finish(r)
	if !mine {
		c.flush()
		return false
	}
	c.burst.ns += ns
	c.burst.bytes += size
	if c.burst.ns > maxBurst || c.burst.bytes > maxBurstBytes {
		c.flushBurst()
	}
	return true
}

// flushBurst sends what the reader has held back. It comes before everything
// that may make the reader wait.
func (c *conn) flushBurst() {
	c.burst = burst{}
	c.flush()
}

// burst is what the replies that a reader holds back amount to.
type burst struct{ ns, bytes int64 }

// runNow executes a request and returns how long that took, in ns.
func (c *conn) runNow(r *request) int64 {
	clk := c.server.clock
	start := clk.Now()
	c.execute(r)
	ns := int64(clock.Since(clk, start))
	c.cost[kindOf(r.Type)].add(ns)
	return ns
}
