package mirror

import (
	"context"
	"syscall"

	"blockd/blockgraph"
	"blockd/jobs"
	"blockd/jobs/copy"
	"blockd/jobs/transfer"
	"blockd/qapi"
)

// This file finds out what there is to copy when the job starts.

// maxStatus is the longest range that one block status query asks for, in bytes.
const maxStatus = 64 << 30

// sizes checks the lengths of both sides; the base of a commit grows to that of
// the top.
func (m *mirror) sizes(ctx context.Context) error {
	source, target := m.source.Size(), m.target.Size()
	if m.commit {
		if source <= target {
			return nil
		}
		err := m.job.Change(ctx, func(tx *blockgraph.Tx) error { return tx.ResizeRoot(m.targetRoot, source, qapi.PreallocModeOff) })
		return transfer.Error(err)
	}
	if source != target {
		return blockgraph.Errorf(syscall.EINVAL, "Source and target image have different sizes")
	}
	return nil
}

// begin marks what is to be copied, and zeroes what is not where the target has
// to be.
func (m *mirror) begin(ctx context.Context, j *jobs.Job) error {
	fresh := m.fresh && startsZero(m.target)
	if fresh {
		m.zeroTarget = false
	}
	if m.staysZero() && (m.targetIsZero || fresh || m.readsZero(ctx)) {
		m.filter.TrackFilled()
	}
	length := m.source.Size()
	switch {
	case m.sync == qapi.MirrorSyncModeNone:
		return nil
	case m.zeroTarget && (m.zeroAsData || !canUnmap(m.target) && !m.countAllocated):
		m.filter.Dirty().Set(0, length)
		return nil
	}
	return m.Body.Run(ctx, j, &survey{m: m, length: length}, transfer.Options{
		FreeZeroes: true, OnRead: m.onRead, OnWrite: m.onCopy, PutOff: true, Window: m.buffer,
	})
}

// canUnmap tells whether zeroing the target may free its space, which is how
// the field decides whether that is worth while before the copy.
func canUnmap(n *blockgraph.Node) bool {
	o := n.State().Options
	return n.Caps().MayUnmap == blockgraph.CapNative && o.Discard != nil && *o.Discard == qapi.BlockdevDiscardOptionsUnmap
}

// startsZero tells whether an image that was made for the job reads as zeroes.
func startsZero(n *blockgraph.Node) bool { return n.Caps().FreshZero }

// staysZero tells whether what reads as zeroes on the target without having been
// written still does when it gets its backing file.
func (m *mirror) staysZero() bool {
	st := m.target.SkipFilters().State()
	return !m.commit && (st.BackingName == "" || st.Backing() != nil) && (m.backing != SourceBacking || m.sync == qapi.MirrorSyncModeFull)
}

// readsZero tells whether all of the target reads as zeroes, as far as block
// status tells.
func (m *mirror) readsZero(ctx context.Context) bool {
	a, err := m.targetRoot.Enter(ctx)
	if err != nil {
		return false
	}
	defer a.Leave()
	size := m.target.Size()
	for off := int64(0); off < size; {
		s, _, err := a.Node().StatusAbove(ctx, nil, off, min(size-off, maxStatus), blockgraph.StatusPrecise)
		if err != nil || s.N <= 0 || s.Flags&blockgraph.StatusZero == 0 {
			return false
		}
		off += s.N
	}
	return true
}

// survey is the Work of the first look at the source: what it has allocated is
// marked, and the rest is made zero on the target if need be. Guests' writes
// are only marked meanwhile, so what is zeroed here over a newer write is dirty.
type survey struct {
	m      *mirror
	length int64
	cursor int64
}

// Unit implements copy.Work.
func (s *survey) Unit() int64 { return s.m.filter.Granularity() }

// Next implements copy.Work. A range whose status cannot be told is to be copied.
func (s *survey) Next(ctx context.Context, l copy.Limit) (copy.Piece, error) {
	if s.cursor >= s.length {
		return copy.Piece{}, nil
	}
	a, err := s.m.main.Enter(ctx)
	if err != nil {
		return copy.Piece{}, err
	}
	defer a.Leave()
	p := copy.Piece{Off: s.cursor, N: min(s.length-s.cursor, maxStatus), Kind: copy.Skip}
	st, _, err := a.Node().StatusAbove(ctx, s.m.base, p.Off, p.N, blockgraph.StatusAllocation)
	switch {
	case ctx.Err() != nil:
		return copy.Piece{}, ctx.Err()
	case err != nil:
		p.N = min(p.N, s.Unit())
	case st.N > 0:
		p.N = min(p.N, st.N)
	}
	switch {
	case err != nil || st.Flags&blockgraph.StatusAllocated != 0:
		s.m.filter.Dirty().Set(p.Off, p.N)
	case s.m.zeroTarget:
		p.Kind, p.N = copy.Zero, min(p.N, l.Zero)
	}
	s.cursor += p.N
	return p, nil
}

// Do implements copy.Work.
func (s *survey) Do(ctx context.Context, p copy.Piece, _ []byte) error {
	a, err := s.m.targetRoot.Enter(ctx)
	if err != nil {
		return err
	}
	defer a.Leave()
	h, err := s.m.filter.Lock(ctx, p.Off, p.N)
	if err != nil {
		return err
	}
	defer s.m.filter.Unlock(h)
	if s.m.filter.Blank(p.Off, p.N) {
		return nil
	}
	if err := a.Edge().WriteZeroes(ctx, p.Off, p.N, s.m.zeroFlags()); err != nil {
		return &copy.Fault{Op: copy.Write, Off: p.Off, N: p.N, Err: err}
	}
	return nil
}

// Skip implements copy.Work. What could not be zeroed is copied later.
func (s *survey) Skip(p copy.Piece, failed bool) {
	if failed {
		s.m.filter.Dirty().Set(p.Off, p.N)
	}
}

// Settle implements copy.Work.
func (s *survey) Settle(context.Context) (more bool, err error) { return false, nil }

// zeroFlags go with zero writes to the target.
func (m *mirror) zeroFlags() blockgraph.Flags {
	if m.unmap {
		return blockgraph.MayUnmap
	}
	return 0
}
