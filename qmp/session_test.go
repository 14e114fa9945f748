package qmp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"blockd/chardev"
	"blockd/clock"
	"blockd/qapi"

	"golang.org/x/sys/unix"
)

type noArgs = qapi.Empty

// withWait registers a command that tells when it has begun and waits to be
// let go.
func withWait(b *bench) (begun chan string, release chan struct{}) {
	begun, release = make(chan string, 100), make(chan struct{})
	type waitArg struct {
		Name string `qapi:"name"`
	}
	Register(b.reg, "test-wait", CommandOptions{}, func(c *Context, a *waitArg) (string, error) {
		begun <- a.Name
		select {
		case <-release:
		case <-c.Done():
			return "", c.Err()
		}
		return a.Name, nil
	})
	return begun, release
}

func TestEventsPrecedeTheReplyOfTheirCommand(t *testing.T) {
	b := startServer(t, nil)
	Register(b.reg, "test-emit", CommandOptions{}, func(c *Context, _ *noArgs) (noArgs, error) {
		for i := range 3 {
			c.Server().Hub().Emit("TEST", qapi.NewObject("n", int64(i)))
		}
		return noArgs{}, nil
	})
	c, other := negotiated(t, b.mon()), negotiated(t, b.addMonitor(t, "second", ""))
	c.send(`{"execute": "test-emit", "id": 1}`)
	for _, from := range []*client{c, other} {
		for i := range 3 {
			if got := from.line(); !strings.HasSuffix(got, fmt.Sprintf(`"event": "TEST", "data": {"n": %d}}`, i)) {
				t.Fatal(got)
			}
		}
	}
	if got := c.line(); got != `{"return": {}, "id": 1}` {
		t.Fatal(got)
	}
}

func TestEventsCarryTheTimeAndOnlyTheDataGiven(t *testing.T) {
	b := startServer(t, nil)
	c := negotiated(t, b.mon())
	before := time.Now().Unix()
	b.Hub().Emit("BARE", nil)
	var sec, usec int64
	if _, err := fmt.Sscanf(c.line(), `{"timestamp": {"seconds": %d, "microseconds": %d}, "event": "BARE"}`, &sec, &usec); err != nil {
		t.Fatal(err)
	}
	if sec < before || sec > time.Now().Unix() || usec < 0 || usec > 999999 {
		t.Fatal(sec, usec)
	}
}

func TestNothingComesBeforeTheReplyThatEndsNegotiation(t *testing.T) {
	b := startServer(t, nil)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				b.Hub().Emit("NOISE", nil)
			}
		}
	})
	for range 50 {
		c := connect(t, b.mon())
		c.line()
		if got := c.ask(`{"execute": "qmp_capabilities"}`); got != `{"return": {}}` {
			t.Error(got)
		}
		c.c.Close()
	}
	close(stop)
	wg.Wait()
}

func TestNextClientNeverSeesTheReplyOfOneThatLeft(t *testing.T) {
	b := startServer(t, nil)
	begun, release := withWait(b)
	c := negotiated(t, b.mon())
	c.send(`{"execute": "test-wait", "arguments": {"name": "first"}, "id": "old"}{"execute": "test-wait", "arguments": {"name": "queued"}, "id": "old2"}`)
	if got := <-begun; got != "first" {
		t.Fatal(got)
	}
	c.c.Close()
	next := negotiated(t, b.mon()) // while the command still runs
	close(release)
	if got := <-begun; got != "queued" {
		t.Fatalf("what was sent did not run: %s", got)
	}
	if got := next.ask(`{"execute": "no", "id": "new"}`); !strings.Contains(got, `"id": "new"`) {
		t.Fatal(got)
	}
}

func TestMonitorWaitsWhenTooManyLeftTheirCommands(t *testing.T) {
	b := startServer(t, nil)
	begun, release := withWait(b)
	for i := range maxAbandoned {
		c := negotiated(t, b.mon())
		c.send(fmt.Sprintf(`{"execute": "test-wait", "arguments": {"name": "%d"}}`, i))
		<-begun
		c.c.Close()
	}
	late := connect(t, b.mon())
	late.c.SetReadDeadline(time.Now().Add(30 * time.Millisecond))
	if _, err := late.r.ReadByte(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("greeted: %v", err)
	}
	late.c.SetReadDeadline(time.Now().Add(patience))
	close(release)
	if got := late.line(); !strings.HasPrefix(got, `{"QMP"`) {
		t.Fatal(got)
	}
}

