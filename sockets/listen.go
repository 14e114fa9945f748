package sockets

import (
	"context"
	"errors"
	"math"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"

	"blockd/qapi"

	"golang.org/x/sys/unix"
)

// ListenOptions say how to listen.
type ListenOptions struct {
	// Backlog is the number of clients that may wait to be accepted.
	Backlog int
	// Every opens all addresses that a host name stands for, on one port;
	// without it the first that can be had.
	Every bool
	// Access says who may connect to a unix socket.
	Access Access
}

// Listener is a listening socket; a net.Listener whose methods may be called
// by any goroutine.
type Listener struct {
	f   *os.File
	raw syscall.RawConn

	closed atomic.Bool
	stays  atomic.Bool // its file, at the end
	// Bound is the address as the kernel reports it, with the port that was
	// given out for port 0.
	Bound qapi.SocketAddress
	// A socket file that we made, and its identity: at close it is removed
	// only while it is still ours.
	path     string
	dev, ino uint64
	tempDir  string // made for a socket without a name
	access   Access
	refused  refusals
}

// newListener takes over fd, a socket that listens.
func newListener(fd int, asked qapi.SocketAddress) (*Listener, error) {
	f, raw, err := pollable(fd)
	if err != nil {
		return nil, err
	}
	l := &Listener{f: f, Bound: asked}
	l.raw = &rawConn{raw, &l.closed}
	_ = raw.Control(func(fd uintptr) {
		if a, ok := boundAddress(int(fd)); ok {
			l.Bound = a
		}
	})
	return l, nil
}

// Listen opens the sockets that an address stands for. takeFD hands over a
// descriptor by number or name, for addresses of type fd. Errors are
// *qapi.Error, or the context's while a name is looked up or a lock is waited for.
func Listen(ctx context.Context, a *qapi.SocketAddress, o ListenOptions, takeFD func(string) (int, error)) ([]*Listener, error) {
	switch a.Type {
	case qapi.SocketAddressTypeInet:
		return listenInet(ctx, a, o)
	case qapi.SocketAddressTypeUnix:
		return one(listenUnix(ctx, a, o))
	case qapi.SocketAddressTypeVsock:
		return one(listenVsock(a, o))
	}
	fd, err := takeFD(a.FD.Str)
	if err != nil {
		return nil, err
	}
	if err := unix.Listen(fd, o.Backlog); err != nil {
		unix.Close(fd)
		return nil, qapi.Errorf("Failed to listen on fd socket: %s", Reason(err))
	}
	l, err := newListener(fd, *a)
	if err == nil {
		l.access = Access{Users: o.Access.Users} // the file is whose it was
	}
	return one(l, err)
}

func one(l *Listener, err error) ([]*Listener, error) {
	if err != nil {
		return nil, err
	}
	return []*Listener{l}, nil
}

func streamSocket(domain, proto int) (int, error) {
	fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return -1, qapi.Errorf("Failed to create socket: %s", Reason(err))
	}
	return fd, nil
}

func listenUnix(ctx context.Context, a *qapi.SocketAddress, o ListenOptions) (*Listener, error) {
	addr := *a.Unix
	if addr.Path != "" || isOn(addr.Abstract) {
		return bindUnix(ctx, a, &addr, o)
	}
	// The field makes up a name in the folder for temporary files.
	dir, err := os.MkdirTemp("", "blockd-socket-")
	if err != nil {
		return nil, qapi.Errorf("Failed to make a temporary socket: %s", Reason(err))
	}
	addr.Path = dir + "/socket"
	l, err := bindUnix(ctx, a, &addr, o)
	if err != nil {
		os.Remove(dir)
		return nil, err
	}
	l.tempDir = dir
	return l, nil
}

