package blockgraph

import (
	"sync/atomic"
	"time"
)

// This file counts requests of roots by how long they took, for metrics. It does
// so only once somebody has asked for it: until then a request finds a pointer
// that is nil, and nothing is allocated.

// LatencyBounds are the upper ends of the classes of latencies; one more class is
// above the last.
var LatencyBounds = [...]time.Duration{
	100 * time.Microsecond, 500 * time.Microsecond, 2500 * time.Microsecond,
	10 * time.Millisecond, 50 * time.Millisecond, 250 * time.Millisecond, 2 * time.Second,
}

// latencyOps is how many kinds of requests are classed: reads, writes, flushes.
const latencyOps = int(opFlush) + 1

// Latencies are the numbers of requests in each class, those that failed among
// them.
type Latencies [len(LatencyBounds) + 1]int64

type rootLatencies [gateStripes]struct {
	op [latencyOps][len(LatencyBounds) + 1]atomic.Int64
	_  [64]byte
}

func (l *rootLatencies) count(stripe int, k opKind, ns int64) {
	if int(k) >= latencyOps {
		return
	}
	i := 0
	for i < len(LatencyBounds) && ns > int64(LatencyBounds[i]) {
		i++
	}
	l[stripe].op[k][i].Add(1)
}

// KeepLatencies has the latencies of all roots counted from now on. While no
// graph change is under way.
//
//blockd:global loop
func (g *Graph) KeepLatencies() {
	g.latencies.Store(true)
	for _, r := range g.Roots() {
		r.latencies.CompareAndSwap(nil, new(rootLatencies))
	}
}

// Latencies returns the latencies of reads, writes and flushes, false if they are
// not counted.
func (r *Root) Latencies() (read, write, flush Latencies, ok bool) {
	l := r.latencies.Load()
	if l == nil {
		return read, write, flush, false
	}
	var sum [latencyOps]Latencies
	for s := range l {
		for k := range sum {
			for i := range sum[k] {
				sum[k][i] += l[s].op[k][i].Load()
			}
		}
	}
	return sum[opRead], sum[opWrite], sum[opFlush], true
}
