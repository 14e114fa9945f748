package copybeforewrite

import (
	"context"
	"errors"
	"syscall"
	"time"
)

// The copy runs beside the guest's request, which stops waiting for it when
// cbw-timeout has passed or when the snapshot breaks or is abandoned. The copy
// itself cannot be taken back: a request to a stuck target goes on, with its
// claim and its buffer, until it returns. So that it never sees a graph under
// change, the node is not quiet before, and Close waits for it.

// ErrAbandoned is the SnapshotError after Abandon.
var ErrAbandoned = errors.New("the snapshot was given up")

// Abandon gives the snapshot up, for a job that was cancelled: guests' writes
// are no longer held up, those that wait for a copy go on at once, and the
// job's own copying ends. Any goroutine; returns at once.
func (f *Filter) Abandon() { f.breakSnapshot(ErrAbandoned) }

func (f *Filter) breakSnapshot(err error) {
	if f.broken.CompareAndSwap(nil, &err) {
		close(f.brokenSig)
	}
}

// save copies what the guest is about to change, and waits for it: until the
// timeout, which is an error, or until the snapshot breaks.
func (f *Filter) save(ctx context.Context, off, n int64) error {
	copying, cancel := context.WithCancel(context.WithoutCancel(ctx))
	saved := make(chan error, 1)
	f.begin()
	go func() {
		defer f.end()
		defer cancel()
		saved <- f.saveRange(copying, off, n)
	}()
	var late <-chan time.Time
	if f.timeout > 0 {
		timer := f.clock.NewTimer(f.timeout)
		defer timer.Stop()
		late = timer.C()
	}
	gone := ctx.Done()
	for {
		select {
		case err := <-saved:
			if err != nil && ctx.Err() != nil {
				err = ctx.Err()
			}
			return err
		case <-late:
			cancel()
			return syscall.ETIMEDOUT
		case <-f.brokenSig:
			cancel()
			return nil
		case <-gone: // the request ends when its copy does
			cancel()
			gone = nil
		}
	}
}

func (f *Filter) begin() {
	f.mu.Lock()
	f.copies++
	f.mu.Unlock()
}

func (f *Filter) end() {
	f.mu.Lock()
	f.copies--
	if f.copies == 0 && f.rest != nil {
		close(f.rest)
		f.rest = nil
	}
	f.mu.Unlock()
}

// QuiesceBegin implements blockgraph.Quiescer: no copy is under way that
// outlived its guest's request. The context ends the wait.
func (f *Filter) QuiesceBegin(ctx context.Context) {
	rest := f.Resting()
	if rest == nil {
		return
	}
	select {
	case <-rest:
	case <-ctx.Done():
	}
}

// Resting returns nil when no copy for a guest's write is under way, and else
// what is closed as soon as none is. After Abandon none begins. Any
// goroutine.
func (f *Filter) Resting() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.copies == 0 {
		return nil
	}
	if f.rest == nil {
		f.rest = make(chan struct{})
	}
	return f.rest
}

// Copies returns how many copies for guests' writes are under way.
//
//blockd:any
func (f *Filter) Copies() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.copies
}

// QuiesceEnd implements blockgraph.Quiescer.
func (f *Filter) QuiesceEnd() {}