// bindUnix makes the listening socket at addr, which stands for asked.
func bindUnix(ctx context.Context, asked *qapi.SocketAddress, addr *qapi.UnixSocketAddress, o ListenOptions) (*Listener, error) {
	raw, size, err := rawUnix(addr)
	if err != nil {
		return nil, err
	}
	path, abstract := addr.Path, isOn(addr.Abstract)
	fd, err := streamSocket(unix.AF_UNIX, 0)
	if err != nil {
		return nil, err
	}
	private := o.Access.Private && !abstract
	switch {
	case abstract:
	case o.Access.Exclusive:
		done, err := clearWay(ctx, path, startTime)
		defer done()
		if err != nil {
			unix.Close(fd)
			return nil, err
		}
	default:
		if err := removeStale(path); err != nil {
			unix.Close(fd)
			return nil, err
		}
	}
	if err := bindFile(fd, path, &raw, size, private); err != nil {
		unix.Close(fd)
		return nil, err
	}
	var st unix.Stat_t
	made := !abstract && unix.Lstat(path, &st) == nil
	if private {
		if err := o.Access.settle(path, st.Dev, st.Ino); err != nil {
			unix.Close(fd)
			if made {
				os.Remove(path)
			}
			return nil, qapi.Errorf("Failed to set who may use socket %s: %s", path, Reason(err))
		}
	}
	if err := unix.Listen(fd, o.Backlog); err != nil {
		unix.Close(fd)
		if made {
			os.Remove(path)
		}
		return nil, qapi.Errorf("Failed to listen on socket: %s", Reason(err))
	}
	l, err := newListener(fd, *asked)
	if err != nil {
		return nil, err
	}
	l.access = o.Access
	if made {
		l.path, l.dev, l.ino = path, st.Dev, st.Ino
		if abs, err := filepath.Abs(path); err == nil {
			l.path = abs // the daemon may change its directory meanwhile
		}
	}
	if abstract {
		// What Getsockname gives ends at the first NUL, padded or not.
		tight := int(size) < unix.SizeofSockaddrUnix
		l.Bound.Unix = &qapi.UnixSocketAddress{Path: path, Abstract: addr.Abstract, Tight: &tight}
	}
	return l, nil
}

// bindFile binds a socket, with private to a file for this user alone.
func bindFile(fd int, path string, raw *unix.RawSockaddrUnix, size uint32, private bool) error {
	if private {
		// The file gets its mode from the socket's own inode, less the umask, and
		// only then what lets others in.
		if err := unix.Fchmod(fd, 0o600); err != nil {
			return qapi.Errorf("Failed to set the mode of socket %s: %s", path, Reason(err))
		}
	}
	if err := rawCall(unix.SYS_BIND, fd, raw, size); err != nil {
		return qapi.Errorf("Failed to bind socket to %s: %s", path, Reason(err))
	}
	return nil
}

// removeStale clears the way for a socket. The field unlinks whatever is
// there; here a file with content survives, since no script means to lose one.
func removeStale(path string) error {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil {
		return nil // bind says what is wrong with the path
	}
	if st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size > 0 {
		return qapi.Errorf("Failed to bind socket to %s: %s", path, Reason(unix.EADDRINUSE))
	}
	if err := unix.Unlink(path); err != nil && err != unix.ENOENT {
		return qapi.Errorf("Failed to unlink socket %s: %s", path, Reason(err))
	}
	return nil
}

func inetProto(a *qapi.InetSocketAddress) int {
	if isOn(a.MPTCP) {
		return unix.IPPROTO_MPTCP
	}
	return 0
}

func listenInet(ctx context.Context, a *qapi.SocketAddress, o ListenOptions) ([]*Listener, error) {
	in := a.Inet
	addrs, err := resolveInet(ctx, in, true)
	if err != nil {
		return nil, err
	}
	first := addrs[0].Port()
	last := first
	if in.To != nil && *in.To > last {
		last = *in.To
	}
	// IPv6 must leave IPv4 its own socket where both are opened.
	apart := o.Every || in.Host == "" && len(addrs) == 2
	var open []*Listener
	var why error
	for _, ap := range addrs {
		l, err := listenRange(a, ap.Addr(), first, last, apart, o)
		switch {
		case err == nil && !o.Every:
			return []*Listener{l}, nil
		case err == nil:
			open = append(open, l)
			if bound, ok := l.Addr().(*net.TCPAddr); ok && first == 0 {
				// All addresses share the port that was given out.
				first = uint16(bound.Port)
				last = first
			}
			continue
		}
		why = err
		if o.Every && errors.Is(err, errPortTaken) {
			for _, l := range open { // half a server would surprise
				l.Close()
			}
			return nil, errors.Unwrap(err)
		}
	}
	if len(open) > 0 {
		return open, nil
	}
	if errors.Is(why, errPortTaken) {
		why = errors.Unwrap(why)
	}
	return nil, why
}

// portTaken wraps the field's error where no port of the range is free.
type portTaken struct{ error }

var errPortTaken = errors.New("port taken")

func (p portTaken) Is(err error) bool { return err == errPortTaken }
func (p portTaken) Unwrap() error     { return p.error }

