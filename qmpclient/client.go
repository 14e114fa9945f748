// Package qmpclient is the client's side of QMP: it connects to a monitor,
// negotiates, sends commands and keeps the events that come in between. It
// serves blockd's own subcommands, and works with any server of the protocol.
//
// One goroutine reads; it ends with the connection, and Close waits for it.
// Commands may be sent from any goroutine and are answered in any order, by
// their ids. Events are kept without a limit until they are read: a program
// that does not read them should not enable what makes them.
//
// Locks: Client.mu, a leaf, never held across I/O; Client.sending, held while
// a command is written.
//
// Imports clock, qapi and sockets of this module.
//
//blockd:blocking
package qmpclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"

	"blockd/qapi"
)

// ErrClosed is the error of commands when the server has ended the connection.
var ErrClosed = errors.New("the server closed the connection")

// Event is what a server tells unasked.
type Event struct {
	Name string
	// Data is the event's own, empty if it has none.
	Data *qapi.Object
	// Seconds and Microseconds are the server's time of day.
	Seconds, Microseconds int64
	// Whole is the message as it came.
	Whole *qapi.Object
}

// Client is a connection after the negotiation.
type Client struct {
	// Greeting is the server's first message.
	Greeting *qapi.Object

	conn    net.Conn
	sending sync.Mutex
	done    chan struct{} // closed when the reader has ended
	arrived chan struct{} // capacity 1: events, or the end

	mu sync.Mutex
	// +checklocks:mu
	next int64 // id of the next command
	// +checklocks:mu
	waiting map[int64]chan reply
	// +checklocks:mu
	events []Event
	// +checklocks:mu
	failure error // what ended the reader
}

type reply struct {
	value any
	err   error
}

// Dial connects to the monitor at an address: the path of a unix socket,
// tcp:HOST:PORT or, over WebSocket, ws://HOST:PORT, wss://HOST:PORT or
// ws+unix:PATH, to which alone the options apply. ctx bounds the connecting and
// the negotiation.
func Dial(ctx context.Context, address string, o Options) (*Client, error) {
	for _, scheme := range []string{"ws://", "wss://", "ws+unix:"} {
		if strings.HasPrefix(address, scheme) {
			conn, err := dialWebSocket(ctx, address, o)
			if err != nil {
				return nil, err
			}
			return New(ctx, conn)
		}
	}
	network, name := "unix", address
	if rest, ok := strings.CutPrefix(address, "tcp:"); ok {
		network, name = "tcp", rest
	} else if rest, ok := strings.CutPrefix(address, "unix:"); ok {
		name = rest
	}
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, network, name)
	if err != nil {
		return nil, fmt.Errorf("cannot connect to %s: %w", address, plain(err))
	}
	return New(ctx, conn)
}

// plain takes the address, which the caller names, out of a dialer's error.
func plain(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}

// New negotiates over a connection, which the client takes over also when it
// fails.
func New(ctx context.Context, conn net.Conn) (*Client, error) {
	c := &Client{
		conn: conn, done: make(chan struct{}), arrived: make(chan struct{}, 1),
		waiting: map[int64]chan reply{},
	}
	greeted := make(chan *qapi.Object, 1)
	go c.read(greeted)
	select {
	case c.Greeting = <-greeted:
	case <-c.done:
		return nil, c.fail(conn)
	case <-ctx.Done():
		conn.Close()
		<-c.done
		return nil, ctx.Err()
	}
	if _, err := c.Execute(ctx, "qmp_capabilities", nil); err != nil {
		conn.Close()
		<-c.done
		return nil, err
	}
	return c, nil
}

func (c *Client) fail(conn net.Conn) error {
	conn.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.failure
}

// Close ends the connection and waits until its reader has ended.
func (c *Client) Close() {
	c.conn.Close()
	<-c.done
}

