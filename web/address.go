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
}

// ParseOption parses the argument of --web.
func ParseOption(arg string) (Options, error) {
	var o Options
	return o, qapi.DecodeOption(arg, "addr", &o)
}

// address returns where to listen. It refuses what others than users of this
// machine could reach.
func address(addr string) (*qapi.SocketAddress, error) {
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
	if !ap.Addr().IsLoopback() {
		return nil, qapi.Errorf("Address '%s' is refused: without TLS and tokens, which do not exist yet, only a loopback address or a unix socket is served", addr)
	}
	return &qapi.SocketAddress{Type: qapi.SocketAddressTypeInet, Inet: &qapi.InetSocketAddress{
		InetSocketAddressBase: qapi.InetSocketAddressBase{Host: ap.Addr().String(), Port: strconv.Itoa(int(ap.Port()))}}}, nil
}

// listen opens the address.
func listen(ctx context.Context, addr string) (*sockets.Listener, error) {
	a, err := address(addr)
	if err != nil {
		return nil, err
	}
	ls, err := sockets.Listen(ctx, a, sockets.ListenOptions{Backlog: maxConnections, Private: true}, nil)
	if err != nil {
		return nil, err
	}
	return ls[0], nil
}
