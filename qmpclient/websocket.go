package qmpclient

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/gorilla/websocket"
)

// This file carries QMP over WebSocket, as a daemon's web address has it.

// Options are for addresses that begin with ws.
type Options struct {
	// Token is shown to the server, unless "".
	Token string
	// TLS returns the configuration towards a host, for wss; nil: the system's
	// authorities are trusted.
	TLS func(host string) (*tls.Config, error)
}

// maxRefusal is how much is shown of what a server says when it refuses.
const maxRefusal = 200

// dialWebSocket connects to ws://HOST:PORT, wss://HOST:PORT or ws+unix:PATH.
func dialWebSocket(ctx context.Context, address string, o Options) (net.Conn, error) {
	d := websocket.Dialer{Subprotocols: []string{"blockd.qmp"}}
	target := address
	if path, ok := strings.CutPrefix(address, "ws+unix:"); ok {
		target = "ws://localhost"
		d.NetDialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			var plain net.Dialer
			return plain.DialContext(ctx, "unix", path)
		}
	}
	u, err := url.Parse(target)
	switch {
	case err != nil || u.Host == "":
		return nil, fmt.Errorf("%s: ws://HOST:PORT, wss://HOST:PORT or ws+unix:PATH is expected", address)
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return nil, errors.New("a token does not belong in the address: put it into a file")
	case o.Token != "" && u.Scheme == "ws" && !thisMachine(u.Hostname()):
		return nil, fmt.Errorf("%s: a token goes to other machines over wss only", address)
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = "/qmp"
	}
	if u.Scheme == "wss" && o.TLS != nil {
		if d.TLSClientConfig, err = o.TLS(u.Hostname()); err != nil {
			return nil, err
		}
	}
	header := http.Header{}
	if o.Token != "" {
		header.Set("Authorization", "Bearer "+o.Token)
	}
	ws, answer, err := d.DialContext(ctx, u.String(), header)
	if err != nil {
		if answer == nil {
			return nil, fmt.Errorf("cannot connect to %s: %w", address, plain(err))
		}
		said, _ := io.ReadAll(io.LimitReader(answer.Body, maxRefusal))
		return nil, fmt.Errorf("%s refuses: %s: %s", address, answer.Status, strings.TrimSpace(string(said)))
	}
	return &webSocket{ws: ws}, nil
}

// thisMachine tells whether a host is this one.
func thisMachine(host string) bool {
	a, err := netip.ParseAddr(host)
	return strings.EqualFold(host, "localhost") || err == nil && a.IsLoopback()
}

// webSocket is a connection of which each Write is a message, and whose messages
// are read one after the other.
type webSocket struct {
	ws *websocket.Conn
	in io.Reader // of the message that is being read, or nil
}

func (c *webSocket) Read(p []byte) (int, error) {
	for {
		if c.in == nil {
			_, r, err := c.ws.NextReader()
			if websocket.IsCloseError(err, websocket.CloseNormalClosure, websocket.CloseGoingAway, websocket.CloseNoStatusReceived) ||
				websocket.IsUnexpectedCloseError(err, websocket.CloseNormalClosure) || errors.Is(err, io.ErrUnexpectedEOF) {
				return 0, io.EOF
			}
			if err != nil {
				return 0, err
			}
			c.in = r
		}
		n, err := c.in.Read(p)
		if err == io.EOF {
			c.in, err = nil, nil
			if n == 0 {
				continue
			}
		}
		return n, err
	}
}

func (c *webSocket) Write(p []byte) (int, error) {
	if err := c.ws.WriteMessage(websocket.TextMessage, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (c *webSocket) Close() error                       { return c.ws.Close() }
func (c *webSocket) LocalAddr() net.Addr                { return c.ws.LocalAddr() }
func (c *webSocket) RemoteAddr() net.Addr               { return c.ws.RemoteAddr() }
func (c *webSocket) SetReadDeadline(t time.Time) error  { return c.ws.SetReadDeadline(t) }
func (c *webSocket) SetWriteDeadline(t time.Time) error { return c.ws.SetWriteDeadline(t) }

func (c *webSocket) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}