// listenRange listens on the first free port of a range.
func listenRange(a *qapi.SocketAddress, ip netip.Addr, first, last uint16, apart bool, o ListenOptions) (*Listener, error) {
	for port := first; ; port++ {
		fd, err := bindInet(a.Inet, netip.AddrPortFrom(ip, port), apart, o)
		if err == nil {
			return newListener(fd, *a)
		}
		if port >= last || port == math.MaxUint16 {
			return nil, err
		}
	}
}

// bindInet makes one listening TCP socket. With apart set IPv6 does not serve
// IPv4 too.
func bindInet(in *qapi.InetSocketAddress, ap netip.AddrPort, apart bool, o ListenOptions) (int, error) {
	sa, domain := inetSockaddr(ap)
	fd, err := streamSocket(domain, inetProto(in))
	if err != nil {
		return -1, err
	}
	fail := func(err error, what string) (int, error) {
		unix.Close(fd)
		if err == unix.EADDRINUSE {
			return -1, portTaken{qapi.Errorf("Failed to find an available port: %s", Reason(err))}
		}
		return -1, qapi.Errorf("Failed to %s socket: %s", what, Reason(err))
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if domain == unix.AF_INET6 {
		v6only := 0
		if apart || isOn(in.IPv6) && !isOn(in.IPv4) || in.IPv4 != nil && !*in.IPv4 {
			v6only = 1
		}
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, v6only)
	}
	if err := unix.Bind(fd, sa); err != nil {
		return fail(err, "bind")
	}
	if err := unix.Listen(fd, o.Backlog); err != nil {
		return fail(err, "listen on")
	}
	return fd, nil
}

func listenVsock(a *qapi.SocketAddress, o ListenOptions) (*Listener, error) {
	sa, err := vsockAddr(a.Vsock)
	if err != nil {
		return nil, err
	}
	fd, err := streamSocket(unix.AF_VSOCK, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Bind(fd, sa); err != nil {
		unix.Close(fd)
		return nil, qapi.Errorf("Failed to bind socket: %s", Reason(err))
	}
	if err := unix.Listen(fd, o.Backlog); err != nil {
		unix.Close(fd)
		return nil, qapi.Errorf("Failed to listen on socket: %s", Reason(err))
	}
	return newListener(fd, *a)
}

// Accept waits for the next client; net.ErrClosed after Close.
func (l *Listener) Accept() (net.Conn, error) {
	c, err := l.acceptAdmitted()
	if err != nil {
		return nil, err // no typed nil
	}
	return c, nil
}

// AcceptContext is Accept that ends with ctx.
func (l *Listener) AcceptContext(ctx context.Context) (c *Conn, err error) {
	err = withContext(ctx, l.f, func() error {
		c, err = l.acceptAdmitted()
		return err
	})
	return c, err
}

// accept skips clients that have gone before they were accepted.
func (l *Listener) accept() (*Conn, error) {
	var fd int
	var err error
	rerr := l.raw.Read(func(lfd uintptr) bool {
		for {
			fd, _, err = unix.Accept4(int(lfd), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
			switch err {
			case unix.EINTR, unix.ECONNABORTED:
				continue
			}
			return err != unix.EAGAIN
		}
	})
	if rerr != nil {
		return nil, rerr
	}
	if err != nil {
		return nil, os.NewSyscallError("accept", err)
	}
	return NewConn(fd)
}

// acceptAdmitted is accept without those whom the access keeps out.
func (l *Listener) acceptAdmitted() (*Conn, error) {
	for {
		c, err := l.accept()
		if err != nil || l.admits(c) {
			return c, err
		}
		c.Close()
	}
}

// Addr returns the address that the socket listens on.
func (l *Listener) Addr() net.Addr { return addrOf(l.raw, unix.Getsockname) }

// LeaveFile has Close leave the file of a socket that somebody named.
func (l *Listener) LeaveFile() { l.stays.Store(true) }

// Close ends listening and removes the socket's file if it is still its own.
func (l *Listener) Close() error {
	if l.closed.Swap(true) {
		return net.ErrClosed
	}
	if l.path != "" && (!l.stays.Load() || l.tempDir != "") {
		var st unix.Stat_t
		if unix.Lstat(l.path, &st) == nil && st.Dev == l.dev && st.Ino == l.ino {
			os.Remove(l.path)
		}
	}
	if l.tempDir != "" {
		os.Remove(l.tempDir)
	}
	return l.f.Close()
}
