package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"blockd/clock"
	"blockd/qapi"
	"blockd/sockets"
)

const (
	// DefaultMaxConnections and DefaultHandshakeSeconds are the field's.
	DefaultMaxConnections   = 100
	DefaultHandshakeSeconds = 10

	// acceptPause is the wait after an accept that failed for want of
	// descriptors or memory.
	acceptPause = 100 * time.Millisecond
)

// Config is how a server deals with clients.
type Config struct {
	// Clock is the real clock.
	Clock clock.Clock
	// Log takes notes about connections; nil: the default logger.
	Log *slog.Logger
	// Ready is closed when clients may be taken, who wait in the backlog until
	// then; nil: at once.
	Ready <-chan struct{}
	// Secure, unless nil, has every client use TLS, with this configuration.
	Secure *tls.Config
	// MaxConnections is how many clients are served at once; 0: no limit.
	// Further ones wait in the listener's backlog.
	MaxConnections uint32
	// HandshakeMax is how long a client may take to choose an export; 0: no
	// limit.
	HandshakeMax time.Duration
}

// Server serves exports to NBD clients.
type Server struct {
	clock          clock.Clock
	log            *slog.Logger
	ready          <-chan struct{}
	maxConnections uint32
	handshakeMax   time.Duration
	secure         *tls.Config // nil: in the clear

	ctx       context.Context // ends with the server
	cancel    context.CancelFunc
	listeners []net.Listener
	slots     chan struct{} // one token per client; nil: no limit
	wg        sync.WaitGroup
	clients   atomic.Uint64 // that there have been
	workers   *workers
	watchdog  *watchdog
	memory    *memory

	mu    sync.Mutex         //blockd:short
	conns map[*conn]struct{} // +checklocks:mu
	// +checklocks:mu
	exports []*Export // in the order of addition
	closed  bool      // +checklocks:mu
}

// NewServer starts a server on listeners, which it owns from here on.
func NewServer(cfg Config, listeners ...net.Listener) *Server {
	s := &Server{
		clock: cfg.Clock, log: cfg.Log, ready: cfg.Ready, maxConnections: cfg.MaxConnections, handshakeMax: cfg.HandshakeMax, secure: cfg.Secure,
		listeners: listeners, conns: map[*conn]struct{}{},
		workers: newWorkers(), watchdog: newWatchdog(cfg.Clock), memory: newMemory(memoryShare),
	}
	if s.log == nil {
		s.log = slog.Default()
	}
	if cfg.MaxConnections > 0 {
		s.slots = make(chan struct{}, cfg.MaxConnections)
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.wg.Go(func() { s.watchdog.run(s.ctx) })
	s.wg.Go(func() { s.guard(s.ctx) })
	for _, l := range listeners {
		s.wg.Go(func() { s.accept(l) })
	}
	return s
}

// MaxConnections returns the limit, 0 for none.
func (s *Server) MaxConnections() uint32 { return s.maxConnections }

// Connections returns how many clients there are.
func (s *Server) Connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

// Addrs returns the addresses that the server listens on.
func (s *Server) Addrs() []net.Addr {
	addrs := make([]net.Addr, len(s.listeners))
	for i, l := range s.listeners {
		addrs[i] = l.Addr()
	}
	return addrs
}

// LeaveFiles has Close leave the files of unix sockets.
func (s *Server) LeaveFiles() {
	for _, l := range s.listeners {
		if l, ok := l.(*sockets.Listener); ok {
			l.LeaveFile()
		}
	}
}

// Close stops listening, closes every export and connection, and returns when
// no request is in flight.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	exports := slices.Clone(s.exports)
	s.mu.Unlock()
	s.cancel()
	for _, l := range s.listeners {
		l.Close()
	}
	for _, e := range exports {
		e.Close()
	}
	for _, c := range s.connections() {
		c.close()
	}
	s.wg.Wait()
	s.workers.close()
}

// AddExport offers an export from now on. The errors are those of names that
// are too long or taken, with the field's texts.
//
//blockd:any
func (s *Server) AddExport(cfg *ExportConfig) (*Export, error) {
	if err := cfg.CheckNames(); err != nil {
		return nil, err
	}
	e := newExport(s, cfg)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, qapi.Errorf("NBD server not running")
	}
	if s.findLocked(e.name) != nil {
		return nil, qapi.Errorf("NBD server already has export named '%s'", e.name)
	}
	s.exports = append(s.exports, e)
	return e, nil
}

// HasExport tells whether the name is taken.
func (s *Server) HasExport(name string) bool { return s.find(name) != nil }

func (s *Server) find(name string) *Export {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.findLocked(name)
}

// +checklocks:s.mu
func (s *Server) findLocked(name string) *Export {
	for _, e := range s.exports {
		if e.name == name {
			return e
		}
	}
	return nil
}

func (s *Server) exportList() []*Export {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.exports)
}

func (s *Server) forget(e *Export) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.exports = slices.DeleteFunc(s.exports, func(x *Export) bool { return x == e })
}

func (s *Server) connections() []*conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	conns := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		conns = append(conns, c)
	}
	return conns
}

// accept takes clients from one listener, as long as there are slots.
func (s *Server) accept(l net.Listener) {
	if s.ready != nil {
		select {
		case <-s.ready:
		case <-s.ctx.Done():
			return
		}
	}
	failing := false
	for {
		nc, err := l.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) || s.ctx.Err() != nil {
				return
			}
			if !failing {
				s.log.Warn("NBD server cannot accept a client", "error", err)
			}
			failing = true
			if s.clock.Sleep(s.ctx, acceptPause) != nil {
				return
			}
			continue
		}
		failing = false
		if s.slots != nil {
			select {
			case s.slots <- struct{}{}:
			case <-s.ctx.Done():
				nc.Close()
				return
			}
		}
		if !s.enter(nc) {
			return
		}
	}
}

// enter begins a connection; false when the server is closing.
func (s *Server) enter(nc net.Conn) bool {
	tuneSocket(nc)
	c := newConn(s, nc)
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		c.cancel()
		nc.Close()
		return false
	}
	s.conns[c] = struct{}{}
	s.wg.Add(1)
	s.mu.Unlock()
	go s.connection(c)
	return true
}

// connection is a client's first goroutine: the handshake, then the reader.
func (s *Server) connection(c *conn) {
	var timer clock.Timer
	if s.handshakeMax > 0 {
		timer = s.clock.AfterFunc(s.handshakeMax, c.close)
	}
	c.traceClient()
	err := c.handshake()
	if timer != nil {
		timer.Stop()
	}
	if err != nil {
		if !errors.Is(err, errAbort) {
			s.logEnd(c, err)
		}
		c.traceGone(err)
		c.hangUp()
		return
	}
	c.traceNegotiated()
	c.serve()
}

// leave is the end of a connection of which nothing is left.
func (s *Server) leave(c *conn) {
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
	if s.slots != nil {
		<-s.slots
	}
	s.wg.Done()
}

func (s *Server) logEnd(c *conn, err error) {
	if sockets.Vanished(err) || c.ctx.Err() != nil {
		return
	}
	s.log.Info("NBD client disconnected", "reason", err)
}
