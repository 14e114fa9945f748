package web

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"blockd/chardev"
	"blockd/clock"
	"blockd/qapi"
	"blockd/qmp"
	"blockd/sockets"
)

// patience is how long a test waits for what must come.
const patience = time.Minute

var metrics = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "up 1\n") })

// start serves on addr, QMP by serve.
func start(t *testing.T, addr string, serve func(chardev.Conn) error) *Server {
	t.Helper()
	return startWith(t, Options{Addr: addr}, Config{QMP: func(c chardev.Conn, _ qapi.SessionInfo) error { return serve(c) }})
}

// startWith serves with options and QMP, on the real clock if c has none.
func startWith(t *testing.T, o Options, c Config) *Server {
	t.Helper()
	s := open(t, o, c)
	s.Serve()
	return s
}

// open is startWith without the beginning.
func open(t *testing.T, o Options, c Config) *Server {
	t.Helper()
	on := true
	o.QMP, c.Metrics = &on, metrics
	if c.Clock == nil {
		c.Clock = clock.Real()
	}
	s, err := Listen(t.Context(), o, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close(context.Background()) })
	return s
}

// ask sends a request as it stands and returns the status and the body.
func ask(t *testing.T, network, addr, request string) (int, string) {
	t.Helper()
	c, err := net.Dial(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(clock.Real().Now().Add(patience))
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	if r.StatusCode == http.StatusSwitchingProtocols {
		return r.StatusCode, ""
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(body)
}

func TestOnlyAddressesOfThisMachineAreServed(t *testing.T) {
	const refused = "Address '%' is refused: without TLS, and a token file or certificates of clients, only a loopback address or a unix socket is served"
	const unclear = "Parameter 'addr' expects IP:PORT or unix:PATH"
	for addr, want := range map[string]string{
		"0.0.0.0:80": refused, "[::]:80": refused, "192.0.2.1:80": refused, "[fe80::1%lo]:80": refused, "10.0.0.1:0": refused,
		"": unclear, ":80": unclear, "localhost:80": unclear, "127.0.0.1": unclear, "127.0.0.1:99999": unclear, "127.1:80": unclear, "vsock:1": unclear,
		"unix:": "Parameter 'addr' expects a path after 'unix:'",
	} {
		s, err := Listen(t.Context(), Options{Addr: addr}, Config{Clock: clock.Real(), Metrics: metrics})
		if err == nil {
			s.Close(t.Context())
			t.Errorf("%q is served", addr)
		} else if want = strings.Replace(want, "%", addr, 1); err.Error() != want {
			t.Errorf("%q: %v, want %s", addr, err, want)
		}
	}
}

func TestUnixSocketIsPrivateAndRemoved(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	s := start(t, "unix:"+path, nil)
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm()&0o077 != 0 {
		t.Fatalf("%v, %v", st, err)
	}
	if code, body := ask(t, "unix", path, "GET /metrics HTTP/1.1\r\nHost: any.name\r\n\r\n"); code != 200 || body != "up 1\n" {
		t.Errorf("%d %q", code, body)
	}
	s.Close(t.Context())
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

func TestSecondCloseAndCloseBeforeServe(t *testing.T) {
	s, err := Listen(t.Context(), Options{Addr: "127.0.0.1:0"}, Config{Clock: clock.Real(), Metrics: metrics})
	if err != nil {
		t.Fatal(err)
	}
	s.Close(t.Context())
	if _, err := net.Dial("tcp", s.Addr().String()); err == nil {
		t.Error("it still listens")
	}
	s = start(t, "127.0.0.1:0", nil)
	s.Close(t.Context())
	s.Close(t.Context())
}

func TestRequestsOfOtherPagesAreRefused(t *testing.T) {
	addr := start(t, "127.0.0.1:0", func(c chardev.Conn) error { return c.Close() }).Addr().String()
	_, port, _ := net.SplitHostPort(addr)
	const upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="
	for _, c := range []struct {
		name, method, path, header string
		want                       int
	}{
		{"plain", "GET", "/metrics", "Host: " + addr, 200},
		{"by name", "GET", "/metrics", "Host: localhost:" + port, 200},
		{"by IPv6", "GET", "/metrics", "Host: [::1]:" + port, 200},
		{"its own page", "GET", "/metrics", "Host: " + addr + "\r\nOrigin: http://" + addr, 200},
		{"a name that leads here", "GET", "/metrics", "Host: evil.example:" + port, 421},
		{"a name like localhost", "GET", "/metrics", "Host: localhost.evil.example", 421},
		{"a name like an address", "GET", "/metrics", "Host: 127.0.0.1.evil.example", 421},
		{"no name", "GET", "/metrics", "Host: ", 421},
		{"another page", "GET", "/metrics", "Host: " + addr + "\r\nOrigin: http://evil.example", 403},
		{"another port's page", "GET", "/metrics", "Host: " + addr + "\r\nOrigin: http://127.0.0.1:1", 403},
		{"a file's page", "GET", "/metrics", "Host: " + addr + "\r\nOrigin: null", 403},
		{"two origins", "GET", "/metrics", "Host: " + addr + "\r\nOrigin: http://" + addr + "\r\nOrigin: http://evil.example", 403},
		{"an image in another page", "GET", "/metrics", "Host: " + addr + "\r\nSec-Fetch-Site: cross-site", 403},
		{"an image in a page of another port", "GET", "/metrics", "Host: " + addr + "\r\nSec-Fetch-Site: same-site", 403},
		{"an image in its own page", "GET", "/metrics", "Host: " + addr + "\r\nSec-Fetch-Site: same-origin", 200},
		{"its own page, encrypted", "GET", "/metrics", "Host: " + addr + "\r\nOrigin: https://" + addr, 403},
		{"a session", "GET", "/qmp", "Host: " + addr + "\r\n" + upgrade, 101},
		{"a session of another page", "GET", "/qmp", "Host: " + addr + "\r\nOrigin: https://evil.example\r\n" + upgrade, 403},
		{"a session by another name", "GET", "/qmp", "Host: evil.example\r\n" + upgrade, 421},
		{"no session", "GET", "/qmp", "Host: " + addr, 400},
		{"another method", "POST", "/metrics", "Host: " + addr + "\r\nContent-Length: 0", 405},
		{"another path", "GET", "/", "Host: " + addr, 404},
		{"a long header", "GET", "/metrics", "Host: " + addr + "\r\nX: " + strings.Repeat("x", 2*maxHeader), 431},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, _ := ask(t, "tcp", addr, c.method+" "+c.path+" HTTP/1.1\r\n"+c.header+"\r\n\r\n")
			if got != c.want {
				t.Errorf("status %d, want %d", got, c.want)
			}
		})
	}
}

// TestBodiesAreNotWaitedFor announces bodies that never come: the connection is
// not held for them, whoever asks for whatever.
func TestBodiesAreNotWaitedFor(t *testing.T) {
	addr := start(t, "127.0.0.1:0", func(c chardev.Conn) error { return c.Close() }).Addr().String()
	for _, request := range []string{
		"GET /metrics HTTP/1.1\r\nHost: " + addr + "\r\nContent-Length: 1000\r\n",
		"GET /metrics HTTP/1.1\r\nHost: " + addr + "\r\nTransfer-Encoding: chunked\r\n",
		"GET /metrics HTTP/1.1\r\nHost: " + addr + "\r\nContent-Length: 1000\r\nExpect: 100-continue\r\n",
		"GET /qmp HTTP/1.1\r\nHost: " + addr + "\r\nContent-Length: 1000\r\n" + upgrade + "\r\n",
		"POST /other HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 1000\r\n",
		"OPTIONS * HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 1000\r\n",
	} {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(clock.Real().Now().Add(patience))
		if _, err := io.WriteString(c, request+"\r\n"); err != nil {
			t.Fatal(err)
		}
		if answer, err := io.ReadAll(c); err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 413 ") {
			t.Errorf("%q: %q, %v", request, answer, err)
		}
		c.Close()
	}
	if code, _ := ask(t, "tcp", addr, "OPTIONS * HTTP/1.1\r\nHost: evil.example\r\n\r\n"); code != 421 {
		t.Errorf("OPTIONS *: %d", code)
	}
}

