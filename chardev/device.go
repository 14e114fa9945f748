package chardev

import (
	"context"
	"os"
	"sync"

	"blockd/qapi"
)

// Device is one character device. Its methods are for its front end, which got
// it from Registry.Attach.
type Device struct {
	id  string
	reg *Registry
	log *os.File // nil without a log; written by the one open connection

	accepting sync.Mutex // one Accept at a time; guards backend's state

	mu       sync.Mutex
	backend  backend     // nil while the device is being opened
	attached bool        // +checklocks:mu
	closed   bool        // +checklocks:mu
	cur      *deviceConn // +checklocks:mu
	// +checklocks:mu
	idle  chan struct{} // closed when cur becomes nil
	early *deviceConn   // accepted by wait=on, before the front end came
	life  context.Context
	end   context.CancelFunc
}

// Accept waits for the next connection. At most one is open at a time: Accept
// waits until the last one is closed. io.EOF means that there will be no more
// (standard input and output, a client that does not reconnect, null), and
// os.ErrClosed that the device has been closed. Data plane: it blocks.
func (d *Device) Accept(ctx context.Context) (Conn, error) {
	d.accepting.Lock()
	defer d.accepting.Unlock()
	if err := d.waitIdle(ctx); err != nil {
		return nil, err
	}
	d.mu.Lock()
	c, b, closed := d.early, d.backend, d.closed
	d.early = nil
	d.mu.Unlock()
	if closed {
		return nil, os.ErrClosed
	}
	if c != nil {
		return c, nil
	}
	return d.acceptFrom(ctx, b)
}

func (d *Device) acceptFrom(ctx context.Context, b backend) (*deviceConn, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(d.life, func() { cancel(os.ErrClosed) })()
	conn, name, err := b.accept(ctx)
	if err != nil {
		if d.life.Err() != nil {
			return nil, os.ErrClosed
		}
		return nil, err
	}
	c := &deviceConn{Conn: conn, dev: d, name: name}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		conn.Close()
		return nil, os.ErrClosed
	}
	d.cur, d.idle = c, make(chan struct{})
	return c, nil
}

func (d *Device) waitIdle(ctx context.Context) error {
	for {
		d.mu.Lock()
		cur, idle, early := d.cur, d.idle, d.early
		d.mu.Unlock()
		if cur == nil || cur == early {
			return nil
		}
		select {
		case <-idle:
		case <-d.life.Done():
			return os.ErrClosed
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (d *Device) released(c *deviceConn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cur == c {
		d.cur = nil
		close(d.idle)
	}
}

// Detach gives the device back; its connection is closed.
func (d *Device) Detach() {
	d.mu.Lock()
	d.attached = false
	cur := d.cur
	d.mu.Unlock()
	if cur != nil {
		cur.Close()
	}
}

// info is the device's entry in query-chardev.
func (d *Device) info() qapi.ChardevInfo {
	d.mu.Lock()
	defer d.mu.Unlock()
	i := qapi.ChardevInfo{Label: d.id, FrontendOpen: d.attached}
	if d.cur != nil {
		i.Filename = d.cur.name
	} else {
		i.Filename = d.backend.idleName()
	}
	return i
}

// open makes the back end. It may wait; see the package comment.
func (d *Device) open(ctx context.Context, o *qapi.ChardevBackend, takeFD func(string) (int, error)) error {
	done, err := d.reg.beginOpening(d)
	if err != nil {
		return err
	}
	defer done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(d.life, cancel)()
	b, log, wait, err := d.reg.openBackend(ctx, d.id, o, takeFD)
	if err != nil {
		if d.life.Err() != nil {
			return os.ErrClosed
		}
		return err
	}
	d.log = log
	if wait {
		d.reg.cfg.Warn("info: QEMU waiting for connection on: " + b.idleName())
		var c *deviceConn
		if c, err = d.acceptFrom(ctx, b); err != nil {
			b.close()
			return err
		}
		d.early = c
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		// The registry was closed meanwhile, and did not know the back end yet.
		b.close()
		return os.ErrClosed
	}
	d.backend = b
	return nil
}

// close ends everything. An Accept under way returns os.ErrClosed.
func (d *Device) close() {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return
	}
	d.closed = true
	cur := d.cur
	d.mu.Unlock()
	d.end()
	if cur != nil {
		cur.Close()
	}
	d.accepting.Lock()
	defer d.accepting.Unlock()
	if d.backend != nil {
		d.backend.close()
	}
	if d.log != nil {
		d.log.Close()
	}
}
