package copy

import (
	"context"

	"blockd/blockgraph"
)

// Kind says what is to be done with a piece.
type Kind uint8

const (
	// Data is read and written; the step gets a buffer of the piece's length.
	Data Kind = iota
	// Zero is written as zeroes, without a buffer.
	Zero
	// Skip needs no copy. The engine only calls Work.Skip.
	Skip
)

// Piece is a range of bytes [Off, Off+N) to be copied in one step.
type Piece struct {
	Off, N int64
	Kind   Kind
}

// Limit bounds the next piece, in bytes. Data and Zero are at least the
// Work's Unit.
type Limit struct {
	Data int64 // longest piece of data
	Zero int64 // longest piece of zeroes
}

// Work is what a job copies: the feed that says what comes next, and the step
// that copies it. Data plane.
type Work interface {
	// Unit is the size in bytes in whose multiples the work likes to be cut: the
	// cluster size.
	Unit() int64
	// Next plans a piece that was not planned before. A piece with N == 0
	// says that nothing is left to plan at present. Next may block on I/O, under
	// an admission of its own; one goroutine calls it at a time, holding
	// nothing. An error is a *Fault or the context's; the Fault's range counts
	// as planned and goes through the error policy.
	Next(ctx context.Context, l Limit) (Piece, error)
	// Do copies a piece, and accounts for its progress. buf has the piece's length for
	// Data and is nil for Zero. Many goroutines call it at once, holding
	// nothing but a scheduler's turn and the buffer. An error is a *Fault or the
	// context's. After a failure Do may be called with the same piece again.
	Do(ctx context.Context, p Piece, buf []byte) error
	// Skip gives a piece up: it needs no copy, or failed and the policy says to
	// leave it. failed tells which. It does not block.
	Skip(p Piece, failed bool)
	// Settle is called when Next has nothing left and no step is in flight. It
	// waits for what others copy of the same work and returns whether there is
	// more to plan; a mirror waits here for dirty bits. Without more, Run ends.
	Settle(ctx context.Context) (more bool, err error)
}

// Op says which side of a copy failed.
type Op uint8

const (
	// Read is the source's side.
	Read Op = iota
	// Write is the target's side.
	Write
)

// String returns the field's word in BLOCK_JOB_ERROR.
func (o Op) String() string {
	if o == Write {
		return "write"
	}
	return "read"
}

// Fault is a failed request of a step.
type Fault struct {
	Op     Op
	Off, N int64 // the piece, in bytes
	Err    error // wraps a syscall.Errno; see blockgraph.Errno
}

// Error returns the cause's text.
func (f *Fault) Error() string { return f.Err.Error() }

// Unwrap returns the cause.
func (f *Fault) Unwrap() error { return f.Err }

// Action is the error policy's answer to a Fault.
type Action uint8

const (
	// Abort ends the run with the fault.
	Abort Action = iota
	// Retry does the piece again.
	Retry
	// Give leaves the piece uncopied (Work.Skip with failed) and goes on.
	Give
)

// Progress is told of changes of a job's progress, in bytes, relative: a copy
// of n bytes is (n, -n), n bytes found to need no copy are (0, -n), n bytes
// that became dirty (0, n). Each byte is counted once, whoever copied it. Called from
// many goroutines; it must not block.
type Progress func(done, remaining int64)

// Ends are the two sides of a copy under one admission.
type Ends struct {
	Source, Target *blockgraph.Edge
}
