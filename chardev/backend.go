package chardev

import (
	"context"
	"errors"
	"io"
	"os"
	"sync/atomic"
	"time"

	"blockd/clock"
	"blockd/qapi"
	"blockd/sockets"

	"golang.org/x/sys/unix"
)

// backend is what differs between the kinds of devices.
type backend interface {
	// accept waits for the next connection and names it as query-chardev does.
	// io.EOF means that none will come any more.
	accept(ctx context.Context) (Conn, string, error)
	// idleName is the device's name while nothing is connected.
	idleName() string
	close() error
}

// nullBackend swallows output and never has input.
type nullBackend struct{}

func (nullBackend) accept(context.Context) (Conn, string, error) { return nil, "", io.EOF }
func (nullBackend) idleName() string                             { return "null" }
func (nullBackend) close() error                                 { return nil }

// onceBackend has one connection, made when the device is opened.
type onceBackend struct {
	conn  Conn
	label string
	taken bool
	onEnd func() // after the device itself is closed
}

func (b *onceBackend) accept(context.Context) (Conn, string, error) {
	if b.taken {
		return nil, "", io.EOF
	}
	b.taken = true
	return b.conn, b.label, nil
}

func (b *onceBackend) idleName() string { return b.label }

func (b *onceBackend) close() error {
	err := b.conn.Close()
	if b.onEnd != nil {
		b.onEnd()
	}
	return err
}

func openFile(clk clock.Clock, o *qapi.ChardevFile) (*onceBackend, error) {
	flags := unix.O_WRONLY | unix.O_CREAT | unix.O_CLOEXEC
	if isOn(o.Append) {
		flags |= unix.O_APPEND
	} else {
		flags |= unix.O_TRUNC
	}
	in := -1
	if o.In != nil {
		var err error
		if in, err = unix.Open(*o.In, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0); err != nil {
			return nil, qapi.Errorf("Could not open '%s': %s", *o.In, sockets.Reason(err))
		}
	}
	out, err := unix.Open(o.Out, flags|unix.O_NONBLOCK, 0o666)
	if err != nil {
		if in >= 0 {
			unix.Close(in)
		}
		return nil, qapi.Errorf("Could not open '%s': %s", o.Out, sockets.Reason(err))
	}
	c, err := newPollConn(clk, in, out)
	if err != nil {
		return nil, err
	}
	c.keepOpen = true
	return &onceBackend{conn: c, label: "file"}, nil
}

// openStdio uses copies of descriptors 0 and 1. The end of input does not end
// the connection: events still go out, as the field does it.
func openStdio(clk clock.Clock, o *qapi.ChardevStdio) (*onceBackend, error) {
	in, err := dupCloexec(0)
	if err != nil {
		return nil, qapi.Errorf("Could not open stdin: %s", sockets.Reason(err))
	}
	out, err := dupCloexec(1)
	if err != nil {
		unix.Close(in)
		return nil, qapi.Errorf("Could not open stdout: %s", sockets.Reason(err))
	}
	c, err := newPollConn(clk, in, out)
	if err != nil {
		return nil, err
	}
	c.keepOpen = true
	if o.Signal != nil && !*o.Signal {
		if old, err := unix.IoctlGetTermios(in, unix.TCGETS); err == nil {
			quiet := *old
			quiet.Lflag &^= unix.ISIG
			_ = unix.IoctlSetTermios(in, unix.TCSETS, &quiet)
			c.onEnd = func() { _ = unix.IoctlSetTermios(in, unix.TCSETS, old) }
		}
	}
	return &onceBackend{conn: c, label: "stdio"}, nil
}

// serverBackend listens.
type serverBackend struct {
	l       *sockets.Listener
	options *qapi.ChardevSocket
}

func (b *serverBackend) accept(ctx context.Context) (Conn, string, error) {
	s, err := b.l.AcceptContext(ctx)
	if err != nil {
		return nil, "", err
	}
	c, err := newSocketConn(s)
	if err != nil {
		return nil, "", err
	}
	if isOn(b.options.Nodelay) {
		c.NoDelay()
	}
	c.KeepAlive(b.options.Addr.Inet)
	return c, c.name(true), nil
}

