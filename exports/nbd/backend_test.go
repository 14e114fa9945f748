package nbd

import (
	"context"
	"sync"
	"sync/atomic"
	"syscall"

	"blockd/blockgraph"
)

// ram is a backend in memory. Its allocation map has one entry per cluster.
type ram struct {
	inactive atomic.Bool

	cluster int64
	flat    bool // a protocol: what is not data is a hole of this very layer

	mu    sync.RWMutex
	data  []byte
	layer []uint8 // per cluster: 0 none, 1 top, 2 first backing, ...

	flushes, discards, fua, fastZero, mayUnmap, prefetch atomic.Int64
	statusCalls                                          atomic.Int64

	// hooked runs at the start of each request, if set; its error fails it.
	hooked atomic.Pointer[hook]
}

type hook func(ctx context.Context, op string, off, n int64) error

func (m *ram) hook(h hook) { m.hooked.Store(&h) }

func newRAM(size, cluster int64) *ram {
	return &ram{cluster: cluster, data: make([]byte, size), layer: make([]uint8, (size+cluster-1)/cluster)}
}

func (m *ram) enter(ctx context.Context, op string, off, n int64) error {
	if off < 0 || n < 0 || off+n > int64(len(m.data)) {
		panic("request outside the backend")
	}
	if h := m.hooked.Load(); h != nil && *h != nil {
		return (*h)(ctx, op, off, n)
	}
	return nil
}

func (m *ram) ReadV(ctx context.Context, off int64, v *blockgraph.IOVec, flags blockgraph.Flags) error {
	if err := m.enter(ctx, "read", off, v.Len()); err != nil {
		return err
	}
	if flags&blockgraph.Prefetch != 0 {
		m.prefetch.Add(v.Len())
	}
	m.mu.RLock()
	v.CopyIn(0, m.data[off:off+v.Len()])
	m.mu.RUnlock()
	return nil
}

func (m *ram) mark(off, n int64, layer uint8) {
	for i := off / m.cluster; i*m.cluster < off+n; i++ {
		m.layer[i] = layer
	}
}

func (m *ram) WriteV(ctx context.Context, off int64, v *blockgraph.IOVec, flags blockgraph.Flags) error {
	if err := m.enter(ctx, "write", off, v.Len()); err != nil {
		return err
	}
	if flags&blockgraph.FUA != 0 {
		m.fua.Add(1)
	}
	m.mu.Lock()
	v.CopyOut(0, m.data[off:off+v.Len()])
	m.mark(off, v.Len(), 1)
	m.mu.Unlock()
	return nil
}

func (m *ram) WriteZeroes(ctx context.Context, off, n int64, flags blockgraph.Flags) error {
	if err := m.enter(ctx, "zero", off, n); err != nil {
		return err
	}
	if flags&blockgraph.FUA != 0 {
		m.fua.Add(1)
	}
	if flags&blockgraph.MayUnmap != 0 {
		m.mayUnmap.Add(1)
	}
	if flags&blockgraph.NoFallback != 0 {
		m.fastZero.Add(1)
		if off%m.cluster != 0 || n%m.cluster != 0 {
			return blockgraph.ErrNotSupported
		}
	}
	m.mu.Lock()
	clear(m.data[off : off+n])
	if off%m.cluster == 0 && n%m.cluster == 0 {
		m.mark(off, n, 0)
	}
	m.mu.Unlock()
	return nil
}

func (m *ram) Discard(ctx context.Context, off, n int64) error {
	if err := m.enter(ctx, "discard", off, n); err != nil {
		return err
	}
	m.discards.Add(1)
	return nil
}

func (m *ram) Flush(ctx context.Context) error {
	if err := m.enter(ctx, "flush", 0, 0); err != nil {
		return err
	}
	m.flushes.Add(1)
	return nil
}

func (m *ram) BlockStatus(ctx context.Context, off, n int64, _ blockgraph.StatusMode) (blockgraph.Status, int, error) {
	if err := m.enter(ctx, "status", off, n); err != nil {
		return blockgraph.Status{}, 0, err
	}
	m.statusCalls.Add(1)
	m.mu.RLock()
	defer m.mu.RUnlock()
	// One cluster at a time: merging is the server's business.
	i := off / m.cluster
	st := blockgraph.Status{N: min(n, (i+1)*m.cluster-off)}
	if m.layer[i] == 0 {
		st.Flags = blockgraph.StatusZero
	} else {
		st.Flags = blockgraph.StatusData | blockgraph.StatusAllocated
	}
	if m.flat {
		return st, 1, nil
	}
	return st, int(m.layer[i]), nil
}

// failing is a hook that fails one kind of request.
func failing(op string, errno syscall.Errno) hook {
	return func(_ context.Context, got string, _, _ int64) error {
		if got == op {
			return errno
		}
		return nil
	}
}

func (b *ram) Inactive() bool { return b.inactive.Load() }
