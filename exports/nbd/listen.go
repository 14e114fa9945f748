package nbd

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"blockd/blockgraph"
	"blockd/qapi"
)

// From an address option to listening sockets. The server's backlog is the
// system's: clients beyond max-connections wait there.

func isOn(b *bool) bool { return b != nil && *b }

// Listen opens the sockets that an address stands for; a host name may be
// several. takeFD hands over a descriptor by number or name, for addresses of
// type fd. Errors are *qapi.Error with the field's texts, or the context's. It
// may wait for a name to resolve. Control plane's workers.
func Listen(ctx context.Context, a *qapi.SocketAddress, takeFD func(string) (int, error)) ([]net.Listener, error) {
	switch a.Type {
	case qapi.SocketAddressTypeUnix:
		return listenUnix(a.Unix)
	case qapi.SocketAddressTypeInet:
		return listenInet(ctx, a.Inet)
	case qapi.SocketAddressTypeFD:
		return listenFD(a.FD.Str, takeFD)
	}
	return nil, qapi.Errorf("NBD server on address type '%s' is not supported", a.Type)
}

// reason is the text of the system error below net's wrapping.
func reason(err error) string {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return blockgraph.Strerror(errno)
	}
	return err.Error()
}

func listenUnix(a *qapi.UnixSocketAddress) ([]net.Listener, error) {
	abstract := isOn(a.Abstract)
	limit := len(unix.RawSockaddrUnix{}.Path) - 1
	if len(a.Path) > limit {
		return nil, qapi.Errorf("UNIX socket path '%s' is too long", a.Path)
	}
	name := a.Path
	switch {
	case abstract && a.Tight != nil && !*a.Tight:
		name = "@" + name + strings.Repeat("\x00", limit-len(name))
	case abstract:
		name = "@" + name
	case name == "":
		return nil, qapi.Errorf("UNIX socket path is empty")
	case name[0] == '@':
		name = "./" + name // a file, not an abstract name
	}
	if !abstract {
		if err := removeStale(a.Path); err != nil {
			return nil, err
		}
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: name})
	if err != nil {
		return nil, qapi.Errorf("Failed to bind socket to %s: %s", a.Path, reason(err))
	}
	if abstract {
		return []net.Listener{l}, nil
	}
	l.SetUnlinkOnClose(false)
	u := &unixListener{Listener: l, path: a.Path}
	if abs, err := filepath.Abs(a.Path); err == nil {
		u.path = abs // the daemon may change its directory meanwhile
	}
	var st unix.Stat_t
	if unix.Lstat(a.Path, &st) == nil {
		u.dev, u.ino = st.Dev, st.Ino
	}
	return []net.Listener{u}, nil
}

// removeStale clears the way for a socket. The field unlinks whatever is
// there; here a file with content survives, since no script means to lose one.
func removeStale(path string) error {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil {
		return nil // binding tells what is wrong
	}
	if st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size > 0 {
		return qapi.Errorf("Failed to bind socket to %s: %s", path, reason(unix.EADDRINUSE))
	}
	if err := unix.Unlink(path); err != nil && err != unix.ENOENT {
		return qapi.Errorf("Failed to unlink socket %s: %s", path, reason(err))
	}
	return nil
}

// unixListener removes its file at close, if it is still its own.
type unixListener struct {
	net.Listener
	path     string
	dev, ino uint64
}

func (u *unixListener) Close() error {
	var st unix.Stat_t
	if u.ino != 0 && unix.Lstat(u.path, &st) == nil && st.Dev == u.dev && st.Ino == u.ino {
		_ = unix.Unlink(u.path)
	}
	return u.Listener.Close()
}

