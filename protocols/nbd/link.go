package nbd

import (
	"context"
	"errors"
	"net"
	"sync"
	"syscall"
	"time"

	"blockd/blockgraph"
	"blockd/ioengine"
	"blockd/nbdproto"
	"blockd/sockets"
)

// maxInFlight is how many requests one link has in flight; more wait.
const maxInFlight = 64

// errLost is the end of a link: the request may be sent again over another.
var errLost = errors.New("nbd: connection lost")

// link is a connection in its transmission phase.
type link struct {
	t          *sockets.Stream
	socket     net.Conn // below TLS, whose own end may wait for the peer
	structured bool
	framing    nbdproto.Framing
	context    uint32 // id of the metadata context, if negotiated

	sendMu sync.Mutex
	// +checklocks:sendMu
	header []byte // under sendMu
	// +checklocks:sendMu
	segs [][]byte // under sendMu

	mu    sync.Mutex
	slots [maxInFlight]slot
	lost  bool // +checklocks:mu

	free chan int // indexes of slots without a request
	done chan struct{}
}

// slot is the place of one request in flight.
type slot struct {
	// cookie of the request, 0 without one. Under link.mu.
	cookie uint64
	// The receiver is filling in the reply's payload: the request cannot be
	// given up any more. Under link.mu.
	filling bool
	// dropped: nobody waits, what comes is thrown away. Under link.mu.
	dropped bool

	generation uint64

	// The rest belongs to the receiver until it has sent to answer.
	request  nbdproto.Request
	data     *blockgraph.IOVec // of a read
	covered  coverage
	extent   extent // of a block status
	gotError error
	answer   chan error // capacity 1
}

// extent is the first one of a block status reply.
type extent struct {
	n     int64 // bytes; 0: none came
	flags uint32
}

func newLink(t *sockets.Stream, socket net.Conn, info *exportInfo) *link {
	t.LimitLong(ioengine.Receiving)
	l := &link{t: t, socket: socket, structured: info.structured, framing: info.framing, context: info.context, free: make(chan int, maxInFlight), done: make(chan struct{})}
	for i := range l.slots {
		l.slots[i].answer = make(chan error, 1)
		l.free <- i
	}
	return l
}

