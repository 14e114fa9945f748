package nbd

import (
	"syscall"

	"blockd/ioengine"
	"blockd/nbdproto"
)

// Block status. Each context gets one chunk; the last one ends the reply.
// Extents are encoded as they are found, in memory that grows with their
// number, up to MaxExtents and as far as memory is to be had at once: a client
// asks again for the rest.

// statusFirst is the memory that each context of a status reply begins with, in
// bytes; enough for most.
const statusFirst = 4096

func (c *conn) executeStatus(r *request) {
	most := nbdproto.MaxExtents
	if r.Flags&nbdproto.FlagReqOne != 0 {
		most = 1
	}
	contexts := c.contexts
	if r.asked != nil {
		contexts = r.asked
	}
	if len(contexts) == 0 {
		r.succeed()
		return
	}
	form := r.form()
	e := extents{framing: c.framing, r: r}
	defer e.free()
	var heads []byte
	if len(contexts) == 1 {
		heads = r.begin()
	} else {
		heads = make([]byte, 0, len(contexts)*headSize)
	}
	segs := r.segStore[:0]
	var size int64
	for i, ctx := range contexts {
		if err := c.collect(ctx, &e, int64(r.Offset), int64(r.Length), most); err != nil {
			r.fail(err, "can't get block status")
			return
		}
		from := len(heads)
		last := i == len(contexts)-1
		heads = form.AppendBlockStatus(heads, last, ctx.id, e.count())
		body := e.take(r)
		segs = append(segs, heads[from:], body)
		size += int64(len(heads)-from) + int64(len(body))
	}
	r.head, r.segs, r.size = heads, segs, size
}

// collect gathers the extents of a range, merging equal neighbours.
func (c *conn) collect(ctx statusContext, e *extents, off, n int64, most int) error {
	e.begin(most)
	for n > 0 {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		flags, length, err := ctx.Extent(c.ctx, off, n)
		if err != nil {
			return err
		}
		if length <= 0 {
			return syscall.EIO
		}
		length = min(length, n)
		if !e.add(length, flags) {
			break
		}
		off, n = off+length, n-length
	}
	e.end()
	return nil
}

// extents are the extents of one context in the making.
type extents struct {
	framing nbdproto.Framing
	r       *request // whose reply they are
	most    int
	buf     *ioengine.Buffer
	b       []byte
	length  int64 // of the last extent, not encoded yet; 0: none
	flags   uint32
}

// maxExtent is the longest extent that a reply without extended headers can
// tell.
const maxExtent = 1<<32 - 1

func (e *extents) canTell(length int64) bool {
	return e.framing == nbdproto.Extended || length <= maxExtent
}

func (e *extents) begin(most int) {
	e.free()
	e.most = most
	e.buf = ioengine.Bounce(statusFirst)
	e.b = e.buf.Bytes()[:0]
	e.length = 0
}

// add returns false when there is no room for the extent.
func (e *extents) add(length int64, flags uint32) bool {
	if e.length > 0 && flags == e.flags && e.canTell(e.length+length) {
		e.length += length
		return true
	}
	if e.length > 0 && (e.count()+1 >= e.most || !e.room()) {
		return false
	}
	e.end()
	e.length, e.flags = length, flags
	return true
}

// room sees to it that the last extent and one more can be encoded, if there is
// memory for that.
func (e *extents) room() bool {
	if len(e.b)+2*e.framing.ExtentSize() <= cap(e.b) {
		return true
	}
	if !e.r.c.reserve(e.r, int64(cap(e.b))) {
		return false
	}
	bigger := ioengine.Bounce(2 * cap(e.b))
	e.b = append(bigger.Bytes()[:0], e.b...)
	e.buf.Release()
	e.buf = bigger
	return true
}

// end encodes the last extent, for which there is room.
func (e *extents) end() {
	if e.length == 0 {
		return
	}
	e.b = e.framing.AppendExtent(e.b, uint64(e.length), e.flags)
	e.length = 0
}

// count is the number of encoded extents.
func (e *extents) count() int { return len(e.b) / e.framing.ExtentSize() }

// take hands the memory over to the request.
func (e *extents) take(r *request) []byte {
	b := e.b
	r.more = append(r.more, e.buf)
	e.buf, e.b = nil, nil
	return b
}

func (e *extents) free() {
	e.buf.Release()
	e.buf, e.b = nil, nil
}
