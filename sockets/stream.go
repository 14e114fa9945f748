package sockets

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Stream is the byte stream of a connection: a buffered reader that can also
// read past its buffer into a request's memory, and a gathering writer. One
// goroutine reads and one writes at a time; the counters may be asked for by
// any. All but Next and the counters wait for the peer.
//
// On sockets it makes the system calls itself: then an idle connection holds
// no read buffer, and a gathering write neither allocates nor hides how far it
// has come. Other streams (TLS) go through their Read and Write.
type Stream struct {
	conn net.Conn
	raw  syscall.RawConn // nil: use conn

	buf        *readBuffer // nil while idle on a socket
	start, end int         // of what is buffered
	readFn     func(fd uintptr) bool
	places     chan struct{} // see LimitLong; nil: no limit
	dst        []byte        // what readFn fills; nil: the free part of buf
	readN      int
	readErr    error

	iov     []unix.Iovec
	writeFn func(fd uintptr) bool
	writeN  int
	sysErr  error

	moved                 atomic.Uint64
	inStalled, outStalled atomic.Bool
}

const (
	// StreamBuffer is the size in bytes of a stream's buffer.
	StreamBuffer = 64 << 10
	// DirectRead is the least size in bytes of a part of a payload that is worth a system call of
	// its own to spare the copy.
	DirectRead = 16 << 10
	// maxIovecs is what one writev takes (IOV_MAX).
	maxIovecs = 1024
)

type readBuffer [StreamBuffer]byte

var readBuffers = sync.Pool{New: func() any { return new(readBuffer) }}

// NewStream returns a stream over c, which stays the caller's to close.
func NewStream(c net.Conn) *Stream {
	t := &Stream{conn: c}
	if sc, ok := c.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			t.raw = raw
		}
	}
	t.readFn = t.readSome
	t.writeFn = t.writeSome
	return t
}

// LimitLong has each read past the buffer take one of the places for the time of
// its system call, which does not wait: so many copy from their sockets at a time.
// It is called before the first read, and has no effect on what does not read from
// a socket itself (TLS).
func (t *Stream) LimitLong(places chan struct{}) { t.places = places }

// Replace lets the stream go on over c, which works on top of the former
// connection (TLS). Nothing may be buffered.
func (t *Stream) Replace(c net.Conn) {
	t.ReleaseBuffer()
	t.conn, t.raw = c, nil
}

// readSome is one read from a socket; false makes the caller wait until there
// is something to read.
func (t *Stream) readSome(fd uintptr) bool {
	if t.places == nil || t.dst == nil {
		return t.readNow(fd)
	}
	t.places <- struct{}{}
	ok := t.readNow(fd)
	<-t.places
	return ok
}

func (t *Stream) readNow(fd uintptr) bool {
	p := t.dst
	if p == nil {
		if t.buf == nil {
			t.buf = readBuffers.Get().(*readBuffer)
		}
		p = t.buf[t.end:]
	}
	for {
		n, err := unix.Read(int(fd), p)
		switch err {
		case nil:
			t.readN, t.readErr = n, nil
			if n == 0 {
				t.readErr = io.EOF
			}
			return true
		case unix.EINTR:
		case unix.EAGAIN:
			if t.dst != nil || t.end > t.start {
				t.inStalled.Store(true)
			} else {
				t.ReleaseBuffer()
			}
			return false
		default:
			t.readN, t.readErr = 0, err
			return true
		}
	}
}

// ReleaseBuffer gives the buffer and what is in it up.
func (t *Stream) ReleaseBuffer() {
	if t.buf != nil {
		readBuffers.Put(t.buf)
		t.buf = nil
	}
	t.start, t.end = 0, 0
}

// read reads once, into p or else into the buffer.
func (t *Stream) read(p []byte) (int, error) {
	if t.raw == nil {
		amid := p != nil || t.end > t.start
		if p == nil {
			if t.buf == nil {
				t.buf = readBuffers.Get().(*readBuffer)
			}
			p = t.buf[t.end:]
		}
		// The library does not tell when it waits: a read amid a message may.
		t.inStalled.Store(amid)
		n, err := t.conn.Read(p)
		t.inStalled.Store(false)
		if n > 0 {
			t.moved.Add(uint64(n))
			return n, nil
		}
		return 0, err
	}
	t.dst = p
	err := t.raw.Read(t.readFn)
	t.dst = nil
	if err != nil {
		return 0, err
	}
	if t.inStalled.Load() {
		t.inStalled.Store(false)
	}
	if t.readN > 0 {
		t.moved.Add(uint64(t.readN))
	}
	return t.readN, t.readErr
}

// Buffered returns how much can be had without reading.
func (t *Stream) Buffered() int { return t.end - t.start }

