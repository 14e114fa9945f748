package qcow2

import (
	"context"
	"sync/atomic"
	"testing"

	"blockd/blockgraph"
	"blockd/qapi"
)

// sink is a file that costs nothing, so that the driver's own cost shows: only
// the first bytes, with the metadata, are real.
type sink struct {
	memFile
	size atomic.Int64
}

func (s *sink) ReadV(ctx context.Context, off int64, v *blockgraph.IOVec, f blockgraph.Flags) error {
	if off >= int64(len(s.b)) {
		return nil
	}
	return s.memFile.ReadV(ctx, off, v, f)
}

func (s *sink) WriteV(_ context.Context, off int64, v *blockgraph.IOVec, _ blockgraph.Flags) error {
	for end := off + v.Len(); ; {
		old := s.size.Load()
		if end <= old || s.size.CompareAndSwap(old, end) {
			return nil
		}
	}
}

func (s *sink) Size() int64                 { return max(s.size.Load(), int64(len(s.b))) }
func (s *sink) Flush(context.Context) error { return nil }

type sinkChildren struct{ s *sink }

func (c sinkChildren) file() storage          { return c.s }
func (c sinkChildren) backing() storage       { return nil }
func (c sinkChildren) data() storage          { return nil }
func (c sinkChildren) node() *blockgraph.Node { return nil }

func benchImage(b *testing.B, size int64) *Driver {
	b.Helper()
	s := &sink{}
	s.b = newImage(b, size).b
	d, err := open(ctxb, sinkChildren{s}, &qapi.BlockdevOptions{}, false)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	return d
}

func mapAll(b *testing.B, d *Driver) {
	p := make([]byte, 1<<20)
	for off := int64(0); off < d.size.Load(); off += 1 << 20 {
		put(b, d, off, p)
	}
	if err := d.Flush(ctxb); err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
}

func BenchmarkReadMapped4K(b *testing.B) {
	d := benchImage(b, 1<<30)
	mapAll(b, d)
	v := blockgraph.MakeIOVec(make([]byte, 4096))
	off := int64(0)
	for b.Loop() {
		if err := d.ReadV(ctxb, off, v, 0); err != nil {
			b.Fatal(err)
		}
		off = (off + 7*4096) & (1<<30 - 1)
	}
}

func BenchmarkReadMapped4KParallel(b *testing.B) {
	d := benchImage(b, 1<<30)
	mapAll(b, d)
	b.RunParallel(func(pb *testing.PB) {
		v := blockgraph.MakeIOVec(make([]byte, 4096))
		off := int64(0)
		for pb.Next() {
			if err := d.ReadV(ctxb, off, v, 0); err != nil {
				b.Fatal(err)
			}
			off = (off + 7*4096) & (1<<30 - 1)
		}
	})
}

func BenchmarkReadMapped1M(b *testing.B) {
	d := benchImage(b, 1<<30)
	mapAll(b, d)
	v := blockgraph.MakeIOVec(make([]byte, 1<<20))
	off := int64(0)
	for b.Loop() {
		if err := d.ReadV(ctxb, off, v, 0); err != nil {
			b.Fatal(err)
		}
		off = (off + 1<<20) & (1<<30 - 1)
	}
}

func BenchmarkWriteMapped4K(b *testing.B) {
	d := benchImage(b, 1<<30)
	mapAll(b, d)
	v := blockgraph.MakeIOVec(make([]byte, 4096))
	off := int64(0)
	for b.Loop() {
		if err := d.WriteV(ctxb, off, v, 0); err != nil {
			b.Fatal(err)
		}
		off = (off + 7*4096) & (1<<30 - 1)
	}
}

func BenchmarkWriteAllocating64K(b *testing.B) {
	const size = 1 << 40
	d := benchImage(b, size)
	v := blockgraph.MakeIOVec(make([]byte, 65536))
	off := int64(0)
	for b.Loop() {
		if err := d.WriteV(ctxb, off, v, 0); err != nil {
			b.Fatal(err)
		}
		off = (off + 65536) & (size - 1)
	}
}

func BenchmarkWriteAllocating4KRandom(b *testing.B) {
	const size = 32 << 30
	d := benchImage(b, size)
	v := blockgraph.MakeIOVec(make([]byte, 4096))
	off := int64(0)
	for b.Loop() {
		if err := d.WriteV(ctxb, off, v, 0); err != nil {
			b.Fatal(err)
		}
		off = (off + 100003*4096) & (size - 1)
	}
}

func BenchmarkFlushAfterOneAllocation(b *testing.B) {
	const size = 1 << 40
	d := benchImage(b, size)
	v := blockgraph.MakeIOVec(make([]byte, 65536))
	off := int64(0)
	for b.Loop() {
		if err := d.WriteV(ctxb, off, v, 0); err != nil {
			b.Fatal(err)
		}
		if err := d.Flush(ctxb); err != nil {
			b.Fatal(err)
		}
		off = (off + 65536) & (size - 1)
	}
}

// BenchmarkMapping is what it costs to find where a cluster lies whose table is
// in the cache.
func BenchmarkMapping(b *testing.B) {
	d := benchImage(b, 1<<30)
	mapAll(b, d)
	off := int64(0)
	for b.Loop() {
		p := d.epochs.pin()
		m, err := d.lookup(ctxb, off, 4096, true)
		p.unpin()
		if err != nil || m.kind != data {
			b.Fatal(m, err)
		}
		off = (off + 7*4096) & (1<<30 - 1)
	}
}

// TestMappedRequestsTakeNoLockAndNoMemory: they go on while somebody has every
// lock that the driver has.
func TestMappedRequestsTakeNoLockAndNoMemory(t *testing.T) {
	for _, opts := range [][]imageOption{nil, {extended}} {
		f := newImage(t, 4<<20, opts...)
		d := openImage(t, f, nil)
		put(t, d, 0, fill(1, 4<<20))
		flush(t, d)
		d.mu.Lock()
		d.flushMu.Lock()
		d.headerTurn <- struct{}{}
		v := blockgraph.MakeIOVec(make([]byte, 4096))
		off := int64(0)
		allocs := testing.AllocsPerRun(200, func() {
			if err := d.ReadV(ctxb, off, v, 0); err != nil {
				t.Error(err)
			}
			if err := d.WriteV(ctxb, off, v, 0); err != nil {
				t.Error(err)
			}
			off = (off + 3*4096) & (4<<20 - 1)
		})
		<-d.headerTurn
		d.flushMu.Unlock()
		d.mu.Unlock()
		closeImage(t, d)
		if allocs > 0 {
			t.Errorf("%v allocations", allocs)
		}
	}
}
