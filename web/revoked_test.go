package web

import (
	"context"
	"crypto/tls"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"blockd/clock"
	"blockd/tlscreds"
)

// secureSession opens a session with the credentials of dir.
func secureSession(t *testing.T, s *Server, dir string) *websocket.Conn {
	t.Helper()
	d := websocket.Dialer{TLSClientConfig: clientConfig(t, dir)}
	_, port, _ := strings.Cut(s.Addr().String(), ":")
	c, _, err := d.Dial("wss://localhost:"+port+"/qmp", nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetReadDeadline(clock.Real().Now().Add(patience))
	return c
}

// ends holds that a session is over.
func ends(t *testing.T, c *websocket.Conn) {
	t.Helper()
	if _, _, err := c.ReadMessage(); err == nil || strings.Contains(err.Error(), "timeout") {
		t.Errorf("the session goes on: %v", err)
	}
}

// lookAgain has the watcher look once.
func lookAgain(t *testing.T, clk *clock.Virtual) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := clk.WaitForTimers(ctx, 1); err != nil {
		t.Fatal(err)
	}
	clk.Step(watchTime)
	if err := clk.WaitForTimers(ctx, 1); err != nil { // it has looked, and waits again
		t.Fatal(err)
	}
}

func TestSessionsOfRevokedCertificatesEnd(t *testing.T) {
	for _, by := range []string{"the watcher", "SIGHUP"} {
		t.Run(by, func(t *testing.T) {
			a := authority(t)
			dir := a.Dir("localhost", nil)
			revoked := a.Serial()
			other := a.Dir("localhost", nil)
			clk := clock.NewVirtual()
			s := startWith(t, Options{Addr: "127.0.0.1:0", TLSDir: &dir}, Config{Clock: clk, QMP: idle})
			gone, kept := secureSession(t, s, dir), secureSession(t, s, other)
			answersPing(t, gone)
			lookAgain(t, clk)
			a.Revoke(dir, revoked)
			if by == "SIGHUP" {
				s.Reload()
			} else {
				lookAgain(t, clk)
			}
			ends(t, gone)
			answersPing(t, kept)
		})
	}
}

// changing are the credentials of dir, with a clock that is set.
func changing(dir string, now *atomic.Int64) Config {
	return Config{TLS: func(string, string) (*tls.Config, error) {
		loaded, err := tlscreds.Load(tlscreds.Options{Dir: dir, Server: true, VerifyPeer: true, Now: func() time.Time { return time.Unix(now.Load(), 0) }})
		if err != nil {
			return nil, err
		}
		return loaded.ServerConfig(nil)
	}, QMP: idle}
}

func TestSessionsOfExpiredCertificatesEnd(t *testing.T) {
	dir, id := authority(t).Dir("localhost", nil), "creds"
	var now atomic.Int64
	now.Store(clock.Real().Now().Unix())
	c := changing(dir, &now)
	clk := clock.NewVirtual()
	c.Clock = clk
	s := startWith(t, Options{Addr: "127.0.0.1:0", TLSCreds: &id}, c)
	session := secureSession(t, s, dir)
	lookAgain(t, clk)
	answersPing(t, session)
	now.Store(4_000_000_001)
	lookAgain(t, clk)
	ends(t, session)
}

func TestConnectionsOfRevokedCertificatesGetNoAnswer(t *testing.T) {
	a := authority(t)
	dir := a.Dir("localhost", nil)
	s := startWith(t, Options{Addr: "127.0.0.1:0", TLSDir: &dir}, Config{})
	transport := &http.Transport{TLSClientConfig: clientConfig(t, dir)}
	defer transport.CloseIdleConnections()
	_, port, _ := strings.Cut(s.Addr().String(), ":")
	get := func() int {
		r, err := http.NewRequest("GET", "https://localhost:"+port+"/metrics", nil)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := transport.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, answer.Body)
		answer.Body.Close()
		return answer.StatusCode
	}
	if code := get(); code != 200 {
		t.Error(code)
	}
	a.Revoke(dir, a.Serial())
	s.Reload()
	if code := get(); code != 403 {
		t.Errorf("with a certificate that was revoked since the connection began: %d", code)
	}
}

// TestAListThatIsRewrittenInPlace has every moment of its writing looked at.
func TestAListThatIsRewrittenInPlace(t *testing.T) {
	a := authority(t)
	dir := a.Dir("localhost", nil)
	a.Revoke(dir, a.Serial())
	bare := withoutList(t, dir)
	s := startWith(t, Options{Addr: "127.0.0.1:0", TLSDir: &dir}, Config{Clock: clock.NewVirtual()})
	s.unwatch() // the test is the watcher
	s.watched.Wait()
	path := filepath.Join(dir, tlscreds.RevocationFile)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	refused := func(when string) {
		t.Helper()
		if code := get(s, clientConfig(t, bare), "/metrics", ""); code != 0 {
			t.Errorf("%s the revoked certificate is let in: %d", when, code)
		}
	}
	for _, n := range []int{0, 1, len(whole) / 2, len(whole) - 2, len(whole)} {
		if err := os.WriteFile(path, whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		s.secrets.look()
		s.secrets.look()
		refused("half written")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	s.secrets.look()
	refused("while there is no list")
	s.secrets.look()
	if code := get(s, clientConfig(t, bare), "/metrics", ""); code != 200 {
		t.Errorf("without a list: %d", code)
	}
}
