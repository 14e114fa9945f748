package nbd

import (
	"errors"
	"fmt"
	"log/slog"

	"blockd/nbdproto"
	"blockd/sockets"
)

// Trace events about clients. A client has a number, by which its events belong
// together. What is not traced costs a look at the level, and requests that
// succeed not even that.

func (c *conn) traced() bool { return c.server.log.Enabled(c.ctx, slog.LevelDebug) }

// traceClient tells that somebody has come.
func (c *conn) traceClient() {
	if !c.traced() {
		return
	}
	peer := c.socket.RemoteAddr().String()
	if s, ok := c.socket.(*sockets.Conn); ok {
		if cred, ok := s.Credentials(); ok {
			peer = fmt.Sprintf("uid %d, pid %d", cred.Uid, cred.Pid)
		}
	}
	c.server.log.DebugContext(c.ctx, "nbd_client", "client", c.number, "peer", peer)
}

// traceNegotiated tells what the client has chosen.
func (c *conn) traceNegotiated() {
	if !c.traced() {
		return
	}
	contexts := make([]string, len(c.contexts))
	for i, s := range c.contexts {
		contexts[i] = s.Name()
	}
	c.server.log.DebugContext(c.ctx, "nbd_negotiated", "client", c.number, "export", c.export.name,
		"tls", c.secured, "structured", c.structured, "extended", c.framing == nbdproto.Extended, "contexts", contexts)
}

// traceGone tells why a client has gone; requests of it may still be under way.
// Before the connection is closed: who has done it is known by that.
func (c *conn) traceGone(err error) {
	if !c.traced() {
		return
	}
	name := ""
	if c.export != nil {
		name = c.export.name
	}
	why := err.Error()
	switch {
	case errors.Is(err, errDisconnect), errors.Is(err, errAbort):
		why = "it said so"
	case c.ctx.Err() != nil:
		why = "the server has closed the connection"
	case sockets.Vanished(err):
		why = "without a word"
	}
	c.server.log.DebugContext(c.ctx, "nbd_client_gone", "client", c.number, "export", name, "reason", why)
}

// traceFailed tells of a request that is answered with an error.
func (r *request) traceFailed(err error, msg string) {
	c := r.c
	if !c.traced() {
		return
	}
	c.server.log.DebugContext(c.ctx, "nbd_request_failed", "client", c.number, "export", c.export.name,
		"type", r.Type.String(), "offset", r.Offset, "length", r.Length, "what", msg, "error", err)
}
