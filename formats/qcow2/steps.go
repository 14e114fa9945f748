package qcow2

import (
	"context"
	"errors"
	"iter"
)

// Long work on an image that guests use (checking, compacting) is written as
// one function from beginning to end, and done in steps: between two of them
// nothing is held but the memory of where it is, so that graph changes, pauses
// and speed limits find it at rest.

// steps is such a piece of work. One goroutine uses it at a time.
type steps struct {
	ctx  context.Context // of the present step
	want int64           // bytes of work in a step
	did  int64
	err  error

	next  func() (struct{}, bool)
	stop  func()
	yield func(struct{}) bool
}

// errStopped ends work that nobody wants to be gone on with.
var errStopped = errors.New("qcow2: the work was given up")

// newSteps returns work that f does. f calls spend where it holds nothing.
func newSteps(f func(s *steps) error) *steps {
	s := &steps{}
	s.next, s.stop = iter.Pull(func(yield func(struct{}) bool) {
		s.yield = yield
		s.err = f(s)
	})
	return s
}

// spend counts n bytes of work, and waits for the next step where the present
// one has done enough.
func (s *steps) spend(n int64) error {
	s.did += n
	if s.did >= s.want {
		return s.pause()
	}
	return s.ctx.Err()
}

// pause waits for the next step.
func (s *steps) pause() error {
	if !s.yield(struct{}{}) {
		return errStopped
	}
	return s.ctx.Err()
}

// step does about n bytes of work. Without more it was the last.
func (s *steps) step(ctx context.Context, n int64) (did int64, more bool, err error) {
	s.ctx, s.want, s.did = ctx, n, 0
	_, more = s.next()
	if more {
		return s.did, true, nil
	}
	return s.did, false, s.err
}
