package nbdproto

import "errors"

const (
	// MaxPayload is the most data that one request or reply carries.
	MaxPayload = 32 << 20
	// MaxString is the longest export name, description, context name or
	// error message, in bytes.
	MaxString = 4096
	// MaxOptionLength is the longest payload of an option that a peer may
	// announce; a longer one ends the connection.
	MaxOptionLength = 32 << 20
	// MaxOptionKept is the longest payload of an option that is kept in memory
	// and looked at; what lies between this and MaxOptionLength is skipped and
	// refused with RepErrTooBig. A GO with every possible information request
	// fits.
	MaxOptionKept = 256 << 10
	// MaxContexts is the most context ids in the payload of a block status
	// request.
	MaxContexts = 1 << 16
	// MaxExtents is the most extents in one block status chunk, 1 MiB.
	MaxExtents = 1 << 20 / 8
)

var (
	// ErrShort: the bytes end before the message does.
	ErrShort = errors.New("nbd: message is cut short")
	// ErrTrailing: the message ends before the bytes do.
	ErrTrailing = errors.New("nbd: message has unexpected length")
	// ErrMagic: the peer does not speak the protocol, or lost its place.
	ErrMagic = errors.New("nbd: bad magic")
	// ErrTooLong: a length is beyond its limit.
	ErrTooLong = errors.New("nbd: length is beyond the limit")
	// ErrNUL: a name has a NUL byte in it.
	ErrNUL = errors.New("nbd: NUL byte in a string")
)
