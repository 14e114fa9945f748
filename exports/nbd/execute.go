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
		err = blockgraph.InPieces(c.ctx, off, n, func(off, n int64) error { return b.Discard(c.ctx, off, n) })
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

// zero is WriteZeroes of a range of any length.
func (c *conn) zero(off, n int64, flags blockgraph.Flags) error {
	b := c.export.backend
	now := flags
	if n > blockgraph.Piece {
		now &^= blockgraph.FUA // one flush is enough
	}
	err := blockgraph.InPieces(c.ctx, off, n, func(off, n int64) error { return b.WriteZeroes(c.ctx, off, n, now) })
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