// do sends a request and waits for its reply. payload is a write's data, data
// takes a read's; status, if not nil, the first extent of a block status. The
// error is errLost, the context's, or the server's as a syscall.Errno.
func (l *link) do(ctx context.Context, r nbdproto.Request, payload, data *blockgraph.IOVec, status *extent) error {
	var i int
	select {
	case i = <-l.free:
	default:
		if w, wait := ioengine.Waits(ctx); w != nil {
			defer w.Resumes(ctx, wait)
		}
		select {
		case i = <-l.free:
		case <-l.done:
			return errLost
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	s := &l.slots[i]
	s.generation++
	r.Cookie = s.generation*maxInFlight + uint64(i)
	s.request, s.data, s.extent, s.gotError = r, data, extent{}, nil
	s.covered.reset()
	l.mu.Lock()
	if l.lost {
		l.mu.Unlock()
		l.release(i)
		return errLost
	}
	s.cookie = r.Cookie
	l.mu.Unlock()

	if err := l.send(&r, payload); err != nil {
		// The receiver answers every slot when it ends.
		l.shut()
	}
	w, wait := ioengine.Waits(ctx)
	var err error
	select {
	case err = <-s.answer:
	case <-ctx.Done():
		if payload == nil && l.giveUp(s) {
			return ctx.Err()
		}
		err = <-s.answer
	}
	if status != nil {
		*status = s.extent
	}
	l.release(i)
	if w != nil {
		w.Resumes(ctx, wait)
	}
	return err
}

// giveUp leaves a request without a waiter; false when it must be waited for.
func (l *link) giveUp(s *slot) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s.cookie == 0 || s.filling || s.request.Type.Writes() {
		return false
	}
	s.dropped = true
	return true
}

func (l *link) release(i int) {
	l.slots[i].data = nil
	l.free <- i
}

func (l *link) send(r *nbdproto.Request, payload *blockgraph.IOVec) error {
	l.sendMu.Lock()
	defer l.sendMu.Unlock()
	if l.framing == nbdproto.Extended && r.Type == nbdproto.CmdWrite {
		r.Flags |= nbdproto.FlagPayloadLen
	}
	l.header = r.Append(l.header[:0], l.framing)
	l.segs = append(l.segs[:0], l.header)
	if payload != nil {
		l.segs = append(l.segs, payload.Segments()...)
	}
	err := l.t.WriteV(l.segs)
	clear(l.segs)
	return err
}

// shut breaks the connection, so that the receiver ends.
func (l *link) shut() { l.socket.Close() }

// close says good-bye, if the server takes it until then, and breaks the
// connection.
func (l *link) close(until time.Time) {
	_ = l.socket.SetWriteDeadline(until) // ends a send that hangs, too
	_ = l.send(&nbdproto.Request{Type: nbdproto.CmdDisc}, nil)
	l.shut()
}

// receive takes replies until the connection ends, and returns why it did. All
// requests without a reply then fail with errLost. It is one goroutine.
func (l *link) receive() error {
	var err error
	for err == nil {
		err = l.reply()
	}
	l.shut()
	l.t.ReleaseBuffer()
	l.mu.Lock()
	l.lost = true
	for i := range l.slots {
		if s := &l.slots[i]; s.cookie != 0 {
			l.finish(s, errLost)
		}
	}
	l.mu.Unlock()
	close(l.done)
	return err
}

// finish answers a request. Called with l.mu held.
func (l *link) finish(s *slot, err error) {
	s.cookie, s.filling = 0, false
	if s.dropped {
		s.dropped = false
		s.data = nil
		l.free <- int(s.request.Cookie % maxInFlight) // never full
		return
	}
	s.answer <- err
}

// reply takes one reply or one chunk of one. Errors end the link.
func (l *link) reply() error {
	if err := l.t.Need(4); err != nil {
		return err
	}
	size, err := nbdproto.ReplySize(l.t.Peek(4))
	if err != nil {
		return err
	}
	if err := l.t.Need(size); err != nil {
		return sockets.Unexpected(err)
	}
	var h nbdproto.ReplyHeader
	if err := h.Parse(l.t.Next(size)); err != nil {
		return err
	}
	s, dropped := l.begin(h.Cookie)
	if s == nil {
		return errors.New("nbd: reply to no request")
	}
	if h.Extended != (l.framing == nbdproto.Extended) || h.Structured != l.structured && (h.Structured || s.request.Type == nbdproto.CmdRead || s.request.Type == nbdproto.CmdBlockStatus) {
		return errors.New("nbd: reply of the wrong kind")
	}
	if h.Extended && h.Offset != s.request.Offset {
		return errors.New("nbd: reply with another offset")
	}
	if !h.Structured {
		h.Done = true
		err = l.simple(s, &h, dropped)
	} else {
		err = l.chunk(s, &h, dropped)
	}
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	s.filling = false
	if !h.Done {
		return nil
	}
	if s.gotError == nil {
		switch s.request.Type {
		case nbdproto.CmdRead:
			if !s.covered.whole(int64(s.request.Length)) {
				return errors.New("nbd: reply does not cover the read")
			}
		case nbdproto.CmdBlockStatus:
			if s.extent.n == 0 {
				return errors.New("nbd: block status without an extent")
			}
		}
	}
	l.finish(s, s.gotError)
	return nil
}

// begin finds the request of a cookie and keeps it from being given up.
func (l *link) begin(cookie uint64) (s *slot, dropped bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s = &l.slots[cookie%maxInFlight]
	if cookie == 0 || s.cookie != cookie {
		return nil, false
	}
	s.filling = true
	return s, s.dropped
}

func (l *link) simple(s *slot, h *nbdproto.ReplyHeader, dropped bool) error {
	if h.Error != nbdproto.OK {
		s.gotError = h.Error.System()
		return nil
	}
	if s.request.Type != nbdproto.CmdRead {
		return nil
	}
	s.covered.add(0, int64(s.request.Length))
	return l.take(s, 0, int64(s.request.Length), dropped)
}

// chunk takes one chunk of a structured reply.
func (l *link) chunk(s *slot, h *nbdproto.ReplyHeader, dropped bool) error {
	r := &s.request
	read := r.Type == nbdproto.CmdRead
	switch {
	case h.Type == nbdproto.ChunkNone:
		if h.Length != 0 || !h.Done {
			return errors.New("nbd: bad chunk of type none")
		}
		return nil
	case h.Type == nbdproto.ChunkOffsetData && read:
		if h.Length <= 8 {
			return errors.New("nbd: data chunk without data")
		}
		if err := l.t.Need(8); err != nil {
			return sockets.Unexpected(err)
		}
		off, err := s.place(nbdproto.ParseOffset(l.t.Next(8)), int64(h.Length)-8)
		if err != nil {
			return err
		}
		return l.take(s, off, int64(h.Length)-8, dropped)
	}
	if h.Length > maxSmallChunk {
		return errors.New("nbd: chunk is too long")
	}
	if err := l.t.Need(int(h.Length)); err != nil {
		return sockets.Unexpected(err)
	}
	b := l.t.Next(int(h.Length))
	switch {
	case h.Type.IsError():
		e, err := nbdproto.ParseErrorChunk(h.Type, b)
		if err != nil {
			return err
		}
		if e.Error == nbdproto.OK {
			return errors.New("nbd: error chunk without an error")
		}
		if s.gotError == nil {
			s.gotError = e.Error.System()
		}
		return nil
	case h.Type == nbdproto.ChunkOffsetHole && read:
		hole, err := nbdproto.ParseHole(b)
		if err != nil {
			return err
		}
		off, err := s.place(hole.Offset, int64(hole.Length))
		if err != nil {
			return err
		}
		if !dropped {
			s.data.Zero(off, int64(hole.Length))
		}
		return nil
	case h.Type == l.framing.StatusChunk() && r.Type == nbdproto.CmdBlockStatus:
		context, err := nbdproto.ParseExtents(b, l.framing, func(n, flags uint64) {
			if s.extent.n == 0 {
				// No context that is asked for has more flags than 32.
				s.extent = extent{int64(min(n, r.Length)), uint32(flags)}
			}
		})
		if err == nil && context != l.context {
			err = errors.New("nbd: block status of another context")
		}
		return err
	}
	return errors.New("nbd: unexpected chunk")
}

// maxSmallChunk is the longest chunk in bytes that is read as a whole: an error
// with its message, or a block status, of which one extent was asked for.
const maxSmallChunk = 16 << 10

// place turns an offset on the wire into one in the request's vector.
func (s *slot) place(off uint64, n int64) (int64, error) {
	r := &s.request
	if n == 0 || off < r.Offset || off-r.Offset > r.Length || uint64(n) > r.Length-(off-r.Offset) {
		return 0, errors.New("nbd: chunk lies outside the request")
	}
	at := int64(off - r.Offset)
	if !s.covered.add(at, n) {
		return 0, errors.New("nbd: chunks overlap")
	}
	return at, nil
}

// take reads n bytes into the request's vector at off.
func (l *link) take(s *slot, off, n int64, dropped bool) error {
	if dropped {
		return l.t.Skip(n)
	}
	for _, seg := range s.data.Segments() {
		if k := int64(len(seg)); off >= k {
			off -= k
			continue
		}
		part := seg[off:]
		if int64(len(part)) > n {
			part = part[:n]
		}
		if err := l.t.ReadFull(part); err != nil {
			return err
		}
		if n -= int64(len(part)); n == 0 {
			break
		}
		off = 0
	}
	return nil
}

// coverage is which bytes of a read have come. Servers answer in order, so that
// the list stays empty.
type coverage struct {
	next  int64 // all before it have come
	apart []span
}

type span struct{ off, end int64 }

func (c *coverage) reset() {
	c.next = 0
	c.apart = c.apart[:0]
}

// maxApart bounds the pieces that come out of order.
const maxApart = 1024

// add notes a piece; false when part of it has come before, or when there are
// too many pieces.
func (c *coverage) add(off, n int64) bool {
	end := off + n
	if off < c.next || len(c.apart) >= maxApart {
		return false
	}
	for _, s := range c.apart {
		if off < s.end && s.off < end {
			return false
		}
	}
	if off > c.next {
		c.apart = append(c.apart, span{off, end})
		return true
	}
	c.next = end
	for i := 0; i < len(c.apart); i++ {
		if s := c.apart[i]; s.off == c.next {
			c.next = s.end
			c.apart[i] = c.apart[len(c.apart)-1]
			c.apart = c.apart[:len(c.apart)-1]
			i = -1
		}
	}
	return true
}

func (c *coverage) whole(n int64) bool { return c.next == n && len(c.apart) == 0 }

// ordinaryEnd tells whether a link ended without a fault of the protocol.
func ordinaryEnd(err error) bool {
	var e syscall.Errno
	return sockets.Vanished(err) || errors.Is(err, net.ErrClosed) || errors.As(err, &e)
}
