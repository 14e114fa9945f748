package ioengine

import "context"

// Waiter is who wants to know that a request no longer computes but waits for
// an answer from elsewhere, for as long as that takes: a scheduler that gives
// the core to others.
type Waiter interface {
	// Waits is called on the request's goroutine before it waits, perhaps more
	// than once in a request. It does not block.
	Waits()
}

type waiterKey struct{}

// WithWaiter returns a context whose requests tell w when they wait.
func WithWaiter(ctx context.Context, w Waiter) context.Context {
	return context.WithValue(ctx, waiterKey{}, w)
}

// Waits tells the context's Waiter, if it has one. It is for drivers over a
// network; a call to a file is mostly one to memory, and what of it waits is
// not known before.
func Waits(ctx context.Context) {
	if w, ok := ctx.Value(waiterKey{}).(Waiter); ok {
		w.Waits()
	}
}
