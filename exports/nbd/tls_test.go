package nbd

import (
	"crypto/tls"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"blockd/clock"
	"blockd/nbdproto"
	"blockd/tlscreds"
	"blockd/tlscreds/tlstest"
)

// secureServer serves "n" with TLS to clients of the authority.
func secureServer(t *testing.T, a *tlstest.Authority, authorise tlscreds.Authorise) (path string) {
	t.Helper()
	return tlsServer(t, a, true, authorise)
}

// tlsServer serves "n" with TLS, to anybody unless it verifies its clients.
func tlsServer(t *testing.T, a *tlstest.Authority, verify bool, authorise tlscreds.Authorise) (path string) {
	t.Helper()
	creds, err := tlscreds.Load(tlscreds.Options{Dir: a.Dir("host", nil), Server: true, VerifyPeer: verify, SanityCheck: true, Now: clock.Real().Now})
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := creds.ServerConfig(authorise)
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(t.TempDir(), "s")
	s := NewServer(Config{Clock: clock.Real(), Secure: cfg}, listen(t, unixAt(path))...)
	t.Cleanup(s.Close)
	add(t, s, newRAM(1<<20, 4096), ExportConfig{})
	return path
}

func plainClient(t *testing.T, path string) *client {
	t.Helper()
	nc, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	if err := nc.SetDeadline(clock.Real().Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return (&client{t: t, Conn: nc}).greet(both)
}

func TestNothingIsServedBeforeTLS(t *testing.T) {
	a := tlstest.NewAuthority(t, nil)
	path := secureServer(t, a, nil)
	c := plainClient(t, path)
	for _, o := range []nbdproto.Option{nbdproto.OptList, nbdproto.OptStructuredReply, nbdproto.OptListMetaContext, 99} {
		if got := last(c.option(o, nil)); got != nbdproto.RepErrTLSReqd {
			t.Errorf("%v: %#x", o, got)
		}
	}
	if got := last(c.goExport(nbdproto.OptGo, "n")); got != nbdproto.RepErrTLSReqd {
		t.Errorf("go: %#x", got)
	}
	if got := last(c.option(nbdproto.OptStartTLS, []byte("x"))); got != nbdproto.RepErrInvalid {
		t.Errorf("starttls with a payload: %#x", got)
	}
	// A refusal that cannot be said is an end.
	c.write(append(nbdproto.OptionHeader{Option: nbdproto.OptExportName, Length: 1}.Append(nil), 'n'))
	c.hungUp()
}

func TestClientSpeaksTLS(t *testing.T) {
	a := tlstest.NewAuthority(t, nil)
	path := secureServer(t, a, nil)
	c := plainClient(t, path)
	if got := last(c.option(nbdproto.OptStartTLS, nil)); got != nbdproto.RepAck {
		t.Fatalf("starttls: %#x", got)
	}
	creds, err := tlscreds.Load(tlscreds.Options{Dir: a.Dir("me", nil), VerifyPeer: true, Now: clock.Real().Now})
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := creds.ClientConfig("host")
	if err != nil {
		t.Fatal(err)
	}
	c.Conn = tls.Client(c.Conn, cfg)
	if got := last(c.option(nbdproto.OptStartTLS, nil)); got != nbdproto.RepErrInvalid {
		t.Errorf("starttls again: %#x", got)
	}
	if got := last(c.goExport(nbdproto.OptGo, "n")); got != nbdproto.RepAck {
		t.Fatalf("go: %#x", got)
	}
	if got, _ := c.readData(512, 300_000, 0); len(got) != 300_000 {
		t.Error("no data")
	}
}

// What is sent behind STARTTLS in the clear would be taken for said under TLS.
func TestDataBehindStartTLSEndsTheConnection(t *testing.T) {
	path := secureServer(t, tlstest.NewAuthority(t, nil), nil)
	c := plainClient(t, path)
	b := nbdproto.OptionHeader{Option: nbdproto.OptStartTLS}.Append(nil)
	c.write(nbdproto.OptionHeader{Option: nbdproto.OptList}.Append(b))
	c.hungUp()
}

func TestTheRivalsClientOverTLS(t *testing.T) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip("needs qemu-img")
	}
	a := tlstest.NewAuthority(t, nil)
	path := secureServer(t, a, func(name string) (bool, error) { return name == "CN=me", nil })
	// Here only the client can refuse: else it may find the connection closed
	// before it has looked at the certificate.
	trusting := tlsServer(t, a, false, nil)
	// And here only the server can: the client trusts its authority.
	foreign := tlstest.NewAuthority(t, nil).Dir("me", nil)
	ca, err := os.ReadFile(filepath.Join(a.Dir("me", nil), "ca-cert.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(foreign, "ca-cert.pem"), ca, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ name, path, dir, host, want string }{
		{"allowed", path, a.Dir("me", nil), "host", "virtual size: 1 MiB"},
		{"not allowed", path, a.Dir("other", nil), "host", "Could not open"},
		{"no client of ours", path, foreign, "host", "Could not open"},
		{"other authority", trusting, tlstest.NewAuthority(t, nil).Dir("me", nil), "host", "hasn't got a known issuer"},
		{"other host", path, a.Dir("me", nil), "elsewhere", "Certificate does not match the hostname elsewhere"},
	} {
		out, _ := exec.Command("qemu-img", "info", "--image-opts", "--object", "tls-creds-x509,id=t,endpoint=client,sanity-check=off,dir="+tc.dir,
			"driver=nbd,path="+tc.path+",export=n,tls-creds=t,tls-hostname="+tc.host).CombinedOutput()
		if !strings.Contains(string(out), tc.want) {
			t.Errorf("%s: %s", tc.name, out)
		}
	}
}
