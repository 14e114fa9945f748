package graphtest

import (
	"context"
	"sync"
	"sync/atomic"

	"blockd/blockgraph"
	"blockd/qapi"
)

// Block is the unit, in bytes, in which a Memory knows data from holes.
const Block = 4096

// Memory is a file in memory and, at the same time, the driver of the node
// that has it open. What was never written is a hole.
type Memory struct {
	// Limit and Cap are what the driver announces. They are set before the
	// node is opened; see World.Setup.
	Limit blockgraph.Limits
	Cap   blockgraph.Caps

	Reads, Writes, Zeroes, Discards, Flushes atomic.Int64 // requests
	Zeroed                                   atomic.Int64 // bytes, by WriteZeroes
	Compressed                               atomic.Int64 // writes with that flag

	// Closed: the driver was closed after the last open.
	Closed atomic.Bool

	hook  atomic.Pointer[Hook]
	locks atomic.Pointer[locks]

	mu      sync.RWMutex //blockd:short
	data    []byte
	written []bool // per Block
	synced  bool   // flushed since the last change
	image   *Image // of the format that lies in it, once opened as one
}

type locks struct {
	perm, shared blockgraph.Perm
	err          error
}

// NewMemory returns a file of holes that can do everything.
func NewMemory(size int64) *Memory {
	m := &Memory{
		Cap: blockgraph.Caps{
			WriteZeroes: blockgraph.CapNative, MayUnmap: blockgraph.CapNative,
			Discard: blockgraph.CapNative, Compressed: blockgraph.CapNative, FreshZero: true,
		},
		data: make([]byte, size), written: make([]bool, (size+Block-1)/Block),
	}
	m.locks.Store(&locks{})
	return m
}

// Edit calls f with the content, alone with it; all of it becomes data.
func (m *Memory) Edit(f func(b []byte)) { m.EditRange(0, int64(len(m.data)), f) }

// EditRange calls f with bytes [off, off+n), which become data.
func (m *Memory) EditRange(off, n int64, f func(b []byte)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f(m.data[off : off+n])
	m.mark(off, n, true)
}

// Punch makes bytes [off, off+n) a hole.
func (m *Memory) Punch(off, n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.data[off : off+n])
	m.mark(off, n, false)
}

// Bytes returns a copy of the content.
//
//blockd:any
func (m *Memory) Bytes() []byte {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return append([]byte(nil), m.data...)
}

// Synced tells whether nothing was changed after the last flush.
func (m *Memory) Synced() bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.synced
}

// Requests returns how many requests have arrived, of all kinds.
func (m *Memory) Requests() int64 {
	return m.Reads.Load() + m.Writes.Load() + m.Zeroes.Load() + m.Discards.Load() + m.Flushes.Load()
}

// Locks returns the permissions that the node's users hold and share together,
// as last committed.
func (m *Memory) Locks() (perm, shared blockgraph.Perm) {
	l := m.locks.Load()
	return l.perm, l.shared
}

// RefuseLocks makes every change of permissions fail with err, until nil.
func (m *Memory) RefuseLocks(err error) {
	l := *m.locks.Load()
	l.err = err
	m.locks.Store(&l)
}

func (m *Memory) mark(off, n int64, written bool) {
	m.synced = false
	for i := off / Block; i*Block < off+n; i++ {
		if written {
			m.written[i] = true
		} else if i*Block >= off && (i+1)*Block <= off+n {
			m.written[i] = false
		}
	}
}

func (m *Memory) arrive(k Kind, off, n int64, flags blockgraph.Flags) error {
	if h := m.hook.Load(); h != nil {
		return (*h)(Request{Kind: k, Off: off, N: n, Flags: flags})
	}
	return nil
}

// ReadV implements blockgraph.Driver, as do the others.
func (m *Memory) ReadV(_ context.Context, off int64, v *blockgraph.IOVec, flags blockgraph.Flags) error {
	m.Reads.Add(1)
	if err := m.arrive(Read, off, v.Len(), flags); err != nil {
		return err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	v.CopyIn(0, m.data[off:off+v.Len()])
	return nil
}

func (m *Memory) WriteV(_ context.Context, off int64, v *blockgraph.IOVec, flags blockgraph.Flags) error {
	m.Writes.Add(1)
	if flags&blockgraph.Compressed != 0 {
		m.Compressed.Add(1)
	}
	if err := m.arrive(Write, off, v.Len(), flags); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.resize(max(int64(len(m.data)), off+v.Len()))
	v.CopyOut(0, m.data[off:off+v.Len()])
	m.mark(off, v.Len(), true)
	return nil
}

func (m *Memory) WriteZeroes(_ context.Context, off, n int64, flags blockgraph.Flags) error {
	m.Zeroes.Add(1)
	if err := m.arrive(Zero, off, n, flags); err != nil {
		return err
	}
	m.Zeroed.Add(n)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.resize(max(int64(len(m.data)), off+n))
	clear(m.data[off : off+n])
	m.mark(off, n, false)
	return nil
}

// Discard leaves something else than what was there.
func (m *Memory) Discard(_ context.Context, off, n int64) error {
	m.Discards.Add(1)
	if err := m.arrive(Discard, off, n, 0); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range n {
		m.data[off+i] = 0xdd
	}
	m.mark(off, n, true)
	return nil
}

func (m *Memory) Flush(context.Context) error {
	m.Flushes.Add(1)
	if err := m.arrive(Flush, 0, 0, 0); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.synced = true
	return nil
}

func (m *Memory) BlockStatus(_ context.Context, off, n int64, _ blockgraph.StatusMode) (blockgraph.Status, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	w := m.written[off/Block]
	end := off
	for end < off+n && m.written[end/Block] == w {
		end = end&^(Block-1) + Block
	}
	f := blockgraph.StatusZero
	if w {
		f = blockgraph.StatusData
	}
	return blockgraph.Status{Flags: f, N: min(n, end-off)}, nil
}

func (m *Memory) Size(context.Context) (int64, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return int64(len(m.data)), nil
}

func (m *Memory) Close(context.Context) error {
	m.Closed.Store(true)
	return nil
}

func (m *Memory) Limits() blockgraph.Limits { return m.Limit }
func (m *Memory) Caps() blockgraph.Caps     { return m.Cap }

func (m *Memory) resize(size int64) {
	if k := size - int64(len(m.data)); k > 0 {
		m.data = append(m.data, make([]byte, k)...)
	}
	m.data = m.data[:size]
	blocks := int((size + Block - 1) / Block)
	for len(m.written) < blocks {
		m.written = append(m.written, false)
	}
	m.written = m.written[:blocks]
}

func (m *Memory) Truncate(_ context.Context, size int64, _ bool, _ qapi.PreallocMode, _ bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.resize(size)
	return nil
}

func (m *Memory) PreparePerms(context.Context, blockgraph.Perm, blockgraph.Perm) error {
	return m.locks.Load().err
}
func (m *Memory) CommitPerms(perm, shared blockgraph.Perm) {
	m.locks.Store(&locks{perm: perm, shared: shared, err: m.locks.Load().err})
}
func (m *Memory) AbortPerms() {}

// PrepareReopen has nothing to do.
func (m *Memory) PrepareReopen(context.Context, *blockgraph.ReopenRequest) (*blockgraph.Reopening, error) {
	return &blockgraph.Reopening{}, nil
}
