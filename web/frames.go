package web

import (
	"bufio"
	"encoding/binary"
	"net"
	"net/http"
)

// The library answers pings and puts the pieces of a message together without a
// word, so frames are counted below it, as they come: pings, pieces without a
// byte and whole messages cost a client the same.

// frames is a connection whose frames (RFC 6455, section 5.2) are read when wait
// says so.
//
//blockd:io
type frames struct {
	net.Conn
	in   *bufio.Reader // of the connection
	wait func() error  // before each frame
	left uint64        // bytes of the frame under way
}

// Read is net.Conn's.
func (f *frames) Read(p []byte) (int, error) {
	if f.left == 0 {
		size, err := f.next()
		if err == nil {
			err = f.wait()
		}
		if err != nil {
			return 0, err
		}
		f.left = size
	}
	n, err := f.in.Read(p[:min(uint64(len(p)), f.left)])
	f.left -= uint64(n)
	return n, err
}

// next returns the bytes of the frame that comes, which stays in the buffer.
func (f *frames) next() (uint64, error) {
	head, err := f.in.Peek(2)
	if err != nil {
		return 0, err
	}
	size, payload := 2, uint64(head[1]&0x7f)
	if head[1]&0x80 != 0 {
		size += 4 // the mask
	}
	switch payload {
	case 126:
		if head, err = f.in.Peek(4); err != nil {
			return 0, err
		}
		size, payload = size+2, uint64(binary.BigEndian.Uint16(head[2:]))
	case 127:
		if head, err = f.in.Peek(10); err != nil {
			return 0, err
		}
		// The library ends the session at lengths like this one's longest.
		size, payload = size+8, binary.BigEndian.Uint64(head[2:])&^(1<<63)
	}
	return uint64(size) + payload, nil
}

// framed has the library read a connection through frames.
//
//blockd:io
type framed struct {
	http.ResponseWriter
	wait func() error
}

// Hijack is http.Hijacker's.
func (w *framed) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	c, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err != nil || rw.Reader.Buffered() > 0 { // the library refuses what came before its answer
		return c, rw, err
	}
	f := &frames{Conn: c, in: rw.Reader, wait: w.wait}
	return f, bufio.NewReadWriter(bufio.NewReader(f), rw.Writer), nil
}
