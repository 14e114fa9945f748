package sockets

import (
	"net"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
)

// Payload waits for a place, a header does not.
func TestLongReadsTakeAPlace(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	near, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()

	places := make(chan struct{}, 1)
	s := NewStream(near)
	s.LimitLong(places)
	places <- struct{}{} // another's
	if _, err := far.Write(make([]byte, 16)); err != nil {
		t.Fatal(err)
	}
	if err := s.Need(16); err != nil {
		t.Fatal(err)
	}
	s.Next(16)
	if _, err := far.Write(make([]byte, DirectRead)); err != nil {
		t.Fatal(err)
	}
	var free atomic.Bool
	read := make(chan error)
	early := make(chan bool, 1)
	go func() {
		err := s.ReadFull(make([]byte, DirectRead))
		early <- !free.Load()
		read <- err
	}()
	for range 1000 {
		runtime.Gosched() // a read without a limit would be over
	}
	free.Store(true)
	<-places
	if err := <-read; err != nil {
		t.Fatal(err)
	}
	if <-early {
		t.Error("read without a place")
	}
	if len(places) != 0 {
		t.Error("the place is not given back")
	}
}
