package chardev

import (
	"blockd/qapi"
	"blockd/sockets"

	"golang.org/x/sys/unix"
)

// How query-chardev shows addresses.

func isOn(b *bool) bool { return b != nil && *b }

// disconnectedName is how query-chardev shows a device that waits for a peer.
func disconnectedName(a *qapi.SocketAddress, server bool) string {
	suffix := ""
	if server {
		suffix = ",server=on"
	}
	switch a.Type {
	case qapi.SocketAddressTypeInet:
		return "disconnected:tcp:" + a.Inet.Host + ":" + a.Inet.Port + suffix
	case qapi.SocketAddressTypeUnix:
		opts := ""
		if isOn(a.Unix.Abstract) {
			opts = ",abstract=on"
			if isOn(a.Unix.Tight) {
				opts += ",tight=on"
			}
		}
		return "disconnected:unix:" + a.Unix.Path + opts + suffix
	case qapi.SocketAddressTypeVsock:
		return "disconnected:vsock:" + a.Vsock.CID + ":" + a.Vsock.Port
	case qapi.SocketAddressTypeFD:
		return "disconnected:fd:" + a.FD.Str + suffix
	}
	return "disconnected"
}

// connectedName is how query-chardev shows a connection, from the addresses
// that the kernel reports.
func connectedName(fd int, server bool) string {
	local, err := unix.Getsockname(fd)
	if err != nil {
		return "unknown"
	}
	suffix := ""
	if server {
		suffix = ",server=on"
	}
	switch sa := local.(type) {
	case *unix.SockaddrUnix:
		name := sa.Name
		if len(name) > 0 && name[0] == '@' {
			name = "" // abstract names are not shown
		}
		return "unix:" + name + suffix
	case *unix.SockaddrInet4, *unix.SockaddrInet6:
		name := "tcp:" + hostPort(local) + suffix
		if peer, err := unix.Getpeername(fd); err == nil {
			name += " <-> " + hostPort(peer)
		}
		return name
	case *unix.SockaddrVM:
		// The field shows vsock connections as unknown.
		return "unknown"
	}
	return "unknown"
}

func hostPort(sa unix.Sockaddr) string {
	ap, ok := sockets.AddrPort(sa)
	if !ok {
		return "unknown"
	}
	return ap.String()
}
