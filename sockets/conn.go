package sockets

import (
	"context"
	"errors"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Conn is a connected stream socket on the runtime's poller. It is a net.Conn
// whose methods may be called by any goroutine.
type Conn struct {
	f      *os.File
	raw    syscall.RawConn
	domain int
	closed atomic.Bool
}

// NewConn takes over fd, a connected stream socket.
func NewConn(fd int) (*Conn, error) {
	f, raw, err := pollable(fd)
	if err != nil {
		return nil, err
	}
	c := &Conn{f: f}
	c.raw = &rawConn{raw, &c.closed}
	cerr := raw.Control(func(fd uintptr) { c.domain, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN) })
	if err == nil {
		err = cerr
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return c, nil
}

// pollable takes over fd for the runtime's poller.
func pollable(fd int) (*os.File, syscall.RawConn, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, nil, err
	}
	f := os.NewFile(uintptr(fd), "socket")
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, raw, nil
}

// rawConn reports what comes after a close as package net does.
type rawConn struct {
	syscall.RawConn
	closed *atomic.Bool
}

func (r *rawConn) Read(f func(fd uintptr) bool) error  { return r.after(r.RawConn.Read(f)) }
func (r *rawConn) Write(f func(fd uintptr) bool) error { return r.after(r.RawConn.Write(f)) }

func (r *rawConn) after(err error) error {
	if err != nil && r.closed.Load() {
		return net.ErrClosed
	}
	return err
}

// Domain returns the address family, AF_UNIX for instance.
func (c *Conn) Domain() int { return c.domain }

// SyscallConn returns access to the descriptor.
func (c *Conn) SyscallConn() (syscall.RawConn, error) { return c.raw, nil }

func (c *Conn) Read(p []byte) (int, error) {
	n, err := c.f.Read(p)
	return n, c.asNet(err)
}

func (c *Conn) Write(p []byte) (int, error) {
	n, err := c.f.Write(p)
	return n, c.asNet(err)
}

// asNet is an error as package net has it. What a file says of its deadline is
// no net.Error, and crypto/tls takes it for the end of the connection.
func (c *Conn) asNet(err error) error {
	switch {
	case err == nil:
		return nil
	case c.closed.Load():
		return net.ErrClosed
	case errors.Is(err, os.ErrDeadlineExceeded):
		return os.ErrDeadlineExceeded
	}
	return err
}

// SetDeadline lets waiting and later calls fail at t; the zero time means never.
func (c *Conn) SetDeadline(t time.Time) error { return c.f.SetDeadline(t) }

// SetReadDeadline is SetDeadline for Read.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.f.SetReadDeadline(t) }

// SetWriteDeadline is SetDeadline for Write.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.f.SetWriteDeadline(t) }

// Close ends the connection. Descriptors may be shared with a parent or a
// child: the shutdown tells the peer at once, whoever else holds the socket.
func (c *Conn) Close() error {
	if c.closed.Swap(true) {
		return net.ErrClosed
	}
	_ = c.raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_RDWR) })
	return c.f.Close()
}

// LocalAddr returns the socket's own address.
func (c *Conn) LocalAddr() net.Addr { return addrOf(c.raw, unix.Getsockname) }

// RemoteAddr returns the peer's address.
func (c *Conn) RemoteAddr() net.Addr { return addrOf(c.raw, unix.Getpeername) }

// Credentials returns who connected a unix socket, as of that moment; false for
// other sockets.
func (c *Conn) Credentials() (unix.Ucred, bool) {
	if c.domain != unix.AF_UNIX {
		return unix.Ucred{}, false
	}
	var cred *unix.Ucred
	var err error
	if c.raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }) != nil || err != nil {
		return unix.Ucred{}, false
	}
	return *cred, true
}

func addrOf(raw syscall.RawConn, get func(int) (unix.Sockaddr, error)) net.Addr {
	var sa unix.Sockaddr
	_ = raw.Control(func(fd uintptr) { sa, _ = get(int(fd)) })
	switch sa := sa.(type) {
	case *unix.SockaddrUnix:
		return &net.UnixAddr{Net: "unix", Name: sa.Name}
	case *unix.SockaddrVM:
		return vsockName(*sa)
	}
	if ap, ok := AddrPort(sa); ok {
		return net.TCPAddrFromAddrPort(ap)
	}
	return &net.UnixAddr{Net: "unix"}
}

// past is a deadline that has expired for everybody.
var past = time.Unix(1, 0)

// withContext ends f's waits when ctx ends while run waits. Its error is the
// context's if that is why run failed.
func withContext(ctx context.Context, f interface{ SetDeadline(time.Time) error }, run func() error) error {
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
