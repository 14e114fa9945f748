package nbd

import (
	"context"
	"net"

	"golang.org/x/sys/unix"

	"blockd/qapi"
	"blockd/sockets"
)

// Listen opens the sockets that an address stands for; a host name may be
// several. The backlog is the system's: clients beyond max-connections wait
// there. access is for unix sockets. takeFD hands over a descriptor by number or name, for addresses of
// type fd. Errors are *qapi.Error with the field's texts, or the context's. It
// may wait for a name to resolve. Control plane's workers.
func Listen(ctx context.Context, a *qapi.SocketAddress, access sockets.Access, takeFD func(string) (int, error)) ([]net.Listener, error) {
	ls, err := sockets.Listen(ctx, a, sockets.ListenOptions{Backlog: unix.SOMAXCONN, Every: true, Access: access}, takeFD)
	if err != nil {
		return nil, err
	}
	out := make([]net.Listener, len(ls))
	for i, l := range ls {
		out[i] = l
	}
	return out, nil
}

// unixBuffer is the send buffer of a unix socket, in bytes: there it is what
// the peer can read at once. The system may grant less.
const unixBuffer = 1 << 20

// tuneSocket sets what helps requests along.
func tuneSocket(nc net.Conn) {
	c, ok := nc.(*sockets.Conn)
	if !ok {
		return
	}
	if c.Domain() == unix.AF_UNIX {
		c.SetWriteBuffer(unixBuffer)
	} else {
		c.NoDelay()
	}
}
