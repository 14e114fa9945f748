package logs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"blockd/qapi"
)

// any takes all lines.
func anyLine(*Line) bool { return true }

// texts are the messages of lines.
func texts(p Past) []string {
	var list []string
	for _, l := range p.Lines {
		list = append(list, l.Message)
	}
	return list
}

func expect(t *testing.T, got, want any) {
	t.Helper()
	if g, w := fmt.Sprint(got), fmt.Sprint(want); g != w {
		t.Errorf("got %s, want %s", g, w)
	}
}

func TestLineHasItsPlaceRequestAndAttributes(t *testing.T) {
	l := New(10)
	ctx := qapi.WithOrigin(context.Background(), qapi.Origin{Command: "c", Request: 7})
	log := slog.New(l.Handler()).With("a", 1).WithGroup("g").With("b", "x")
	log.WarnContext(ctx, "hello", "c", errors.New("bad"), slog.Group("h", "d", true), "n", error((*nilError)(nil)))
	p := l.Since(0, 10, anyLine)
	if len(p.Lines) != 1 {
		t.Fatalf("%d lines", len(p.Lines))
	}
	line := p.Lines[0]
	expect(t, line.Attrs, "[a=1 g.b=x g.c=bad g.h.d=true g.n=an error without text]")
	expect(t, line.Request, 7)
	expect(t, line.Number, 1)
	expect(t, line.Name(), "warning")
	if line.At.IsZero() {
		t.Error("the line has no time")
	}
}

type nilError struct{ text string }

func (e *nilError) Error() string { return e.text }

func TestSubsystemIsThePackage(t *testing.T) {
	for name, want := range map[string]qapi.LogSubsystem{
		"blockd/blockgraph.(*Tx).warnLate.func1":          qapi.LogSubsystemGraph,
		"blockd/formats/qcow2.(*driver).close":            qapi.LogSubsystemQcow2,
		"blockd/formats/raw.open":                         qapi.LogSubsystemFormats,
		"blockd/jobs/mirror.(*mirror).x":                  qapi.LogSubsystemJobs,
		"blockd/jobs.x[go.shape.*blockd/blockgraph.Node]": qapi.LogSubsystemJobs,
		"blockd/exports/nbd.(*conn).serve":                qapi.LogSubsystemExports,
		"net/http.(*Server).logf":                         qapi.LogSubsystemWeb,
		"main.main":                                       qapi.LogSubsystemDaemon,
		"":                                                qapi.LogSubsystemDaemon,
		"blockd/blockgraph/graphtest.New":                 qapi.LogSubsystemGraph,
		"golang.org/x/net.f":                              qapi.LogSubsystemDaemon,
	} {
		if got := subsystemOfFunction(name); got != want {
			t.Errorf("%s is of %s, want %s", name, got, want)
		}
	}
	// Records that tests of this package make come from here.
	l := New(1)
	slog.New(l.Handler()).Info("x")
	expect(t, l.Since(0, 1, anyLine).Lines[0].Subsystem, qapi.LogSubsystemDaemon)
}

func TestLevelsOfSinksAndSubsystems(t *testing.T) {
	l := New(10)
	log := slog.New(l.Handler())
	enabled := func(level slog.Level) bool { return log.Enabled(context.Background(), level) }
	if enabled(slog.LevelDebug) || !enabled(slog.LevelInfo) {
		t.Error("the level is not info at first")
	}
	daemon, memory := qapi.LogSubsystemDaemon, qapi.LogSinkMemory
	l.SetLevel(qapi.LogLevelError, nil, nil)
	log.Warn("no")
	if enabled(slog.LevelWarn) {
		t.Error("nobody wants warnings, and they are made")
	}
	l.SetLevel(qapi.LogLevelDebug, &daemon, &memory)
	log.Debug("yes")
	other := qapi.LogSubsystemQcow2
	l.SetLevel(qapi.LogLevelError, &daemon, nil)
	l.SetLevel(qapi.LogLevelDebug, &other, nil)
	log.Debug("no")
	log.Error("yes, too")
	expect(t, texts(l.Since(0, 10, anyLine)), []string{"yes", "yes, too"})
	of, _ := l.Levels()
	for _, s := range of {
		want := qapi.LogSubsystemLevels{Subsystem: s.Subsystem, Memory: qapi.LogLevelError, Output: qapi.LogLevelError}
		if s.Subsystem == other {
			want.Memory, want.Output = qapi.LogLevelDebug, qapi.LogLevelDebug
		}
		expect(t, s, want)
	}
}

