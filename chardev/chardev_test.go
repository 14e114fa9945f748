package chardev

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"blockd/clock"
	"blockd/qapi"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if os.Getenv("CHARDEV_TEST_STDIO") != "" {
		echoStdio()
		return
	}
	goleak.VerifyTestMain(m)
}

// echoStdio is the program that TestStdioOutlivesItsInput starts: it answers
// its input over a stdio device, and says goodbye after the input has ended.
func echoStdio() {
	r := NewRegistry(Config{Clock: clock.Real()})
	o, err := ParseOption("stdio,id=s")
	if err == nil {
		err = r.Add(context.Background(), o)
	}
	o.ID = "second"
	if second := r.Add(context.Background(), o); err != nil || second == nil {
		panic(fmt.Sprint(err, second))
	}
	d, err := r.Attach("s")
	if err != nil {
		panic(err)
	}
	c, err := d.Accept(context.Background())
	if err != nil {
		panic(err)
	}
	p := make([]byte, 100)
	n, _, _ := c.Read(p)
	c.Write(p[:n])
	ended := make(chan error)
	go func() {
		_, _, err := c.Read(p)
		ended <- err
	}()
	c.Write([]byte(" bye"))
	r.Close()
	if err := <-ended; !errors.Is(err, os.ErrClosed) {
		panic(err)
	}
}

func TestStdioOutlivesItsInput(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "CHARDEV_TEST_STDIO=1")
	cmd.Stdin = strings.NewReader("hello") // and then the end
	out, err := cmd.CombinedOutput()
	if err != nil || string(out) != "hello bye" {
		t.Fatalf("%v %q", err, out)
	}
}

func newRegistry(t *testing.T) *Registry {
	t.Helper()
	r := NewRegistry(Config{Clock: clock.Real()})
	t.Cleanup(r.Close)
	return r
}