func TestHalfClosedClientGetsAllAnswers(t *testing.T) {
	b := startServer(t, nil)
	c := connect(t, b.mon())
	c.send(`{"execute": "qmp_capabilities"}` + strings.Repeat(`{"execute": "query-version"}`, 20))
	c.c.CloseWrite()
	all, err := io.ReadAll(c.r)
	if err != nil || strings.Count(string(all), "\r\n") != 22 {
		t.Fatalf("%v %s", err, all)
	}
}

func TestClientThatDoesNotReadIsDisconnectedAndNobodyWaits(t *testing.T) {
	b := startServer(t, func(c *Config) { c.Backlog = 256 << 10 })
	lazy, keen := negotiated(t, b.mon()), negotiated(t, b.addMonitor(t, "keen", ""))
	text := strings.Repeat("x", 1000)
	const count, window = 5000, 50
	read := make(chan struct{}, count)
	var reader sync.WaitGroup
	reader.Go(func() {
		for range count {
			if got := keen.line(); !strings.Contains(got, `"event": "BIG"`) {
				t.Error(got)
			}
			read <- struct{}{}
		}
	})
	for i := range count {
		b.Hub().Emit("BIG", qapi.NewObject("text", text)) // never waits, whoever reads
		if i >= window {
			<-read // the keen client is never far behind
		}
	}
	reader.Wait()
	all, _ := io.ReadAll(lazy.r)
	if n := strings.Count(string(all), "\n"); n >= count {
		t.Fatalf("the lazy client got all %d", n)
	}
	again := negotiated(t, b.mon()) // its monitor is free
	if got := again.ask(`{"execute": "query-fdsets"}`); got != `{"return": []}` {
		t.Fatal(got)
	}
}

func TestOneMessageMayExceedTheBacklog(t *testing.T) {
	b := startServer(t, func(c *Config) { c.Backlog = 1000 })
	Register(b.reg, "test-big", CommandOptions{}, func(*Context, *noArgs) (string, error) {
		return strings.Repeat("y", 1<<20), nil
	})
	c := negotiated(t, b.mon())
	if got := c.ask(`{"execute": "test-big"}`); len(got) < 1<<20 {
		t.Fatal(len(got))
	}
}

func TestFullQueueStopsReading(t *testing.T) {
	b := startServer(t, nil)
	begun, release := withWait(b)
	c := negotiated(t, b.mon())
	c.send(`{"execute": "test-wait", "arguments": {"name": "x"}}`)
	<-begun
	request := []byte(`{"execute": "no", "id": "` + strings.Repeat("z", 1<<20) + `"}`)
	blocked := make(chan error)
	go func() {
		var err error
		for i := 0; err == nil && i < 100; i++ { // far more than sockets buffer
			_, err = c.c.Write(request)
		}
		blocked <- err
	}()
	b.hub.mu.Lock()
	var s *Session
	for s = range b.hub.sessions {
	}
	b.hub.mu.Unlock()
	for end := time.Now().Add(patience); len(s.queue) < QueueLength; runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatal("the queue does not fill up")
		}
	}
	c.c.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
	if err := <-blocked; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("all was read: %v", err)
	}
	close(release)
	for range QueueLength {
		c.line()
	}
}

func TestOutOfBandCommandPassesOneThatRuns(t *testing.T) {
	b := startServer(t, nil)
	begun, release := withWait(b)
	Register(b.reg, "test-quick", CommandOptions{AllowOOB: true}, func(*Context, *noArgs) (string, error) { return "quick", nil })
	c := connect(t, b.mon())
	c.line()
	c.ask(`{"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}`)
	c.send(`{"execute": "test-wait", "arguments": {"name": "slow"}, "id": 1}`)
	<-begun
	if got := c.ask(`{"exec-oob": "test-quick", "id": 2}`); got != `{"return": "quick", "id": 2}` {
		t.Fatal(got)
	}
	close(release)
	if got := c.line(); got != `{"return": "slow", "id": 1}` {
		t.Fatal(got)
	}
}