// Need reads until n bytes are buffered; n is at most StreamBuffer. It
// returns io.EOF at the end of the stream, and io.ErrUnexpectedEOF when there
// is a part of a message before it.
func (t *Stream) Need(n int) error {
	for t.Buffered() < n {
		if t.buf != nil {
			if t.start == t.end {
				t.start, t.end = 0, 0
			} else if StreamBuffer-t.start < n {
				copy(t.buf[:], t.buf[t.start:t.end])
				t.start, t.end = 0, t.end-t.start
			}
		}
		got, err := t.read(nil)
		if err != nil {
			if err == io.EOF && t.Buffered() > 0 {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		t.end += got
	}
	return nil
}

// Next takes n buffered bytes; they are valid until the next read.
func (t *Stream) Next(n int) []byte {
	p := t.buf[t.start : t.start+n]
	t.start += n
	return p
}

// ReadFull fills p. What is not buffered yet is read straight into p when that
// is worth it.
func (t *Stream) ReadFull(p []byte) error {
	for len(p) > 0 {
		if t.start < t.end {
			n := copy(p, t.buf[t.start:t.end])
			t.start += n
			p = p[n:]
			continue
		}
		if len(p) < DirectRead {
			if err := t.Need(1); err != nil {
				return Unexpected(err)
			}
			continue
		}
		n, err := t.read(p)
		if err != nil {
			return Unexpected(err)
		}
		p = p[n:]
	}
	return nil
}

// Skip drops n bytes.
func (t *Stream) Skip(n int64) error {
	for n > 0 {
		if err := t.Need(1); err != nil {
			return Unexpected(err)
		}
		k := min(n, int64(t.Buffered()))
		t.start += int(k)
		n -= k
	}
	return nil
}

// Unexpected turns io.EOF, which is well between messages, into
// io.ErrUnexpectedEOF.
func Unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// WriteV writes all of the segments, which it does not change.
func (t *Stream) WriteV(segs [][]byte) error {
	if t.raw == nil {
		t.outStalled.Store(true)
		defer t.outStalled.Store(false)
		for _, s := range segs {
			if _, err := t.conn.Write(s); err != nil {
				return err
			}
			t.moved.Add(uint64(len(s)))
		}
		return nil
	}
	for len(segs) > 0 {
		t.iov = t.iov[:0]
		for len(segs) > 0 && len(t.iov) < maxIovecs {
			if s := segs[0]; len(s) > 0 {
				v := unix.Iovec{Base: &s[0]}
				v.SetLen(len(s))
				t.iov = append(t.iov, v)
			}
			segs = segs[1:]
		}
		err := t.writeIovecs()
		clear(t.iov)
		if err != nil {
			return err
		}
	}
	return nil
}

func (t *Stream) writeIovecs() error {
	left := t.iov
	for len(left) > 0 {
		saved := t.iov
		t.iov = left
		err := t.raw.Write(t.writeFn)
		t.iov = saved
		if t.outStalled.Load() {
			t.outStalled.Store(false)
		}
		if err != nil {
			return err
		}
		if t.sysErr != nil {
			return t.sysErr
		}
		n := uint64(t.writeN)
		t.moved.Add(n)
		for len(left) > 0 && n >= left[0].Len {
			n -= left[0].Len
			left = left[1:]
		}
		if n > 0 {
			left[0].Base = (*byte)(unsafe.Add(unsafe.Pointer(left[0].Base), n))
			left[0].SetLen(int(left[0].Len - n))
		}
	}
	return nil
}

// writeSome is one writev of t.iov; false makes the caller wait for room.
func (t *Stream) writeSome(fd uintptr) bool {
	for {
		n, _, errno := unix.Syscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&t.iov[0])), uintptr(len(t.iov)))
		switch errno {
		case 0:
			t.writeN, t.sysErr = int(n), nil
			return true
		case unix.EINTR:
		case unix.EAGAIN:
			t.outStalled.Store(true)
			return false
		default:
			t.writeN, t.sysErr = 0, errno
			return true
		}
	}
}

// Vanished tells whether err is the ordinary end of a connection.
func Vanished(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// Moved counts the bytes that went in or out.
func (t *Stream) Moved() uint64 { return t.moved.Load() }

// Stalled tells whether the stream waits for the peer in the middle of a
// message, in or out.
func (t *Stream) Stalled() bool { return t.inStalled.Load() || t.outStalled.Load() }

// Conn returns the connection below the stream.
func (t *Stream) Conn() net.Conn { return t.conn }

// Peek returns the next n bytes, which are buffered; they are valid until the
// next read.
func (t *Stream) Peek(n int) []byte { return t.buf[t.start : t.start+n] }
