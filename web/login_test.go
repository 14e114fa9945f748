package web

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"golang.org/x/sys/unix"

	"blockd/chardev"
	"blockd/clock"
	"blockd/qapi"
)

const (
	controlToken = "control-token-0123456789"
	readerToken  = "reader-token-0123456789=="
	hashedToken  = "hashed-token-0123456789"
	wrongToken   = "wrong-token-0123456789"
)

// tokenFile makes a file with lines.
func tokenFile(t *testing.T, lines ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tokens")
	writeTokens(t, path, lines...)
	return path
}

func writeTokens(t *testing.T, path string, lines ...string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// replaceTokens puts another file with lines in the place of path.
func replaceTokens(t *testing.T, path string, lines ...string) {
	t.Helper()
	writeTokens(t, path+".new", lines...)
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// usual are the lines of the file that most tests use.
func usual() []string {
	sum := sha256.Sum256([]byte(hashedToken))
	return []string{"# people", "control " + controlToken + " alice", "", "read-only\t" + readerToken, "control sha256:" + hex.EncodeToString(sum[:]) + " bob"}
}

// idle is a session that only reads.
func idle(c chardev.Conn, _ qapi.SessionInfo) error {
	_, _, _ = c.Read(make([]byte, 1))
	return c.Close()
}

// coded is the subprotocol that carries a token.
func coded(token string) string {
	return tokenPrefix + base64.RawURLEncoding.EncodeToString([]byte(token))
}

const upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="

func TestATokenIsNeeded(t *testing.T) {
	sum := sha256.Sum256([]byte(hashedToken))
	path := tokenFile(t, usual()...)
	for _, c := range []struct {
		name, path, header string
		want               int
	}{
		{"none", "/metrics", "", 401},
		{"none for the session", "/session", "", 401},
		{"none for QMP", "/qmp", upgrade, 401},
		{"a wrong one", "/metrics", "Authorization: Bearer " + wrongToken, 401},
		{"a part of one", "/metrics", "Authorization: Bearer " + controlToken[:len(controlToken)-1], 401},
		{"more than one", "/metrics", "Authorization: Bearer " + controlToken + "x", 401},
		{"nothing", "/metrics", "Authorization: Bearer ", 400},
		{"the sum instead of the token", "/metrics", "Authorization: Bearer sha256:" + hex.EncodeToString(sum[:]), 401},
		{"a wrong one for QMP", "/qmp", upgrade + "\r\nSec-WebSocket-Protocol: blockd.qmp, " + coded(wrongToken), 401},
		{"a name and a password", "/metrics", "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte("x:"+controlToken)), 400},
		{"two headers", "/metrics", "Authorization: Bearer " + controlToken + "\r\nAuthorization: Bearer " + controlToken, 400},
		{"two subprotocols", "/qmp", upgrade + "\r\nSec-WebSocket-Protocol: " + coded(wrongToken) + ", " + coded(controlToken), 400},
		{"a subprotocol that is not coded", "/qmp", upgrade + "\r\nSec-WebSocket-Protocol: " + tokenPrefix + "!" + controlToken, 400},
		{"in the address", "/metrics?token=" + controlToken, "", 400},
		{"in the address, too", "/metrics?Access_Token=" + controlToken, "Authorization: Bearer " + controlToken, 400},
		{"in the address of QMP", "/qmp?token=" + controlToken, upgrade, 400},
		{"in a cookie", "/metrics", "Cookie: token=" + controlToken, 401},
		{"the right one", "/metrics", "Authorization: Bearer " + controlToken, 200},
		{"the scheme in small letters", "/metrics", "Authorization: bearer " + readerToken, 200},
		{"one that the file has the sum of", "/session", "Authorization: Bearer " + hashedToken, 200},
		{"the right one for QMP", "/qmp", upgrade + "\r\nSec-WebSocket-Protocol: blockd.qmp, " + coded(readerToken), 101},
		{"the right one for QMP, by a program", "/qmp", upgrade + "\r\nAuthorization: Bearer " + readerToken, 101},
	} {
		t.Run(c.name, func(t *testing.T) {
			addr := startWith(t, Options{Addr: "127.0.0.1:0", TokenFile: &path}, Config{QMP: idle}).Addr().String()
			got, body := ask(t, "tcp", addr, "GET "+c.path+" HTTP/1.1\r\nHost: "+addr+"\r\n"+c.header+strings.Repeat("\r\n", min(len(c.header), 1))+"\r\n")
			if got != c.want {
				t.Errorf("status %d, want %d", got, c.want)
			}
			if strings.Contains(body, "-token-") {
				t.Errorf("the answer shows the token: %s", body)
			}
		})
	}
}

func TestTheSubprotocolWithTheTokenIsNotAnswered(t *testing.T) {
	path := tokenFile(t, usual()...)
	s := startWith(t, Options{Addr: "127.0.0.1:0", TokenFile: &path}, Config{QMP: idle})
	d := websocket.Dialer{Subprotocols: []string{coded(controlToken), subprotocol}}
	c, r, err := d.Dial("ws://"+s.Addr().String()+"/qmp", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := r.Header.Values("Sec-Websocket-Protocol"); len(got) != 1 || got[0] != subprotocol {
		t.Errorf("answered %q", got)
	}
}

func TestSessionTellsRoleAndName(t *testing.T) {
	path := tokenFile(t, usual()...)
	s := startWith(t, Options{Addr: "127.0.0.1:0", TokenFile: &path}, Config{})
	addr := s.Addr().String()
	for token, want := range map[string]string{
		controlToken: `"name":"alice"`, hashedToken: `"name":"bob"`, readerToken: `"role":"read-only"`,
	} {
		code, body := ask(t, "tcp", addr, "GET /session HTTP/1.1\r\nHost: "+addr+"\r\nAuthorization: Bearer "+token+"\r\n\r\n")
		if code != 200 || !strings.Contains(body, want) {
			t.Errorf("%d %s, want %s", code, body, want)
		}
	}
}

func TestWrongTokensAreLimited(t *testing.T) {
	path := tokenFile(t, usual()...)
	clk := clock.NewVirtual()
	addr := startWith(t, Options{Addr: "127.0.0.1:0", TokenFile: &path}, Config{Clock: clk}).Addr().String()
	try := func(token string) int {
		code, _ := ask(t, "tcp", addr, "GET /metrics HTTP/1.1\r\nHost: "+addr+"\r\nAuthorization: Bearer "+token+"\r\n\r\n")
		return code
	}
	for i := range failureRate.burst {
		if code := try(fmt.Sprintf("%s%d", wrongToken, i)); code != 401 {
			t.Fatalf("attempt %d: %d", i, code)
		}
	}
	for _, token := range []string{wrongToken, controlToken} { // the limit does not tell which is right
		if code := try(token); code != 429 {
			t.Errorf("after %d attempts: %d", failureRate.burst, code)
		}
	}
	clk.Step(failureRate.interval)
	if code := try(controlToken); code != 200 {
		t.Errorf("the right token, later: %d", code)
	}
	if code := try(wrongToken); code != 401 {
		t.Errorf("one more attempt, later: %d", code)
	}
	if code := try(controlToken); code != 429 {
		t.Errorf("after one more attempt: %d", code)
	}
}

func TestRequestsBeyondTheRateAreRefused(t *testing.T) {
	clk := clock.NewVirtual()
	s := startWith(t, Options{Addr: "127.0.0.1:0"}, Config{Clock: clk})
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	try := func() int {
		r, err := client.Get("http://" + s.Addr().String() + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, r.Body)
		r.Body.Close()
		return r.StatusCode
	}
	for i := range requestRate.burst {
		if code := try(); code != 200 {
			t.Fatalf("request %d: %d", i, code)
		}
	}
	if code := try(); code != 429 {
		t.Errorf("beyond the burst: %d", code)
	}
	clk.Step(requestRate.interval)
	if code := try(); code != 200 {
		t.Errorf("later: %d", code)
	}
}

func TestRatesOfManyClientsAreBounded(t *testing.T) {
	clk := clock.NewVirtual()
	l := newRates(clk, rate{time.Second, 1})
	for i := range maxClients {
		if l.take(fmt.Sprint(i)) != 0 {
			t.Fatal("a new client has to wait")
		}
	}
	if l.take("one more") == 0 || len(l.ahead) > maxClients {
		t.Errorf("%d clients are kept", len(l.ahead))
	}
	if l.take("0") != time.Second || l.full("0") != time.Second || l.full("never seen") != 0 {
		t.Error("clients' times are mixed up")
	}
	clk.Step(time.Second)
	if l.take("one more") != 0 || len(l.ahead) != 1 {
		t.Errorf("%d clients are kept that are not ahead", len(l.ahead))
	}
}

func TestTokenFilesThatAreRefused(t *testing.T) {
	for _, c := range []struct {
		name, text string
		mode       os.FileMode
		want       string
	}{
		{"everybody may read it", "control " + controlToken, 0o604, ": others than its owner and group may use it: chmod o= it"},
		{"everybody may write it", "control " + controlToken, 0o602, ": others than its owner and group may use it: chmod o= it"},
		{"the group may write it", "control " + controlToken, 0o620, ": its group may write it: chmod g-w it"},
		{"empty", "# nothing\n", 0o600, ": it has no token"},
		{"no role", controlToken, 0o600, ", line 1: expected: ROLE TOKEN [NAME]"},
		{"too many words", "control " + controlToken + " alice smith", 0o600, ", line 1: expected: ROLE TOKEN [NAME]"},
		{"unknown role", "\nadmin " + controlToken, 0o600, ", line 2: the role is neither 'read-only' nor 'control'"},
		{"short", "control abc", 0o600, ", line 1: a token has 20 to 256 characters, which are letters, digits and any of ._~+/-, and perhaps = at its end"},
		{"other characters", "control " + controlToken + "\u00e9", 0o600, ", line 1: a token has 20 to 256 characters, which are letters, digits and any of ._~+/-, and perhaps = at its end"},
		{"short sum", "control sha256:00", 0o600, ", line 1: 64 hexadecimal digits are expected after 'sha256:'"},
		{"twice", "control " + controlToken + "\nread-only " + controlToken, 0o600, ", line 2: the token is there twice"},
		{"long name", "control " + controlToken + " " + strings.Repeat("x", 65), 0o600, ", line 1: the name is too long, or does not print"},
		{"name with a bell", "control " + controlToken + " a\ab", 0o600, ", line 1: the name is too long, or does not print"},
		{"too long", strings.Repeat("#\n", maxTokenFile), 0o600, ": it is too long"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "tokens")
			if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, c.mode); err != nil {
				t.Fatal(err)
			}
			s, err := Listen(t.Context(), Options{Addr: "127.0.0.1:0", TokenFile: &path}, Config{Clock: clock.Real(), Metrics: metrics})
			if err == nil {
				s.Close(t.Context())
			}
			if err == nil || err.Error() != "Token file '"+path+"'"+c.want {
				t.Errorf("%v, want %s", err, c.want)
			}
		})
	}
	fifo, foreign := filepath.Join(t.TempDir(), "f"), tokenFile(t, usual()...)
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	files := map[string]string{"none": "/nonexistent", "a directory": t.TempDir(), "a FIFO": fifo, "another user's": foreign}
	if err := os.Chown(foreign, 12345, -1); err != nil {
		t.Logf("no file of another user: %v", err)
		delete(files, "another user's")
	}
	for name, path := range files {
		if _, err := Listen(t.Context(), Options{Addr: "127.0.0.1:0", TokenFile: &path}, Config{Clock: clock.Real(), Metrics: metrics}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestTokensChangeWhileTheServerRuns(t *testing.T) {
	path := tokenFile(t, usual()...)
	s := startWith(t, Options{Addr: "127.0.0.1:0", TokenFile: &path}, Config{QMP: idle})
	session := func(token string) (*websocket.Conn, int) {
		c, r, err := websocket.DefaultDialer.Dial("ws://"+s.Addr().String()+"/qmp", http.Header{"Authorization": {"Bearer " + token}})
		if err != nil {
			if r == nil {
				t.Fatal(err)
			}
			return nil, r.StatusCode
		}
		t.Cleanup(func() { c.Close() })
		_ = c.SetReadDeadline(clock.Real().Now().Add(patience))
		return c, r.StatusCode
	}
	gone := func(c *websocket.Conn) {
		t.Helper()
		if _, _, err := c.ReadMessage(); err == nil || strings.Contains(err.Error(), "timeout") {
			t.Errorf("the session goes on: %v", err)
		}
	}
	removed, _ := session(controlToken)
	lowered, _ := session(hashedToken)
	kept, _ := session(readerToken)
	other, _ := session(readerToken)
	sum := sha256.Sum256([]byte(hashedToken))
	const newToken = "new-token-0123456789"
	replaceTokens(t, path, "read-only "+readerToken, "read-only sha256:"+hex.EncodeToString(sum[:]), "control "+newToken)
	// Whoever comes next has the file looked at, without any signal.
	if c, code := session(newToken); c == nil {
		t.Errorf("the new token: %d", code)
	}
	gone(removed)
	gone(lowered)
	if _, code := session(controlToken); code != 401 {
		t.Errorf("the removed token: %d", code)
	}
	answersPing(t, kept)
	// A file with a mistake lets nobody in.
	writeTokens(t, path, "read-only "+readerToken, "control short")
	s.Reload()
	gone(other)
	if _, code := session(readerToken); code != 401 {
		t.Errorf("with a mistake in the file: %d", code)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, code := session(newToken); code != 401 {
		t.Errorf("without the file: %d", code)
	}
}

// addressed is a connection that comes from an address.
type addressed struct {
	net.Conn
	from string
}

func (a addressed) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(a.from))
}

func TestClientsAreAddressesOrNetworks(t *testing.T) {
	for from, want := range map[string]string{
		"192.0.2.1:5": "192.0.2.1", "[::ffff:192.0.2.1]:5": "192.0.2.1",
		"[2001:db8::1]:5": "2001:db8::/64", "[2001:db8::ffff:1]:6": "2001:db8::/64", "[2001:db8:0:1::1]:5": "2001:db8:0:1::/64",
		"[fe80::1%lo]:5": "fe80::/64",
	} {
		if got := peerOf(addressed{from: from}).client; got != want {
			t.Errorf("%s: %s, want %s", from, got, want)
		}
	}
}

func TestATokenThatGoesWhileItsSessionBegins(t *testing.T) {
	path := tokenFile(t, usual()...)
	tok, err := loadTokens(path)
	if err != nil {
		t.Fatal(err)
	}
	h := &qmpHandler{tokens: tok, live: map[*wsConn]grant{}}
	g, ok := tok.find(sha256.Sum256([]byte(controlToken)))
	if !ok || !h.begin(&wsConn{}, g) {
		t.Fatal("the token is not good")
	}
	writeTokens(t, path, "read-only "+controlToken)
	tok.refresh(byOperator)
	if h.begin(&wsConn{}, g) {
		t.Error("a session begins with what its token granted before")
	}
}

func TestReadersLeavePlacesForThoseWhoControl(t *testing.T) {
	path := tokenFile(t, usual()...)
	s := startWith(t, Options{Addr: "127.0.0.1:0", TokenFile: &path}, Config{QMP: idle})
	session := func(token string) int {
		c, r, err := websocket.DefaultDialer.Dial("ws://"+s.Addr().String()+"/qmp", http.Header{"Authorization": {"Bearer " + token}})
		if err == nil {
			t.Cleanup(func() { c.Close() })
		} else if r == nil {
			t.Fatal(err)
		}
		return r.StatusCode
	}
	for range maxReaders {
		if code := session(readerToken); code != 101 {
			t.Fatal(code)
		}
	}
	if code := session(readerToken); code != 503 {
		t.Errorf("one reader more: %d", code)
	}
	if code := session(controlToken); code != 101 {
		t.Errorf("control: %d", code)
	}
}

func TestRoleWithoutTokens(t *testing.T) {
	role := qapi.SessionRoleReadOnly
	got := make(chan qapi.SessionInfo, 1)
	s := startWith(t, Options{Addr: "127.0.0.1:0", Role: &role}, Config{QMP: func(c chardev.Conn, info qapi.SessionInfo) error {
		got <- info
		return c.Close()
	}})
	connect(t, s)
	if info := <-got; info.Role != role || info.Name != nil || info.TLS || !strings.HasPrefix(info.Peer, "127.0.0.1:") || info.Transport != qapi.SessionTransportWebsocket {
		t.Errorf("%+v", info)
	}
}

// TestSlowHeadersAreCutOff holds the server to headerTime, for requests and for
// the handshake of TLS.
func TestSlowHeadersAreCutOff(t *testing.T) {
	dir := authority(t).Dir("localhost", nil)
	for name, o := range map[string]Options{"plain": {Addr: "127.0.0.1:0"}, "TLS": {Addr: "127.0.0.1:0", TLSDir: &dir}} {
		t.Run(name, func(t *testing.T) {
			s := open(t, o, Config{})
			if s.http.ReadHeaderTimeout != headerTime {
				t.Errorf("a header may take %v", s.http.ReadHeaderTimeout)
			}
			s.http.ReadHeaderTimeout = 20 * time.Millisecond
			s.Serve()
			c, err := net.Dial("tcp", s.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_ = c.SetDeadline(clock.Real().Now().Add(patience))
			if _, err := io.WriteString(c, map[string]string{"plain": "GET /metrics HTTP/1.1\r\nHost: ", "TLS": "\x16\x03\x01"}[name]); err != nil {
				t.Fatal(err)
			}
			_, err = io.Copy(io.Discard, c)
			if e, ok := err.(net.Error); ok && e.Timeout() {
				t.Error("the connection is kept")
			}
		})
	}
}

func TestNamesOfTheAddress(t *testing.T) {
	dir := authority(t).Dir("store.example", nil)
	secrets, err := newCredentials(&Options{TLSDir: &dir}, &Config{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		here, host string
		tls, want  bool
	}{
		{"127.0.0.1:80", "localhost", false, true},
		{"127.0.0.1:80", "store.example", false, false},
		{"127.0.0.1:80", "store.example:443", true, true},
		{"192.0.2.1:443", "192.0.2.1:443", true, true},
		{"192.0.2.1:443", "store.example", true, true},
		{"192.0.2.1:443", "STORE.example:443", true, true},
		{"192.0.2.1:443", "evil.example", true, false},
		{"192.0.2.1:443", "192.0.2.2", true, false},
		{"192.0.2.1:443", "localhost", true, false}, // no client of this machine
		{"192.0.2.1:443", "", true, false},
		{"[2001:db8::1]:443", "[2001:db8::1]:443", true, true},
	} {
		g := &guard{}
		if c.tls {
			g.own = secrets.own
		}
		r := httptest.NewRequest("GET", "/", nil)
		r.Host = c.host
		addr, err := net.ResolveTCPAddr("tcp", c.here)
		if err != nil {
			t.Fatal(err)
		}
		r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, addr))
		if got := g.names(r); got != c.want {
			t.Errorf("%q at %s: %v", c.host, c.here, got)
		}
	}
}