func (b *serverBackend) idleName() string { return disconnectedName(&b.l.Bound, true) }
func (b *serverBackend) close() error     { return b.l.Close() }

// clientBackend connects, and again after reconnect when that is set.
type clientBackend struct {
	clk       clock.Clock
	options   *qapi.ChardevSocket
	reconnect time.Duration
	takeFD    func(string) (int, error)
	warn      func(error) // told of the first of several failures in a row

	first   atomic.Pointer[socketConn] // made when the device was opened, not yet accepted
	tried   bool                       // a connection was attempted
	failing bool
}

func dial(ctx context.Context, clk clock.Clock, o *qapi.ChardevSocket, takeFD func(string) (int, error)) (*socketConn, error) {
	c, err := sockets.Dial(ctx, clk, (*qapi.SocketAddress)(&o.Addr), takeFD)
	if err != nil {
		return nil, err
	}
	return newSocketConn(c)
}

func (b *clientBackend) prepared(c *socketConn) (Conn, string, error) {
	if isOn(b.options.Nodelay) {
		c.NoDelay()
	}
	b.failing = false
	return c, c.name(false), nil
}

func (b *clientBackend) accept(ctx context.Context) (Conn, string, error) {
	if c := b.first.Swap(nil); c != nil {
		return b.prepared(c)
	}
	if b.reconnect == 0 {
		return nil, "", io.EOF
	}
	for {
		if b.tried {
			if err := b.clk.Sleep(ctx, b.reconnect); err != nil {
				return nil, "", err
			}
		}
		b.tried = true
		c, err := dial(ctx, b.clk, b.options, b.takeFD)
		if err == nil {
			return b.prepared(c)
		}
		if ctx.Err() != nil {
			return nil, "", ctx.Err()
		}
		if !b.failing {
			b.failing = true
			b.warn(err)
		}
	}
}

func (b *clientBackend) idleName() string {
	if c := b.first.Load(); c != nil {
		return c.name(false)
	}
	return disconnectedName((*qapi.SocketAddress)(&b.options.Addr), false)
}

func (b *clientBackend) close() error {
	if c := b.first.Load(); c != nil {
		return c.Close()
	}
	return nil
}

// checkSocketOptions refuses combinations, in the field's order and words, and
// what blockd does not have.
func checkSocketOptions(o *qapi.ChardevSocket) error {
	server := o.Server == nil || *o.Server
	if o.TLSAuthz != nil && o.TLSCreds == nil {
		return qapi.Errorf("'tls_authz' option requires 'tls_creds' option")
	}
	if o.Addr.Type == qapi.SocketAddressTypeFD && o.ReconnectMs != nil {
		return qapi.Errorf("'reconnect' option is incompatible with 'fd' address type")
	}
	if server && o.ReconnectMs != nil {
		return qapi.Errorf("'reconnect' option is incompatible with socket in server listen mode")
	}
	if !server {
		if isOn(o.Websocket) {
			return qapi.Errorf("Websocket client is not implemented")
		}
		if o.Wait != nil {
			return qapi.Errorf("'wait' option is incompatible with socket in client connect mode")
		}
	}
	if o.TLSCreds != nil {
		return qapi.Errorf("No TLS credentials with id '%s'", *o.TLSCreds)
	}
	for name, v := range map[string]*bool{"telnet": o.Telnet, "tn3270": o.TN3270, "websocket": o.Websocket, "logtimestamp": o.Logtimestamp} {
		if isOn(v) {
			return qapi.Errorf("Parameter '%s' is unexpected", name)
		}
	}
	return nil
}

func openLog(o *qapi.ChardevCommon) (*os.File, error) {
	if o.Logfile == nil {
		return nil, nil
	}
	flags := os.O_WRONLY | os.O_CREATE
	if isOn(o.Logappend) {
		flags |= os.O_APPEND
	} else {
		flags |= os.O_TRUNC
	}
	f, err := os.OpenFile(*o.Logfile, flags, 0o666)
	if err != nil {
		return nil, qapi.Errorf("Could not create '%s': %s", *o.Logfile, sockets.Reason(err))
	}
	return f, nil
}

// NoMoreConnections tells whether an error of Device.Accept means that no
// connection will follow.
func NoMoreConnections(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, os.ErrClosed)
}
