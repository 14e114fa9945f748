package img

import (
	"context"

	"blockd/blockgraph"
	"blockd/filters/pass"
)

// salvage is the driver of a filter over a conversion's source that shows zeroes
// where the source cannot be read (the field: --salvage).
//
//blockd:io
type salvage struct {
	pass.Through
	s *session
}

// salvaged is the granularity at which content is given up, in bytes.
const salvaged = 512

// salvaging puts the filter over a source.
func (s *session) salvaging(from *blockgraph.Node) (*blockgraph.Node, error) {
	readOnly := true
	return s.openFilter("salvage", from, &readOnly, func(p pass.Through) blockgraph.Driver { return &salvage{p, s} })
}

// ReadV reads what can be read. What fails is tried again sector by sector.
func (f *salvage) ReadV(ctx context.Context, off int64, v *blockgraph.IOVec, flags blockgraph.Flags) error {
	if f.Below().ReadV(ctx, off, v, flags) == nil {
		return nil
	}
	for pos := int64(0); pos < v.Len(); pos += salvaged {
		n := min(salvaged, v.Len()-pos)
		err := f.Below().ReadV(ctx, off+pos, v.Slice(pos, n), flags)
		switch {
		case err == nil:
			continue
		case ctx.Err() != nil:
			return err
		}
		f.warn("error while reading offset %d: %s", off+pos, err)
		v.Zero(pos, n)
	}
	return nil
}

// BlockStatus looks at the source itself, so that what cannot be looked at is
// read.
func (f *salvage) BlockStatus(ctx context.Context, off, n int64, mode blockgraph.StatusMode) (blockgraph.Status, error) {
	st, depth, err := f.Below().Child().StatusAbove(ctx, nil, off, n, mode)
	switch {
	case err == nil && depth == 0:
		return blockgraph.Status{Flags: blockgraph.StatusZero | blockgraph.StatusAllocated, N: st.N}, nil
	case err == nil:
		return blockgraph.Status{Flags: st.Flags & (blockgraph.StatusData | blockgraph.StatusZero | blockgraph.StatusAllocated), N: st.N}, nil
	case ctx.Err() != nil:
		return st, err
	}
	if n > salvaged {
		// The fault may lie further on.
		return f.BlockStatus(ctx, off, max(salvaged, n/4/salvaged*salvaged), mode)
	}
	f.warn("error while reading block status at offset %d: %s", off, err)
	return blockgraph.Status{Flags: blockgraph.StatusData | blockgraph.StatusAllocated, N: n}, nil
}

func (f *salvage) warn(format string, off int64, err error) {
	if !f.s.quiet {
		f.s.warn(format, off, blockgraph.Strerror(err))
	}
}
