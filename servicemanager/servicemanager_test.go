package servicemanager

import (
	"net"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"blockd/clock"
)

// listen makes a service manager's socket, and sets the environment that it
// gives its services.
func listen(t *testing.T, watchdog time.Duration) *net.UnixConn {
	t.Helper()
	address := &net.UnixAddr{Name: filepath.Join(t.TempDir(), "notify"), Net: "unixgram"}
	conn, err := net.ListenUnixgram("unixgram", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	t.Setenv("NOTIFY_SOCKET", address.Name)
	t.Setenv("WATCHDOG_USEC", "")
	if watchdog > 0 {
		t.Setenv("WATCHDOG_USEC", strconv.FormatInt(watchdog.Microseconds(), 10))
	}
	return conn
}

// next returns what the manager is told next.
func next(t *testing.T, conn *net.UnixConn) string {
	t.Helper()
	conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	text := make([]byte, 256)
	n, err := conn.Read(text)
	if err != nil {
		t.Fatal(err)
	}
	return string(text[:n])
}

func manager(t *testing.T, c clock.Clock) *Manager {
	t.Helper()
	m, err := FromEnvironment(c, func(message string) { t.Error(message) })
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestNobodyIsToldWithoutAServiceManager(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	m := manager(t, clock.Real())
	if m != nil {
		t.Fatal("there is a service manager")
	}
	m.Ready(nil)
	m.Stopping()
}

func TestReadyAndStoppingAreTold(t *testing.T) {
	conn := listen(t, 0)
	m := manager(t, clock.Real())
	m.Ready(func(func()) bool { t.Error("a sign of life that nobody waits for"); return false })
	m.Stopping()
	for _, want := range []string{"READY=1", "STOPPING=1"} {
		if got := next(t, conn); got != want {
			t.Errorf("told %q, want %q", got, want)
		}
	}
}

func TestOnlyALoopThatAnswersIsASignOfLife(t *testing.T) {
	conn := listen(t, 10*time.Millisecond)
	m := manager(t, clock.Real())
	posted := make(chan func())
	m.Ready(func(f func()) bool { posted <- f; return true })
	if got := next(t, conn); got != "READY=1" {
		t.Fatalf("told %q", got)
	}
	for range 3 {
		f := <-posted
		f()
		if got := next(t, conn); got != "WATCHDOG=1" {
			t.Fatalf("told %q", got)
		}
	}
	<-posted // never run: the loop hangs
	m.Stopping()
	if got := next(t, conn); got != "STOPPING=1" {
		t.Errorf("told %q while the loop hung", got)
	}
}

func TestAWatchEndsWithItsLoop(t *testing.T) {
	listen(t, 10*time.Millisecond)
	m := manager(t, clock.Real())
	m.Ready(func(func()) bool { return false })
	<-m.stopped
	m.Stopping()
}

func TestAWatchdogThatIsNoNumberIsAnError(t *testing.T) {
	listen(t, 0)
	t.Setenv("WATCHDOG_USEC", "soon")
	if _, err := FromEnvironment(clock.Real(), nil); err == nil {
		t.Error("accepted")
	}
}
