package nbd

import (
	"blockd/blockgraph"
	"blockd/nbdproto"
)

// Reads. To a client with structured replies a large read says which parts are
// holes instead of sending zeroes. Asking costs a search in the image's map,
// and a system call or two on a file, for every read, holes or not; so small
// reads are not asked about, and a hole too small to pay for its own chunk is
// sent as data.

const (
	// sparseRead is the least read for which holes are looked for, in bytes.
	sparseRead = 128 << 10
	// sparseHole is the least hole within data that becomes a chunk.
	sparseHole = 32 << 10
	// sparseRuns is the most chunks of one reply.
	sparseRuns = 64
)

// run is a part of a read: a hole or data.
type run struct {
	off, n int64
	hole   bool
}

func (c *conn) executeRead(r *request) {
	b := c.export.backend
	if r.Flags&nbdproto.FlagFUA != 0 {
		if err := b.Flush(c.ctx); err != nil {
			r.fail(err, "flush failed")
			return
		}
	}
	n := int64(r.Length)
	switch {
	case n == 0 && c.structured:
		r.reply(r.form().AppendNone(r.begin()), nil)
		return
	case n == 0:
		r.succeed()
		return
	case c.structured && r.Flags&nbdproto.FlagDF == 0 && n >= sparseRead:
		runs, err := c.runs(int64(r.Offset), n)
		if err != nil {
			r.fail(err, "unable to check for holes: "+blockgraph.Strerror(err))
			return
		}
		if len(runs) > 1 || runs[0].hole {
			c.readRuns(r, runs)
			return
		}
	}
	if err := b.ReadV(c.ctx, int64(r.Offset), &r.vec, 0); err != nil {
		r.fail(err, "reading from file failed")
		return
	}
	data := r.buf.Bytes()
	if c.structured {
		r.reply(r.form().AppendOffsetData(r.begin(), true, r.Offset, len(data)), data)
	} else {
		r.reply(nbdproto.AppendSimpleReply(r.begin(), r.Cookie, nbdproto.OK), data)
	}
}

// runs splits a range into data and holes.
func (c *conn) runs(off, n int64) ([]run, error) {
	var runs []run
	for end := off + n; off < end; {
		if len(runs) == sparseRuns {
			// Too many pieces: the rest goes as data.
			runs[sparseRuns-1].hole = false
			runs[sparseRuns-1].n = end - runs[sparseRuns-1].off
			break
		}
		st, _, err := c.export.backend.BlockStatus(c.ctx, off, end-off, blockgraph.StatusPrecise)
		if err != nil {
			return nil, err
		}
		if st.N <= 0 {
			st = blockgraph.Status{Flags: blockgraph.StatusData, N: end - off}
		}
		k := min(st.N, end-off)
		runs = appendRun(runs, run{off, k, st.Flags&blockgraph.StatusZero != 0})
		off += k
	}
	return mergeSmallHoles(runs), nil
}

func appendRun(runs []run, x run) []run {
	if l := len(runs); l > 0 && runs[l-1].hole == x.hole {
		runs[l-1].n += x.n
		return runs
	}
	return append(runs, x)
}

// mergeSmallHoles turns holes that are not worth a chunk into data, unless the
// range is nothing but one.
func mergeSmallHoles(runs []run) []run {
	if len(runs) == 1 {
		return runs
	}
	merged := runs[:0]
	for _, x := range runs {
		if x.n < sparseHole {
			x.hole = false
		}
		merged = appendRun(merged, x)
	}
	return merged
}

// readRuns reads the data between holes and replies in chunks. Everything is
// read before the first chunk is sent, so a failed read is one error.
func (c *conn) readRuns(r *request, runs []run) {
	form := r.form()
	heads := make([]byte, 0, len(runs)*(form.Framing.HeaderSize()+max(nbdproto.OffsetSize, nbdproto.HoleSize)))
	segs := make([][]byte, 0, 2*len(runs))
	var size int64
	for i, x := range runs {
		last := i == len(runs)-1
		from := len(heads)
		if x.hole {
			heads = form.AppendOffsetHole(heads, last, uint64(x.off), uint32(x.n))
			segs = append(segs, heads[from:])
			continue
		}
		part := x.off - int64(r.Offset)
		if err := c.export.backend.ReadV(c.ctx, x.off, r.vec.Slice(part, x.n), 0); err != nil {
			r.fail(err, "reading from file failed")
			return
		}
		heads = form.AppendOffsetData(heads, last, uint64(x.off), int(x.n))
		segs = append(segs, heads[from:], r.buf.Bytes()[part:part+x.n])
		size += x.n
	}
	r.head, r.segs, r.size = heads, segs, size+int64(len(heads))
}
