package sockets

import (
	"context"
	"os"
	"time"

	"blockd/clock"
	"blockd/qapi"

	"golang.org/x/sys/unix"
)

// busyRetry is the pause before another attempt at a unix socket whose backlog
// is full: the kernel offers no way to wait for room without blocking.
const busyRetry = 10 * time.Millisecond

// busyTries bounds the attempts, to about a minute.
const busyTries = 6000

// Dial connects to the address. takeFD hands over a descriptor by number or
// name, for addresses of type fd. Errors are *qapi.Error or the context's, with
// which it ends at once. It waits for names and peers.
func Dial(ctx context.Context, clk clock.Clock, a *qapi.SocketAddress, takeFD func(string) (int, error)) (*Conn, error) {
	switch a.Type {
	case qapi.SocketAddressTypeUnix:
		return dialUnix(ctx, clk, a.Unix)
	case qapi.SocketAddressTypeInet:
		return dialInet(ctx, a.Inet)
	case qapi.SocketAddressTypeVsock:
		sa, err := vsockAddr(a.Vsock)
		if err != nil {
			return nil, err
		}
		c, err := connectTo(ctx, unix.AF_VSOCK, 0, sa)
		if err != nil {
			return nil, dialError(ctx, a.Vsock.CID+":"+a.Vsock.Port, err)
		}
		return c, nil
	}
	fd, err := takeFD(a.FD.Str)
	if err != nil {
		return nil, err
	}
	return NewConn(fd)
}

func dialError(ctx context.Context, where string, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return qapi.Errorf("Failed to connect to '%s': %s", where, Reason(err))
}

func dialUnix(ctx context.Context, clk clock.Clock, a *qapi.UnixSocketAddress) (*Conn, error) {
	raw, size, err := rawUnix(a)
	if err != nil {
		return nil, err
	}
	fd, err := streamSocket(unix.AF_UNIX, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, err
	}
	for range busyTries {
		err = rawCall(unix.SYS_CONNECT, fd, &raw, size)
		if err == nil {
			return NewConn(fd)
		}
		if err != unix.EAGAIN && err != unix.EINTR {
			break
		}
		if serr := clk.Sleep(ctx, busyRetry); serr != nil {
			err = serr
			break
		}
	}
	unix.Close(fd)
	return nil, dialError(ctx, a.Path, err)
}

func dialInet(ctx context.Context, a *qapi.InetSocketAddress) (*Conn, error) {
	addrs, err := resolveInet(ctx, a, false)
	if err != nil {
		return nil, err
	}
	for _, ap := range addrs {
		sa, domain := inetSockaddr(ap)
		var c *Conn
		if c, err = connectTo(ctx, domain, inetProto(a), sa); err == nil {
			c.KeepAlive(a)
			return c, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	return nil, dialError(ctx, a.Host+":"+a.Port, err)
}

// connectTo connects a new socket without blocking a thread.
func connectTo(ctx context.Context, domain, proto int, sa unix.Sockaddr) (*Conn, error) {
	fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	err = unix.Connect(fd, sa)
	if err != nil && err != unix.EINPROGRESS && err != unix.EINTR {
		unix.Close(fd)
		return nil, os.NewSyscallError("connect", err)
	}
	c, nerr := NewConn(fd)
	if nerr != nil || err == nil {
		return c, nerr
	}
	err = withContext(ctx, c, func() error {
		var cerr error
		werr := c.raw.Write(func(fd uintptr) bool {
			fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
			if n, perr := unix.Poll(fds, 0); perr != nil || n == 0 {
				return false
			}
			errno, gerr := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
			if gerr != nil {
				cerr = gerr
			} else if errno != 0 {
				cerr = unix.Errno(errno)
			}
			return true
		})
		if werr != nil {
			return werr
		}
		return os.NewSyscallError("connect", cerr)
	})
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// KeepAlive applies the keep-alive options to a TCP connection.
func (c *Conn) KeepAlive(a *qapi.InetSocketAddress) {
	if a == nil || !isOn(a.KeepAlive) {
		return
	}
	_ = c.raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
		for opt, v := range map[int]*uint32{
			unix.TCP_KEEPCNT: a.KeepAliveCount, unix.TCP_KEEPIDLE: a.KeepAliveIdle, unix.TCP_KEEPINTVL: a.KeepAliveInterval,
		} {
			if v != nil {
				_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, opt, int(*v))
			}
		}
	})
}

// NoDelay sends small writes at once; no-op on what is not TCP.
func (c *Conn) NoDelay() {
	_ = c.raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	})
}

// SetWriteBuffer asks for a send buffer of n bytes; the system may grant less.
func (c *Conn) SetWriteBuffer(n int) {
	_ = c.raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, n) })
}
