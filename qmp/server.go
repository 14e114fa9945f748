package qmp

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"blockd/chardev"
	"blockd/clock"
	"blockd/qapi"
)

// acceptPause is the time between two attempts when no connection can be
// accepted, for want of descriptors for instance.
const acceptPause = 100 * time.Millisecond

// Config is what a Server needs from the program.
type Config struct {
	// Registry has every command; RegisterCommands adds this package's own.
	Registry *Registry
	// Chardevs are the devices of the monitors.
	Chardevs *chardev.Registry
	// Clock is the real clock, Pace the virtual one, on which the rate limits of
	// events run. nil Pace is Clock.
	Clock, Pace clock.Clock
	// Version is announced by greeting and query-version.
	Version qapi.VersionInfo
	// Quit is the command quit. It returns when everything whose events are to
	// precede the reply has ended; the reply and the end of the connection
	// follow. It may be called by several clients.
	Quit func(ctx context.Context) error
	// Hold has monitors take clients only from Start on, when the program's
	// set-up is complete.
	Hold bool
	// Backlog replaces MaxBacklog when it is not 0.
	Backlog int
}

// Server holds what the monitors share.
type Server struct {
	cfg    Config
	hub    *Hub
	fdsets *FdSets
	// requests counts the commands that have begun; see qapi.Origin.
	requests atomic.Uint64
	ran      func(command string, took time.Duration, err error) // nil: nobody is told

	life      context.Context // of the commands
	endLife   context.CancelFunc
	accepting context.Context // while clients are taken
	endAccept context.CancelFunc
	started   chan struct{} // closed when monitors may take clients
	startOnce sync.Once
	stopping  chan struct{} // closed when sessions are to end after the command they run

	mu       sync.Mutex
	closed   bool       // +checklocks:mu
	monitors []*Monitor // +checklocks:mu
	// visits are clients without a character device, with the commands that they
	// leave behind.
	visits sync.WaitGroup
}

// NewServer makes a server without monitors.
func NewServer(cfg Config) *Server {
	if cfg.Pace == nil {
		cfg.Pace = cfg.Clock
	}
	if cfg.Backlog == 0 {
		cfg.Backlog = MaxBacklog
	}
	s := &Server{cfg: cfg, hub: NewHub(cfg.Clock, cfg.Pace), fdsets: NewFdSets(), stopping: make(chan struct{})}
	s.life, s.endLife = context.WithCancel(context.Background())
	s.started = make(chan struct{})
	if !cfg.Hold {
		s.Start()
	}
	s.accepting, s.endAccept = context.WithCancel(s.life)
	return s
}

// Observe sets who is told of each registered command that has run, with its
// error; on the goroutine that ran it, before the client is answered. Before
// Start, under Config.Hold.
func (s *Server) Observe(ran func(command string, took time.Duration, err error)) { s.ran = ran }

// Start lets monitors take clients, under Config.Hold.
func (s *Server) Start() { s.startOnce.Do(func() { close(s.started) }) }

// errClosed is for clients that come too late.
var errClosed = qapi.Errorf("The monitor server is closed")

// ServeConn serves one client that no character device has brought, as a monitor
// of its own. peer says who it is, what it may do, and what bounds it besides
// this package's limits. It closes conn and returns when the session has ended;
// a command of a client that has left may then still run. Not before Start.
func (s *Server) ServeConn(conn chardev.Conn, peer qapi.SessionInfo) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		conn.Close()
		return errClosed
	}
	s.visits.Add(1)
	s.mu.Unlock()
	m := &Monitor{srv: s, peer: peer, slots: make(chan struct{}, 1)}
	m.slots <- struct{}{}
	s.fdsets.clientArrives()
	newSession(m, conn).serve()
	s.fdsets.clientLeaves()
	go func() {
		defer s.visits.Done()
		m.commands.Wait()
		m.fds.closeAll()
	}()
	return nil
}

// Hub is where events go.
func (s *Server) Hub() *Hub { return s.hub }

// FdSets are the sets that clients passed, for /dev/fdset/N as a file name.
func (s *Server) FdSets() *FdSets { return s.fdsets }

// Close ends all monitors: the commands that run end and are answered, what is
// queued is sent, the connections are closed. When ctx ends first, the context
// of the commands is cancelled, and Close still waits for them.
func (s *Server) Close(ctx context.Context) {
	s.mu.Lock()
	first := !s.closed
	s.closed = true
	monitors := s.monitors
	s.mu.Unlock()
	if first {
		s.endAccept()
		close(s.stopping)
	}
	defer context.AfterFunc(ctx, s.endLife)()
	for _, m := range monitors {
		m.close()
	}
	s.visits.Wait()
	s.endLife()
	s.fdsets.Close()
}
