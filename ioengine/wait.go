package ioengine

import "context"

// Waiter is who wants to know that a request no longer computes but waits for
// an answer from elsewhere, for as long as that takes: a scheduler that gives
// the core to others.
type Waiter interface {
	// Waits is called on the request's goroutine before it waits, perhaps more
	// than once in a request. It does not block. What it returns is for Resumes.
	Waits() uint64
	// Resumes is called when the wait is over, with what Waits returned; it
	// returns when the request may compute again, or when ctx ends.
	Resumes(ctx context.Context, wait uint64)
}

type waiterKey struct{}

// WithWaiter returns a context whose requests tell w when they wait.
func WithWaiter(ctx context.Context, w Waiter) context.Context {
	return context.WithValue(ctx, waiterKey{}, w)
}

// Waits tells the context's Waiter, if it has one. It is for drivers over a
// network; a call to a file is mostly one to memory, and what of it waits is
// not known before. The wait ends with Resumes.
func Waits(ctx context.Context) (w Waiter, wait uint64) {
	if w, ok := ctx.Value(waiterKey{}).(Waiter); ok {
		return w, w.Waits()
	}
	return nil, 0
}
