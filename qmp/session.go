package qmp

import (
	"errors"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"blockd/chardev"
	"blockd/clock"
	"blockd/qapi"
)

// QueueLength is the number of requests that may wait behind the one that
// runs; then the session stops reading.
const QueueLength = 8

// readBytes is the size of a session's read buffer.
const readBytes = 16 << 10

// flushTime is how long the end of a session waits for the client to read what
// it still has to get.
const flushTime = 5 * time.Second

// Session is the conversation with one client.
type Session struct {
	mon  *Monitor
	conn chardev.Conn
	out  *output

	negotiated atomic.Bool
	oob        atomic.Bool

	queue chan *request
	gone  chan struct{} // closed when the client can get nothing any more
	drops sync.Once
	tasks sync.WaitGroup // closers that drop has started
	left  bool           // Hub.mu guards it: no event goes to it any more

	// Of the reader.
	arrived []*os.File // descriptors that the next request takes along

	// Of the dispatcher.
	passed  []*os.File // descriptors that nobody has claimed yet
	scratch []byte
	joining bool // the reply under way ends negotiation
	quit    bool // the reply under way is the last one
}

func newSession(m *Monitor, conn chardev.Conn) *Session {
	return &Session{
		mon: m, conn: conn, out: newOutput(m.srv.cfg.Backlog),
		queue: make(chan *request, QueueLength),
		gone:  make(chan struct{}),
	}
}

// serve talks to the client. It returns when the monitor may take the next
// one; commands of a client that has left may then still run, as commands of
// the monitor.
func (s *Session) serve() {
	slog.Debug("qmp_client")
	defer slog.Debug("qmp_client_gone")
	s.send(s.encode(&greetingMessage{QMP: greeting{
		Version: s.mon.srv.cfg.Version, Capabilities: []qapi.QMPCapability{qapi.QMPCapabilityOOB}}}))

	written := make(chan struct{})
	go func() {
		defer close(written)
		if s.out.run(s.conn) != nil {
			s.drop()
		}
	}()
	dispatched := make(chan struct{})
	s.mon.commands.Go(func() {
		defer func() { <-s.mon.slots }()
		s.dispatch(dispatched)
	})
	read := make(chan struct{})
	go func() {
		defer close(read)
		whole := s.read()
		close(s.queue)
		if !whole {
			s.drop()
		}
	}()

	select {
	case <-dispatched: // the input has ended and is answered, or there was a quit
	case <-s.gone:
	}
	_ = s.conn.SetWriteDeadline(s.mon.srv.cfg.Clock.Now().Add(flushTime))
	s.out.end(false)
	<-written
	s.mon.srv.hub.leave(s) // now, since Hub.Flush waits for what it still gets
	s.conn.Close()
	<-read
	s.tasks.Wait()
}

// drop gives the client up: nothing more is sent, and reading ends. It never
// waits and may be called by anyone, with Hub.mu held too.
//
//blockd:any
func (s *Session) drop() {
	s.drops.Do(func() {
		close(s.gone)
		s.out.end(true)
		s.tasks.Go(func() { s.conn.Close() })
	})
}

// read feeds the parser until the input ends. It reports false when the client
// has gone, and true when it may still read answers.
func (s *Session) read() bool {
	parser := qapi.NewParser()
	defer func() {
		chardev.CloseFiles(s.arrived)
		s.arrived = nil
	}()
	buf := make([]byte, readBytes)
	for {
		n, files, err := s.conn.Read(buf)
		if len(files) > 0 {
			chardev.CloseFiles(s.arrived)
			s.arrived = files
		}
		parser.Feed(buf[:n], s.received)
		if err != nil {
			return errors.Is(err, io.EOF) && !s.conn.HungUp()
		}
		select {
		case <-s.gone:
			return false
		default:
		}
	}
}

// received takes one message from the parser.
func (s *Session) received(v any, err error) {
	q := &request{err: qapi.AsError(err)}
	oob := s.oob.Load()
	if err == nil {
		q = parseRequest(v, oob)
	}
	q.files, s.arrived = s.arrived, nil
	if oob && isOOB(v) {
		// Out of band: beside whatever the dispatcher runs.
		ret, err := s.execute(q, &q.files)
		s.send(appendMessage(nil, s.mon.pretty, q.answer(ret, err)))
		s.arrived = q.files
		return
	}
	select {
	case s.queue <- q:
	case <-s.gone:
		chardev.CloseFiles(q.files)
	}
}

