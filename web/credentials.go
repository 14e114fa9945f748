package web

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"

	"blockd/clock"
	"blockd/qapi"
	"blockd/sockets"
	"blockd/tlscreds"
)

// credentials are those of the address, when it has TLS.
type credentials struct {
	load    func() (*tls.Config, error)
	current atomic.Pointer[tls.Config]
	// asks: clients have to show a certificate.
	asks bool
	// list is the file of what was revoked, "" for an object's, which is read once.
	list string

	mu sync.Mutex
	// +checklocks:mu
	begun, taken uint64 // loads so far, and the one that current is from

	// Of the watcher.
	loaded, seen fileState // of list: as it was read, and at the last look
	failed       string    // what went wrong at the last look
}

// newCredentials loads what the options name; nil when they name nothing.
// Errors are *qapi.Error.
func newCredentials(o *Options, c *Config) (*credentials, error) {
	authz := ""
	if o.TLSAuthz != nil {
		authz = *o.TLSAuthz
	}
	s := &credentials{}
	switch {
	case o.TLSCreds != nil:
		s.load = func() (*tls.Config, error) { return c.TLS(*o.TLSCreds, authz) }
	case o.TLSDir != nil:
		dir := *o.TLSDir
		if abs, err := filepath.Abs(dir); err == nil && dir != "" {
			dir = abs // the daemon may change its directory meanwhile
		}
		s.load = func() (*tls.Config, error) { return fromDirectory(dir, o, c, authz) }
		s.list = filepath.Join(dir, tlscreds.RevocationFile)
		s.loaded = stateOfFile(s.list)
		s.seen = s.loaded
	default:
		return nil, nil
	}
	t, err := s.load()
	if err != nil {
		return nil, err
	}
	s.asks = t.ClientAuth != tls.NoClientCert
	if authz != "" && !s.asks {
		return nil, qapi.Errorf("Parameter 'tls-authz' requires that clients show certificates")
	}
	s.current.Store(t)
	return s, nil
}

func fromDirectory(dir string, o *Options, c *Config, authz string) (*tls.Config, error) {
	loaded, err := tlscreds.Load(tlscreds.Options{
		Dir: dir, Server: true, VerifyPeer: o.TLSVerifyPeer == nil || *o.TLSVerifyPeer,
		SanityCheck: true, Now: clock.Real().Now,
	})
	var access *tlscreds.AccessError
	switch {
	case errors.As(err, &access):
		return nil, qapi.Errorf("Unable to access credentials %s: %s", access.Path, sockets.Reason(access.Errno))
	case err != nil:
		return nil, err
	case authz == "":
		return loaded.ServerConfig(nil)
	}
	return loaded.ServerConfig(func(name string) (bool, error) { return c.Authorised(authz, name) })
}

// config is what connections begin with: each takes the credentials of its
// time.
func (s *credentials) config() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			t := s.current.Load().Clone()
			t.NextProtos = []string{"http/1.1"} // WebSocket needs it
			return t, nil
		},
	}
}

// own is the certificate that the server shows.
func (s *credentials) own() *x509.Certificate { return s.current.Load().Certificates[0].Leaf }

// look reads the files again when the list of what was revoked has changed. One
// that is gone may be about to be written anew, so that counts when two looks in a
// row find it so. Of the watcher.
func (s *credentials) look() {
	if s.list == "" {
		return
	}
	now, before := stateOfFile(s.list), s.seen
	s.seen = now
	if now == s.loaded || now.failed && !before.failed {
		return
	}
	if err := s.reload(); err != nil { // the next look tries again
		if err.Error() != s.failed {
			slog.Error("the web address keeps its credentials", "error", err)
		}
		s.failed = err.Error()
		return
	}
	s.loaded, s.failed = now, ""
}

// stands tells whether a client that has come by a certificate would come by it
// now: it was not revoked, did not expire, and its name is still authorised. It
// may ask an object.
func (s *credentials) stands(c *tls.ConnectionState) bool {
	if s == nil || c == nil {
		return true
	}
	verify := s.current.Load().VerifyConnection
	return verify == nil || verify(*c) == nil
}

// reload reads the files again. When that fails, those that were read before
// stay; so do those whose reading began later.
func (s *credentials) reload() error {
	s.mu.Lock()
	s.begun++
	number := s.begun
	s.mu.Unlock()
	t, err := s.load()
	if err == nil && (t.ClientAuth != tls.NoClientCert) != s.asks {
		err = errors.New("they ask clients for certificates otherwise than before")
	}
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if number > s.taken {
		s.taken = number
		s.current.Store(t)
	}
	return nil
}
