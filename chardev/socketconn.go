package chardev

import (
	"blockd/sockets"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// socketConn is a socket that takes passed descriptors.
type socketConn struct {
	*sockets.Conn
	raw    syscall.RawConn
	rights bool   // a unix socket, which can pass descriptors
	oob    []byte // for Read only
}

func newSocketConn(s *sockets.Conn) (*socketConn, error) {
	raw, err := s.SyscallConn()
	if err != nil {
		s.Close()
		return nil, err
	}
	c := &socketConn{Conn: s, raw: raw, rights: s.Domain() == unix.AF_UNIX}
	if c.rights {
		c.oob = make([]byte, unix.CmsgSpace(MaxPassedFiles*4))
	}
	return c, nil
}

func (c *socketConn) Read(p []byte) (n int, files []*os.File, err error) {
	if !c.rights {
		n, err = c.Conn.Read(p)
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

func (c *socketConn) HungUp() bool {
	gone := true // a closed descriptor counts as hung up
	_ = c.raw.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd)}}
		n, err := unix.Poll(fds, 0)
		gone = err == nil && n == 1 && fds[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
	})
	return gone
}

func (c *socketConn) name(server bool) string {
	name := "unknown"
	_ = c.raw.Control(func(fd uintptr) { name = connectedName(int(fd), server) })
	return name
}
