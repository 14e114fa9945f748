package sockets

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"blockd/qapi"
)

func ptr[T any](v T) *T { return &v }

func unixAt(path string) *qapi.SocketAddress {
	return &qapi.SocketAddress{Type: "unix", Unix: &qapi.UnixSocketAddress{Path: path}}
}

func inetAt(host, port string) *qapi.SocketAddress {
	return &qapi.SocketAddress{Type: "inet", Inet: &qapi.InetSocketAddress{InetSocketAddressBase: qapi.InetSocketAddressBase{Host: host, Port: port}}}
}

func listen(t *testing.T, a *qapi.SocketAddress) []*Listener {
	t.Helper()
	ls, err := Listen(t.Context(), a, ListenOptions{Backlog: 1, Every: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range ls {
		t.Cleanup(func() { l.Close() })
	}
	return ls
}

func refusedWith(t *testing.T, a *qapi.SocketAddress, want string) {
	t.Helper()
	ls, err := Listen(t.Context(), a, ListenOptions{Backlog: 1, Every: true}, nil)
	for _, l := range ls {
		l.Close()
	}
	if err == nil || err.Error() != want {
		t.Errorf("%v, want %q", err, want)
	}
}

func reachable(t *testing.T, network, address string) {
	t.Helper()
	c, err := net.Dial(network, address)
	if err != nil {
		t.Error(err)
		return
	}
	c.Close()
}

func TestUnixSocketIsRemovedOnlyWhileItIsOurs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l := listen(t, unixAt(path))[0]
	reachable(t, "unix", path)
	l.Close()
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left behind: %v", err)
	}
	l = listen(t, unixAt(path))[0]
	newer := listen(t, unixAt(path))[0] // takes the place of the older one
	l.Close()
	reachable(t, "unix", path)
	newer.Close()
}

func TestUnixSocketDoesNotReplaceAFileWithContent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	refusedWith(t, unixAt(path), "Failed to bind socket to "+path+": Address already in use")
	if b, err := os.ReadFile(path); err != nil || string(b) != "precious" {
		t.Errorf("%q %v", b, err)
	}
}

func TestUnixSocketErrors(t *testing.T) {
	long := "/" + strings.Repeat("x", 108)
	refusedWith(t, unixAt(long), "UNIX socket path '"+long+"' is too long")
	refusedWith(t, unixAt("/nosuch/dir/s"), "Failed to bind socket to /nosuch/dir/s: No such file or directory")
}

func TestFileNameWithAnAtSignIsAFile(t *testing.T) {
	t.Chdir(t.TempDir())
	listen(t, unixAt("@s"))
	if _, err := os.Lstat("@s"); err != nil {
		t.Error(err)
	}
}

func TestAbstractSockets(t *testing.T) {
	name := "blockd-test-" + strconv.Itoa(os.Getpid())
	a := unixAt(name)
	a.Unix.Abstract = ptr(true)
	listen(t, a)
	reachable(t, "unix", "@"+name)
	a.Unix.Tight = ptr(false) // padded with NULs: another name
	listen(t, a)
	reachable(t, "unix", "@"+name+strings.Repeat("\x00", 107-len(name)))
}

func TestInetAddresses(t *testing.T) {
	a := listen(t, inetAt("127.0.0.1", "0"))[0].Addr().(*net.TCPAddr)
	reachable(t, "tcp", a.String())
	port := strconv.Itoa(a.Port)
	refusedWith(t, inetAt("127.0.0.1", port), "Failed to find an available port: Address already in use")
	refusedWith(t, inetAt("127.0.0.1", "70000"), "address resolution failed for 127.0.0.1:70000: Servname not supported for ai_socktype")
	numeric := inetAt("localhost", port)
	numeric.Inet.Numeric = ptr(true)
	refusedWith(t, numeric, "address resolution failed for localhost:"+port+": Name or service not known")
	none := inetAt("127.0.0.1", "0")
	none.Inet.IPv4, none.Inet.IPv6 = ptr(false), ptr(false)
	refusedWith(t, none, "Cannot disable IPv4 and IPv6 at same time")
	other := inetAt("127.0.0.1", "0")
	other.Inet.IPv6 = ptr(true)
	refusedWith(t, other, "address resolution failed for 127.0.0.1:0: Address family for hostname not supported")
	if a.Port < 65500 {
		to := inetAt("127.0.0.1", port)
		to.Inet.To = ptr(uint16(a.Port + 30))
		if got := listen(t, to)[0].Addr().(*net.TCPAddr).Port; got <= a.Port || got > a.Port+30 {
			t.Errorf("port %d", got)
		}
	}
}

