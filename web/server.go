package web

import (
	"context"
	"crypto/tls"
	"encoding/json"
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
	// maxConnections is how many connections there may be, and maxPerClient how
	// many of one client; the next is closed at once.
	maxConnections, maxPerClient = 64, 32
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
	// watchTime is the time between two looks at the token file and at the list of
	// revoked certificates, so that what was taken away ends its sessions.
	watchTime = 2 * time.Second
	// acceptPause is the time between two attempts when no connection can be
	// accepted, for want of descriptors for instance.
	acceptPause = 100 * time.Millisecond
)

// Config is what a Server serves.
type Config struct {
	// Clock is the real clock.
	Clock clock.Clock
	// Access says who else than this user may use a unix socket.
	Access sockets.Access
	// Metrics answers /metrics.
	Metrics http.Handler
	// Page answers / and what is below; nil: nothing is there. It needs no token:
	// it is to tell nothing about this daemon. It sets the security policy that its
	// pages need.
	Page http.Handler
	// QMP serves a client's connection until its end, unless it returns an error
	// at once; nil: /qmp is not there, nor is it without Options.QMP.
	QMP func(conn chardev.Conn, peer qapi.SessionInfo) error
	// TLS returns the configuration for an object's credentials, which asks the
	// object authz, unless "", about every client; nil: there are no objects.
	TLS func(creds, authz string) (*tls.Config, error)
	// Authorised asks the object authz about a name; nil: there are no objects.
	Authorised func(authz, name string) (bool, error)
}

// Server is the daemon's HTTP address.
type Server struct {
	l       *limited
	http    *http.Server
	login   *login
	secrets *credentials // nil: no TLS
	qmp     *qmpHandler  // nil: not served
	clock   clock.Clock

	served  chan struct{}      // closed when Serve has ended; nil before it began
	unwatch context.CancelFunc // ends the watcher
	watched sync.WaitGroup
}

// Listen opens the address. Nobody is answered before Serve. Errors are
// *qapi.Error.
func Listen(ctx context.Context, o Options, c Config) (*Server, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	s := &Server{clock: c.Clock, login: &login{
		role: qapi.SessionRoleControl, requests: newRates(c.Clock, requestRate), failures: newRates(c.Clock, failureRate),
	}}
	if o.Role != nil {
		s.login.role = *o.Role
	}
	var err error
	if o.TokenFile != nil {
		if s.login.tokens, err = loadTokens(*o.TokenFile); err != nil {
			return nil, err
		}
	}
	if s.secrets, err = newCredentials(&o, &c); err != nil {
		return nil, err
	}
	proven := s.login.tokens != nil || s.secrets != nil && s.secrets.asks
	if (o.Host != nil || o.Origin != nil) && !proven {
		return nil, qapi.Errorf("Parameters 'host' and 'origin' require that clients show tokens or certificates")
	}
	known := s.secrets != nil && proven
	l, err := listen(ctx, o.Addr, known, c.Access)
	if err != nil {
		return nil, err
	}
	s.l = newLimited(l, c.Clock, maxConnections, maxPerClient)
	s.login.refresh = func() { s.reread(byClient) }
	s.http = &http.Server{
		Handler:        s.handler(&o, &c, l.Bound.Type == qapi.SocketAddressTypeUnix),
		MaxHeaderBytes: maxHeader, ConnContext: withPeer,
		ReadHeaderTimeout: headerTime, WriteTimeout: answerTime, IdleTimeout: idleTime,
		DisableGeneralOptionsHandler: true, // guard sees every request
		ErrorLog:                     slog.NewLogLogger(slog.Default().Handler(), slog.LevelDebug),
	}
	return s, nil
}

// handler is what answers: each place with the role that it needs.
func (s *Server) handler(o *Options, c *Config, unix bool) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", s.login.need(qapi.SessionRoleReadOnly, c.Metrics))
	if o.Pprof != nil && *o.Pprof {
		mux.Handle("GET /debug/pprof/", s.login.need(qapi.SessionRoleControl, profiles()))
	}
	mux.Handle("GET /session", s.login.need(qapi.SessionRoleReadOnly, http.HandlerFunc(tellSession)))
	if o.QMP != nil && *o.QMP && c.QMP != nil {
		s.qmp = &qmpHandler{clock: c.Clock, serve: c.QMP, tokens: s.login.tokens, secrets: s.secrets, proxied: newProxied(o), pace: messageRate, stall: stallTime, live: map[*wsConn]grant{}}
		mux.Handle("GET /qmp", s.login.need(qapi.SessionRoleReadOnly, s.qmp))
		if c.Page != nil {
			mux.Handle("GET /", c.Page)
		}
	}
	g := &guard{unix: unix, proxied: newProxied(o), requests: s.login.requests, next: mux}
	if s.secrets != nil {
		g.own, g.stands = s.secrets.own, s.secrets.stands
	}
	return g
}

// tellSession answers /session: what a client may do, for a page that cannot
// learn from a WebSocket why it was refused.
func tellSession(w http.ResponseWriter, r *http.Request) {
	g := grantFrom(r.Context())
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]string{"role": string(g.role), "name": g.name, "peer": peerFrom(r.Context()).text})
}

// Addr is where the server listens.
func (s *Server) Addr() net.Addr { return s.l.Addr() }

// Serve begins to answer. Once, and not after Close.
func (s *Server) Serve() {
	s.served = make(chan struct{})
	var l net.Listener = s.l
	if s.secrets != nil {
		l = tls.NewListener(l, s.secrets.config())
	}
	go func() {
		defer close(s.served)
		if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			slog.Error("the web address is served no more", "error", err)
		}
	}()
	var ctx context.Context
	ctx, s.unwatch = context.WithCancel(context.Background())
	proofs := s.secrets != nil && s.secrets.asks
	if s.login.tokens == nil && !proofs {
		return
	}
	s.watched.Go(func() {
		for s.clock.Sleep(ctx, watchTime) == nil {
			if s.login.tokens != nil {
				s.reread(byWatcher)
			}
			if proofs {
				s.secrets.look()
				s.reconsider() // certificates expire by themselves
			}
		}
	})
}

// reconsider ends the sessions that would not begin any more.
func (s *Server) reconsider() {
	if s.qmp != nil {
		s.qmp.reconsider()
	}
}

// reread has the token file looked at, and ends the sessions whose token does not
// say any more what it said.
func (s *Server) reread(why asked) {
	if s.login.tokens.refresh(why) {
		s.reconsider()
	}
}

// Reload reads tokens and credentials again. Any goroutine.
func (s *Server) Reload() {
	if s.login.tokens != nil {
		s.reread(byOperator)
	}
	if s.secrets != nil {
		if err := s.secrets.reload(); err != nil {
			slog.Error("the web address keeps its credentials", "error", err)
		}
		s.reconsider()
	}
}

// Close stops listening, waits a little for answers under way, and closes all
// connections. Sessions of QMP are cut off, unless they have ended before.
func (s *Server) Close(ctx context.Context) {
	defer s.l.Close()
	if s.served == nil {
		return
	}
	s.unwatch()
	s.watched.Wait()
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
