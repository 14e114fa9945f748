package scratch

import (
	"context"
	"errors"
	"sync"
	"syscall"

	"github.com/tidwall/btree"

	"blockd/ioengine"
)

// ErrDropped: the scratch has been given up.
var ErrDropped = errors.New("the scratch was given up")

// ErrFull is for those who may not go on without room.
var ErrFull = syscall.ENOSPC

// Scratch is what one job keeps. See the package comment.
type Scratch struct {
	pool    *Pool
	cluster int64 // bytes
	length  int64 // of the node
	most    int64 // bytes of data that it may hold, 0: the pool's bounds only
	file    spill

	mu sync.Mutex //blockd:short
	// +checklocks:mu
	set btree.Map[int64, *entry] // by offset, what is taken included
	// +checklocks:mu
	fresh int // entries that were not planned
	// +checklocks:mu
	cursor int64 // where planning goes on
	// +checklocks:mu
	dropped bool
	// +checklocks:mu
	use Usage
}

// entry is a cluster of data or a run of zeroes. An entry in the set is taken
// or anybody's; who has taken it uses its fields without the lock.
type entry struct {
	off, n  int64
	zero    bool
	planned bool
	taken   bool

	buf  *ioengine.Buffer // nil: in the file
	seal sealed
}

// Usage is what a scratch holds, in bytes.
type Usage struct {
	Memory  int64 // of data
	Spilled int64 // of data in the file
	Peak    int64 // the most of both together
	// Full is how often there was no room, or its file failed.
	Full int64
}

// New returns an empty scratch for a node of length bytes, in clusters of so
// many bytes, a power of two. It holds at most maxSize bytes of data, 0 for no
// limit but the pool's. Drop gives it up.
func (p *Pool) New(length, cluster, maxSize int64) *Scratch {
	s := &Scratch{pool: p, cluster: cluster, length: length, most: maxSize}
	s.file.init(p.c.Directory, cluster)
	return s
}

// MaxSize returns how many bytes of data the scratch may hold at most, when
// others hold nothing.
func (s *Scratch) MaxSize() int64 {
	most := s.pool.c.Memory
	if s.pool.c.Directory != "" {
		most += s.pool.c.Spill
	}
	if s.most != 0 {
		most = min(most, s.most)
	}
	return most
}

// Usage returns what is held.
//
//blockd:any
func (s *Scratch) Usage() Usage {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.use
}

// Room is space for one range that is to be kept. It ends with Keep or Free.
type Room struct {
	s       *Scratch
	n       int64 // bytes of data, whole clusters
	entries int64
	zero    bool
	spill   bool
	planned bool
}

// Reserve takes room for n bytes, in whole clusters but for the node's end;
// zeroes need none for their content. It returns false when there is no room.
func (s *Scratch) Reserve(n int64, zero bool) (Room, bool) {
	r := s.room(n, zero)
	s.mu.Lock()
	defer s.mu.Unlock()
	ok := !s.dropped && (s.most == 0 || s.use.Memory+s.use.Spilled+r.n <= s.most)
	if ok {
		r.spill, ok = s.pool.take(r.n, r.entries)
	}
	if !ok {
		s.use.Full++
		return Room{}, false
	}
	s.count(r.n, r.spill)
	return r, true
}

// Overdraw takes room beyond all bounds, for what would be lost otherwise: what
// a step has read, and the target refused.
func (s *Scratch) Overdraw(n int64, zero bool) Room {
	r := s.room(n, zero)
	r.planned = true
	s.mu.Lock()
	s.count(r.n, false)
	s.mu.Unlock()
	s.pool.overdraw(r.n, r.entries)
	return r
}

func (s *Scratch) room(n int64, zero bool) Room {
	if zero {
		return Room{s: s, entries: 1, zero: true}
	}
	k := (n + s.cluster - 1) / s.cluster
	return Room{s: s, n: k * s.cluster, entries: k}
}

// count changes what is held.
//
// +checklocks:s.mu
func (s *Scratch) count(n int64, spill bool) {
	if spill {
		s.use.Spilled += n
	} else {
		s.use.Memory += n
	}
	s.use.Peak = max(s.use.Peak, s.use.Memory+s.use.Spilled)
}

