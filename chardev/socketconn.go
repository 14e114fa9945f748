package chardev

import (
	"context"
	"io"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// socketConn is a connected stream socket on the runtime's poller. It is an
// os.File rather than a net.Conn because package net knows neither vsock nor
// descriptor passing on a file it did not open itself.
type socketConn struct {
	f      *os.File
	raw    syscall.RawConn
	rights bool   // a unix socket, which can pass descriptors
	oob    []byte // for Read only
}

// newSocketConn takes over fd, a connected stream socket.
func newSocketConn(fd int) (*socketConn, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, err
	}
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	c := &socketConn{f: os.NewFile(uintptr(fd), "chardev"), rights: domain == unix.AF_UNIX}
	if c.rights {
		c.oob = make([]byte, unix.CmsgSpace(MaxPassedFiles*4))
	}
	if c.raw, err = c.f.SyscallConn(); err != nil {
		c.f.Close()
		return nil, err
	}
	return c, nil
}

func (c *socketConn) Read(p []byte) (n int, files []*os.File, err error) {
	if !c.rights {
		n, err = c.f.Read(p)
		return n, nil, err
	}
	var oobn int
	rerr := c.raw.Read(func(fd uintptr) bool {
		for {
			n, oobn, _, _, err = unix.Recvmsg(int(fd), p, c.oob, unix.MSG_CMSG_CLOEXEC)
			if err != unix.EINTR {
				return err != unix.EAGAIN
			}
		}
	})
	if rerr != nil {
		return 0, nil, rerr
	}
	if err != nil {
		return 0, nil, os.NewSyscallError("recvmsg", err)
	}
	files = passedFiles(c.oob[:oobn])
	if n == 0 && len(p) > 0 {
		CloseFiles(files)
		return 0, nil, io.EOF
	}
	return n, files, nil
}

// passedFiles takes the descriptors out of control data that the kernel wrote.
func passedFiles(oob []byte) []*os.File {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	var files []*os.File
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			continue
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "passed"))
		}
	}
	return files
}

func (c *socketConn) Write(p []byte) (int, error) { return c.f.Write(p) }

func (c *socketConn) SetWriteDeadline(t time.Time) error { return c.f.SetWriteDeadline(t) }

func (c *socketConn) HungUp() bool {
	gone := true // a closed descriptor counts as hung up
	_ = c.raw.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd)}}
		n, err := unix.Poll(fds, 0)
		gone = err == nil && n == 1 && fds[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
	})
	return gone
}

func (c *socketConn) Close() error {
	// Descriptors may be shared with a parent or a child: shutdown tells the
	// peer at once, whoever else holds the socket.
	_ = c.raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_RDWR) })
	return c.f.Close()
}

func (c *socketConn) name(server bool) string {
	name := "unknown"
	_ = c.raw.Control(func(fd uintptr) { name = connectedName(int(fd), server) })
	return name
}

// past is a deadline that has expired for everybody.
var past = time.Unix(1, 0)

// withContext ends f's waits when ctx ends while run waits. Its error is the
// context's if that is why run failed.
func withContext(ctx context.Context, f *os.File, run func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	fired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = f.SetDeadline(past)
		close(fired)
	})
	err := run()
	if !stop() {
		<-fired
		_ = f.SetDeadline(time.Time{})
		if err != nil {
			return ctx.Err()
		}
	}
	return err
}
