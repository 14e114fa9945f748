package nbd

import (
	"context"
	"errors"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"blockd/blockgraph"
	"blockd/clock"
	"blockd/nbdproto"
	"blockd/qapi"

	"golang.org/x/sys/unix"
)

func ptr[T any](v T) *T { return &v }

// A request in flight when the connection breaks is sent again over the next
// one, and so is one that comes meanwhile.
func TestRequestsOutliveAConnection(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	f := listenFake(t, path)
	v := clock.NewVirtual()
	o := unixOptions(path)
	o.ReconnectDelay = ptr(uint32(10))
	d, c := f.open(t, v, o)
	f.l.Close()
	done := make(chan error, 2)
	go func() {
		b, err := read(t.Context(), d, 4096, 4096)
		if err == nil {
			checkPattern(t, b, 4096)
		}
		done <- err
	}()
	c.request()
	c.Close()
	// The pause before the next attempt, and the end of reconnect-delay.
	v.WaitForTimers(t.Context(), 2)
	go func() { done <- d.WriteV(t.Context(), 0, blockgraph.MakeIOVec(make([]byte, 512)), 0) }()
	f = listenFake(t, path)
	go func() {
		if c := f.accept(); c != nil {
			c.serve()
		}
	}()
	v.Step(firstPause)
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// After reconnect-delay requests fail, those that waited and new ones, until
// the server is back.
func TestRequestsFailAfterReconnectDelay(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	f := listenFake(t, path)
	v := clock.NewVirtual()
	o := unixOptions(path)
	o.ReconnectDelay = ptr(uint32(3))
	d, c := f.open(t, v, o)
	f.l.Close()
	done := make(chan error, 1)
	go func() {
		_, err := read(t.Context(), d, 0, 512)
		done <- err
	}()
	c.request()
	c.Close()
	v.WaitForTimers(t.Context(), 2)
	v.Step(time.Second) // the second attempt; the next comes after two more
	v.WaitForTimers(t.Context(), 2)
	v.Step(2 * time.Second)
	if err := <-done; !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	if _, err := read(t.Context(), d, 0, 512); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	v.WaitForTimers(t.Context(), 1) // the third attempt has failed
	f = listenFake(t, path)
	back := make(chan *fakeConn)
	go func() { back <- f.accept() }()
	d.links.mu.Lock()
	connected := d.links.changed
	d.links.mu.Unlock()
	v.Step(lastPause)
	c = <-back
	go c.serve()
	<-connected
	if b, err := read(t.Context(), d, 512, 512); err != nil {
		t.Fatal(err)
	} else {
		checkPattern(t, b, 512)
	}
}

func TestWithoutReconnectDelayRequestsFailAtOnce(t *testing.T) {
	d, c := openFake(t)
	done := make(chan error, 1)
	go func() { done <- d.Flush(t.Context()) }()
	c.request()
	c.Close()
	if err := <-done; !errors.Is(err, syscall.EIO) {
		t.Error(err)
	}
	if err := d.Flush(t.Context()); !errors.Is(err, syscall.EIO) {
		t.Error(err)
	}
}

func TestOpenTimeoutTriesAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	v := clock.NewVirtual()
	o := unixOptions(path)
	if _, err := openAt(t.Context(), v, o); err == nil || err.Error() != "Failed to connect to '"+path+"': No such file or directory" {
		t.Fatal(err)
	}
	o.OpenTimeout = ptr(uint32(2))
	type result struct {
		d   *Driver
		err error
	}
	done := make(chan result, 1)
	start := func() {
		go func() {
			d, err := openAt(t.Context(), v, o)
			done <- result{d, err}
		}()
		v.WaitForTimers(t.Context(), 2)
	}
	start()
	v.Step(time.Second)
	v.WaitForTimers(t.Context(), 2)
	v.Step(time.Second)
	if r := <-done; r.err == nil || r.err.Error() != "Failed to connect to '"+path+"': No such file or directory" {
		t.Fatal(r.err)
	}
	start()
	f := listenFake(t, path)
	go func() {
		if c := f.accept(); c != nil {
			c.serve()
		}
	}()
	v.Step(time.Second)
	r := <-done
	if r.err != nil {
		t.Fatal(r.err)
	}
	if err := r.d.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestPauseGrowsWhileLinksAreShort(t *testing.T) {
	var p pace
	for i, s := range []struct{ lived, pause time.Duration }{
		{0, 0}, {time.Second, firstPause}, {shortLife, 2 * firstPause}, {0, 4 * firstPause}, {0, 8 * firstPause}, {0, lastPause}, {0, lastPause},
		{shortLife + 1, 0}, {0, 0}, {0, firstPause},
	} {
		if got := p.next(s.lived); got != s.pause {
			t.Errorf("step %d: %v", i, got)
		}
	}
}

// A request that makes a server drop its client is sent again, but not in a
// storm.
func TestServerThatDropsClientsIsNotStormed(t *testing.T) {
	f := listenFake(t, "")
	v := clock.NewVirtual()
	o := unixOptions(f.path)
	o.ReconnectDelay = ptr(uint32(60))
	d, c := f.open(t, v, o)
	done := make(chan error, 1)
	go func() { done <- d.Flush(t.Context()) }()
	c.request()
	c.Close()
	c = f.accept() // at once
	c.request()
	c.Close()
	v.WaitForTimers(t.Context(), 2) // the pause, and reconnect-delay
	go func() {
		if c := f.accept(); c != nil {
			c.serve()
		}
	}()
	v.Step(firstPause)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A server that takes clients and says nothing must not hold the graph for ever.
func TestHandshakeEndsWithAServerThatHangs(t *testing.T) {
	f := listenFake(t, "")
	v := clock.NewVirtual()
	done := make(chan error, 1)
	go func() {
		_, err := openAt(t.Context(), v, unixOptions(f.path))
		done <- err
	}()
	v.WaitForTimers(t.Context(), 1)
	v.Step(handshakeTime)
	if err := <-done; !errors.Is(err, syscall.ETIMEDOUT) || err.Error() != "Connection attempt cancelled by timeout" {
		t.Error(err)
	}
}

// Requests over a socket that was handed over do not wait for another one, and
// nobody looks for one: its name may have come to mean another socket.
func TestSocketThatWasHandedOverIsTakenOnce(t *testing.T) {
	f := listenFake(t, "")
	o := &qapi.BlockdevOptionsNbd{Server: qapi.SocketAddress{Type: qapi.SocketAddressTypeFD, FD: &qapi.FdSocketAddress{Str: "x"}}, ReconnectDelay: ptr(uint32(60))}
	request := &blockgraph.OpenRequest{Options: &qapi.BlockdevOptions{Driver: "nbd", NBD: o}}
	type key struct{}
	taken := 0
	cfg := &Config{Clock: clock.NewVirtual(), TakeFD: func(ctx context.Context, name string) (int, error) {
		taken++
		if ctx.Value(key{}) == nil || name != "x" {
			t.Errorf("%q is looked for elsewhere than with the command's client", name)
		}
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			err = unix.Connect(fd, &unix.SockaddrUnix{Name: f.path})
		}
		return fd, err
	}}
	conns := make(chan *fakeConn, 1)
	go func() { conns <- f.accept() }()
	ctx := context.WithValue(t.Context(), key{}, 1)
	opened, err := open(ctx, request, cfg)
	if err != nil {
		t.Fatal(err)
	}
	d := opened.(*Driver)
	c := <-conns
	c.Close()
	d.links.wg.Wait() // nobody tries again
	if err := d.Flush(t.Context()); !errors.Is(err, syscall.EIO) {
		t.Error(err)
	}
	if err := d.Close(t.Context()); err != nil || taken != 1 {
		t.Error(err, taken)
	}
	// The name in an image's header is not one that the client gave.
	request.FromHeader = true
	if _, err := open(ctx, request, cfg); err == nil || err.Error() != "File descriptor named 'x' has not been found" || taken != 1 {
		t.Error(err, taken)
	}
}

// A server that comes back with another image must not get our writes.
func TestChangedExportIsNotTakenForTheOldOne(t *testing.T) {
	was := exportInfo{size: 4096, flags: fakeFlags | nbdproto.CanMultiConn | nbdproto.SendDF, minBlock: 512, maxBlock: 1 << 20, status: true}
	ls := &links{info: was}
	if err := ls.agrees(was); err != nil {
		t.Error(err)
	}
	for i, change := range []func(*exportInfo){
		func(i *exportInfo) { i.size++ },
		func(i *exportInfo) { i.flags |= nbdproto.ReadOnly },
		func(i *exportInfo) { i.flags &^= nbdproto.SendFlush },
		func(i *exportInfo) { i.minBlock = 4096 },
		func(i *exportInfo) { i.maxBlock = 65536 },
		func(i *exportInfo) { i.maxBlock = 0; i.minBlock = 1024 },
		func(i *exportInfo) { i.status = false },
	} {
		now := was
		change(&now)
		if ls.agrees(now) == nil {
			t.Errorf("change %d goes unnoticed", i)
		}
	}
	// What does not matter to requests may change.
	for i, change := range []func(*exportInfo){
		func(i *exportInfo) { i.flags &^= nbdproto.CanMultiConn | nbdproto.SendDF },
		func(i *exportInfo) { i.minBlock, i.maxBlock = 1, 0 },
		func(i *exportInfo) { i.flags |= nbdproto.SendFastZero },
	} {
		now := was
		change(&now)
		if err := ls.agrees(now); err != nil {
			t.Errorf("harmless change %d: %v", i, err)
		}
	}
	ls.places = make([]place, 2)
	now := was
	now.flags &^= nbdproto.CanMultiConn
	if ls.agrees(now) == nil {
		t.Error("a second connection was made to a server that does not allow it")
	}
}
