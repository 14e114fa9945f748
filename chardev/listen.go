package chardev

import (
	"context"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"

	"blockd/qapi"

	"golang.org/x/sys/unix"
)

// listenBacklog is the number of clients that may wait while one is connected.
const listenBacklog = 1

// listener is the socket of a device in server mode.
type listener struct {
	f     *os.File
	bound qapi.SocketAddressLegacy
	// A socket file that we made, and its identity: at close it is removed
	// only while it is still ours.
	path     string
	dev, ino uint64
	tempDir  string // made for a socket without a name
}

// newListener takes over fd, a socket that listens.
func newListener(fd int, asked qapi.SocketAddressLegacy) (*listener, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, err
	}
	l := &listener{bound: asked}
	if a, ok := boundAddress(fd); ok {
		l.bound = a
	}
	l.f = os.NewFile(uintptr(fd), "chardev")
	return l, nil
}

// listen opens the socket that a describes. Errors are *qapi.Error, or the
// context's while a name is looked up.
func listen(ctx context.Context, a *qapi.SocketAddressLegacy, takeFD func(string) (int, error)) (*listener, error) {
	switch a.Type {
	case qapi.SocketAddressTypeUnix:
		return listenUnix(a)
	case qapi.SocketAddressTypeInet:
		return listenInet(ctx, a)
	case qapi.SocketAddressTypeVsock:
		return listenVsock(a)
	}
	fd, err := takeFD(a.FD.Str)
	if err != nil {
		return nil, err
	}
	if err := unix.Listen(fd, listenBacklog); err != nil {
		unix.Close(fd)
		return nil, qapi.Errorf("Failed to listen on fd socket: %s", reason(err))
	}
	return newListener(fd, *a)
}

func streamSocket(domain, proto int) (int, error) {
	fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return -1, qapi.Errorf("Failed to create socket: %s", reason(err))
	}
	return fd, nil
}

func listenUnix(a *qapi.SocketAddressLegacy) (*listener, error) {
	addr := *a.Unix
	if addr.Path != "" || isOn(addr.Abstract) {
		return bindUnix(a, &addr)
	}
	// The field makes up a name in the folder for temporary files.
	dir, err := os.MkdirTemp("", "blockd-socket-")
	if err != nil {
		return nil, qapi.Errorf("Failed to make a temporary socket: %s", reason(err))
	}
	addr.Path = dir + "/socket"
	l, err := bindUnix(a, &addr)
	if err != nil {
		os.Remove(dir)
		return nil, err
	}
	l.tempDir = dir
	return l, nil
}

// bindUnix makes the listening socket at addr, which stands for asked.
func bindUnix(asked *qapi.SocketAddressLegacy, addr *qapi.UnixSocketAddress) (*listener, error) {
	raw, size, err := rawUnix(addr)
	if err != nil {
		return nil, err
	}
	path, abstract := addr.Path, isOn(addr.Abstract)
	fd, err := streamSocket(unix.AF_UNIX, 0)
	if err != nil {
		return nil, err
	}
	if !abstract {
		if err := removeStale(path); err != nil {
			unix.Close(fd)
			return nil, err
		}
	}
	if err := rawCall(unix.SYS_BIND, fd, &raw, size); err != nil {
		unix.Close(fd)
		return nil, qapi.Errorf("Failed to bind socket to %s: %s", path, reason(err))
	}
	var st unix.Stat_t
	made := !abstract && unix.Lstat(path, &st) == nil
	if err := unix.Listen(fd, listenBacklog); err != nil {
		unix.Close(fd)
		if made {
			os.Remove(path)
		}
		return nil, qapi.Errorf("Failed to listen on socket: %s", reason(err))
	}
	l, err := newListener(fd, *asked)
	if err != nil {
		return nil, err
	}
	if made {
		l.path, l.dev, l.ino = path, st.Dev, st.Ino
		if abs, err := filepath.Abs(path); err == nil {
			l.path = abs // the daemon may change its directory meanwhile
		}
	}
	if abstract {
		// What Getsockname gives ends at the first NUL, padded or not.
		tight := int(size) < unix.SizeofSockaddrUnix
		l.bound.Unix = &qapi.UnixSocketAddress{Path: path, Abstract: addr.Abstract, Tight: &tight}
	}
	return l, nil
}

