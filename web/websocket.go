package web

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/gorilla/websocket"

	"blockd/chardev"
	"blockd/clock"
)

// This file carries QMP over WebSocket: what a client sends is fed to its
// session message by message, and each message of the session is a text message
// of its own.

const (
	// maxMessage is the most bytes of one message of a client.
	maxMessage = 1 << 20
	// maxSessions is how many sessions there may be.
	maxSessions = 16
)

// qmpHandler answers /qmp.
type qmpHandler struct {
	clock clock.Clock
	serve func(conn chardev.Conn) error

	sessions sync.WaitGroup

	mu     sync.Mutex
	closed bool                 // +checklocks:mu
	live   map[*wsConn]struct{} // +checklocks:mu
	// +checklocks:mu
	taken int // sessions, and handshakes under way
}

// enter takes a place; false when there is none, or the server is closing.
func (h *qmpHandler) enter() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed || h.taken == maxSessions {
		return false
	}
	h.taken++
	h.sessions.Add(1)
	return true
}

func (h *qmpHandler) leave() {
	h.mu.Lock()
	h.taken--
	h.mu.Unlock()
	h.sessions.Done()
}

// begin notes a connection, so that close ends it; false when that is over.
func (h *qmpHandler) begin(c *wsConn) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return false
	}
	h.live[c] = struct{}{}
	return true
}

func (h *qmpHandler) end(c *wsConn) {
	h.mu.Lock()
	delete(h.live, c)
	h.mu.Unlock()
	c.Close()
}

// close disconnects whoever is left, and waits for the handlers.
func (h *qmpHandler) close() {
	h.mu.Lock()
	h.closed = true
	left := slices.Collect(maps.Keys(h.live))
	h.mu.Unlock()
	for _, c := range left {
		c.Close()
	}
	h.sessions.Wait()
}

// ServeHTTP is http.Handler's. It returns when the session has ended.
func (h *qmpHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !h.enter() {
		http.Error(w, "too many sessions", http.StatusServiceUnavailable)
		return
	}
	defer h.leave()
	// guard has checked the origin, too; both must fail for a page to get in.
	up := websocket.Upgrader{HandshakeTimeout: headerTime, CheckOrigin: sameOrigin}
	ws, err := up.Upgrade(w, r, nil)
	if err != nil {
		return // it is answered
	}
	ws.SetReadLimit(maxMessage)
	c := &wsConn{ws: ws, clock: h.clock}
	defer h.end(c)
	if h.begin(c) {
		_ = h.serve(c)
	}
}

// wsConn is a chardev.Conn over WebSocket.
//
//blockd:io
type wsConn struct {
	ws    *websocket.Conn
	clock clock.Clock

	// Of the reader.
	in  io.Reader // of the message that is being read, or nil
	gap bool      // a line feed is due

	mu     sync.Mutex  //blockd:short
	timer  clock.Timer // +checklocks:mu
	closed bool        // +checklocks:mu
	late   bool        // +checklocks:mu
}

// Read is chardev.Conn's. A line feed stands between messages, so that what
// begins one is never taken for the rest of the one before.
func (c *wsConn) Read(p []byte) (int, []*os.File, error) {
	for {
		if c.gap {
			c.gap = false
			p[0] = '\n'
			return 1, nil, nil
		}
		if c.in == nil {
			kind, r, err := c.ws.NextReader()
			if err != nil {
				return 0, nil, ended(err)
			}
			if kind != websocket.TextMessage {
				return 0, nil, errBinary
			}
			c.in = r
		}
		n, err := c.in.Read(p)
		if err == io.EOF {
			c.in, c.gap, err = nil, true, nil
		}
		if n > 0 || err != nil {
			return n, nil, ended(err)
		}
	}
}

// ended returns io.EOF for a client that has said that it leaves.
//
//blockd:io
func ended(err error) error {
	if websocket.IsCloseError(err, websocket.CloseNormalClosure, websocket.CloseGoingAway, websocket.CloseNoStatusReceived) {
		return io.EOF
	}
	return err
}

// errBinary ends the session of a client that sends what is no text.
var errBinary = errors.New("a message is not text")

// Write is chardev.Conn's. p is whole lines, each a message.
func (c *wsConn) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		line, rest, _ := bytes.Cut(p[done:], []byte("\n"))
		if err := c.ws.WriteMessage(websocket.TextMessage, bytes.TrimSuffix(line, []byte("\r"))); err != nil {
			if c.isLate() {
				err = os.ErrDeadlineExceeded
			}
			return done, err
		}
		done = len(p) - len(rest)
	}
	return done, nil
}

// SetWriteDeadline is chardev.Conn's. The library sets the deadline of its own
// for each message, so the connection is closed when time is up.
func (c *wsConn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.timer != nil {
		c.timer.Stop()
		c.timer = nil
	}
	if !t.IsZero() && !c.closed {
		c.timer = c.clock.AfterFunc(clock.Until(c.clock, t), c.expire)
	}
	return nil
}

// expire is what the deadline does.
func (c *wsConn) expire() {
	c.mu.Lock()
	c.late = true
	c.mu.Unlock()
	_ = c.ws.NetConn().Close()
}

func (c *wsConn) isLate() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.late
}

// HungUp is chardev.Conn's: a client cannot end its side alone.
func (c *wsConn) HungUp() bool { return true }

// Close is chardev.Conn's.
func (c *wsConn) Close() error {
	c.mu.Lock()
	c.closed = true
	if c.timer != nil {
		c.timer.Stop()
		c.timer = nil
	}
	c.mu.Unlock()
	return c.ws.Close()
}