func addOption(t *testing.T, r *Registry, option string) *Device {
	t.Helper()
	o, err := ParseOption(option)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Add(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	d, err := r.Attach(o.ID)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func dialPath(t *testing.T, path string) *net.UnixConn {
	t.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func accept(t *testing.T, d *Device) Conn {
	t.Helper()
	c, err := d.Accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func readAll(t *testing.T, c Conn, n int) string {
	t.Helper()
	var got []byte
	for len(got) < n {
		p := make([]byte, n)
		k, files, err := c.Read(p)
		CloseFiles(files)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, p[:k]...)
	}
	return string(got)
}

func TestServerTakesOneClientAtATime(t *testing.T) {
	r := newRegistry(t)
	path := filepath.Join(t.TempDir(), "s")
	d := addOption(t, r, "socket,id=c,server=on,wait=off,path="+path)
	first, second := dialPath(t, path), dialPath(t, path)
	c1 := accept(t, d)
	first.Write([]byte("one"))
	second.Write([]byte("two"))
	if got := readAll(t, c1, 3); got != "one" {
		t.Fatal(got)
	}
	soon, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if _, err := d.Accept(soon); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("second client beside the first: %v", err)
	}
	next := make(chan Conn)
	go func() {
		c, err := d.Accept(t.Context())
		if err != nil {
			t.Error(err)
		}
		next <- c
	}()
	if got := r.QueryChardev()[0]; got.Filename != "unix:"+path+",server=on" || !got.FrontendOpen || got.Label != "c" {
		t.Fatalf("%+v", got)
	}
	c1.Close()
	c2 := <-next
	if got := readAll(t, c2, 3); got != "two" {
		t.Fatal(got)
	}
	c2.Close()
	if got := r.QueryChardev()[0].Filename; got != "disconnected:unix:"+path+",server=on" {
		t.Fatal(got)
	}
}

func TestWaitHoldsTheStartUntilTheFirstClient(t *testing.T) {
	told := make(chan string, 1)
	r := NewRegistry(Config{Clock: clock.Real(), Warn: func(s string) { told <- s }})
	defer r.Close()
	path := filepath.Join(t.TempDir(), "s")
	o, err := ParseOption("socket,id=c,server=on,path=" + path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- r.Add(t.Context(), o) }()
	if got, want := <-told, "info: QEMU waiting for connection on: disconnected:unix:"+path+",server=on"; got != want {
		t.Fatal(got)
	}
	select {
	case err := <-done:
		t.Fatalf("did not wait: %v", err)
	default:
	}
	client := dialPath(t, path)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	d, err := r.Attach("c")
	if err != nil {
		t.Fatal(err)
	}
	client.Write([]byte("x"))
	if got := readAll(t, accept(t, d), 1); got != "x" {
		t.Fatal(got)
	}
}

func TestWaitEndsWithItsContext(t *testing.T) {
	r := NewRegistry(Config{Clock: clock.Real()})
	defer r.Close()
	path := filepath.Join(t.TempDir(), "s")
	o, _ := ParseOption("socket,id=c,server=on,path=" + path)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Add(ctx, o); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); err == nil {
		t.Fatal("socket left behind")
	}
	if len(r.QueryChardev()) != 0 {
		t.Fatal("device left behind")
	}
}

func TestStopOpeningEndsWhatWaitsAndKeepsWhatIsOpen(t *testing.T) {
	told := make(chan string, 1)
	r := NewRegistry(Config{Clock: clock.Real(), Warn: func(s string) { told <- s }})
	defer r.Close()
	dir := t.TempDir()
	open := addOption(t, r, "socket,id=open,server=on,wait=off,path="+dir+"/open")
	waiting, err := ParseOption("socket,id=w,server=on,path=" + dir + "/w")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- r.Add(t.Context(), waiting) }()
	<-told
	r.StopOpening()
	if err := <-done; !errors.Is(err, os.ErrClosed) {
		t.Errorf("the wait ended with %v", err)
	}
	if err := r.Add(t.Context(), waiting); !errors.Is(err, os.ErrClosed) {
		t.Errorf("another one: %v", err)
	}
	if _, err := os.Lstat(dir + "/w"); err == nil {
		t.Error("socket left behind")
	}
	dialPath(t, dir+"/open")
	accept(t, open).Close()
}

func TestRelativeSocketIsRemovedFromAnotherDirectory(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	r := newRegistry(t)
	addOption(t, r, "socket,id=c,server=on,wait=off,path=s")
	t.Chdir("/")
	r.Close()
	if _, err := os.Lstat(dir + "/s"); err == nil {
		t.Error("socket left behind")
	}
}

func TestCloseEndsAcceptAndRead(t *testing.T) {
	r := newRegistry(t)
	path := filepath.Join(t.TempDir(), "s")
	d := addOption(t, r, "socket,id=c,server=on,wait=off,path="+path)
	dialPath(t, path)
	c := accept(t, d)
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("read after close")
		}
	})
	wg.Go(func() {
		if _, err := d.Accept(t.Context()); !errors.Is(err, os.ErrClosed) {
			t.Error(err)
		}
	})
	r.Close()
	wg.Wait()
}

func TestSocketFileIsRemovedOnlyWhenItIsOurs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	r1, r2 := newRegistry(t), newRegistry(t)
	option := "socket,id=c,server=on,wait=off,path=" + path
	addOption(t, r1, option)
	addOption(t, r2, option) // takes the stale-looking file over, as the field does
	r1.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Fatal("removed a socket of another owner")
	}
	r2.Close()
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("own socket not removed: %v", err)
	}
}

func TestEmptyPathMakesASocketThatIsRemoved(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	r := newRegistry(t)
	addOption(t, r, "socket,id=c,server=on,wait=off,path=")
	name := r.QueryChardev()[0].Filename
	dialPath(t, strings.TrimSuffix(strings.TrimPrefix(name, "disconnected:unix:"), ",server=on"))
	r.Close()
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Fatal(left, err)
	}
}

func TestFileWithContentIsNotReplacedBySocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	os.WriteFile(path, []byte("precious"), 0o600)
	o, _ := ParseOption("socket,id=c,server=on,wait=off,path=" + path)
	err := newRegistry(t).Add(t.Context(), o)
	if err == nil || err.Error() != "Failed to bind socket to "+path+": Address already in use" {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(path); string(got) != "precious" {
		t.Fatal("content lost")
	}
	os.WriteFile(path, nil, 0o600)
	if err := newRegistry(t).Add(t.Context(), o); err != nil {
		t.Fatalf("empty file: %v", err)
	}
}

func TestDescriptorsArriveCloseOnExecAndBounded(t *testing.T) {
	r := newRegistry(t)
	path := filepath.Join(t.TempDir(), "s")
	d := addOption(t, r, "socket,id=c,server=on,wait=off,path="+path)
	client := dialPath(t, path)
	c := accept(t, d)
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	many := make([]int, MaxPassedFiles+4)
	for i := range many {
		many[i] = int(null.Fd())
	}
	for _, tc := range []struct{ send, want int }{{1, 1}, {2, 2}, {len(many), MaxPassedFiles}} {
		if _, _, err := client.WriteMsgUnix([]byte("a"), unix.UnixRights(many[:tc.send]...), nil); err != nil {
			t.Fatal(err)
		}
		n, files, err := c.Read(make([]byte, 10))
		if n != 1 || err != nil || len(files) != tc.want {
			t.Fatalf("sent %d: read %d bytes, %d files, %v", tc.send, n, len(files), err)
		}
		for _, f := range files {
			flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0)
			if err != nil || flags&unix.FD_CLOEXEC == 0 {
				t.Fatalf("flags %x, %v", flags, err)
			}
		}
		CloseFiles(files)
	}
}

func TestHalfCloseIsNotHangUp(t *testing.T) {
	r := newRegistry(t)
	path := filepath.Join(t.TempDir(), "s")
	d := addOption(t, r, "socket,id=c,server=on,wait=off,path="+path)
	client := dialPath(t, path)
	c := accept(t, d)
	client.CloseWrite()
	if _, _, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Fatal(err)
	}
	if c.HungUp() {
		t.Fatal("half closed taken for gone")
	}
	if _, err := c.Write([]byte("bye")); err != nil {
		t.Fatal(err)
	}
	client.Close()
	if !c.HungUp() {
		t.Fatal("gone not seen")
	}
	if _, err := c.Write([]byte("x")); err == nil {
		t.Fatal("wrote to nobody")
	}
}

func TestWriteDeadlineFindsClientThatDoesNotRead(t *testing.T) {
	r := newRegistry(t)
	path := filepath.Join(t.TempDir(), "s")
	d := addOption(t, r, "socket,id=c,server=on,wait=off,path="+path)
	dialPath(t, path)
	c := accept(t, d)
	c.SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
	n, err := c.Write(make([]byte, 64<<20))
	if !errors.Is(err, os.ErrDeadlineExceeded) || n == 0 {
		t.Fatalf("%d, %v", n, err)
	}
}

func TestAbstractNamesTightAndPaddedAreDifferent(t *testing.T) {
	r := newRegistry(t)
	name := filepath.Base(t.TempDir()) + "-blockd-test"
	d := addOption(t, r, "socket,id=tight,server=on,wait=off,abstract=on,path="+name)
	addOption(t, r, "socket,id=loose,server=on,wait=off,abstract=on,tight=off,path="+name)
	if got := r.QueryChardev()[0].Filename; got != "disconnected:unix:"+name+",abstract=on,tight=on,server=on" {
		t.Fatal(got)
	}
	if got := r.QueryChardev()[1].Filename; got != "disconnected:unix:"+name+",abstract=on,server=on" {
		t.Fatal(got)
	}
	dialPath(t, "@"+name)
	accept(t, d)
	if got := r.QueryChardev()[0].Filename; got != "unix:,server=on" {
		t.Fatal(got)
	}
	c := newRegistry(t)
	accept(t, addOption(t, c, "socket,id=c,abstract=on,tight=off,path="+name))
}

