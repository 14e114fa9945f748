package nbd

import (
	"blockd/blockgraph"
	"blockd/ioengine"
	"blockd/nbdproto"
)

// request is one request from its header to the end of its reply. Requests are
// reused within their connection; all they need in the common case is part of
// them.
type request struct {
	nbdproto.Request
	c      *conn
	vec    blockgraph.IOVec
	buf    *ioengine.Buffer // the data, or nil
	bytes  int64            // counted for the connection
	memory int64            // counted for the server
	own    int64            // counted as the connection's own instead

	// The reply: headers in head, and what is sent, in order, in segs.
	head   []byte
	segs   [][]byte
	size   int64
	more   []*ioengine.Buffer // other memory that segs refer to
	refuse error              // an error found before execution; replaces it
	// asked are the contexts that a block status is to report; nil: all.
	asked []statusContext

	next *request // in the list that has it: ready or free

	headStore [headSize]byte
	segStore  [2][]byte
}

// headSize has room for the header of a reply without an error message, and for
// what precedes its data or extents.
const headSize = nbdproto.ExtendedChunkHeaderSize + nbdproto.MaxStatusHead

func (r *request) reset() {
	if r.buf != nil {
		r.buf.Release()
		r.buf = nil
	}
	for _, b := range r.more {
		b.Release()
	}
	clear(r.more)
	r.more = r.more[:0]
	r.vec.SetBytes(nil)
	r.head, r.segs, r.size, r.refuse, r.asked = nil, nil, 0, nil, nil
	r.segStore = [2][]byte{}
	r.bytes, r.memory, r.own = 0, 0, 0
}

// begin returns the empty header.
func (r *request) begin() []byte { return r.headStore[:0] }

// reply sets a reply of one header and, optionally, data.
func (r *request) reply(head, data []byte) {
	r.head = head
	r.segs = append(r.segStore[:0], head)
	r.size = int64(len(head))
	if len(data) > 0 {
		r.segs = append(r.segs, data)
		r.size += int64(len(data))
	}
}

// form is the form of the reply's chunks.
func (r *request) form() nbdproto.Reply {
	return nbdproto.Reply{Framing: r.c.framing, Cookie: r.Cookie, Offset: r.Offset}
}

// succeed sets the reply of a command that returns no data.
func (r *request) succeed() {
	if r.c.framing == nbdproto.Extended {
		r.reply(r.form().AppendNone(r.begin()), nil)
		return
	}
	r.reply(nbdproto.AppendSimpleReply(r.begin(), r.Cookie, nbdproto.OK), nil)
}

// fail sets an error reply; msg goes to clients that can take it.
func (r *request) fail(err error, msg string) {
	code := nbdproto.ToWire(blockgraph.Errno(err))
	r.traceFailed(err, msg)
	if r.c.structured {
		r.reply(r.form().AppendError(r.begin(), code, msg), nil)
		return
	}
	r.reply(nbdproto.AppendSimpleReply(r.begin(), r.Cookie, code), nil)
}

// refusal is an error that a client is to be told in these words.
type refusal string

func (e refusal) Error() string { return string(e) }
