package nbd

import (
	"errors"

	"blockd/blockgraph"
	"blockd/ioengine"
	"blockd/nbdproto"
)

// cachePiece is how much of a CmdCache is read at a time.
const cachePiece = 1 << 20

// execute does an admitted request and sets its reply.
func (c *conn) execute(r *request) {
	b := c.export.backend
	off, n := int64(r.Offset), int64(r.Length)
	var err error
	var msg string
	switch r.Type {
	case nbdproto.CmdRead:
		c.executeRead(r)
		return
	case nbdproto.CmdBlockStatus:
		if b.Inactive() {
			err = blockgraph.ErrInactive
			break
		}
		c.executeStatus(r)
		return
	case nbdproto.CmdWrite:
		if n > 0 {
			err = b.WriteV(c.ctx, off, &r.vec, c.writeFlags(r))
		}
		msg = "writing to file failed"
	case nbdproto.CmdWriteZeroes:
		flags := c.writeFlags(r)
		if r.Flags&nbdproto.FlagNoHole == 0 {
			flags |= blockgraph.MayUnmap
		}
		if r.Flags&nbdproto.FlagFastZero != 0 {
			flags |= blockgraph.NoFallback
		}
		err = c.zero(off, n, flags)
		msg = "writing to file failed"
	case nbdproto.CmdTrim:
		err = c.inPieces(off, n, func(off, n int64) error { return b.Discard(c.ctx, off, n) })
		if err == nil && r.Flags&nbdproto.FlagFUA != 0 {
			err = b.Flush(c.ctx)
		}
		msg = "discard failed"
	case nbdproto.CmdFlush:
		err = b.Flush(c.ctx)
		msg = "flush failed"
	case nbdproto.CmdCache:
		if b.Inactive() {
			err = blockgraph.ErrInactive
			break
		}
		err = c.cache(off, n)
		msg = "caching data failed"
	}
	if err != nil {
		if errors.Is(err, blockgraph.ErrInactive) {
			msg = err.Error()
		}
		r.fail(err, msg)
		return
	}
	r.succeed()
}

func (c *conn) writeFlags(r *request) blockgraph.Flags {
	if r.Flags&nbdproto.FlagFUA != 0 || c.export.writethrough {
		return blockgraph.FUA
	}
	return 0
}

// longest is the longest range in bytes that is changed in one go: what a header
// of 32 bits can ask for. A change of the graph waits for what has begun.
const longest = 1 << 32

// inPieces has f do a range in pieces, which meet at multiples of longest.
func (c *conn) inPieces(off, n int64, f func(off, n int64) error) error {
	for n > 0 {
		k := n
		if k > longest {
			k = longest - off%longest
		}
		if err := f(off, k); err != nil {
			return err
		}
		if off, n = off+k, n-k; n > 0 && c.ctx.Err() != nil {
			return c.ctx.Err()
		}
	}
	return nil
}

// zero is WriteZeroes of a range of any length.
func (c *conn) zero(off, n int64, flags blockgraph.Flags) error {
	b := c.export.backend
	now := flags
	if n > longest {
		now &^= blockgraph.FUA // one flush is enough
	}
	err := c.inPieces(off, n, func(off, n int64) error { return b.WriteZeroes(c.ctx, off, n, now) })
	if err == nil && now != flags {
		err = b.Flush(c.ctx)
	}
	return err
}

// cache reads a range for the sake of its side effects: a copy-on-read node
// below fills up, the host's cache warms.
func (c *conn) cache(off, n int64) error {
	if n == 0 {
		return nil
	}
	buf := ioengine.Bounce(int(min(n, cachePiece)))
	defer buf.Release()
	var v blockgraph.IOVec
	for n > 0 {
		k := min(n, cachePiece)
		v.SetBytes(buf.Bytes()[:k])
		if err := c.export.backend.ReadV(c.ctx, off, &v, blockgraph.CopyOnRead|blockgraph.Prefetch); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}
