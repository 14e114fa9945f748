package qmp

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"blockd/qapi"
)

// pairConn is a chardev.Conn without a device.
type pairConn struct{ *net.UnixConn }

func (c pairConn) Read(p []byte) (int, []*os.File, error) {
	n, err := c.UnixConn.Read(p)
	return n, nil, err
}

func (c pairConn) HungUp() bool { return true }

// pair begins a session as who peer says, and returns the client's end; the channel
// has what ServeConn returns.
func (b *bench) pair(peer qapi.SessionInfo) (*net.UnixConn, <-chan error) {
	b.t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		b.t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			b.t.Fatal(err)
		}
		ends[i] = c.(*net.UnixConn)
	}
	ended := make(chan error, 1)
	go func() { ended <- b.ServeConn(pairConn{ends[1]}, peer) }()
	ends[0].SetDeadline(time.Now().Add(patience))
	return ends[0], ended
}

// visit begins a session as who peer says, with commands out of band.
func (b *bench) visit(peer qapi.SessionInfo) *client {
	b.t.Helper()
	end, ended := b.pair(peer)
	b.t.Cleanup(func() {
		end.Close()
		<-ended
	})
	c := &client{t: b.t, c: end, r: bufio.NewReader(end)}
	c.line()
	if got := c.ask(`{"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}`); got != `{"return": {}}` {
		b.t.Fatal(got)
	}
	return c
}

// TestReadOnlySessionsRunNothingElse tries every command that there is here, and
// others, in a read-only session and in one whose role nobody knows.
func TestReadOnlySessionsRunNothingElse(t *testing.T) {
	ran := ""
	b := startServer(t, nil)
	for _, name := range []string{"blockdev-add", "x-new-command", "query-secrets", "query-new"} {
		Register(b.reg, name, CommandOptions{AllowOOB: true, ReadOnly: name == "query-new"}, func(*Context, *qapi.Empty) (qapi.Empty, error) {
			ran = name
			return qapi.Empty{}, nil
		})
	}
	for _, role := range []qapi.SessionRole{qapi.SessionRoleReadOnly, "", "other"} {
		w := b.visit(qapi.SessionInfo{Role: role, Peer: "test"})
		tried := 0
		for _, c := range b.reg.Commands() {
			if b.reg.Role(c.Name) == qapi.SessionRoleReadOnly {
				continue
			}
			tried++
			want := `{"error": {"class": "GenericError", "desc": "The command ` + c.Name + ` needs the role 'control'"}}`
			for _, word := range []string{"execute", "exec-oob"} {
				if word == "exec-oob" && b.reg.byName[c.Name].opts.AllowOOB == false {
					continue
				}
				if got := w.ask(`{"` + word + `": "` + c.Name + `"}`); got != want {
					t.Errorf("role %q, %s: %s", role, c.Name, got)
				}
			}
		}
		if tried < 10 || ran != "" {
			t.Errorf("%d commands tried, %q ran", tried, ran)
		}
		if got := w.ask(`{"execute": "query-new"}`); got != `{"return": {}}` || ran != "query-new" {
			t.Errorf("query-new: %s", got)
		}
		ran = ""
		if got := w.ask(`{"execute": "none"}`); !strings.Contains(got, "has not been found") {
			t.Error(got)
		}
	}
	w := b.visit(qapi.SessionInfo{Role: qapi.SessionRoleControl, Peer: "test"})
	if got := w.ask(`{"execute": "x-new-command"}`); got != `{"return": {}}` || ran != "x-new-command" {
		t.Errorf("control: %s", got)
	}
}

// TestNewCommandsNeedControl requires that a name alone opens nothing.
func TestNewCommandsNeedControl(t *testing.T) {
	r := NewRegistry()
	for _, name := range []string{"frobnicate", "query-new", "x-query-new"} {
		Register(r, name, CommandOptions{}, func(*Context, *qapi.Empty) (qapi.Empty, error) { return qapi.Empty{}, nil })
		if got := r.Role(name); got != qapi.SessionRoleControl {
			t.Errorf("%s: %s", name, got)
		}
	}
	if got := r.Role("query-none"); got != qapi.SessionRoleControl {
		t.Errorf("a command that is not there: %s", got)
	}
}

func TestQuerySession(t *testing.T) {
	b := startServer(t, nil)
	size, name := int64(5), "alice"
	w := b.visit(qapi.SessionInfo{
		Role: qapi.SessionRoleReadOnly, Transport: qapi.SessionTransportWebsocket, Peer: "192.0.2.1:5", Name: &name, TLS: true, Limits: qapi.SessionLimits{Message: &size},
	})
	got, err := qapi.ParseJSON([]byte(w.ask(`{"execute": "x-query-session"}`)))
	if err != nil {
		t.Fatal(err)
	}
	answer, _ := got.(*qapi.Object).Get("return")
	var info qapi.SessionInfo
	if err := qapi.Decode(answer, &info); err != nil {
		t.Fatal(err)
	}
	if info.Role != qapi.SessionRoleReadOnly || info.Peer != "192.0.2.1:5" || *info.Name != name || !info.TLS ||
		*info.Limits.Message != size || info.Limits.Queue != QueueLength || info.Limits.Backlog != MaxBacklog {
		t.Errorf("%+v", info)
	}
}

func TestQuerySessionOfAMonitor(t *testing.T) {
	b := startServer(t, nil)
	got := negotiated(t, b.mon()).ask(`{"execute": "x-query-session"}`)
	for _, want := range []string{`"role": "control"`, `"transport": "monitor"`, `"peer": "unix:` + b.path, `"tls": false`} {
		if !strings.Contains(got, want) {
			t.Errorf("%s has no %s", got, want)
		}
	}
	if want := fmt.Sprintf(`"uid": %d`, os.Getuid()); !strings.Contains(got, want) {
		t.Errorf("%s has no %s", got, want)
	}
}

// TestCloseWaitsForCommandsOfVisitorsThatLeft: such a command may still change
// what the daemon is about to take down.
func TestCloseWaitsForCommandsOfVisitorsThatLeft(t *testing.T) {
	b := startServer(t, nil)
	begun, release := make(chan struct{}), make(chan struct{})
	var over atomic.Bool
	Register(b.reg, "test-work", CommandOptions{}, func(*Context, *qapi.Empty) (qapi.Empty, error) {
		close(begun)
		<-release
		for range 100 { // who does not wait is done by now
			runtime.Gosched()
		}
		over.Store(true)
		return qapi.Empty{}, nil
	})
	ends, session := b.pair(monitorPeer)
	c := &client{t: b.t, c: ends, r: bufio.NewReader(ends)}
	c.line()
	c.ask(`{"execute": "qmp_capabilities"}`)
	c.send(`{"execute": "test-work"}`)
	<-begun
	ends.Close()
	if err := <-session; err != nil { // the session is over, its command is not
		t.Fatal(err)
	}
	go close(release)
	b.Close(t.Context())
	if !over.Load() {
		t.Error("the server is closed, and a command still runs")
	}
}
