package img

import (
	"context"
	"errors"
	"math/bits"
	"syscall"

	"blockd/blockgraph"
	"blockd/filters/pass"
)

// sparse is the driver of a filter over a conversion's target that decides what
// of the data need not be written, since it is zeroes (the field: -S).
//
//blockd:io
type sparse struct {
	pass.Through
	// length is how many bytes of the target are shown; it may have more.
	length int64
	// least is how many bytes of zeroes in a row are not written as data; 0:
	// everything is written.
	least int64
	// step is the granularity at which they are looked for, the largest power of
	// two that is no more than least.
	step int64
	// blank: what was never written reads as zeroes, so zeroes need no request.
	blank bool
	fault *fault
}

// sparsely puts the filter over the first length bytes of a target.
func (s *session) sparsely(target *blockgraph.Node, length, least int64, blank bool, noted *fault) (*blockgraph.Node, error) {
	return s.openFilter("sparse", target, nil, func(p pass.Through) blockgraph.Driver {
		f := &sparse{Through: p, length: length, least: least, blank: blank, fault: noted}
		if least > 0 {
			f.step = 1 << (bits.Len64(uint64(least)) - 1)
		}
		return f
	})
}

// WriteV writes what is no zeroes. Compressed clusters are written as a whole.
func (f *sparse) WriteV(ctx context.Context, off int64, v *blockgraph.IOVec, flags blockgraph.Flags) error {
	switch {
	case flags&blockgraph.Compressed != 0 && f.least > 0 && v.IsZero():
		return f.zero(ctx, off, v.Len())
	case flags&blockgraph.Compressed != 0:
		err := f.Below().WriteV(ctx, off, v, flags)
		if errors.Is(err, syscall.EINVAL) && off+v.Len() == f.length {
			// The last cluster has more than is shown, so it is not written whole.
			err = f.Below().WriteV(ctx, off, v, flags&^blockgraph.Compressed)
		}
		return f.wrote(ctx, off, err)
	case f.least == 0:
		return f.wrote(ctx, off, f.Below().WriteV(ctx, off, v, flags))
	}
	for pos := int64(0); pos < v.Len(); {
		end, zero := f.run(off, v, pos)
		var err error
		if zero {
			err = f.zero(ctx, off+pos, end-pos)
		} else {
			err = f.wrote(ctx, off+pos, f.Below().WriteV(ctx, off+pos, v.Slice(pos, end-pos), flags))
		}
		if err != nil {
			return err
		}
		pos = end
	}
	return nil
}

// run returns the end of the run of one kind that begins at pos of v, which is to
// be written at off: zeroes, or data with zeroes of less than least in between.
func (f *sparse) run(off int64, v *blockgraph.IOVec, pos int64) (end int64, zero bool) {
	since := pos // all is zeroes from there to p
	for p := pos; ; {
		n := min(f.step-(off+p)%f.step, v.Len()-p)
		switch {
		case n > 0 && v.Slice(p, n).IsZero():
			p += n
			continue
		case p > since && p-since >= f.least && since == pos:
			return p, true
		case p > since && p-since >= f.least:
			return since, false
		case n == 0:
			return p, false
		}
		p += n
		since = p
	}
}

// WriteZeroes writes none where they are already.
func (f *sparse) WriteZeroes(ctx context.Context, off, n int64, _ blockgraph.Flags) error {
	if f.least == 0 {
		return blockgraph.ErrNotSupported // they are written as data
	}
	return f.zero(ctx, off, n)
}

func (f *sparse) zero(ctx context.Context, off, n int64) error {
	if f.blank {
		return nil
	}
	return f.wrote(ctx, off, f.Below().WriteZeroes(ctx, off, n, blockgraph.MayUnmap))
}

// wrote notes what could not be written.
func (f *sparse) wrote(ctx context.Context, off int64, err error) error {
	return f.fault.note(ctx, "writing at byte", off, err)
}

// Size is that of what is copied.
func (f *sparse) Size(context.Context) (int64, error) { return f.length, nil }

// Caps implements blockgraph.LimitsReader.
func (f *sparse) Caps() blockgraph.Caps {
	c := f.Through.Caps()
	c.Compressed = f.Below().Child().Caps().Compressed
	if f.least == 0 {
		c.WriteZeroes, c.MayUnmap, c.NoFallback = blockgraph.CapNone, blockgraph.CapNone, blockgraph.CapNone
	}
	return c
}
