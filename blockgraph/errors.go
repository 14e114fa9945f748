package blockgraph

import (
	"context"
	"errors"
	"fmt"
	"syscall"
)

// ErrNotSupported is returned by drivers for what they cannot do.
var ErrNotSupported error = syscall.ENOTSUP

// ErrNoMedium is returned for I/O on a root without a node.
var ErrNoMedium error = syscall.ENOMEDIUM

// Errno returns the system error that err stands for: the syscall.Errno that
// it wraps, ECANCELED for an ended context, else EIO.
func Errno(err error) syscall.Errno {
	var e syscall.Errno
	switch {
	case err == nil:
		return 0
	case errors.As(err, &e):
		return e
	case errors.Is(err, context.Canceled):
		return syscall.ECANCELED
	case errors.Is(err, context.DeadlineExceeded):
		return syscall.ETIMEDOUT
	default:
		return syscall.EIO
	}
}

// Strerror returns the text of err's Errno as the C library spells it, which
// is what the field prints.
func Strerror(err error) string { return errnoText(Errno(err)) }

// WithHint returns err with advice for somebody at a terminal, which QMP does
// not carry.
func WithHint(err error, hint string) error { return &hinted{err, hint} }

// Hint returns the advice that err carries, or "".
func Hint(err error) string {
	var h *hinted
	if errors.As(err, &h) {
		return h.hint
	}
	return ""
}

type hinted struct {
	error
	hint string
}

func (h *hinted) Unwrap() error { return h.error }

// ErrnoError is an errno together with a message that is shown instead of the
// errno's own.
type ErrnoError struct {
	Errno syscall.Errno
	Msg   string
}

func (e *ErrnoError) Error() string { return e.Msg }

// Unwrap gives errors.Is and errors.As the errno.
func (e *ErrnoError) Unwrap() error { return e.Errno }

// Errorf returns an error that stands for errno and prints as the format says.
func Errorf(errno syscall.Errno, format string, args ...any) error {
	return &ErrnoError{Errno: errno, Msg: fmt.Sprintf(format, args...)}
}