func TestQuitAnswersAndClosesTheConnection(t *testing.T) {
	called := make(chan struct{}, 1)
	var hub *Hub
	b := startServer(t, func(c *Config) {
		c.Quit = func(context.Context) error {
			hub.Emit("LAST", nil)
			called <- struct{}{}
			return nil
		}
	})
	hub = b.Hub()
	c := negotiated(t, b.mon())
	c.send(`{"execute": "quit", "id": 1}{"execute": "query-version"}`)
	<-called
	if got := c.line(); !strings.Contains(got, "LAST") {
		t.Fatal(got)
	}
	if got := c.line(); got != `{"return": {}, "id": 1}` {
		t.Fatal(got)
	}
	c.expectEnd()
}

func TestCloseAnswersTheCommandThatRuns(t *testing.T) {
	b := startServer(t, nil)
	begun, release := withWait(b)
	c := negotiated(t, b.mon())
	c.send(`{"execute": "test-wait", "arguments": {"name": "x"}}`)
	<-begun
	closed := make(chan struct{})
	go func() {
		b.Close(t.Context())
		close(closed)
	}()
	close(release)
	if got := c.line(); got != `{"return": "x"}` {
		t.Fatal(got)
	}
	c.expectEnd()
	<-closed
}

func TestCloseCancelsCommandsWhenItsContextEnds(t *testing.T) {
	b := startServer(t, nil)
	begun, _ := withWait(b)
	c := negotiated(t, b.mon())
	c.send(`{"execute": "test-wait", "arguments": {"name": "x"}}`)
	<-begun
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	b.Close(ctx)
	if got := c.line(); got != `{"error": {"class": "GenericError", "desc": "context canceled"}}` {
		t.Fatal(got)
	}
}

func TestLimitedEventsComeOncePerIntervalAndKey(t *testing.T) {
	pace := clock.NewVirtual()
	b := startServer(t, func(c *Config) { c.Pace = pace })
	c := negotiated(t, b.mon())
	emit := func(node, action, reason string) {
		b.Hub().Emit("BLOCK_IO_ERROR", &qapi.BlockIOError{NodeName: &node, Operation: "read",
			Action: qapi.BlockErrorAction(action), Reason: reason})
	}
	expect := func(reasons ...string) {
		t.Helper()
		b.Hub().Emit("MARK", nil)
		for _, r := range append(reasons, "MARK") {
			if got := c.line(); !strings.Contains(got, `"`+r+`"`) {
				t.Fatalf("want %s, got %s", r, got)
			}
		}
	}
	emit("a", "report", "r1")
	emit("a", "report", "r2")
	emit("a", "report", "r3")
	emit("b", "report", "other")
	emit("a", "stop", "s1")
	emit("a", "stop", "s2")
	expect("r1", "other", "s1", "s2")
	pace.Step(EventInterval - 1)
	expect()
	pace.Step(1)
	expect("r3") // the latest one counts
	emit("a", "report", "r4")
	expect()
	pace.Step(EventInterval)
	expect("r4")
	pace.Step(EventInterval)
	expect()
	if _, pending := pace.Next(); pending {
		t.Fatal("a timer is left")
	}
	emit("a", "report", "r5")
	expect("r5")
}

func TestCommandListAndSchemaComeFromTheRegistry(t *testing.T) {
	b := startServer(t, nil)
	Register(b.reg, "x-last", CommandOptions{Unstable: true}, func(*Context, *noArgs) (noArgs, error) { return noArgs{}, nil })
	RegisterEvent[qapi.BlockIOError](b.reg, "BLOCK_IO_ERROR")
	c := negotiated(t, b.mon())
	list := c.ask(`{"execute": "query-commands"}`)
	if !strings.HasPrefix(list, `{"return": [{"name": "x-last"}, `) || !strings.HasSuffix(list, `{"name": "qmp_capabilities"}]}`) {
		t.Fatal(list)
	}
	schema := c.ask(`{"execute": "query-qmp-schema"}`)
	for _, want := range []string{`"name": "x-last"`, `"unstable"`, `"name": "BLOCK_IO_ERROR"`, `"name": "chardev-add"`} {
		if !strings.Contains(schema, want) {
			t.Errorf("schema lacks %s", want)
		}
	}
}

func TestErrorClassOfHandlerReachesTheClient(t *testing.T) {
	b := startServer(t, nil)
	Register(b.reg, "test-fail", CommandOptions{}, func(*Context, *noArgs) (noArgs, error) {
		return noArgs{}, fmt.Errorf("context that clients do not see: %w", qapi.ClassErrorf(qapi.DeviceNotFound, "Device '%s' not found", "d"))
	})
	c := negotiated(t, b.mon())
	if got := c.ask(`{"execute": "test-fail"}`); got != `{"error": {"class": "DeviceNotFound", "desc": "Device 'd' not found"}}` {
		t.Fatal(got)
	}
}