func TestPortRangeTakesTheNextFreePort(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := uint16(l.Addr().(*net.TCPAddr).Port)
	if port == 65535 {
		t.Skip("no port above")
	}
	to := port + 10
	if to < port {
		to = 65535
	}
	a := &qapi.SocketAddress{Type: "inet", Inet: &qapi.InetSocketAddress{To: &to}}
	a.Inet.Host, a.Inet.Port = "127.0.0.1", l.Addr().String()[len("127.0.0.1:"):]
	got, err := Listen(t.Context(), a, ListenOptions{Backlog: 1}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer got[0].Close()
	if got[0].Bound.Inet.Port == a.Inet.Port {
		t.Fatal("same port twice")
	}
	a.Inet.To = nil
	if _, err := Listen(t.Context(), a, ListenOptions{Backlog: 1}, nil); err == nil || err.Error() != "Failed to find an available port: Address already in use" {
		t.Fatal(err)
	}
}

func TestPrivateSocketsHaveTheirModeWhateverTheUmask(t *testing.T) {
	group := os.Getegid()
	for _, mask := range []int{0, 0o022, 0o777} {
		for _, c := range []struct {
			access Access
			mode   os.FileMode
		}{
			{Access{Private: true}, 0o600},
			{Access{Private: true, Group: &group}, 0o660},
			{Access{Private: true, Users: []uint32{}}, 0o666},
			{Access{Private: true, Group: &group, Users: []uint32{1}}, 0o660},
		} {
			path := filepath.Join(t.TempDir(), "s")
			old := unix.Umask(mask)
			l, err := Listen(t.Context(), unixAt(path), ListenOptions{Access: c.access}, nil)
			unix.Umask(old)
			if err != nil {
				t.Fatal(err)
			}
			st, err := os.Stat(path)
			if err != nil || st.Mode().Perm() != c.mode {
				t.Errorf("umask %o: %v, %v, want %v", mask, st.Mode(), err, c.mode)
			}
			l[0].Close()
		}
	}
}

// TestPrivateSocketsAreSoFromTheFirstMoment looks between bind and what lets
// others in.
func TestPrivateSocketsAreSoFromTheFirstMoment(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	raw, size, err := rawUnix(&qapi.UnixSocketAddress{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	fd, err := streamSocket(unix.AF_UNIX, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	old := unix.Umask(0)
	err = bindFile(fd, path, &raw, size, true)
	unix.Umask(old)
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil || st.Mode&0o777 != 0o600 {
		t.Errorf("mode %o, %v", st.Mode, err)
	}
	// What others have put in its place meanwhile is left alone.
	a := Access{Users: []uint32{1}}
	if err := a.settle(path, st.Dev, st.Ino+1); err != unix.ESTALE {
		t.Errorf("another file: %v", err)
	}
	if err := unix.Lstat(path, &st); err != nil || st.Mode&0o777 != 0o600 {
		t.Errorf("another file: mode %o, %v", st.Mode, err)
	}
}

func TestWhoMayConnect(t *testing.T) {
	a := Access{Users: []uint32{7, 9}}
	for uid, want := range map[uint32]bool{0: true, 5: true, 7: true, 9: true, 8: false, 65534: false, 1<<32 - 1: false} {
		if got := a.includes(uid, 5); got != want {
			t.Errorf("user %d: %v", uid, got)
		}
	}
}

// TestExclusiveStartsTakeTurns has many begin at once where an earlier run has
// left its socket: one gets it, and keeps it.
func TestExclusiveStartsTakeTurns(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	left, err := Listen(t.Context(), unixAt(path), ListenOptions{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	left[0].path = "" // it is not removed
	left[0].Close()
	results := make(chan *Listener)
	for range 20 {
		go func() {
			l, err := Listen(t.Context(), unixAt(path), ListenOptions{Backlog: 100, Access: Access{Private: true, Exclusive: true}}, nil)
			if err != nil {
				results <- nil
				return
			}
			results <- l[0]
		}()
	}
	var won []*Listener
	for range 20 {
		if l := <-results; l != nil {
			won = append(won, l)
		}
	}
	if len(won) != 1 {
		t.Fatalf("%d have it", len(won))
	}
	defer won[0].Close()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

// TestAForeignLockDelaysNoStart: who may read a directory may lock it.
func TestAForeignLockDelaysNoStart(t *testing.T) {
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir.Name(), "s")
	done, err := clearWay(t.Context(), path, 0)
	if err != nil {
		t.Fatal(err)
	}
	done()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := clearWay(ctx, path, time.Hour); !errors.Is(err, context.Canceled) {
		t.Errorf("a start that was given up: %v", err)
	}
}

func TestRefusalsAreLoggedNowAndThen(t *testing.T) {
	var r refusals
	now := time.Unix(1000, 0)
	for _, c := range []struct {
		after  time.Duration
		untold int
		tell   bool
	}{{0, 0, true}, {0, 0, false}, {refusalPause - 1, 0, false}, {1, 2, true}, {refusalPause, 0, true}} {
		now = now.Add(c.after)
		if untold, tell := r.take(now); untold != c.untold || tell != c.tell {
			t.Errorf("%v: %d %v", c, untold, tell)
		}
	}
}

func TestExclusiveTakesNothingAway(t *testing.T) {
	dir := t.TempDir()
	for name, make := range map[string]func(path string) error{
		"a file":      func(path string) error { return os.WriteFile(path, nil, 0o600) },
		"a link":      func(path string) error { return os.Symlink("/nonexistent", path) },
		"a directory": func(path string) error { return os.Mkdir(path, 0o700) },
		"a listener": func(path string) error {
			l, err := net.Listen("unix", path)
			if err == nil {
				t.Cleanup(func() { l.Close() })
			}
			return err
		},
	} {
		path := filepath.Join(dir, strings.ReplaceAll(name, " ", "-"))
		if err := make(path); err != nil {
			t.Fatal(err)
		}
		l, err := Listen(t.Context(), unixAt(path), ListenOptions{Access: Access{Private: true, Exclusive: true}}, nil)
		if err == nil {
			l[0].Close()
			t.Errorf("%s made way", name)
		}
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestDeadlinesAreNetErrors holds what crypto/tls and net/http rely on: a read
// that a deadline has ended may be tried again.
func TestDeadlinesAreNetErrors(t *testing.T) {
	l := listen(t, unixAt(filepath.Join(t.TempDir(), "s")))[0]
	peer, err := net.Dial("unix", l.path)
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetReadDeadline(past); err != nil {
		t.Fatal(err)
	}
	_, err = c.Read(make([]byte, 1))
	e, ok := err.(interface {
		net.Error
		Temporary() bool
	})
	if !ok || !e.Timeout() || !e.Temporary() {
		t.Errorf("%T: %v", err, err)
	}
}
