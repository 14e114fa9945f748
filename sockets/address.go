package sockets

import (
	"context"
	"errors"
	"math"
	"net"
	"net/netip"
	"strconv"
	"unsafe"

	"blockd/qapi"

	"golang.org/x/sys/unix"
)

// Addresses: from the options to what the kernel takes, and back.

// maxUnixPath is the size of sun_path: a file name may fill it, an abstract
// name has one byte less.
const maxUnixPath = len(unix.RawSockaddrUnix{}.Path)

func isOn(b *bool) bool { return b != nil && *b }

// rawUnix builds the address by hand: package unix cannot express names that
// fill sun_path, which abstract names that are not tight always do, and takes
// a leading @ for an abstract name.
func rawUnix(a *qapi.UnixSocketAddress) (raw unix.RawSockaddrUnix, size uint32, err error) {
	limit := maxUnixPath
	if isOn(a.Abstract) {
		limit--
	}
	if len(a.Path) > limit {
		return raw, 0, qapi.Errorf("UNIX socket path '%s' is too long", a.Path)
	}
	raw.Family = unix.AF_UNIX
	path := raw.Path[:]
	used := len(a.Path)
	if isOn(a.Abstract) {
		path = path[1:]
		used++
		if a.Tight != nil && !*a.Tight {
			used = maxUnixPath
		}
	}
	for i := range len(a.Path) {
		path[i] = int8(a.Path[i])
	}
	if !isOn(a.Abstract) {
		used = maxUnixPath
	}
	return raw, uint32(unsafe.Offsetof(raw.Path)) + uint32(used), nil
}

func rawCall(trap uintptr, fd int, raw *unix.RawSockaddrUnix, size uint32) error {
	_, _, errno := unix.Syscall(trap, uintptr(fd), uintptr(unsafe.Pointer(raw)), uintptr(size))
	if errno != 0 {
		return errno
	}
	return nil
}

// vsockAddr parses the numbers of a vsock address.
func vsockAddr(a *qapi.VsockSocketAddress) (*unix.SockaddrVM, error) {
	cid, err := strconv.ParseUint(a.CID, 10, 32)
	if err != nil {
		return nil, qapi.Errorf("Failed to parse cid '%s'", a.CID)
	}
	port, err := strconv.ParseUint(a.Port, 10, 32)
	if err != nil {
		return nil, qapi.Errorf("Failed to parse port '%s'", a.Port)
	}
	return &unix.SockaddrVM{CID: uint32(cid), Port: uint32(port)}, nil
}

// The texts of getaddrinfo, which clients see.
const (
	unknownName    = "Name or service not known"
	unknownService = "Servname not supported for ai_socktype"
	wrongFamily    = "Address family for hostname not supported"
	tryAgain       = "Temporary failure in name resolution"
)

// resolveInet turns host and port into addresses to try in turn. passive is
// for listening: an empty host is then every address.
func resolveInet(ctx context.Context, a *qapi.InetSocketAddress, passive bool) ([]netip.AddrPort, error) {
	fail := func(why string) ([]netip.AddrPort, error) {
		return nil, qapi.Errorf("address resolution failed for %s:%s: %s", a.Host, a.Port, why)
	}
	no4 := a.IPv4 != nil && !*a.IPv4
	no6 := a.IPv6 != nil && !*a.IPv6
	if no4 && no6 {
		return nil, qapi.Errorf("Cannot disable IPv4 and IPv6 at same time")
	}
	both := isOn(a.IPv4) && isOn(a.IPv6)
	only6 := !both && (isOn(a.IPv6) || no4)
	only4 := !both && !only6 && (isOn(a.IPv4) || no6)
	fits := func(ip netip.Addr) bool {
		return !(only4 && ip.Is6()) && !(only6 && ip.Is4())
	}

	port, why := lookupPort(ctx, a.Port, isOn(a.Numeric))
	if why != "" {
		return fail(why)
	}
	var ips []netip.Addr
	if a.Host == "" {
		if !passive {
			return fail(unknownName)
		}
		ips = []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
	} else if ip, err := netip.ParseAddr(a.Host); err == nil {
		if !fits(ip) {
			return fail(wrongFamily)
		}
		ips = []netip.Addr{ip}
	} else if isOn(a.Numeric) {
		return fail(unknownName)
	} else {
		ips, err = net.DefaultResolver.LookupNetIP(ctx, "ip", a.Host)
		if err != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			if de := (*net.DNSError)(nil); errors.As(err, &de) && !de.IsNotFound && (de.IsTemporary || de.IsTimeout) {
				return fail(tryAgain)
			}
			return fail(unknownName)
		}
	}
	var out []netip.AddrPort
	for _, ip := range ips {
		if ip = ip.Unmap(); fits(ip) {
			out = append(out, netip.AddrPortFrom(ip, port))
		}
	}
	if len(out) == 0 {
		return fail(wrongFamily)
	}
	return out, nil
}

