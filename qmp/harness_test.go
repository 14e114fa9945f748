package qmp

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"blockd/chardev"
	"blockd/clock"
	"blockd/qapi"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must come.
const patience = 2 * time.Minute

// bench is a running server, for one monitor on a unix socket or more.
type bench struct {
	*Server
	reg  *Registry
	t    testing.TB
	dir  string
	path string
}

func startServer(t testing.TB, change func(*Config)) *bench {
	t.Helper()
	b := &bench{reg: NewRegistry(), t: t, dir: t.TempDir()}
	RegisterCommands(b.reg)
	cfg := Config{Registry: b.reg, Clock: clock.Real(), Chardevs: chardev.NewRegistry(chardev.Config{Clock: clock.Real()}),
		Version: qapi.VersionInfo{QEMU: qapi.VersionTriple{Major: 10, Minor: 2}, Package: "blockd-test"}}
	if change != nil {
		change(&cfg)
	}
	b.Server = NewServer(cfg)
	t.Cleanup(func() {
		// A handler that a failed test has left waiting is cancelled.
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		b.Close(ctx)
		cfg.Chardevs.Close()
	})
	return b
}

// mon is the socket of the monitor "mon", which begins to serve at the first
// call: until then a test may register commands.
func (b *bench) mon() string {
	if b.path == "" {
		b.path = b.addMonitor(b.t, "mon", "")
	}
	return b.path
}

func (b *bench) addMonitor(t testing.TB, id, options string) string {
	t.Helper()
	path := filepath.Join(b.dir, id)
	o, err := chardev.ParseOption("socket,id=" + id + ",server=on,wait=off,path=" + path)
	if err == nil {
		err = b.cfg.Chardevs.Add(context.Background(), o)
	}
	if err != nil {
		t.Fatal(err)
	}
	m, err := ParseMonitorOption(id + options)
	if err == nil {
		err = b.AddMonitor(m)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// client is a QMP client that works on lines of text.
type client struct {
	t testing.TB
	c *net.UnixConn
	r *bufio.Reader
}

func connect(t testing.TB, path string) *client {
	t.Helper()
	var c *net.UnixConn
	var err error
	for end := time.Now().Add(patience); ; {
		c, err = net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
		if err == nil || time.Now().After(end) {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return &client{t: t, c: c, r: bufio.NewReader(c)}
}

// negotiated connects and gets through the negotiation.
func negotiated(t testing.TB, path string) *client {
	t.Helper()
	c := connect(t, path)
	c.line()
	if got := c.ask(`{"execute": "qmp_capabilities"}`); got != `{"return": {}}` {
		t.Fatal(got)
	}
	return c
}

func (c *client) send(text string) {
	c.t.Helper()
	if _, err := c.c.Write([]byte(text)); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) sendFDs(text string, fds ...int) {
	c.t.Helper()
	if _, _, err := c.c.WriteMsgUnix([]byte(text), unix.UnixRights(fds...), nil); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) line() string {
	c.t.Helper()
	s, err := c.r.ReadString('\n')
	if err != nil {
		c.t.Fatalf("after %q: %v", s, err)
	}
	if !strings.HasSuffix(s, "\r\n") {
		c.t.Fatalf("line ends badly: %q", s)
	}
	return strings.TrimSuffix(s, "\r\n")
}

func (c *client) ask(text string) string {
	c.t.Helper()
	c.send(text)
	return c.line()
}

func (c *client) expectEnd() {
	c.t.Helper()
	if rest, err := io.ReadAll(c.r); err != nil || len(rest) > 0 {
		c.t.Fatalf("at the end: %q, %v", rest, err)
	}
}

// until reads until a line contains mark, and returns all of it.
func (c *client) until(mark string) string {
	c.t.Helper()
	return c.collect(func(line string) bool { return strings.Contains(line, mark) })
}

// untilLine is until for a whole line.
func (c *client) untilLine(mark string) string {
	c.t.Helper()
	return c.collect(func(line string) bool { return line == mark })
}

func (c *client) collect(last func(line string) bool) string {
	c.t.Helper()
	var sb strings.Builder
	for {
		s, err := c.r.ReadString('\n')
		sb.WriteString(s)
		if err != nil {
			c.t.Fatalf("after %q: %v", sb.String(), err)
		}
		if last(s) {
			return sb.String()
		}
	}
}

// startRival starts a program of the field with a QMP socket, in a folder of
// its own, or skips the test.
func startRival(t testing.TB, program string, args func(socket string) []string) (path string) {
	t.Helper()
	binary, err := exec.LookPath(program)
	if err != nil {
		t.Skip("needs " + program)
	}
	dir := t.TempDir()
	path = filepath.Join(dir, "mon")
	cmd := exec.Command(binary, args(path)...)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return path
}

func startRivalQSD(t testing.TB, monitor string) string {
	return startRival(t, "qemu-storage-daemon", func(socket string) []string {
		return []string{"--chardev", "socket,id=mon,server=on,wait=off,path=" + socket, "--monitor", monitor}
	})
}

// versionOf reads the version out of a greeting.
func versionOf(t testing.TB, greeting string) (v qapi.VersionInfo) {
	t.Helper()
	var g struct {
		QMP struct {
			Version struct {
				QEMU    struct{ Major, Minor, Micro int64 }
				Package string
			}
		}
	}
	if err := json.Unmarshal([]byte(greeting), &g); err != nil {
		t.Fatal(err)
	}
	v.QEMU = qapi.VersionTriple(g.QMP.Version.QEMU)
	v.Package = g.QMP.Version.Package
	return v
}