// removeStale clears the way for a socket. The field unlinks whatever is
// there; here a file with content survives, since no script means to lose one.
func removeStale(path string) error {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil {
		return nil // bind says what is wrong with the path
	}
	if st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size > 0 {
		return qapi.Errorf("Failed to bind socket to %s: %s", path, reason(unix.EADDRINUSE))
	}
	if err := unix.Unlink(path); err != nil && err != unix.ENOENT {
		return qapi.Errorf("Failed to unlink socket %s: %s", path, reason(err))
	}
	return nil
}

func inetProto(a *qapi.InetSocketAddress) int {
	if isOn(a.MPTCP) {
		return unix.IPPROTO_MPTCP
	}
	return 0
}

func listenInet(ctx context.Context, a *qapi.SocketAddressLegacy) (*listener, error) {
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
	wildcard := in.Host == "" && len(addrs) == 2
	var why error
	for _, ap := range addrs {
		for port := uint32(first); port <= uint32(last); port++ {
			fd, err := bindInet(in, netip.AddrPortFrom(ap.Addr(), uint16(port)), wildcard)
			if err == nil {
				return newListener(fd, *a)
			}
			why = err
			if port == math.MaxUint16 {
				break
			}
		}
	}
	return nil, why
}

// bindInet makes one listening TCP socket. With wildcard set the host was
// empty, and IPv6 must leave IPv4 its own socket.
func bindInet(in *qapi.InetSocketAddress, ap netip.AddrPort, wildcard bool) (int, error) {
	sa, domain := inetSockaddr(ap)
	fd, err := streamSocket(domain, inetProto(in))
	if err != nil {
		return -1, err
	}
	fail := func(err error) (int, error) {
		unix.Close(fd)
		return -1, err
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if domain == unix.AF_INET6 {
		v6only := 0
		if wildcard || isOn(in.IPv6) && !isOn(in.IPv4) || in.IPv4 != nil && !*in.IPv4 {
			v6only = 1
		}
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, v6only)
	}
	if err := unix.Bind(fd, sa); err != nil {
		if err == unix.EADDRINUSE {
			return fail(qapi.Errorf("Failed to find an available port: %s", reason(err)))
		}
		return fail(qapi.Errorf("Failed to bind socket: %s", reason(err)))
	}
	if err := unix.Listen(fd, listenBacklog); err != nil {
		if err == unix.EADDRINUSE {
			return fail(qapi.Errorf("Failed to find an available port: %s", reason(err)))
		}
		return fail(qapi.Errorf("Failed to listen on socket: %s", reason(err)))
	}
	return fd, nil
}

func listenVsock(a *qapi.SocketAddressLegacy) (*listener, error) {
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
		return nil, qapi.Errorf("Failed to bind socket: %s", reason(err))
	}
	if err := unix.Listen(fd, listenBacklog); err != nil {
		unix.Close(fd)
		return nil, qapi.Errorf("Failed to listen on socket: %s", reason(err))
	}
	return newListener(fd, *a)
}

// accept waits for the next client. A client that has gone before it was
// accepted is skipped.
func (l *listener) accept(ctx context.Context) (*socketConn, error) {
	raw, err := l.f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var fd int
	err = withContext(ctx, l.f, func() error {
		var aerr error
		rerr := raw.Read(func(lfd uintptr) bool {
			for {
				fd, _, aerr = unix.Accept4(int(lfd), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
				switch aerr {
				case unix.EINTR, unix.ECONNABORTED:
					continue
				}
				return aerr != unix.EAGAIN
			}
		})
		if rerr != nil {
			return rerr
		}
		return os.NewSyscallError("accept", aerr)
	})
	if err != nil {
		return nil, err
	}
	return newSocketConn(fd)
}

func (l *listener) close() error {
	if l.path != "" {
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

// takeNumberedFD is the fd address of the command line: an inherited
// descriptor, which the device then owns.
// SocketFD returns the socket that the name in an address stands for, which the
// caller owns from now on: what fds finds or, when that is nil, the inherited
// descriptor of that number. Errors are *qapi.Error.
func SocketFD(name string, fds FDSource) (int, error) {
	if fds == nil {
		return takeNumberedFD(name)
	}
	return takeNamedFD(fds)(name)
}

func takeNumberedFD(s string) (int, error) {
	n, err := strconv.ParseInt(s, 10, 32)
	if err != nil {
		return -1, qapi.Errorf("Unable to parse FD number %s", s)
	}
	return checkSocket(int(n), s)
}

func checkSocket(fd int, name string) (int, error) {
	if _, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil {
		return -1, qapi.Errorf("File descriptor '%s' is not a socket", name)
	}
	unix.CloseOnExec(fd)
	return fd, nil
}
