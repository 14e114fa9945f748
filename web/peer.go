package web

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"

	"blockd/sockets"
)

// peer is who is at the other end of a connection.
type peer struct {
	// client is what limits are kept for: an address, of IPv6 the network of 64
	// bits that one host may have for itself, or a user of this machine.
	client string
	text   string
	uid    *uint32 // at a unix socket
}

// peerOf looks at a connection.
//
//blockd:io
func peerOf(c net.Conn) peer {
	if s, ok := c.(*sockets.Conn); ok {
		if cred, ok := s.Credentials(); ok {
			return peer{fmt.Sprintf("uid %d", cred.Uid), fmt.Sprintf("uid %d, pid %d", cred.Uid, cred.Pid), &cred.Uid}
		}
	}
	text := c.RemoteAddr().String()
	ap, err := netip.ParseAddrPort(text)
	if err != nil {
		return peer{client: "?", text: text}
	}
	addr := ap.Addr().Unmap()
	if addr.Is6() {
		if net, err := addr.WithZone("").Prefix(64); err == nil {
			return peer{client: net.String(), text: text}
		}
	}
	return peer{client: addr.String(), text: text}
}

// peerKey finds the peer in a request's context.
type peerKey struct{}

// withPeer is http.Server's ConnContext.
//
//blockd:io
func withPeer(ctx context.Context, c net.Conn) context.Context {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	if l, ok := c.(*limitedConn); ok {
		return context.WithValue(ctx, peerKey{}, l.peer)
	}
	return ctx
}

//blockd:io
func peerFrom(ctx context.Context) peer {
	p, _ := ctx.Value(peerKey{}).(peer)
	return p
}