// dispatch runs the requests in order. It closes done when nothing more will be
// answered.
func (s *Session) dispatch(done chan<- struct{}) {
	defer func() { chardev.CloseFiles(s.passed) }()
	for !s.quit {
		var q *request
		select {
		case <-s.mon.srv.stopping:
		case q = <-s.queue:
		}
		if q == nil {
			break
		}
		if len(q.files) > 0 {
			chardev.CloseFiles(s.passed)
			s.passed = q.files
		}
		ret, err := s.execute(q, &s.passed)
		msg := s.encode(q.answer(ret, err))
		if s.joining {
			s.joining = false
			s.mon.srv.hub.join(s, msg)
		} else {
			s.send(msg)
		}
	}
	close(done)
	for q := range s.queue {
		chardev.CloseFiles(q.files)
	}
}

// execute runs one request and returns what to answer. files are the
// descriptors that it may claim.
func (s *Session) execute(q *request, files *[]*os.File) (any, error) {
	if q.err != nil {
		return nil, q.err
	}
	negotiated := s.negotiated.Load()
	if !negotiated && q.command != "qmp_capabilities" {
		return nil, qapi.ClassErrorf(qapi.CommandNotFound, "Expecting capabilities negotiation with 'qmp_capabilities'")
	}
	c := s.mon.srv.cfg.Registry.byName[q.command]
	if c == nil {
		return nil, qapi.ClassErrorf(qapi.CommandNotFound, "The command %s has not been found", q.command)
	}
	if q.oob && !c.opts.AllowOOB {
		return nil, qapi.Errorf("The command %s does not support OOB", q.command)
	}
	if err := s.allows(c); err != nil {
		return nil, err
	}
	srv := s.mon.srv
	ctx := qapi.WithOrigin(srv.life, qapi.Origin{Command: q.command, ID: q.id, HasID: q.hasID, Request: srv.requests.Add(1)})
	run := &Context{Context: ctx, s: s, files: files}
	traced := slog.Default().Enabled(ctx, slog.LevelDebug)
	if srv.ran == nil && !traced {
		return c.run(run, q.args)
	}
	if traced {
		slog.DebugContext(ctx, "qmp_command", "command", c.name, "id", idText(q))
	}
	began := srv.cfg.Clock.Now()
	ret, err := c.run(run, q.args)
	took := clock.Since(srv.cfg.Clock, began)
	if srv.ran != nil {
		srv.ran(c.name, took, err)
	}
	if traced {
		class := ""
		if err != nil {
			class = string(qapi.AsError(err).Class)
		}
		slog.DebugContext(ctx, "qmp_done", "command", c.name, "seconds", took.Seconds(), "error", class)
	}
	return ret, err
}

// maxTracedID is the longest id of a client that the log shows, in bytes.
const maxTracedID = 128

// idText returns a request's id as JSON, or "".
func idText(q *request) string {
	if !q.hasID {
		return ""
	}
	text := qapi.AppendJSON(nil, q.id)
	return string(text[:min(len(text), maxTracedID)])
}

// negotiate is the command qmp_capabilities.
func (s *Session) negotiate(enable []qapi.QMPCapability) error {
	if s.negotiated.Load() {
		return qapi.ClassErrorf(qapi.CommandNotFound, "Capabilities negotiation is already complete, command ignored")
	}
	for _, c := range enable {
		if c == qapi.QMPCapabilityOOB {
			s.oob.Store(true)
		}
	}
	s.negotiated.Store(true)
	s.joining = true
	return nil
}

// encode uses the dispatcher's buffer: the result is valid until the next call.
func (s *Session) encode(m any) []byte {
	msg := appendMessage(s.scratch[:0], s.mon.pretty, m)
	if cap(msg) <= outputKeepBytes {
		s.scratch = msg
	} else {
		s.scratch = nil
	}
	return msg
}

func (s *Session) send(msg []byte) {
	if !s.out.append(msg) {
		s.drop()
	}
}