func TestTCPServerAndClient(t *testing.T) {
	r := newRegistry(t)
	server := addOption(t, r, "socket,id=s,server=on,wait=off,host=127.0.0.1,port=0,nodelay=on")
	name := r.QueryChardev()[0].Filename
	port := strings.TrimSuffix(strings.TrimPrefix(name, "disconnected:tcp:127.0.0.1:"), ",server=on")
	client := addOption(t, r, "socket,id=c,host=localhost,ipv4=on,port="+port)
	a, b := accept(t, server), accept(t, client)
	a.Write([]byte("ping"))
	if got := readAll(t, b, 4); got != "ping" {
		t.Fatal(got)
	}
	list := r.QueryChardev()
	s, c := list[0].Filename, list[1].Filename
	me := strings.TrimPrefix(s, "tcp:127.0.0.1:"+port+",server=on <-> ")
	if c != "tcp:"+me+" <-> 127.0.0.1:"+port {
		t.Fatalf("%q %q", s, c)
	}
	b.Close()
	if _, err := client.Accept(t.Context()); err != io.EOF {
		t.Fatalf("client without reconnect: %v", err)
	}
}

func TestClientReconnectsAfterItsPause(t *testing.T) {
	v := clock.NewVirtual()
	warned := make(chan string, 8)
	r := NewRegistry(Config{Clock: v, Warn: func(s string) { warned <- s }})
	defer r.Close()
	path := filepath.Join(t.TempDir(), "s")
	d := addOption(t, r, "socket,id=c,reconnect=3,path="+path)
	got := make(chan Conn)
	go func() {
		for range 2 {
			c, err := d.Accept(t.Context())
			if err != nil {
				t.Error(err)
			}
			got <- c
		}
	}()
	if w := <-warned; w != "Unable to connect character device c: Failed to connect to '"+path+"': No such file or directory" {
		t.Fatal(w)
	}
	v.WaitForTimers(t.Context(), 1)
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	v.Step(3 * time.Second)
	c := <-got
	peer, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	peer.Close()
	c.Close()
	v.WaitForTimers(t.Context(), 1)
	if next, _ := v.Next(); next != 3*time.Second {
		t.Fatalf("waits %v", next)
	}
	v.Step(3 * time.Second)
	(<-got).Close()
}

func TestInheritedDescriptorsConnectedAndListening(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[1])
	r := newRegistry(t)
	d := addOption(t, r, "socket,id=c,fd="+itoa(pair[0]))
	unix.Write(pair[1], []byte("hello"))
	if got := readAll(t, accept(t, d), 5); got != "hello" {
		t.Fatal(got)
	}
	if got := r.QueryChardev()[0].Filename; got != "unix:" {
		t.Fatal(got)
	}

	path := filepath.Join(t.TempDir(), "l")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	raw, _ := l.SyscallConn()
	var fd int
	raw.Control(func(n uintptr) { fd, err = unix.Dup(int(n)) })
	if err != nil {
		t.Fatal(err)
	}
	s := addOption(t, r, "socket,id=s,server=on,wait=off,fd="+itoa(fd))
	dialPath(t, path)
	accept(t, s)
	r.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Fatal("removed a socket that it did not make")
	}
}

func itoa(n int) string {
	var b []byte
	for ; n > 0; n /= 10 {
		b = append([]byte{byte('0' + n%10)}, b...)
	}
	return string(b)
}