func TestChardevTakesAPassedSocketByName(t *testing.T) {
	b := startServer(t, nil)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[1])
	c := negotiated(t, b.mon())
	c.sendFDs(`{"execute": "getfd", "arguments": {"fdname": "sock"}}`, pair[0])
	c.line()
	unix.Close(pair[0])
	add := `{"execute": "chardev-add", "arguments": {"id": "p", "backend": {"type": "socket", "data": {"server": false, "addr": {"type": "fd", "data": {"str": "sock"}}}}}}`
	if got := c.ask(add); got != `{"return": {}}` {
		t.Fatal(got)
	}
	if got := c.ask(strings.Replace(add, `"p"`, `"q"`, 1)); !strings.Contains(got, `Failed to add chardev 'q': File descriptor named 'sock' has not been found`) {
		t.Fatal(got)
	}
	if got := c.ask(`{"execute": "query-chardev"}`); !strings.Contains(got, `{"frontend-open": false, "filename": "unix:", "label": "p"}`) {
		t.Fatal(got)
	}
}

func TestPassedDescriptorsNobodyClaimsAreClosed(t *testing.T) {
	b := startServer(t, nil)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	c := negotiated(t, b.mon())
	c.sendFDs(`{"execute": "query-fdsets"}`, int(w.Fd()), int(w.Fd()))
	c.line()
	c.sendFDs(`{"execute": "que`, int(w.Fd())) // a request that never ends
	c.c.Close()
	w.Close()
	r.SetReadDeadline(time.Now().Add(patience))
	if _, err := r.Read(make([]byte, 1)); err != io.EOF {
		t.Fatalf("a copy of the pipe is still open: %v", err)
	}
}

func TestStdioLikeDeviceServesOneClient(t *testing.T) {
	b := startServer(t, nil)
	dir := t.TempDir()
	in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out")
	os.WriteFile(in, []byte(`{"execute": "qmp_capabilities"}{"execute": "test-done"}`), 0o600)
	done := make(chan struct{})
	Register(b.reg, "test-done", CommandOptions{}, func(*Context, *noArgs) (noArgs, error) { close(done); return noArgs{}, nil })
	o, err := chardev.ParseOption("file,id=f,input-path=" + in + ",path=" + out)
	if err == nil {
		err = b.cfg.Chardevs.Add(t.Context(), o)
	}
	if err == nil {
		err = b.AddMonitor(qapi.MonitorOptions{Chardev: "f"})
	}
	if err != nil {
		t.Fatal(err)
	}
	<-done
	b.Close(t.Context())
	text, err := os.ReadFile(out)
	if err != nil || strings.Count(string(text), "\r\n") != 3 || !strings.HasSuffix(string(text), "{\"return\": {}}\r\n{\"return\": {}}\r\n") {
		t.Fatalf("%v %q", err, text)
	}
}

// TestSubscribedEventsComeToThoseWhoAskedAlone, and are not made for nobody.
func TestSubscribedEventsComeToThoseWhoAskedAlone(t *testing.T) {
	b := startServer(t, nil)
	Register(b.reg, "test-subscribe", CommandOptions{}, func(c *Context, a *qapi.XGraphSubscribeArg) (noArgs, error) {
		c.Subscribe("TEST", a.Enable == nil)
		return noArgs{}, nil
	})
	made := 0
	emit := func() {
		b.Hub().EmitSubscribed("TEST", func() any { made++; return qapi.NewObject("n", int64(made)) })
		b.Hub().EmitSubscribed("OTHER", func() any { t.Error("made for nobody"); return nil })
	}
	c, other := negotiated(t, b.mon()), negotiated(t, b.addMonitor(t, "second", ""))
	emit()
	c.ask(`{"execute": "test-subscribe"}`)
	emit()
	if got := c.line(); !strings.HasSuffix(got, `"event": "TEST", "data": {"n": 1}}`) {
		t.Fatal(got)
	}
	c.ask(`{"execute": "test-subscribe", "arguments": {"enable": false}}`)
	emit()
	for _, from := range []*client{c, other} {
		if got := from.ask(`{"execute": "test-nothing", "id": 1}`); !strings.Contains(got, "CommandNotFound") {
			t.Error(got)
		}
	}
	if made != 1 {
		t.Errorf("made %d times", made)
	}
}
