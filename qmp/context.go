package qmp

import (
	"context"
	"os"

	"blockd/chardev"
	"blockd/qapi"
)

// Context is what a handler knows of its call. It is a context.Context that
// ends with the daemon, not with the client: a command that has begun runs to
// its end. It is valid until the handler returns.
type Context struct {
	context.Context
	s     *Session
	files *[]*os.File // descriptors that nobody has claimed
}

// contextKey finds the Context within contexts that were made from it.
type contextKey struct{}

// Value implements context.Context.
func (c *Context) Value(key any) any {
	if key == (contextKey{}) {
		return c
	}
	return c.Context.Value(key)
}

// FromContext returns the Context that ctx is or was made from; nil: ctx is
// not that of a client's command. Any goroutine.
//
//blockd:io
func FromContext(ctx context.Context) *Context {
	c, _ := ctx.Value(contextKey{}).(*Context)
	return c
}

// Server is the server that the client is connected to.
func (c *Context) Server() *Server { return c.s.mon.srv }

// Subscribe begins or ends the sending of an event to this client that is not
// sent to clients unless they ask; see Hub.EmitSubscribed.
//
//blockd:any
func (c *Context) Subscribe(event string, on bool) {
	c.s.mon.srv.hub.subscribe(c.s, event, on)
}

// TakeFD claims the descriptor that the client passed with this command, or
// before it with one that did not ask. Further ones of the same message are
// closed.
func (c *Context) TakeFD() (*os.File, error) {
	files := *c.files
	if len(files) == 0 {
		return nil, qapi.Errorf("No file descriptor supplied via SCM_RIGHTS")
	}
	*c.files = nil
	chardev.CloseFiles(files[1:])
	return files[0], nil
}

// TakeNamedFD claims the descriptor that getfd stored under name in this
// monitor. The caller owns it.
//
//blockd:io
func (c *Context) TakeNamedFD(name string) (*os.File, error) {
	return c.s.mon.fds.take(name)
}
