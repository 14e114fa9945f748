package qmp

import (
	"errors"
	"io"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// gatedConn writes when it is let.
type gatedConn struct {
	entered, let chan struct{}
	err          error
}

func (c *gatedConn) Read([]byte) (int, []*os.File, error) { return 0, nil, errors.New("not read") }
func (c *gatedConn) Write(p []byte) (int, error) {
	c.entered <- struct{}{}
	<-c.let
	return len(p), c.err
}
func (c *gatedConn) SetWriteDeadline(time.Time) error { return nil }
func (c *gatedConn) HungUp() bool                     { return false }
func (c *gatedConn) Close() error                     { return nil }

// TestWrittenWaitsForWhatTheWriterHolds covers an output without and with
// messages, and one whose client has gone.
func TestWrittenWaitsForWhatTheWriterHolds(t *testing.T) {
	for _, fails := range []error{nil, errors.New("gone")} {
		o := newOutput(MaxBacklog)
		<-o.written()
		c := &gatedConn{entered: make(chan struct{}), let: make(chan struct{}), err: fails}
		o.append([]byte("message"))
		ran := make(chan error, 1)
		go func() { ran <- o.run(c) }()
		<-c.entered
		w := o.written()
		select {
		case <-w:
			t.Error("a message that is being written counts as written")
		default:
		}
		close(c.let)
		<-w
		o.end(false)
		if err := <-ran; !errors.Is(err, fails) {
			t.Error(err)
		}
	}
}

// TestWrittenOfAnEndedQueue: what was queued before the end is waited for, and
// nobody waits for what no writer will write.
func TestWrittenOfAnEndedQueue(t *testing.T) {
	o := newOutput(MaxBacklog)
	o.append([]byte("message"))
	o.end(false)
	w := o.written()
	select {
	case <-w:
		t.Error("a message that nobody has written counts as written")
	default:
	}
	c := &gatedConn{entered: make(chan struct{}, 1), let: make(chan struct{})}
	close(c.let)
	if err := o.run(c); err != nil {
		t.Error(err)
	}
	<-w

	failed := newOutput(MaxBacklog)
	failed.append([]byte("message"))
	gone := errors.New("gone")
	c = &gatedConn{entered: make(chan struct{}, 1), let: c.let, err: gone}
	if err := failed.run(c); err != gone {
		t.Error(err)
	}
	failed.append([]byte("another"))
	<-failed.written()
}

// scripted is a client that sends a text, ends its side, and reads when it is let.
type scripted struct {
	gatedConn
	text io.Reader
}

func (c *scripted) Read(p []byte) (int, []*os.File, error) {
	n, err := c.text.Read(p)
	return n, nil, err
}

// TestFlushWaitsForSessionsThatEnd: what a client that has ended its side still
// has to read is waited for; then it is one of nobody's sessions, even if a
// command of it lets it join once more.
func TestFlushWaitsForSessionsThatEnd(t *testing.T) {
	b := startServer(t, nil)
	c := &scripted{gatedConn{entered: make(chan struct{}), let: make(chan struct{})}, strings.NewReader(`{"execute": "qmp_capabilities"}`)}
	over := make(chan error, 1)
	go func() { over <- b.ServeConn(c, monitorPeer) }()
	<-c.entered
	var s *Session
	for s == nil { // its client has negotiated
		b.hub.mu.Lock()
		for s = range b.hub.sessions {
		}
		b.hub.mu.Unlock()
		runtime.Gosched()
	}
	for ended := false; !ended; runtime.Gosched() {
		s.out.mu.Lock()
		ended = s.out.ended
		s.out.mu.Unlock()
	}
	b.hub.mu.Lock()
	_, in := b.hub.sessions[s]
	b.hub.mu.Unlock()
	if !in {
		t.Error("nobody waits for what an ended session still gets")
	}
	go func() {
		for range c.entered {
		}
	}()
	close(c.let)
	b.hub.Flush(t.Context())
	if err := <-over; err != nil {
		t.Error(err)
	}
	close(c.entered)
	b.hub.join(s, nil)
	if len(b.hub.sessions) != 0 {
		t.Error("a session that has ended joins again")
	}
}