func lookupPort(ctx context.Context, s string, numeric bool) (uint16, string) {
	if s == "" {
		return 0, ""
	}
	if n, err := strconv.ParseInt(s, 10, 64); err == nil {
		if n < 0 || n > math.MaxUint16 {
			return 0, unknownService
		}
		return uint16(n), ""
	}
	if numeric {
		return 0, unknownName
	}
	n, err := net.DefaultResolver.LookupPort(ctx, "tcp", s)
	if err != nil {
		return 0, unknownService
	}
	return uint16(n), ""
}

func inetSockaddr(ap netip.AddrPort) (unix.Sockaddr, int) {
	if ap.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(ap.Port()), Addr: ap.Addr().As4()}, unix.AF_INET
	}
	sa := &unix.SockaddrInet6{Port: int(ap.Port()), Addr: ap.Addr().As16()}
	if zone := ap.Addr().Zone(); zone != "" {
		if ifi, err := net.InterfaceByName(zone); err == nil {
			sa.ZoneId = uint32(ifi.Index)
		} else if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
			sa.ZoneId = uint32(n)
		}
	}
	return sa, unix.AF_INET6
}

// AddrPort returns the IP address and port of a socket address, if it has them.
func AddrPort(sa unix.Sockaddr) (netip.AddrPort, bool) {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)), true
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port)), true
	}
	return netip.AddrPort{}, false
}

// boundAddress describes a listening socket by what the kernel reports, so that
// port 0 shows as the port that was given out.
func boundAddress(fd int) (qapi.SocketAddress, bool) {
	local, err := unix.Getsockname(fd)
	if err != nil {
		return qapi.SocketAddress{}, false
	}
	switch sa := local.(type) {
	case *unix.SockaddrUnix:
		u := &qapi.UnixSocketAddress{Path: sa.Name}
		if len(sa.Name) > 0 && sa.Name[0] == '@' {
			yes, tight := true, len(sa.Name) < maxUnixPath
			u = &qapi.UnixSocketAddress{Path: sa.Name[1:], Abstract: &yes, Tight: &tight}
		}
		return qapi.SocketAddress{Type: qapi.SocketAddressTypeUnix, Unix: u}, true
	case *unix.SockaddrVM:
		return qapi.SocketAddress{Type: qapi.SocketAddressTypeVsock, Vsock: &qapi.VsockSocketAddress{
			CID: strconv.FormatUint(uint64(sa.CID), 10), Port: strconv.FormatUint(uint64(sa.Port), 10)}}, true
	}
	if ap, ok := AddrPort(local); ok {
		in := &qapi.InetSocketAddress{}
		in.Host, in.Port = ap.Addr().String(), strconv.Itoa(int(ap.Port()))
		return qapi.SocketAddress{Type: qapi.SocketAddressTypeInet, Inet: in}, true
	}
	return qapi.SocketAddress{}, false
}

// vsockName is a vsock address as a net.Addr.
type vsockName unix.SockaddrVM

// Network returns "vsock".
func (vsockName) Network() string { return "vsock" }

// String returns the context id and the port.
func (a vsockName) String() string {
	return strconv.FormatUint(uint64(a.CID), 10) + ":" + strconv.FormatUint(uint64(a.Port), 10)
}
