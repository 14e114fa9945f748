package web

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/gorilla/websocket"

	"blockd/chardev"
	"blockd/clock"
	"blockd/qapi"
)

// This file carries QMP over WebSocket: what a client sends is fed to its
// session message by message, and each message of the session is a text message
// of its own.

const (
	// maxMessage is the most bytes of one message of a client.
	maxMessage = 1 << 20
	// maxSessions is how many sessions there may be, maxReaders how many of them
	// with the role read-only: the others are for who may have to act.
	maxSessions, maxReaders = 16, 12
	// stallTime is how long a client may leave a message unread.
	stallTime = 30 * time.Second
)

// messageRate is that of one session's messages, which frames of all kinds count
// as (frames.go). What exceeds it is read later.
var messageRate = rate{time.Second / 200, 1000}

// qmpHandler answers /qmp.
type qmpHandler struct {
	clock clock.Clock
	serve func(conn chardev.Conn, peer qapi.SessionInfo) error
	// tokens are what grants come from; nil: none.
	tokens *tokens
	// proxied says which pages may come besides the address's own.
	proxied proxied
	// secrets judge clients' certificates; nil: there are none.
	secrets *credentials
	// pace and stall are messageRate and stallTime, but in tests.
	pace  rate
	stall time.Duration

	sessions sync.WaitGroup

	mu     sync.Mutex
	closed bool              // +checklocks:mu
	live   map[*wsConn]grant // +checklocks:mu
	// +checklocks:mu
	taken, readers int // sessions, and handshakes under way; those that are read-only
}

// enter takes a place; false when there is none, or the server is closing.
func (h *qmpHandler) enter(role qapi.SessionRole) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	reads := role != qapi.SessionRoleControl
	if h.closed || h.taken == maxSessions || reads && h.readers == maxReaders {
		return false
	}
	h.taken++
	if reads {
		h.readers++
	}
	h.sessions.Add(1)
	return true
}

func (h *qmpHandler) leave(role qapi.SessionRole) {
	h.mu.Lock()
	h.taken--
	if role != qapi.SessionRoleControl {
		h.readers--
	}
	h.mu.Unlock()
	h.sessions.Done()
}

// reconsider ends the sessions whose tokens do not grant any more what they
// did, or whose certificates let nobody in any more.
func (h *qmpHandler) reconsider() {
	h.mu.Lock()
	live := maps.Clone(h.live)
	h.mu.Unlock()
	for c, g := range live {
		if !h.stands(c, g) {
			c.Close()
		}
	}
}

// stands tells whether a grant is still what its token says, and whether the
// certificate of its connection is still good.
func (h *qmpHandler) stands(c *wsConn, g grant) bool {
	if h.tokens != nil {
		if now, ok := h.tokens.find(g.token); !ok || now.role != g.role {
			return false
		}
	}
	return h.secrets.stands(c.tls)
}

// begin notes a connection, so that close and reconsider end it; false when it
// is over already, also if what it came by was taken away since it was shown.
func (h *qmpHandler) begin(c *wsConn, g grant) bool {
	h.mu.Lock()
	closed := h.closed
	if !closed {
		h.live[c] = g
	}
	h.mu.Unlock()
	return !closed && h.stands(c, g)
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
	g, p := grantFrom(r.Context()), peerFrom(r.Context())
	if !h.enter(g.role) {
		http.Error(w, "too many sessions", http.StatusServiceUnavailable)
		return
	}
	defer h.leave(g.role)
	// guard has checked the origin, too; both must fail for a page to get in.
	up := websocket.Upgrader{HandshakeTimeout: headerTime, CheckOrigin: h.proxied.admits, Subprotocols: []string{subprotocol}}
	c := &wsConn{tls: r.TLS, clock: h.clock, messages: newRates(h.clock, h.pace), stall: h.stall}
	c.life, c.end = context.WithCancel(context.Background())
	var err error
	if c.ws, err = up.Upgrade(&framed{w, c.await}, r, nil); err != nil {
		c.end()
		return // it is answered
	}
	c.ws.SetReadLimit(maxMessage)
	defer h.end(c)
	if !h.begin(c, g) {
		return
	}
	info := sessionInfo(g, p, r.TLS != nil)
	slog.Info("a session begins", "peer", p.text, "role", string(g.role), "name", g.name, "tls", info.TLS)
	_ = h.serve(c, info)
	slog.Info("a session has ended", "peer", p.text, "role", string(g.role), "name", g.name)
}

// sessionInfo is what x-query-session tells about a session.
func sessionInfo(g grant, p peer, secure bool) qapi.SessionInfo {
	message, stall := int64(maxMessage), int64(stallTime/time.Second)
	perSecond, burst := int64(time.Second/messageRate.interval), int64(messageRate.burst)
	info := qapi.SessionInfo{
		Role: g.role, Transport: qapi.SessionTransportWebsocket, Peer: p.text, UID: p.uid, TLS: secure,
		Limits: qapi.SessionLimits{Message: &message, Rate: &perSecond, Burst: &burst, Stall: &stall},
	}
	if g.name != "" {
		info.Name = &g.name
	}
	return info
}

// wsConn is a chardev.Conn over WebSocket.
//
//blockd:io
type wsConn struct {
	ws    *websocket.Conn
	tls   *tls.ConnectionState // nil: not encrypted
	clock clock.Clock
	life  context.Context // until Close
	end   context.CancelFunc
	stall time.Duration

	// Of the reader.
	messages *rates
	in       io.Reader // of the message that is being read, or nil
	gap      bool      // a line feed is due

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

// await returns when one more frame may be read, or with an error after Close.
func (c *wsConn) await() error {
	for wait := c.messages.take(""); wait > 0; wait = c.messages.take("") {
		if err := c.clock.Sleep(c.life, wait); err != nil {
			return err
		}
	}
	return nil
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
		_ = c.ws.SetWriteDeadline(c.clock.Now().Add(c.stall)) // it cannot fail
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
	c.end()
	c.mu.Lock()
	c.closed = true
	if c.timer != nil {
		c.timer.Stop()
		c.timer = nil
	}
	c.mu.Unlock()
	return c.ws.Close()
}
