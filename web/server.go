package web

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"blockd/chardev"
	"blockd/clock"
	"blockd/qapi"
	"blockd/sockets"
)

const (
	// maxConnections is how many clients there may be; the next is closed at once.
	maxConnections = 64
	// maxHeader is the most bytes of a request's header.
	maxHeader = 16 << 10
	// headerTime is how long a client may take to send one.
	headerTime = 5 * time.Second
	// answerTime is how long it may take to read an answer, from its header on.
	answerTime = 30 * time.Second
	// idleTime is how long a connection is kept between requests.
	idleTime = 60 * time.Second
	// closeTime is how long the end waits for answers under way.
	closeTime = 2 * time.Second
	// acceptPause is the time between two attempts when no connection can be
	// accepted, for want of descriptors for instance.
	acceptPause = 100 * time.Millisecond
)

// Config is what a Server serves.
type Config struct {
	// Clock is the real clock.
	Clock clock.Clock
	// Metrics answers /metrics.
	Metrics http.Handler
	// QMP serves a client's connection until its end, unless it returns an error
	// at once; nil: /qmp is not there, nor is it without Options.QMP.
	QMP func(conn chardev.Conn) error
}

// Server is the daemon's HTTP address.
type Server struct {
	l      *limited
	http   *http.Server
	qmp    *qmpHandler   // nil: not served
	served chan struct{} // closed when Serve has ended; nil before it began
}

// Listen opens the address. Nobody is answered before Serve. Errors are
// *qapi.Error.
func Listen(ctx context.Context, o Options, c Config) (*Server, error) {
	l, err := listen(ctx, o.Addr)
	if err != nil {
		return nil, err
	}
	s := &Server{l: &limited{Listener: l, clock: c.Clock, slots: make(chan struct{}, maxConnections), done: make(chan struct{})}}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", c.Metrics)
	if o.QMP != nil && *o.QMP && c.QMP != nil {
		s.qmp = &qmpHandler{clock: c.Clock, serve: c.QMP, live: map[*wsConn]struct{}{}}
		mux.Handle("GET /qmp", s.qmp)
	}
	unix := l.Bound.Type == qapi.SocketAddressTypeUnix
	s.http = &http.Server{
		Handler: &guard{unix, http.MaxBytesHandler(mux, 0)}, MaxHeaderBytes: maxHeader,
		ReadHeaderTimeout: headerTime, WriteTimeout: answerTime, IdleTimeout: idleTime,
		ErrorLog: slog.NewLogLogger(slog.Default().Handler(), slog.LevelDebug),
	}
	return s, nil
}

// Addr is where the server listens.
func (s *Server) Addr() net.Addr { return s.l.Addr() }

// Serve begins to answer. Once, and not after Close.
func (s *Server) Serve() {
	s.served = make(chan struct{})
	go func() {
		defer close(s.served)
		if err := s.http.Serve(s.l); !errors.Is(err, http.ErrServerClosed) {
			slog.Error("the web address is served no more", "error", err)
		}
	}()
}

// Close stops listening, waits a little for answers under way, and closes all
// connections. Sessions of QMP are cut off, unless they have ended before.
func (s *Server) Close(ctx context.Context) {
	defer s.l.Close()
	if s.served == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, closeTime)
	defer cancel()
	if s.http.Shutdown(ctx) != nil {
		_ = s.http.Close()
	}
	if s.qmp != nil {
		s.qmp.close()
	}
	<-s.served
}

// limited is a listener of which only so many connections are open at a time.
type limited struct {
	*sockets.Listener
	clock clock.Clock
	slots chan struct{}
	once  sync.Once
	done  chan struct{}
}

// Accept is net.Listener's. It fails only when the listener is closed.
func (l *limited) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			select {
			case <-l.done:
				return nil, net.ErrClosed
			default:
			}
			pause := l.clock.NewTimer(acceptPause)
			select {
			case <-l.done:
			case <-pause.C():
			}
			pause.Stop()
			continue
		}
		select {
		case l.slots <- struct{}{}:
			return &limitedConn{Conn: c, l: l}, nil
		default:
			c.Close()
		}
	}
}

// Close is net.Listener's.
func (l *limited) Close() error {
	var err error
	l.once.Do(func() {
		close(l.done)
		err = l.Listener.Close()
	})
	return err
}

// limitedConn gives its place back when it is closed.
type limitedConn struct {
	net.Conn
	l    *limited
	once sync.Once
}

// Close is net.Conn's.
func (c *limitedConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() { <-c.l.slots })
	return err
}
