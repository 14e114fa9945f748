package blockgraph

import "sync/atomic"

// This file counts what goes through edges, for those who watch. An edge counts
// from when it was first asked for (Traffic), so that requests of a daemon that
// nobody watches pay for one look at a pointer.

// edgeTraffic are an edge's counters.
type edgeTraffic struct{ read, written, operations atomic.Int64 }

// Traffic is what went through an edge since somebody first asked for it: bytes
// of reads and of writes, zero writes among them, that succeeded, and requests.
type Traffic struct{ Read, Written, Operations int64 }

// Traffic returns what went through the edge, and has it count from now on.
// Control plane.
//
//blockd:global
func (e *Edge) Traffic() Traffic {
	t := e.traffic.Load()
	if t == nil {
		e.traffic.Store(&edgeTraffic{}) // nobody else does
		return Traffic{}
	}
	return Traffic{t.read.Load(), t.written.Load(), t.operations.Load()}
}

// passed counts a request that has ended.
func (e *Edge) passed(read, written int64, err error) {
	t := e.traffic.Load()
	if t == nil {
		return
	}
	t.operations.Add(1)
	if err == nil {
		t.read.Add(read)
		t.written.Add(written)
	}
}
