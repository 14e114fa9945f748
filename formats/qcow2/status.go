package qcow2

import (
	"context"

	"blockd/blockgraph"
)

// BlockStatus describes a range that begins at off. Data plane.
func (d *Driver) BlockStatus(ctx context.Context, off, n int64, mode blockgraph.StatusMode) (blockgraph.Status, error) {
	p := d.epochs.pin()
	defer p.unpin()
	m, err := d.lookup(ctx, off, n, false)
	if err != nil {
		return blockgraph.Status{}, err
	}
	st := d.statusOf(m)
	// Runs end at slices; go on while the answer stays the same.
	for st.N < n {
		m, err := d.lookup(ctx, off+st.N, n-st.N, false)
		if err != nil {
			break // that range's own request reports it
		}
		next := d.statusOf(m)
		if mode == blockgraph.StatusAllocation && st.Flags&blockgraph.StatusData != 0 && next.Flags&blockgraph.StatusData != 0 {
			st.Flags &= next.Flags
			st.Flags &^= blockgraph.StatusOffsetValid
			st.File, st.Offset = nil, 0
			st.N += next.N
			continue
		}
		if next.Flags != st.Flags || st.Flags&blockgraph.StatusOffsetValid != 0 && next.Offset != st.Offset+st.N {
			break
		}
		st.N += next.N
	}
	return st, nil
}

func (d *Driver) statusOf(m mapping) blockgraph.Status {
	st := blockgraph.Status{N: m.n}
	switch m.kind {
	case data:
		st.Flags = blockgraph.StatusData | blockgraph.StatusOffsetValid
	case compressed:
		st.Flags = blockgraph.StatusData | blockgraph.StatusCompressed
	case zeroAlloc:
		st.Flags = blockgraph.StatusZero | blockgraph.StatusOffsetValid
	case unallocatedAlloc:
		st.Flags = blockgraph.StatusOffsetValid
	case zeroPlain:
		st.Flags = blockgraph.StatusZero
	}
	if d.crypt != nil {
		st.Flags &^= blockgraph.StatusOffsetValid // what is stored there is not what is read
	}
	if st.Flags&blockgraph.StatusOffsetValid != 0 {
		st.Offset = m.host
		st.File = d.dataFile().Node()
	}
	return st
}