func TestPatternsLetEventsThrough(t *testing.T) {
	l := New(10)
	log := slog.New(l.Handler())
	if _, _, err := l.Trace("job_*", nil); err != nil {
		t.Fatal(err)
	}
	memory := qapi.LogSinkMemory
	names, _, err := l.Trace("-job_s*", &memory)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, names, []string{"job_state"})
	names, exact, err := l.Trace("node_?losed", nil)
	expect(t, []any{names, exact, err}, "[[node_closed] false <nil>]")
	names, exact, err = l.Trace("-nothing", nil)
	expect(t, []any{names, exact, err}, "[[] true <nil>]")
	for _, e := range []string{"job_state", "node_opened", "node_closed", "Job state", "job_none"} {
		log.Debug(e)
	}
	expect(t, texts(l.Since(0, 10, anyLine)), []string{"node_closed"})
	_, events := l.Levels()
	for _, e := range events {
		job, closed := e.Name == "job_state", e.Name == "node_closed"
		if e.Output != (job || closed) || e.Memory != closed {
			t.Errorf("%+v", e)
		}
	}
	for _, bad := range []string{"", "-", "a[", `a\`, "a/b"} {
		if _, _, err := l.Trace(bad, nil); err == nil {
			t.Errorf("%q is a pattern", bad)
		}
	}
}

func TestRingKeepsTheNewestWithinItsBounds(t *testing.T) {
	l := New(3)
	log := slog.New(l.Handler())
	for i := range 5 {
		log.Info(fmt.Sprint(i))
	}
	p := l.Since(0, 10, anyLine)
	expect(t, texts(p), []string{"2", "3", "4"})
	expect(t, []any{p.First, p.Last, p.Complete}, "[3 5 false]")
	p = l.Since(2, 10, anyLine)
	expect(t, p.Complete, true)
	p = l.Since(2, 2, anyLine)
	expect(t, []any{texts(p), p.Complete}, "[[3 4] false]")
	p = l.Since(1<<63, 2, anyLine)
	expect(t, []any{len(p.Lines), p.Complete}, "[0 true]")

	big := New(1 << 16)
	for range 3000 {
		slog.New(big.Handler()).Info(strings.Repeat("x", maxText))
	}
	p = big.Since(0, 1<<16, anyLine)
	if n := len(p.Lines); n < 100 || n*maxText > ringBytes {
		t.Errorf("%d lines of %d bytes are kept", n, maxText)
	}
}

// stuck is an output that nobody reads, until it is let go.
type stuck struct {
	begun chan struct{}
	once  sync.Once
	free  chan struct{}
	mu    sync.Mutex
	text  bytes.Buffer
}

func (s *stuck) Write(b []byte) (int, error) {
	s.once.Do(func() { close(s.begun) })
	<-s.free
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(b)
}

func (s *stuck) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// TestNobodyWaitsForTheOutput has more logged than the ring holds while the
// output does not take a byte: it would never end if a call waited.
func TestNobodyWaitsForTheOutput(t *testing.T) {
	l := New(4)
	to := &stuck{begun: make(chan struct{}), free: make(chan struct{})}
	l.Output(to, qapi.LogFormatText)
	log := slog.New(l.Handler())
	log.Info("first")
	<-to.begun
	for i := range 100 {
		log.Info("line", "i", i)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	l.Flush(ctx) // gives up
	close(to.free)
	l.Flush(context.Background())
	lost, failed := l.Lost()
	expect(t, []uint64{lost, failed}, "[96 0]")
	lines := strings.Split(strings.TrimSpace(to.String()), "\n")
	expect(t, len(lines), 6)
	for i, want := range []string{"msg=first", "lines=96", "i=96", "i=97", "i=98", "i=99"} {
		if i < len(lines) && !strings.Contains(lines[i], want) {
			t.Errorf("line %d is %q, want %s", i, lines[i], want)
		}
	}
	l.Close(context.Background())
	log.Info("too late")
	l.Flush(context.Background())
}

// stuckLog is a log whose output has begun to write and does not end, with a
// context that is over.
func stuckLog() (*Log, *stuck, context.Context) {
	l := New(4)
	to := &stuck{begun: make(chan struct{}), free: make(chan struct{})}
	l.Output(to, qapi.LogFormatText)
	slog.New(l.Handler()).Info("x")
	<-to.begun
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return l, to, ctx
}

func TestCloseGivesUpOnAnOutputThatIsStuck(t *testing.T) {
	l, to, ctx := stuckLog()
	l.Close(ctx)
	close(to.free)
	<-l.out.ended
}

// file keeps what is written, and is closed once.
type file struct {
	bytes.Buffer
	closed int
}

func (f *file) Close() error {
	f.closed++
	return nil
}

func TestALogThatIsRedirectedLosesNothing(t *testing.T) {
	l := New(64)
	var first, second file
	l.Output(&first, qapi.LogFormatJSON)
	log := slog.New(l.Handler())
	log.Info("before")
	if !l.Redirect(context.Background(), &second) {
		t.Fatal("it was not redirected")
	}
	log.Info("after")
	l.Close(context.Background())
	if n := strings.Count(first.String(), "\n"); n != 1 || !strings.Contains(first.String(), "before") || first.closed != 1 {
		t.Errorf("the first output, closed %d times: %s", first.closed, first.String())
	}
	if n := strings.Count(second.String(), "\n"); n != 1 || !strings.Contains(second.String(), "after") || second.closed != 0 {
		t.Errorf("the second output, closed %d times: %s", second.closed, second.String())
	}
}

func TestALogThatIsStuckIsNotRedirected(t *testing.T) {
	l, to, ctx := stuckLog()
	var other file
	if l.Redirect(ctx, &other) {
		t.Error("it was redirected")
	}
	close(to.free)
	l.Close(context.Background())
	if other.Len() != 0 || other.closed != 0 {
		t.Errorf("%q, closed %d times", other.String(), other.closed)
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errors.New("no space") }

func TestLinesThatCannotBeWrittenAreCounted(t *testing.T) {
	l := New(4)
	l.Output(failing{}, qapi.LogFormatJSON)
	log := slog.New(l.Handler())
	for range 3 {
		log.Info("x")
		l.Flush(context.Background())
	}
	lost, failed := l.Lost()
	expect(t, []uint64{lost, failed}, "[0 3]")
	l.Close(context.Background())
}

func TestOutputIsTextOrJSON(t *testing.T) {
	for _, format := range []qapi.LogFormat{qapi.LogFormatText, qapi.LogFormatJSON} {
		l := New(10)
		var to bytes.Buffer
		l.Output(&to, format)
		ctx := qapi.WithOrigin(context.Background(), qapi.Origin{Request: 7})
		slog.New(l.Handler()).WarnContext(ctx, "a \n\x1b[31m \"line\"", "n", 5, "d", time.Second)
		l.Close(context.Background())
		if strings.Count(to.String(), "\n") != 1 || strings.ContainsRune(to.String(), '\x1b') {
			t.Errorf("%q is not one harmless line", to.String())
		}
		if format == qapi.LogFormatText {
			if want := `level=WARN msg="a \n\x1b[31m \"line\"" subsystem=daemon request=7 n=5 d=1s`; !strings.HasSuffix(to.String(), want+"\n") {
				t.Errorf("%q does not end in %q", to.String(), want)
			}
			continue
		}
		var got map[string]any
		if err := json.Unmarshal(to.Bytes(), &got); err != nil {
			t.Fatal(err)
		}
		expect(t, []any{got["level"], got["msg"], got["subsystem"], got["request"], got["n"]}, "[WARN a \n\x1b[31m \"line\" daemon 7 5]")
	}
}

func TestFollowerIsToldOfEachLineOnceAndInOrder(t *testing.T) {
	l := New(1000)
	log := slog.New(l.Handler())
	log.Info("before")
	got := make(chan uint64, 1000)
	f := l.Follow(func(line *Line) { got <- line.Number })
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for range 50 {
				log.Info("x")
			}
		})
	}
	group.Wait()
	for want := uint64(2); want <= 201; want++ {
		if n := <-got; n != want {
			t.Fatalf("line %d came, want %d", n, want)
		}
	}
	ran := false
	expect(t, f.Between(func() { ran = true }), 201)
	expect(t, ran, true)
	f.Stop()
	log.Info("after")
	expect(t, f.Between(func() { t.Error("it runs after the end") }), 0)
	expect(t, len(got), 0)
}

func TestFollowerIsNotToldOfLinesForTheOutputAlone(t *testing.T) {
	l := New(10)
	log := slog.New(l.Handler())
	output := qapi.LogSinkOutput
	l.SetLevel(qapi.LogLevelDebug, nil, &output)
	got := make(chan string, 2)
	f := l.Follow(func(line *Line) { got <- line.Message })
	defer f.Stop()
	log.Debug("for the output")
	log.Info("for both")
	expect(t, <-got, "for both")
	expect(t, f.Between(func() {}), 2)
}

func TestLongLinesAreCut(t *testing.T) {
	l := New(2)
	slog.New(l.Handler()).Info(strings.Repeat("é", maxText), "k", strings.Repeat("y", 2*maxText), "bad", "\xff")
	line := l.Since(0, 1, anyLine).Lines[0]
	for _, s := range []string{line.Message, line.Attrs[0].Value.String(), line.Attrs[1].Value.String()} {
		if len(s) > maxText+8 || strings.ToValidUTF8(s, "") != s {
			t.Errorf("%d bytes, valid: %v", len(s), strings.ToValidUTF8(s, "") == s)
		}
	}
	var many []any
	for i := range 10 * maxAttrs {
		many = append(many, fmt.Sprint("k", i), i)
	}
	slog.New(l.Handler()).Info("x", many...)
	expect(t, len(l.Since(1, 1, anyLine).Lines[0].Attrs), maxAttrs)
}
