package web

import (
	"context"
	"net/netip"
	"strconv"
	"strings"

	"blockd/qapi"
	"blockd/sockets"
)

// Options are those of --web.
type Options struct {
	// Addr is IP:PORT, or unix: and a path.
	Addr string `qapi:"addr"`
	// QMP serves QMP over WebSocket, too.
	QMP *bool `qapi:"qmp"`
	// Pprof serves profiles of the program to who has the role control.
	Pprof *bool `qapi:"pprof"`
	// TLSCreds is the id of an object with a server's credentials, TLSAuthz that
	// of one that decides which clients' names may come.
	TLSCreds *string `qapi:"tls-creds"`
	TLSAuthz *string `qapi:"tls-authz"`
	// TLSDir has credentials, instead of an object; TLSVerifyPeer has clients show
	// a certificate, which is the default.
	TLSDir        *string `qapi:"tls-dir"`
	TLSVerifyPeer *bool   `qapi:"tls-verify-peer"`
	// TokenFile has the tokens of which every client must show one.
	TokenFile *string `qapi:"token-file"`
	// Host is a name that requests may call the address by, as a proxy before it
	// passes it on; Origin that of pages that may use it (proxied.go).
	Host   *string `qapi:"host"`
	Origin *string `qapi:"origin"`
	// Role is that of all clients where there are no tokens.
	Role *qapi.SessionRole `qapi:"role"`
}

// ParseOption parses the argument of --web.
func ParseOption(arg string) (Options, error) {
	var o Options
	return o, qapi.DecodeOption(arg, "addr", &o)
}

// check refuses what does not go together.
func (o *Options) check() error {
	switch {
	case o.TLSCreds != nil && o.TLSDir != nil:
		return qapi.Errorf("Parameters 'tls-creds' and 'tls-dir' exclude each other")
	case o.TLSVerifyPeer != nil && o.TLSDir == nil:
		return qapi.Errorf("Parameter 'tls-verify-peer' requires 'tls-dir'")
	case o.TLSAuthz != nil && o.TLSDir == nil && o.TLSCreds == nil:
		return qapi.Errorf("Parameter 'tls-authz' requires 'tls-creds' or 'tls-dir'")
	case o.Role != nil && o.TokenFile != nil:
		return qapi.Errorf("Parameters 'role' and 'token-file' exclude each other")
	case o.Host != nil && !isHost(*o.Host):
		return qapi.Errorf("Parameter 'host' expects a name or an address, without a port")
	case o.Origin != nil && originOf(*o.Origin) == "":
		return qapi.Errorf("Parameter 'origin' expects http://NAME[:PORT] or https://NAME[:PORT]")
	}
	return nil
}

// address returns where to listen. What others than users of this machine could
// reach it refuses, unless known tells that they are encrypted and show who they
// are.
func address(addr string, known bool) (*qapi.SocketAddress, error) {
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		if path == "" {
			return nil, qapi.Errorf("Parameter 'addr' expects a path after 'unix:'")
		}
		return &qapi.SocketAddress{Type: qapi.SocketAddressTypeUnix, Unix: &qapi.UnixSocketAddress{Path: path}}, nil
	}
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, qapi.Errorf("Parameter 'addr' expects IP:PORT or unix:PATH")
	}
	if !ap.Addr().IsLoopback() && !known {
		return nil, qapi.Errorf("Address '%s' is refused: without TLS, and a token file or certificates of clients, only a loopback address or a unix socket is served", addr)
	}
	return &qapi.SocketAddress{Type: qapi.SocketAddressTypeInet, Inet: &qapi.InetSocketAddress{
		InetSocketAddressBase: qapi.InetSocketAddressBase{Host: ap.Addr().String(), Port: strconv.Itoa(int(ap.Port()))}}}, nil
}

// listen opens the address. A unix socket is this user's alone unless access
// says otherwise.
func listen(ctx context.Context, addr string, known bool, access sockets.Access) (*sockets.Listener, error) {
	a, err := address(addr, known)
	if err != nil {
		return nil, err
	}
	access.Private = true
	ls, err := sockets.Listen(ctx, a, sockets.ListenOptions{Backlog: maxConnections, Access: access}, nil)
	if err != nil {
		return nil, err
	}
	return ls[0], nil
}