func listenInet(ctx context.Context, a *qapi.InetSocketAddress) ([]net.Listener, error) {
	fail := func(why string) ([]net.Listener, error) {
		return nil, qapi.Errorf("address resolution failed for %s:%s: %s", a.Host, a.Port, why)
	}
	no4, no6 := a.IPv4 != nil && !*a.IPv4, a.IPv6 != nil && !*a.IPv6
	if no4 && no6 {
		return nil, qapi.Errorf("Cannot disable IPv4 and IPv6 at same time")
	}
	if isOn(a.IPv4) != isOn(a.IPv6) { // one alone was asked for
		no4, no6 = no4 || isOn(a.IPv6), no6 || isOn(a.IPv4)
	}
	port, err := net.DefaultResolver.LookupPort(ctx, "tcp", a.Port)
	if err != nil || isOn(a.Numeric) && !isNumber(a.Port) {
		return fail("Servname not supported for ai_socktype")
	}
	var ips []netip.Addr
	switch ip, perr := netip.ParseAddr(a.Host); {
	case a.Host == "":
		ips = []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
	case perr == nil:
		ips = []netip.Addr{ip}
	case isOn(a.Numeric):
		return fail("Name or service not known")
	default:
		if ips, err = net.DefaultResolver.LookupNetIP(ctx, "ip", a.Host); err != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			return fail("Name or service not known")
		}
	}
	last := port
	if a.To != nil {
		last = max(port, int(*a.To))
	}
	var open []net.Listener
	tried := false
	for _, ip := range ips {
		ip = ip.Unmap()
		if ip.Is4() && no4 || ip.Is6() && no6 {
			continue
		}
		tried = true
		l, lerr := listenRange(ctx, a, ip, port, last)
		if lerr != nil {
			err = lerr
			if errors.Is(lerr, syscall.EADDRINUSE) {
				break // half a server would surprise
			}
			continue // no IPv6 here, say
		}
		open = append(open, l)
		if port == 0 {
			// All addresses share the port that was given out.
			port = l.Addr().(*net.TCPAddr).Port
			last = port
		}
	}
	switch {
	case !tried:
		return fail("Address family for hostname not supported")
	case len(open) > 0 && !errors.Is(err, syscall.EADDRINUSE):
		return open, nil
	}
	for _, l := range open {
		l.Close()
	}
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, qapi.Errorf("Failed to find an available port: %s", reason(err))
	}
	return nil, qapi.Errorf("Failed to bind socket: %s", reason(err))
}

func isNumber(s string) bool {
	_, err := strconv.ParseUint(s, 10, 16)
	return s == "" || err == nil
}

// listenRange opens the first free port of a range.
func listenRange(ctx context.Context, a *qapi.InetSocketAddress, ip netip.Addr, port, last int) (net.Listener, error) {
	lc := net.ListenConfig{}
	lc.SetMultipathTCP(isOn(a.MPTCP))
	if !isOn(a.KeepAlive) {
		lc.KeepAlive = -1
	}
	// A socket for "::" beside one for "0.0.0.0" must not claim IPv4 too.
	network := "tcp4"
	if ip.Is6() {
		network = "tcp6"
	}
	for {
		l, err := lc.Listen(ctx, network, net.JoinHostPort(ip.String(), strconv.Itoa(port)))
		if err == nil || !errors.Is(err, syscall.EADDRINUSE) || port >= last {
			return l, err
		}
		port++
	}
}

func listenFD(name string, takeFD func(string) (int, error)) ([]net.Listener, error) {
	fd, err := takeFD(name)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "nbd-listener")
	defer f.Close()
	if err := unix.Listen(fd, unix.SOMAXCONN); err != nil {
		return nil, qapi.Errorf("Failed to listen on fd socket: %s", reason(err))
	}
	l, err := net.FileListener(f)
	if err != nil {
		return nil, qapi.Errorf("Failed to listen on fd socket: %s", reason(err))
	}
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
	}
	return []net.Listener{l}, nil
}

// unixBuffer is the send buffer of a unix socket, in bytes: there it is what
// the peer can read at once. The system may grant less.
const unixBuffer = 1 << 20

// tuneSocket sets what helps requests along.
func tuneSocket(nc net.Conn) {
	if u, ok := nc.(*net.UnixConn); ok {
		_ = u.SetWriteBuffer(unixBuffer)
	}
}