func TestQMPIsThereOnlyWhenAskedFor(t *testing.T) {
	s, err := Listen(t.Context(), Options{Addr: "127.0.0.1:0"}, Config{Clock: clock.Real(), Metrics: metrics, QMP: func(c chardev.Conn, _ qapi.SessionInfo) error { return c.Close() }})
	if err != nil {
		t.Fatal(err)
	}
	s.Serve()
	defer s.Close(t.Context())
	addr := s.Addr().String()
	if code, _ := ask(t, "tcp", addr, "GET /qmp HTTP/1.1\r\nHost: "+addr+"\r\n\r\n"); code != 404 {
		t.Errorf("status %d", code)
	}
}

func TestConnectionsBeyondTheLimitAreClosed(t *testing.T) { connectBeyond(t, 1, 5) }

func TestConnectionsOfOneClientBeyondItsLimitAreClosed(t *testing.T) { connectBeyond(t, 5, 1) }

// connectBeyond opens more than one connection where one is allowed.
func connectBeyond(t *testing.T, all, perClient int) {
	t.Helper()
	raw, err := listen(t.Context(), "127.0.0.1:0", false, sockets.Access{})
	if err != nil {
		t.Fatal(err)
	}
	l := newLimited(raw, clock.Real(), all, perClient)
	accepted, over := make(chan net.Conn), make(chan error)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				over <- err
				return
			}
			accepted <- c
		}
	}()
	dial := func() net.Conn {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		_ = c.SetDeadline(clock.Real().Now().Add(patience))
		return c
	}
	dial()
	first := <-accepted
	if n, err := dial().Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the second is not closed: %d, %v", n, err)
	}
	first.Close()
	first.Close() // gives one place back
	dial()
	(<-accepted).Close()
	if l.connections() != 0 {
		t.Errorf("%d places are taken", l.connections())
	}
	l.Close()
	if err := <-over; !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