// giveBack ends the use of room.
func (s *Scratch) giveBack(n, entries int64, spill bool) {
	s.mu.Lock()
	s.count(-n, spill)
	s.mu.Unlock()
	s.pool.give(n, entries, spill)
}

// Free gives the room back.
func (r *Room) Free() { r.s.giveBack(r.n, r.entries, r.spill) }

// Keep keeps what bytes [off, off+n) of the node hold: the content of b, which
// is nil for zeroes and which Keep releases. The range begins at a cluster,
// nobody keeps part of it yet, and the room is for n bytes of that kind. An
// error is the file's, the context's, or ErrDropped; the room is then free
// again and nothing is kept. It may block on the file.
func (r *Room) Keep(ctx context.Context, off, n int64, b *ioengine.Buffer) error {
	if r.zero {
		return r.put([]*entry{{off: off, n: n, zero: true}})
	}
	if r.entries == 1 && !r.spill {
		return r.put([]*entry{{off: off, n: n, buf: b}})
	}
	defer b.Release()
	entries := make([]*entry, 0, r.entries)
	for pos := int64(0); pos < n; pos += r.s.cluster {
		e := &entry{off: off + pos, n: min(r.s.cluster, n-pos)}
		data := b.Bytes()[pos : pos+e.n]
		if r.spill {
			var err error
			if e.seal, err = r.s.file.write(ctx, data); err != nil {
				r.s.file.free(entries)
				r.Free()
				r.s.refused()
				return err
			}
		} else {
			e.buf = ioengine.Bounce(int(e.n))
			copy(e.buf.Bytes(), data)
		}
		entries = append(entries, e)
	}
	return r.put(entries)
}

// refused counts that there was no room after all.
func (s *Scratch) refused() {
	s.mu.Lock()
	s.use.Full++
	s.mu.Unlock()
}

// put adds entries to the set.
func (r *Room) put(entries []*entry) error {
	s := r.s
	s.mu.Lock()
	if s.dropped {
		s.mu.Unlock()
		r.forget(entries)
		r.Free()
		return ErrDropped
	}
	for _, e := range entries {
		e.planned = r.planned
		s.set.Set(e.off, e)
	}
	if !r.planned {
		s.fresh += len(entries)
	}
	s.mu.Unlock()
	return nil
}

func (r *Room) forget(entries []*entry) {
	for _, e := range entries {
		e.buf.Release()
	}
	if r.spill {
		r.s.file.free(entries)
	}
}

// Empty tells whether nothing is kept.
func (s *Scratch) Empty() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.set.Len() == 0
}

// Each calls f with every range that is kept, and is not known to be copied out.
// f must not use the scratch.
func (s *Scratch) Each(f func(off, n int64)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.set.Scan(func(_ int64, e *entry) bool {
		f(e.off, e.n)
		return true
	})
}

// Next plans a run of what is kept and was not planned before, at most data
// bytes or zero bytes long. They go in ascending order, round and round.
func (s *Scratch) Next(data, zero int64) (off, n int64, isZero, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fresh == 0 {
		return 0, 0, false, false
	}
	var run []*entry
	limit := data
	extend := func(_ int64, e *entry) bool {
		switch {
		case len(run) > 0 && (e.planned || e.off != off+n || e.zero != isZero || n+e.n > limit):
			return false
		case e.planned:
			return true
		case len(run) == 0:
			off, isZero = e.off, e.zero
			if isZero {
				limit = max(zero&^(s.cluster-1), s.cluster)
			}
		}
		run = append(run, e)
		n += e.n
		return n < limit
	}
	s.set.Ascend(s.cursor, extend)
	if len(run) == 0 {
		s.set.Scan(extend)
	}
	if n > limit && isZero {
		s.split(run[0], off+limit)
		n = limit
	}
	for _, e := range run {
		e.planned = true
	}
	s.fresh -= len(run)
	s.cursor = off + n
	return off, n, isZero, true
}

// Replan has everything that is kept planned again: what failed and was not
// tried again. No step is in flight.
func (s *Scratch) Replan() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.set.Scan(func(_ int64, e *entry) bool {
		e.planned = false
		return true
	})
	s.fresh, s.cursor = s.set.Len(), 0
}

