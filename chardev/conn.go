package chardev

import (
	"os"
	"sync"
	"time"
)

// MaxPassedFiles bounds the descriptors accepted with one message, as the
// field does; what a peer sends beyond them the kernel closes.
const MaxPassedFiles = 16

// Conn is one connection of a device. Read and Write may be called at the same
// time from different goroutines; each by one goroutine at a time. Close may be
// called by anyone, any number of times, and ends a Read or Write that waits.
type Conn interface {
	// Read waits for bytes and returns how many it stored. files are the
	// descriptors that came with them (SCM_RIGHTS), close-on-exec and owned by
	// the caller, at most MaxPassedFiles. At the end of the stream the error is
	// io.EOF.
	Read(p []byte) (n int, files []*os.File, err error)
	// Write writes all of p, waiting while the peer does not read. An error
	// comes with the number of bytes written.
	Write(p []byte) (int, error)
	// SetWriteDeadline lets a waiting and every later Write fail with
	// os.ErrDeadlineExceeded at t, a time of the real clock; the zero time
	// means never.
	SetWriteDeadline(t time.Time) error
	// HungUp tells, after Read has met the end of the stream, whether the peer
	// has gone for good. A peer that only shut down its sending side still
	// reads our answers.
	HungUp() bool
	// Close ends the connection; the device is then free for the next one.
	Close() error
}

// CloseFiles closes descriptors that nobody claimed.
func CloseFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// deviceConn reports its end to the device, and copies what is written to the
// device's log.
type deviceConn struct {
	Conn
	dev  *Device
	name string // as query-chardev shows it while connected
	once sync.Once
	err  error
}

func (c *deviceConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if c.dev.log != nil && n > 0 {
		// A log that cannot be written must not stop the stream.
		_, _ = c.dev.log.Write(p[:n])
	}
	return n, err
}

// Peer names who is connected: the connection as query-chardev shows it and,
// at a unix socket, the user id of the process that connected.
func (c *deviceConn) Peer() (name string, uid *uint32) {
	if s, ok := c.Conn.(*socketConn); ok {
		if cred, ok := s.Credentials(); ok {
			uid = &cred.Uid
		}
	}
	return c.name, uid
}

func (c *deviceConn) Close() error {
	c.once.Do(func() {
		c.err = c.Conn.Close()
		c.dev.released(c)
	})
	return c.err
}
