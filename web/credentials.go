package web

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"path/filepath"
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

// reload reads the files again. When that fails, those that were read before
// stay.
func (s *credentials) reload() {
	t, err := s.load()
	if err == nil && (t.ClientAuth != tls.NoClientCert) != s.asks {
		err = errors.New("they ask clients for certificates otherwise than before")
	}
	if err != nil {
		slog.Error("the web address keeps its credentials", "error", err)
		return
	}
	s.current.Store(t)
}