func TestVsockListensWhereTheKernelHasIt(t *testing.T) {
	r := newRegistry(t)
	a := &qapi.ChardevAddArg{ID: "v", Backend: qapi.ChardevBackend{Type: "socket", Socket: &qapi.ChardevSocket{
		Addr: qapi.SocketAddressLegacy{Type: "vsock", Vsock: &qapi.VsockSocketAddress{CID: "4294967295", Port: "4294967295"}}}}}
	if _, err := r.ChardevAdd(t.Context(), a, nil); err != nil {
		t.Skipf("needs vsock: %v", err)
	}
	if got := r.QueryChardev()[0].Filename; !strings.HasPrefix(got, "disconnected:vsock:4294967295:") {
		t.Fatal(got)
	}
}

func TestPollConnReadsWritesAndCloses(t *testing.T) {
	var in, out [2]int
	if err := errors.Join(unix.Pipe2(in[:], unix.O_CLOEXEC), unix.Pipe2(out[:], unix.O_CLOEXEC)); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(out[0])
	c, err := newPollConn(clock.Real(), in[0], out[1])
	if err != nil {
		t.Fatal(err)
	}
	c.keepOpen = true
	unix.Write(in[1], []byte("abc"))
	if got := readAll(t, c, 3); got != "abc" {
		t.Fatal(got)
	}
	if n, err := c.Write([]byte("def")); n != 3 || err != nil {
		t.Fatal(n, err)
	}
	c.SetWriteDeadline(time.Now().Add(10 * time.Millisecond))
	if n, err := c.Write(make([]byte, 1<<20)); !errors.Is(err, os.ErrDeadlineExceeded) || n == 0 {
		t.Fatalf("%d, %v", n, err)
	}
	unix.Close(in[1]) // the end of input: Read goes on waiting
	done := make(chan error)
	go func() {
		_, _, err := c.Read(make([]byte, 1))
		done <- err
	}()
	c.Close()
	if err := <-done; !errors.Is(err, os.ErrClosed) {
		t.Fatal(err)
	}
}

func TestFileAndLogKeepWhatIsWritten(t *testing.T) {
	dir := t.TempDir()
	r := newRegistry(t)
	d := addOption(t, r, "file,id=f,path="+dir+"/out,logfile="+dir+"/log")
	c := accept(t, d)
	c.Write([]byte("text"))
	c.Close()
	for _, name := range []string{"out", "log"} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); string(got) != "text" || err != nil {
			t.Fatalf("%s: %q %v", name, got, err)
		}
	}
}

func TestChangeReplacesOnlyUnusedDevices(t *testing.T) {
	r := newRegistry(t)
	path := filepath.Join(t.TempDir(), "s")
	o, _ := ParseOption("socket,id=c,server=on,wait=off,path=" + path)
	if err := r.Add(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	null := &qapi.ChardevAddArg{ID: "c", Backend: qapi.ChardevBackend{Type: "null", Null: &qapi.ChardevCommon{}}}
	if _, err := r.ChardevChange(t.Context(), null, nil); err != nil {
		t.Fatal(err)
	}
	if got := r.QueryChardev(); len(got) != 1 || got[0].Filename != "null" {
		t.Fatalf("%+v", got)
	}
	if _, err := os.Lstat(path); err == nil {
		t.Fatal("old socket left")
	}
	d, err := r.Attach("c")
	if err != nil {
		t.Fatal(err)
	}
	for want, err := range map[string]error{
		"Chardev user does not support chardev hotswap": second(r.ChardevChange(t.Context(), null, nil)),
		"Chardev 'c' is busy":                           r.ChardevRemove(&qapi.ChardevIDArg{ID: "c"}),
		"Device 'c' is in use":                          second(r.Attach("c")),
		"chardev \"x\" not found":                       second(r.Attach("x")),
		"Chardev 'x' not found":                         r.ChardevRemove(&qapi.ChardevIDArg{ID: "x"}),
	} {
		if err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	d.Detach()
	if err := r.ChardevRemove(&qapi.ChardevIDArg{ID: "c"}); err != nil {
		t.Fatal(err)
	}
}

func second[T any](_ T, err error) error { return err }
