package nbd

import (
	"errors"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"blockd/blockgraph"
	"blockd/clock"
	"blockd/nbdproto"
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

// A server that comes back with another image must not get our writes.
func TestChangedExportIsNotTakenForTheOldOne(t *testing.T) {
	was := exportInfo{size: 4096, flags: fakeFlags, minBlock: 512, maxBlock: 1 << 20, status: true}
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
		func(i *exportInfo) { i.status = false },
	} {
		now := was
		change(&now)
		if ls.agrees(now) == nil {
			t.Errorf("change %d goes unnoticed", i)
		}
	}
}