// connect opens a session.
func connect(t *testing.T, s *Server) *websocket.Conn {
	t.Helper()
	c, _, err := websocket.DefaultDialer.Dial("ws://"+s.Addr().String()+"/qmp", nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetReadDeadline(clock.Real().Now().Add(patience))
	return c
}

func TestMessagesAreLines(t *testing.T) {
	got := make(chan string, 1)
	s := start(t, "127.0.0.1:0", func(c chardev.Conn) error {
		defer c.Close()
		if _, err := c.Write([]byte("{\"a\": 1}\r\n{\"b\": 2}\r\n")); err != nil {
			return err
		}
		var all []byte
		buf := make([]byte, 3) // shorter than a message
		for {
			n, _, err := c.Read(buf)
			all = append(all, buf[:n]...)
			if err != nil {
				if !errors.Is(err, io.EOF) || !c.HungUp() {
					all = append(all, err.Error()...)
				}
				got <- string(all)
				return nil
			}
		}
	})
	c := connect(t, s)
	for _, want := range []string{`{"a": 1}`, `{"b": 2}`} {
		if kind, msg, err := c.ReadMessage(); err != nil || kind != websocket.TextMessage || string(msg) != want {
			t.Fatalf("%d %q %v", kind, msg, err)
		}
	}
	for _, msg := range []string{"123", "", "456789"} {
		if err := c.WriteMessage(websocket.TextMessage, []byte(msg)); err != nil {
			t.Fatal(err)
		}
	}
	_ = c.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""))
	if all := <-got; all != "123\n\n456789\n" {
		t.Errorf("%q", all)
	}
}

