package chardev

import (
	"encoding/binary"
	"io"
	"math"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"blockd/clock"

	"golang.org/x/sys/unix"
)

// pollChunk is the most that one write to a pipe or terminal may carry once
// poll has said that there is room: a pipe promises that much and no more.
const pollChunk = 4096

// pollConn reads and writes descriptors that are shared with other processes,
// such as standard input and output. It must not make them non-blocking, since
// that would change them for a parent shell too, so it asks poll before each
// call and keeps a thread in it while it waits.
type pollConn struct {
	clk        clock.Clock
	in         int // owned; -1 when absent
	out        int // the same
	outSocket  bool
	outRegular bool
	keepOpen   bool // the end of input is not the end of the connection

	readWake  int // eventfd that ends a poll for input
	writeWake int // the same for output
	deadline  atomic.Int64

	mu sync.Mutex // guards the entry to users, too
	// +checklocks:mu
	closed bool
	users  sync.WaitGroup // Reads and Writes on the way
	onEnd  func()
}

// noDeadline is the deadline that never comes.
const noDeadline = math.MaxInt64

// newPollConn takes over in and out; either may be -1.
func newPollConn(clk clock.Clock, in, out int) (*pollConn, error) {
	c := &pollConn{clk: clk, in: in, out: out, readWake: -1, writeWake: -1}
	c.deadline.Store(noDeadline)
	var err error
	if c.readWake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err == nil {
		c.writeWake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	}
	if err != nil {
		c.closeFDs()
		return nil, os.NewSyscallError("eventfd", err)
	}
	var st unix.Stat_t
	if out >= 0 && unix.Fstat(out, &st) == nil {
		c.outSocket = st.Mode&unix.S_IFMT == unix.S_IFSOCK
		c.outRegular = st.Mode&unix.S_IFMT == unix.S_IFREG
	}
	return c, nil
}

func (c *pollConn) enter() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.users.Add(1)
	return true
}

func (c *pollConn) isClosed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

// wait polls fd until it is ready, the deadline passes or the connection is
// closed. fd may be -1: then only the other two end it.
func (c *pollConn) wait(fd, wake int, events int16, timed bool) error {
	for {
		if c.isClosed() {
			return os.ErrClosed
		}
		timeout := -1
		if d := c.deadline.Load(); timed && d != noDeadline {
			left := clock.Until(c.clk, time.Unix(0, d))
			if left <= 0 {
				return os.ErrDeadlineExceeded
			}
			timeout = int(min(left/time.Millisecond+1, math.MaxInt32))
		}
		fds := []unix.PollFd{{Fd: int32(wake), Events: unix.POLLIN}, {Fd: int32(fd), Events: events}}
		n, err := unix.Poll(fds, timeout)
		if err != nil && err != unix.EINTR {
			return os.NewSyscallError("poll", err)
		}
		if n <= 0 {
			continue
		}
		if fds[1].Revents != 0 && !c.isClosed() {
			return nil
		}
		if fds[0].Revents != 0 && !c.isClosed() {
			var b [8]byte
			_, _ = unix.Read(wake, b[:])
		}
	}
}

func (c *pollConn) Read(p []byte) (int, []*os.File, error) {
	if !c.enter() {
		return 0, nil, os.ErrClosed
	}
	defer c.users.Done()
	for {
		if err := c.wait(c.in, c.readWake, unix.POLLIN, false); err != nil {
			return 0, nil, err
		}
		n, err := unix.Read(c.in, p)
		switch {
		case err == unix.EINTR || err == unix.EAGAIN:
		case err != nil:
			return 0, nil, os.NewSyscallError("read", err)
		case n > 0 || len(p) == 0:
			return n, nil, nil
		case c.keepOpen:
			return 0, nil, c.wait(-1, c.readWake, 0, false)
		default:
			return 0, nil, io.EOF
		}
	}
}

func (c *pollConn) Write(p []byte) (int, error) {
	if !c.enter() {
		return 0, os.ErrClosed
	}
	defer c.users.Done()
	if c.out < 0 {
		return len(p), nil
	}
	done := 0
	for done < len(p) {
		if err := c.wait(c.out, c.writeWake, unix.POLLOUT, true); err != nil {
			return done, err
		}
		n, err := c.writeSome(p[done:])
		if n > 0 {
			done += n
		}
		if err != nil && err != unix.EINTR && err != unix.EAGAIN {
			return done, os.NewSyscallError("write", err)
		}
	}
	return done, nil
}

func (c *pollConn) writeSome(p []byte) (int, error) {
	switch {
	case c.outSocket:
		return unix.SendmsgN(c.out, p, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	case c.outRegular:
		return unix.Write(c.out, p)
	}
	return unix.Write(c.out, p[:min(len(p), pollChunk)])
}

func (c *pollConn) SetWriteDeadline(t time.Time) error {
	d := int64(noDeadline)
	if !t.IsZero() {
		d = t.UnixNano()
	}
	c.deadline.Store(d)
	c.kick(c.writeWake)
	return nil
}

// kick ends a poll; the caller must know that the eventfd is still open.
func (c *pollConn) kick(wake int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		kickFD(wake)
	}
}

func kickFD(wake int) {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	_, _ = unix.Write(wake, one[:])
}

func (c *pollConn) HungUp() bool { return !c.keepOpen }

// Close waits for a Read or Write under way to leave its poll.
func (c *pollConn) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	kickFD(c.readWake)
	kickFD(c.writeWake)
	c.mu.Unlock()
	c.users.Wait()
	if c.onEnd != nil {
		c.onEnd()
	}
	c.closeFDs()
	return nil
}

func (c *pollConn) closeFDs() {
	for _, fd := range []int{c.in, c.out, c.readWake, c.writeWake} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// dupCloexec copies a descriptor so that its owner may close the original.
func dupCloexec(fd int) (int, error) {
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	return n, os.NewSyscallError("dup", err)
}
