package file

import (
	"context"
	"errors"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// This file makes writes durable. Flushes that come while one is under way
// share the next one: that begins after all of them, so it covers every write
// that completed before any of them. A flush never joins one that has begun.
//
// After a failed fdatasync the kernel counts the pages that it could not write
// as clean: the next fdatasync would succeed and be a lie. So every later
// flush of the node fails, until the node is closed and opened again.

// flusher lets concurrent flushes share system calls.
type flusher struct {
	mu      sync.Mutex
	running bool // +checklocks:mu
	// +checklocks:mu
	next   *flushBatch // of those that came while one runs
	failed bool        // +checklocks:mu
}

// flushBatch is the flushes that share a call. The first of them makes it.
type flushBatch struct {
	start chan struct{} // closed when it is this batch's turn
	done  chan struct{} // closed when err is set
	err   error
}

// errNotMade: the one that was to make the call gave up before it did.
var errNotMade = errors.New("file: flush was not made")

// flush calls sync, or waits for a call of another flush that began after this
// one. sync fails with a syscall.Errno if the call was made, else with the
// context's error.
func (f *flusher) flush(ctx context.Context, sync func(context.Context) error) error {
	for {
		f.mu.Lock()
		if !f.running {
			f.running = true
			f.mu.Unlock()
			return f.lead(ctx, sync, nil)
		}
		b := f.next
		if b == nil {
			b = &flushBatch{start: make(chan struct{}), done: make(chan struct{})}
			f.next = b
			f.mu.Unlock()
			<-b.start
			return f.lead(ctx, sync, b)
		}
		f.mu.Unlock()
		<-b.done
		if b.err != errNotMade {
			return b.err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

// lead makes the call for b, with running set, and passes the turn on.
func (f *flusher) lead(ctx context.Context, sync func(context.Context) error, b *flushBatch) error {
	f.mu.Lock()
	failed := f.failed
	f.mu.Unlock()
	err := error(syscall.EIO)
	made := true
	if !failed {
		err = sync(ctx)
		_, made = err.(syscall.Errno)
		made = made || err == nil
	}
	f.mu.Lock()
	if made && err != nil {
		f.failed = true
	}
	if n := f.next; n != nil {
		f.next = nil
		close(n.start)
	} else {
		f.running = false
	}
	f.mu.Unlock()
	if b != nil {
		b.err = err
		if !made {
			b.err = errNotMade
		}
		close(b.done)
	}
	return err
}

// Flush makes durable what was written before it. The context is honoured
// while it waits for a slot of its own.
func (d *driver) Flush(ctx context.Context) error {
	return d.flusher.flush(ctx, d.fdatasync)
}

func (d *driver) fdatasync(ctx context.Context) error {
	err := d.file.Do(ctx, func(fd int) error {
		d.written.Store(false) // a write that ends after this may not be covered
		return unix.Fdatasync(fd)
	})
	if err == unix.EINVAL && d.kind == unix.S_IFCHR {
		return nil // a character device with nothing to flush
	}
	return err
}
