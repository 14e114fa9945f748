package qcow2

import (
	"context"
	"sync"

	"blockd/blockgraph"
	"blockd/ioengine"
)

// maxFanOut is how many pieces of one request are read at a time.
const maxFanOut = 8

// ReadV reads v.Len() bytes from off on. Data plane.
func (d *Driver) ReadV(ctx context.Context, off int64, v *blockgraph.IOVec, _ blockgraph.Flags) error {
	p := d.epochs.pin()
	defer p.unpin()
	n := v.Len()
	m, err := d.lookup(ctx, off, n, false)
	if err != nil {
		return err
	}
	if m.n == n {
		return d.readRun(ctx, off, m, v)
	}
	return d.readRuns(ctx, off, m, v)
}

// readRuns reads what consists of several runs; those that need I/O are read
// at the same time.
func (d *Driver) readRuns(ctx context.Context, off int64, m mapping, v *blockgraph.IOVec) error {
	var (
		wg    sync.WaitGroup
		slots = make(chan struct{}, maxFanOut-1)
		mu    sync.Mutex
		first error
	)
	fail := func(err error) {
		if err != nil {
			mu.Lock()
			if first == nil {
				first = err
			}
			mu.Unlock()
		}
	}
	n := v.Len()
	for pos := int64(0); ; {
		part, at := v.Slice(pos, m.n), off+pos
		cur := m
		pos += m.n
		if pos == n || cur.kind == zeroPlain || cur.kind == zeroAlloc {
			fail(d.readRun(ctx, at, cur, part))
		} else {
			select {
			case slots <- struct{}{}:
				wg.Go(func() {
					fail(d.readRun(ctx, at, cur, part))
					<-slots
				})
			default:
				fail(d.readRun(ctx, at, cur, part))
			}
		}
		if pos == n {
			break
		}
		var err error
		if m, err = d.lookup(ctx, off+pos, n-pos, false); err != nil {
			fail(err)
			break
		}
	}
	wg.Wait()
	return first
}

// readRun reads one run.
func (d *Driver) readRun(ctx context.Context, off int64, m mapping, v *blockgraph.IOVec) error {
	switch m.kind {
	case data:
		return d.readGuest(ctx, off, m.host, v)
	case compressed:
		buf := ioengine.Bounce(int(d.h.clusterSize))
		defer buf.Release()
		if err := d.readPacked(ctx, m.word, buf.Bytes()); err != nil {
			return err
		}
		in := off & (d.h.clusterSize - 1)
		v.CopyIn(0, buf.Bytes()[in:in+v.Len()])
		return nil
	case unallocated, unallocatedAlloc:
		if b := d.ch.backing(); b != nil {
			d.file().DebugEvent("read_backing_aio")
			return b.ReadV(ctx, off, v, 0)
		}
	}
	v.Zero(0, v.Len())
	return nil
}

// compressedExtent returns where the data of a compressed cluster lies, in
// bytes (specification: "Compressed Clusters Descriptor").
func (h *header) compressedExtent(entry uint64) (off, n int64) {
	off = int64(entry & (1<<h.compressedShift - 1))
	sectors := int64(entry>>h.compressedShift&h.compressedSizeMax) + 1
	return off, sectors*sector - off&(sector-1)
}