// split cuts a run of zeroes in two, at a cluster's boundary within it.
//
// +checklocks:s.mu
func (s *Scratch) split(e *entry, at int64) {
	if at <= e.off || at >= e.off+e.n {
		return
	}
	rest := &entry{off: at, n: e.off + e.n - at, zero: true, planned: e.planned}
	e.n = at - e.off
	s.set.Set(at, rest)
	s.pool.overdraw(0, 1)
	if !rest.planned {
		s.fresh++
	}
}

// splitAt cuts what lies across a boundary; data never does.
//
// +checklocks:s.mu
func (s *Scratch) splitAt(at int64) {
	var across *entry
	s.set.Descend(at-1, func(_ int64, e *entry) bool {
		across = e
		return false
	})
	if across != nil && !across.taken {
		s.split(across, at)
	}
}

// Run is a run of entries of one kind that one step copies out. It ends with
// Done or Return.
type Run struct {
	s       *Scratch
	entries []*entry
	Off, N  int64
	Zero    bool
}

// Take takes the first run of what is kept in [off, off+n), whole clusters;
// of data only if data says so. Nobody else gets it meanwhile.
func (s *Scratch) Take(off, n int64, data bool) (*Run, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.set.Len() == 0 {
		return nil, false
	}
	s.splitAt(off)
	s.splitAt(off + n)
	r := &Run{s: s}
	s.set.Ascend(off, func(_ int64, e *entry) bool {
		switch {
		case e.off >= off+n:
			return false
		case e.taken || !e.zero && !data:
			return r.N == 0
		case r.N == 0:
			r.Off, r.Zero = e.off, e.zero
		case e.off != r.Off+r.N || e.zero != r.Zero:
			return false
		}
		e.taken = true
		r.entries = append(r.entries, e)
		r.N += e.n
		return true
	})
	return r, r.N > 0
}

// Read fills b, of N bytes, with the run's content. An error means that what
// was kept is lost. It may block on the file.
func (r *Run) Read(ctx context.Context, b []byte) error {
	for _, e := range r.entries {
		at := b[e.off-r.Off:][:e.n]
		if e.buf != nil {
			copy(at, e.buf.Bytes())
		} else if err := r.s.file.read(ctx, &e.seal, at); err != nil {
			return err
		}
	}
	return nil
}

// Done forgets the run, which was copied out.
func (r *Run) Done() {
	s := r.s
	s.mu.Lock()
	for _, e := range r.entries {
		if !e.planned && !s.dropped {
			s.fresh--
		}
		s.set.Delete(e.off)
	}
	s.mu.Unlock()
	s.release(r.entries)
}

// Return leaves the run to whoever takes it next.
func (r *Run) Return() {
	s := r.s
	s.mu.Lock()
	dropped := s.dropped
	for _, e := range r.entries {
		e.taken = false
		if dropped {
			s.set.Delete(e.off)
		}
	}
	s.mu.Unlock()
	if dropped {
		s.release(r.entries)
	}
}

// release gives back what entries hold, which have left the set.
func (s *Scratch) release(entries []*entry) {
	for _, e := range entries {
		switch {
		case e.zero:
			s.pool.give(0, 1, false)
		case e.buf != nil:
			e.buf.Release()
			s.giveBack(s.cluster, 1, false)
		default:
			s.file.free([]*entry{e})
			s.giveBack(s.cluster, 1, true)
		}
	}
}

// Drop gives up what is kept, and from now on keeps nothing. What a step has
// taken is given up when the step ends, and the file with the last of it.
func (s *Scratch) Drop() {
	s.mu.Lock()
	if s.dropped {
		s.mu.Unlock()
		return
	}
	s.dropped = true
	var idle []*entry
	s.set.Scan(func(_ int64, e *entry) bool {
		if !e.taken {
			idle = append(idle, e)
		}
		return true
	})
	for _, e := range idle {
		s.set.Delete(e.off)
	}
	s.fresh = 0
	s.mu.Unlock()
	s.release(idle)
	s.file.drop()
}