func TestWhatIsTooLongOrNoTextEndsTheSession(t *testing.T) {
	for name, c := range map[string]struct {
		kind, size int
		ok         bool
	}{"the longest": {websocket.TextMessage, maxMessage, true}, "too long": {websocket.TextMessage, maxMessage + 1, false}, "binary": {websocket.BinaryMessage, 1, false}} {
		t.Run(name, func(t *testing.T) {
			ended := make(chan error, 1)
			s := start(t, "127.0.0.1:0", func(conn chardev.Conn) error {
				defer conn.Close()
				n, buf := 0, make([]byte, 1<<16)
				for n <= c.size && (n == 0 || buf[0] != '\n') {
					k, _, err := conn.Read(buf)
					if err != nil {
						ended <- err
						return nil
					}
					n += k
				}
				ended <- nil
				return nil
			})
			ws := connect(t, s)
			_ = ws.WriteMessage(c.kind, make([]byte, c.size)) // fails when the other side has closed
			if err := <-ended; (err == nil) != c.ok {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestSessionsBeyondTheLimitAreRefused(t *testing.T) {
	s := start(t, "127.0.0.1:0", func(c chardev.Conn) error {
		_, _, _ = c.Read(make([]byte, 1))
		return c.Close()
	})
	for range maxSessions {
		connect(t, s)
	}
	_, r, err := websocket.DefaultDialer.Dial("ws://"+s.Addr().String()+"/qmp", nil)
	if err == nil || r == nil || r.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("%v, %v", r, err)
	}
	s.Close(t.Context()) // ends all that are left
	if n := s.l.connections(); n != 0 {
		t.Errorf("%d connections are left", n)
	}
}

// server is a QMP server with the protocol's own commands.
func server(t *testing.T, backlog int) *qmp.Server {
	t.Helper()
	registry := qmp.NewRegistry()
	q := qmp.NewServer(qmp.Config{Registry: registry, Chardevs: chardev.NewRegistry(chardev.Config{Clock: clock.Real()}), Clock: clock.Real(), Backlog: backlog})
	qmp.RegisterCommands(registry)
	t.Cleanup(func() { q.Close(context.Background()) })
	return q
}

// negotiate begins a session.
func negotiate(t *testing.T, c *websocket.Conn) {
	t.Helper()
	if _, msg, err := c.ReadMessage(); err != nil || !strings.HasPrefix(string(msg), `{"QMP": `) {
		t.Fatalf("%q %v", msg, err)
	}
	if err := c.WriteMessage(websocket.TextMessage, []byte(`{"execute": "qmp_capabilities", "id": 7}`)); err != nil {
		t.Fatal(err)
	}
	if _, msg, err := c.ReadMessage(); err != nil || string(msg) != `{"return": {}, "id": 7}` {
		t.Fatalf("%q %v", msg, err)
	}
}

func TestSessionIsAsFromACharacterDevice(t *testing.T) {
	q := server(t, 0)
	s := startWith(t, Options{Addr: "127.0.0.1:0"}, Config{QMP: q.ServeConn})
	a, b := connect(t, s), connect(t, s)
	negotiate(t, a)
	negotiate(t, b)
	q.Hub().Emit("SHUTDOWN", nil)
	for _, c := range []*websocket.Conn{a, b} {
		if _, msg, err := c.ReadMessage(); err != nil || !strings.Contains(string(msg), `"event": "SHUTDOWN"`) {
			t.Errorf("%q %v", msg, err)
		}
	}
	a.Close()
	if err := b.WriteMessage(websocket.TextMessage, []byte(`{"execute": "none"}`)); err != nil {
		t.Fatal(err)
	}
	if _, msg, err := b.ReadMessage(); err != nil || !strings.Contains(string(msg), "The command none has not been found") {
		t.Errorf("%q %v", msg, err)
	}
	q.Close(t.Context())
	if _, _, err := b.ReadMessage(); err == nil {
		t.Error("the session outlives the server")
	}
	late, _, err := websocket.DefaultDialer.Dial("ws://"+s.Addr().String()+"/qmp", nil)
	if err == nil {
		defer late.Close()
		_ = late.SetReadDeadline(clock.Real().Now().Add(patience))
		if _, msg, err := late.ReadMessage(); err == nil {
			t.Errorf("a session after the end: %q", msg)
		}
	}
}

func TestClientThatDoesNotReadIsDropped(t *testing.T) {
	q := server(t, 1<<20)
	ended := make(chan struct{})
	s := start(t, "127.0.0.1:0", func(c chardev.Conn) error {
		defer close(ended)
		return q.ServeConn(c, qapi.SessionInfo{Role: qapi.SessionRoleControl})
	})
	negotiate(t, connect(t, s))
	data := &struct {
		Text string `qapi:"text"`
	}{strings.Repeat("x", 1<<16)}
	for {
		select {
		case <-ended:
			return
		default:
			q.Hub().Emit("SHUTDOWN", data)
		}
	}
}

func TestMessageInManyPiecesIsBounded(t *testing.T) {
	ended := make(chan error, 1)
	s := start(t, "127.0.0.1:0", func(conn chardev.Conn) error {
		defer conn.Close()
		buf := make([]byte, 1<<16)
		for {
			if _, _, err := conn.Read(buf); err != nil {
				ended <- err
				return nil
			}
		}
	})
	c := connect(t, s)
	w, err := c.NextWriter(websocket.TextMessage)
	for n := 0; err == nil && n < 64*maxMessage; n += 1 << 15 {
		_, err = w.Write(make([]byte, 1<<15))
	}
	if err := <-ended; !errors.Is(err, websocket.ErrReadLimit) {
		t.Error(err)
	}
}

func TestClientThatLeavesAMessageUnreadIsDropped(t *testing.T) {
	q := server(t, 1<<30)
	ended := make(chan struct{})
	s := open(t, Options{Addr: "127.0.0.1:0"}, Config{QMP: func(c chardev.Conn, info qapi.SessionInfo) error {
		defer close(ended)
		return q.ServeConn(c, info)
	}})
	if s.qmp.stall != stallTime {
		t.Errorf("a message may be left for %v", s.qmp.stall)
	}
	s.qmp.stall = 100 * time.Millisecond
	s.Serve()
	negotiate(t, connect(t, s))
	q.Hub().Emit("SHUTDOWN", &struct {
		Text string `qapi:"text"`
	}{strings.Repeat("x", 24<<20)}) // more than sockets hold
	<-ended
}

func TestMessagesBeyondTheRateAreReadLater(t *testing.T) {
	got := make(chan string, 10)
	s := open(t, Options{Addr: "127.0.0.1:0"}, Config{QMP: func(c chardev.Conn, _ qapi.SessionInfo) error {
		defer close(got)
		buf := make([]byte, 10)
		for {
			n, _, err := c.Read(buf)
			if err != nil {
				return c.Close()
			}
			if n > 0 && buf[0] != '\n' {
				got <- string(buf[:n])
			}
		}
	}})
	if s.qmp.pace != messageRate {
		t.Errorf("%+v", s.qmp.pace)
	}
	s.qmp.pace = rate{time.Hour, 2}
	s.Serve()
	c := connect(t, s)
	for _, m := range []string{"1", "2", "3"} {
		if err := c.WriteMessage(websocket.TextMessage, []byte(m)); err != nil {
			t.Fatal(err)
		}
	}
	if a, b := <-got, <-got; a+b != "12" {
		t.Errorf("%q %q", a, b)
	}
	s.Close(t.Context()) // does not wait for the third one's hour
	if m, ok := <-got; ok {
		t.Errorf("%q was read", m)
	}
}