// Execute sends a command and returns what the server returns, in the values
// of package qapi. arguments is an *qapi.Object, a value of an argument type,
// or nil. What the server refuses is a *qapi.Error. When ctx ends first the
// command may still take effect.
func (c *Client) Execute(ctx context.Context, command string, arguments any) (any, error) {
	answer := make(chan reply, 1)
	c.mu.Lock()
	c.next++
	id := c.next
	if c.failure != nil {
		defer c.mu.Unlock()
		return nil, c.failure
	}
	c.waiting[id] = answer
	c.mu.Unlock()

	message := qapi.NewObject("execute", command, "id", id)
	if arguments != nil {
		message.Set("arguments", arguments)
	}
	if err := c.send(message); err != nil {
		c.forget(id)
		// What the server said before it hung up says more.
		select {
		case <-c.done:
			return nil, ErrClosed
		default:
			return nil, err
		}
	}
	select {
	case r := <-answer:
		return r.value, r.err
	case <-ctx.Done():
		c.forget(id)
		return nil, ctx.Err()
	}
}

func (c *Client) send(message *qapi.Object) error {
	line := append(qapi.AppendJSON(nil, message), '\n')
	c.sending.Lock()
	defer c.sending.Unlock()
	_, err := c.conn.Write(line)
	return err
}

func (c *Client) forget(id int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.waiting, id)
}

// Next returns the oldest event that was not returned yet, and waits for one.
// After the end of the connection, what is left comes first and then ErrClosed
// or what went wrong.
func (c *Client) Next(ctx context.Context) (Event, error) {
	for {
		c.mu.Lock()
		if len(c.events) > 0 {
			e := c.events[0]
			c.events = c.events[1:]
			c.mu.Unlock()
			return e, nil
		}
		err := c.failure
		c.mu.Unlock()
		if err != nil {
			return Event{}, err
		}
		select {
		case <-c.arrived:
		case <-c.done:
		case <-ctx.Done():
			return Event{}, ctx.Err()
		}
	}
}

// read is the reader's goroutine.
func (c *Client) read(greeted chan<- *qapi.Object) {
	defer close(c.done)
	parser := qapi.NewParser()
	buf := make([]byte, 64<<10)
	var failure error
	for failure == nil {
		n, err := c.conn.Read(buf)
		parser.Feed(buf[:n], func(v any, err error) {
			if err != nil {
				failure = fmt.Errorf("the server does not speak QMP: %w", err)
				return
			}
			if o, ok := v.(*qapi.Object); ok && failure == nil {
				failure = c.take(o, greeted)
			}
		})
		switch {
		case failure != nil:
		case errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed):
			failure = ErrClosed
		case err != nil:
			failure = plain(err)
		}
	}
	c.conn.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failure = failure
	for _, answer := range c.waiting {
		answer <- reply{err: failure}
	}
	c.waiting = nil
}

// take is told of one message.
func (c *Client) take(o *qapi.Object, greeted chan<- *qapi.Object) error {
	if greeting, ok := o.Get("QMP"); ok {
		g, _ := greeting.(*qapi.Object)
		select {
		case greeted <- g:
			return nil
		default:
			return errors.New("the server greeted twice")
		}
	}
	if name, ok := o.Get("event"); ok {
		e := Event{Whole: o, Data: Member(o, "data")}
		e.Name, _ = name.(string)
		stamp := Member(o, "timestamp")
		e.Seconds, e.Microseconds = Int(stamp, "seconds"), Int(stamp, "microseconds")
		c.mu.Lock()
		c.events = append(c.events, e)
		c.mu.Unlock()
		select {
		case c.arrived <- struct{}{}:
		default:
		}
		return nil
	}
	var r reply
	if failed, ok := o.Get("error"); ok {
		f, _ := failed.(*qapi.Object)
		r.err = &qapi.Error{Class: qapi.Class(String(f, "class")), Desc: String(f, "desc")}
	} else if r.value, ok = o.Get("return"); !ok {
		return errors.New("the server sent what is neither an event nor an answer")
	}
	id, ok := o.Get("id")
	number, isInt := id.(int64)
	if !ok || !isInt {
		return fmt.Errorf("the server sent an answer without an id: %s", qapi.AppendJSON(nil, o))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	// Nobody may wait any more.
	if answer := c.waiting[number]; answer != nil {
		delete(c.waiting, number)
		answer <- r
	}
	return nil
}
