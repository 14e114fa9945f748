package qmp

import (
	"errors"
	"os"
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
