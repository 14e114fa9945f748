package web

import (
	"crypto/tls"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gorilla/websocket"

	"blockd/chardev"
	"blockd/clock"
	"blockd/qapi"
	"blockd/tlscreds"
	"blockd/tlscreds/tlstest"
)

func authority(t *testing.T) *tlstest.Authority { return tlstest.NewAuthority(t, nil) }

// clientConfig is that of a client with the credentials of dir, for localhost.
func clientConfig(t *testing.T, dir string) *tls.Config {
	t.Helper()
	return clientConfigFor(t, dir, "localhost")
}

func clientConfigFor(t *testing.T, dir, host string) *tls.Config {
	t.Helper()
	c, err := tlscreds.Load(tlscreds.Options{Dir: dir, VerifyPeer: true, Now: clock.Real().Now})
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := c.ClientConfig(host)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// withoutCertificate is a client's directory without a certificate.
func withoutCertificate(t *testing.T, dir string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "ca-cert.pem"))
	if err != nil {
		t.Fatal(err)
	}
	bare := t.TempDir()
	if err := os.WriteFile(filepath.Join(bare, "ca-cert.pem"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	return bare
}

// get asks for a path over TLS; 0: there was no answer.
func get(s *Server, cfg *tls.Config, path, token string) int {
	return getFrom(s, "localhost", cfg, path, token)
}

// getFrom is get of a server that the request calls by that name.
func getFrom(s *Server, host string, cfg *tls.Config, path, token string) int {
	transport := &http.Transport{TLSClientConfig: cfg}
	defer transport.CloseIdleConnections()
	_, port, _ := strings.Cut(s.Addr().String(), ":")
	r, err := http.NewRequest("GET", "https://localhost:"+port+path, nil)
	if err != nil {
		return 0
	}
	r.Host = host + ":" + port
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	answer, err := transport.RoundTrip(r)
	if err != nil {
		return 0
	}
	answer.Body.Close()
	return answer.StatusCode
}

// TestOtherMachinesNeedEncryptionAndProof holds that an address that others
// reach is served only with TLS, and with tokens or certificates.
func TestOtherMachinesNeedEncryptionAndProof(t *testing.T) {
	dir, path := authority(t).Dir("localhost", nil), tokenFile(t, usual()...)
	yes, no := true, false
	for name, c := range map[string]struct {
		o  Options
		ok bool
	}{
		"nothing":                      {Options{}, false},
		"tokens":                       {Options{TokenFile: &path}, false},
		"TLS":                          {Options{TLSDir: &dir, TLSVerifyPeer: &no}, false},
		"TLS and certificates":         {Options{TLSDir: &dir}, true},
		"TLS and certificates, said":   {Options{TLSDir: &dir, TLSVerifyPeer: &yes}, true},
		"TLS and tokens":               {Options{TLSDir: &dir, TLSVerifyPeer: &no, TokenFile: &path}, true},
		"TLS, certificates and tokens": {Options{TLSDir: &dir, TokenFile: &path}, true},
	} {
		c.o.Addr = "0.0.0.0:0"
		s, err := Listen(t.Context(), c.o, Config{Clock: clock.Real(), Metrics: metrics})
		if err == nil {
			s.Close(t.Context())
		}
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestOptionsThatDoNotGoTogether(t *testing.T) {
	for arg, want := range map[string]string{
		"127.0.0.1:0,tls-creds=c,tls-dir=/d":         "Parameters 'tls-creds' and 'tls-dir' exclude each other",
		"127.0.0.1:0,tls-verify-peer=off":            "Parameter 'tls-verify-peer' requires 'tls-dir'",
		"127.0.0.1:0,tls-authz=a":                    "Parameter 'tls-authz' requires 'tls-creds' or 'tls-dir'",
		"127.0.0.1:0,role=read-only,token-file=/f":   "Parameters 'role' and 'token-file' exclude each other",
		"127.0.0.1:0,role=admin":                     "Parameter 'role' does not accept value 'admin'",
		"127.0.0.1:0,token=secret":                   "Parameter 'token' is unexpected",
		"127.0.0.1:0,tls-dir=/nonexistent":           "Unable to access credentials /nonexistent/ca-cert.pem: No such file or directory",
		"127.0.0.1:0,tls-creds=none":                 "No TLS credentials with id 'none'",
		"127.0.0.1:0,token-file=/nonexistent/tokens": "Token file '/nonexistent/tokens': No such file or directory",
	} {
		o, err := ParseOption(arg)
		if err == nil {
			var s *Server
			if s, err = Listen(t.Context(), o, Config{Clock: clock.Real(), Metrics: metrics, TLS: func(creds, _ string) (*tls.Config, error) {
				return nil, qapi.Errorf("No TLS credentials with id '%s'", creds)
			}}); err == nil {
				s.Close(t.Context())
			}
		}
		if err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", arg, err, want)
		}
	}
}

func TestRequestsCallTheServerByANameOfItsCertificate(t *testing.T) {
	dir := authority(t).Dir("storage.example", nil)
	s := startWith(t, Options{Addr: "127.0.0.1:0", TLSDir: &dir}, Config{})
	cfg := clientConfigFor(t, dir, "storage.example")
	for host, want := range map[string]int{"storage.example": 200, "127.0.0.1": 200, "localhost": 200, "evil.example": 421} {
		if code := getFrom(s, host, cfg, "/metrics", ""); code != want {
			t.Errorf("%s: %d", host, code)
		}
	}
}

func TestWithoutAClientsCertificateNobodyComes(t *testing.T) {
	a := authority(t)
	dir := a.Dir("localhost", nil)
	s := startWith(t, Options{Addr: "127.0.0.1:0", TLSDir: &dir}, Config{})
	if code := get(s, clientConfig(t, dir), "/metrics", ""); code != 200 {
		t.Errorf("with a certificate: %d", code)
	}
	if code := get(s, clientConfig(t, withoutCertificate(t, dir)), "/metrics", ""); code != 0 {
		t.Errorf("without a certificate: %d", code)
	}
	foreign := clientConfig(t, authority(t).Dir("localhost", nil))
	foreign.VerifyConnection = nil
	if code := get(s, foreign, "/metrics", ""); code != 0 {
		t.Errorf("with another authority's certificate: %d", code)
	}
	if code, _ := ask(t, "tcp", s.Addr().String(), "GET /metrics HTTP/1.1\r\nHost: "+s.Addr().String()+"\r\n\r\n"); code != 400 {
		t.Errorf("without TLS: %d", code)
	}
	// What was revoked is out after a reload.
	a.Revoke(dir, a.Serial())
	s.Reload()
	if code := get(s, clientConfig(t, withoutList(t, dir)), "/metrics", ""); code != 0 {
		t.Errorf("with a revoked certificate: %d", code)
	}
}

// withoutList is a client's directory without the list of what was revoked.
func withoutList(t *testing.T, dir string) string {
	t.Helper()
	bare := withoutCertificate(t, dir)
	for _, name := range []string{"client-cert.pem", "client-key.pem"} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(bare, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return bare
}

func TestACertificateDoesNotReplaceAToken(t *testing.T) {
	dir, path := authority(t).Dir("localhost", nil), tokenFile(t, usual()...)
	s := startWith(t, Options{Addr: "127.0.0.1:0", TLSDir: &dir, TokenFile: &path}, Config{})
	cfg := clientConfig(t, dir)
	if code := get(s, cfg, "/metrics", ""); code != 401 {
		t.Errorf("without a token: %d", code)
	}
	if code := get(s, cfg, "/metrics", controlToken); code != 200 {
		t.Errorf("with a token: %d", code)
	}
}

func TestNamesOfCertificatesAreAuthorised(t *testing.T) {
	dir, authz := authority(t).Dir("localhost", nil), "people"
	allowed := true
	asked := make(chan string, 2)
	s := startWith(t, Options{Addr: "127.0.0.1:0", TLSDir: &dir, TLSAuthz: &authz}, Config{Authorised: func(id, name string) (bool, error) {
		asked <- id + ": " + name
		return allowed, nil
	}})
	cfg := clientConfig(t, dir)
	if code := get(s, cfg, "/metrics", ""); code != 200 {
		t.Errorf("%d", code)
	}
	if got := <-asked; got != "people: CN=localhost" {
		t.Errorf("asked about %q", got)
	}
	allowed = false
	if code := get(s, cfg, "/metrics", ""); code != 0 {
		t.Errorf("not allowed: %d", code)
	}
}

func TestSessionOverTLS(t *testing.T) {
	dir := authority(t).Dir("localhost", nil)
	got := make(chan qapi.SessionInfo, 2)
	s := startWith(t, Options{Addr: "127.0.0.1:0", TLSDir: &dir}, Config{QMP: func(c chardev.Conn, info qapi.SessionInfo) error {
		got <- info
		return c.Close()
	}})
	d := websocket.Dialer{TLSClientConfig: clientConfig(t, dir)}
	_, port, _ := strings.Cut(s.Addr().String(), ":")
	dial := func(origin string) int {
		c, r, err := d.Dial("wss://localhost:"+port+"/qmp", http.Header{"Origin": {origin}})
		if err == nil {
			c.Close()
		} else if r == nil {
			t.Fatal(err)
		}
		return r.StatusCode
	}
	if code := dial("https://localhost:" + port); code != 101 {
		t.Fatal(code)
	}
	if info := <-got; !info.TLS || info.Name == nil || *info.Name != "CN=localhost" || info.Role != qapi.SessionRoleControl {
		t.Errorf("%+v", info)
	}
	for _, origin := range []string{"http://localhost:" + port, "https://evil.example"} {
		if code := dial(origin); code != 403 {
			t.Errorf("a page of %s: %d", origin, code)
		}
	}
}

func TestCredentialsThatGoBadAreKept(t *testing.T) {
	dir := authority(t).Dir("localhost", nil)
	s := startWith(t, Options{Addr: "127.0.0.1:0", TLSDir: &dir}, Config{})
	cfg := clientConfig(t, dir)
	if err := os.WriteFile(filepath.Join(dir, "server-key.pem"), []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.Reload()
	if code := get(s, cfg, "/metrics", ""); code != 200 {
		t.Errorf("%d", code)
	}
}

// TestCredentialsThatAskOtherwiseAreNotTaken: whether clients are known by their
// certificates was decided when the address was opened.
func TestCredentialsThatAskOtherwiseAreNotTaken(t *testing.T) {
	dir, id := authority(t).Dir("localhost", nil), "creds"
	verify := true
	c := Config{TLS: func(string, string) (*tls.Config, error) {
		loaded, err := tlscreds.Load(tlscreds.Options{Dir: dir, Server: true, VerifyPeer: verify, Now: clock.Real().Now})
		if err != nil {
			return nil, err
		}
		return loaded.ServerConfig(nil)
	}}
	s := startWith(t, Options{Addr: "127.0.0.1:0", TLSCreds: &id}, c)
	stranger := clientConfig(t, dir)
	stranger.Certificates, stranger.GetClientCertificate = nil, nil
	verify = false
	s.Reload()
	if code := get(s, stranger, "/metrics", ""); code != 0 {
		t.Errorf("a client without a certificate: %d", code)
	}
	if code := get(s, clientConfig(t, dir), "/metrics", ""); code != 200 {
		t.Errorf("a client with one: %d", code)
	}
}
