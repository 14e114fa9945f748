package blklogwrites

import (
	"context"
	"encoding/binary"
	"sync"

	"blockd/blockgraph"
	"blockd/ioengine"
)

// log is where the filter's log ends.
type log struct {
	bits   uint   // log2 of the sector size
	period uint64 // entries between superblocks

	mu      sync.Mutex
	next    int64               // sector of the next entry
	begun   uint64              // entries that have a place
	written uint64              // entries from the first on that are written
	done    map[uint64]struct{} // written entries behind those
	failed  error               // of the first entry or superblock that was not written
	super   bool                // a superblock is being written
	moved   chan struct{}       // closed when one of these four changes; nil: nobody waits
}

// entry is one request, in bytes.
type entry struct {
	off, n int64
	flags  uint64
	data   *blockgraph.IOVec // nil: none
	zeroes bool              // n bytes of zeroes are its data
}

// changed wakes who waits. With mu.
func (l *log) changed() {
	if l.moved != nil {
		close(l.moved)
		l.moved = nil
	}
}

// wait waits for a change, which comes with the end of a write below. With mu,
// which it gives back meanwhile.
//
// +checklocks:l.mu
func (l *log) wait() {
	if l.moved == nil {
		l.moved = make(chan struct{})
	}
	c := l.moved
	l.mu.Unlock()
	<-c
	l.mu.Lock()
}

// sectors returns how many sectors n bytes take.
func (l *log) sectors(n int64) int64 { return (n + 1<<l.bits - 1) >> l.bits }

// add logs a request. What is begun is written even if the request was given
// up: a hole would end the log.
func (l *log) add(ctx context.Context, e *blockgraph.Edge, x entry) error {
	ctx = context.WithoutCancel(ctx)
	l.mu.Lock()
	if l.failed != nil {
		defer l.mu.Unlock()
		return l.failed
	}
	number := l.begun
	at := l.next << l.bits
	l.begun++
	l.next++
	if x.data != nil || x.zeroes {
		l.next += l.sectors(x.n)
	}
	l.mu.Unlock()

	err := l.write(ctx, e, at, x)

	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.failed = err
		l.changed()
		return err
	}
	l.complete(number)
	if x.flags&flagFlush == 0 && (number+1)%l.period != 0 {
		return nil
	}
	return l.count(ctx, e, number+1)
}

// complete notes that an entry is written. With mu.
func (l *log) complete(number uint64) {
	if number != l.written {
		if l.done == nil {
			l.done = map[uint64]struct{}{}
		}
		l.done[number] = struct{}{}
		return
	}
	for ok := true; ok; _, ok = l.done[l.written] {
		delete(l.done, l.written)
		l.written++
	}
	l.changed()
}

// write writes an entry to its place.
func (l *log) write(ctx context.Context, e *blockgraph.Edge, at int64, x entry) error {
	head := ioengine.Bounce(1 << l.bits)
	defer head.Release()
	b := head.Bytes()
	clear(b)
	le := binary.LittleEndian
	le.PutUint64(b, uint64(x.off>>l.bits))
	le.PutUint64(b[8:], uint64(l.sectors(x.n)))
	le.PutUint64(b[16:], x.flags)
	v := blockgraph.MakeIOVec(b)
	if x.data != nil {
		v.AppendRange(x.data, 0, x.n)
	}
	if err := e.WriteV(ctx, at, v, 0); err != nil || !x.zeroes {
		return err
	}
	return e.WriteZeroes(ctx, at+1<<l.bits, x.n, 0)
}

// count has the superblock count at least n entries, durably. With mu, which it
// gives back meanwhile.
//
// +checklocks:l.mu
func (l *log) count(ctx context.Context, e *blockgraph.Edge, n uint64) error {
	for l.failed == nil && (l.written < n || l.super) {
		l.wait()
	}
	if l.failed != nil {
		return l.failed
	}
	entries := l.written
	l.super = true
	l.mu.Unlock()
	err := l.writeSuper(ctx, e, entries)
	l.mu.Lock()
	l.super = false
	if err != nil {
		l.failed = err
	}
	l.changed()
	return err
}

func (l *log) writeSuper(ctx context.Context, e *blockgraph.Edge, entries uint64) error {
	buf := ioengine.Bounce(1 << l.bits)
	defer buf.Release()
	b := buf.Bytes()
	clear(b)
	le := binary.LittleEndian
	le.PutUint64(b, magic)
	le.PutUint64(b[8:], version)
	le.PutUint64(b[16:], entries)
	le.PutUint32(b[24:], 1<<l.bits)
	if err := e.WriteV(ctx, 0, blockgraph.MakeIOVec(b), 0); err != nil {
		return err
	}
	return e.Flush(ctx)
}
