package blockgraph

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
)

const gateStripes = 8 // power of two

// gate admits requests to a root and lets a graph change wait until none is in
// flight. Admission touches one of several counters on cache lines of their
// own; a closed gate makes newcomers wait outside, while what was admitted
// ends in its own time.
//
// A request that was admitted before close is seen by quiet: its counter went
// up before it saw the gate open, and quiet reads the counters after closing.
type gate struct {
	closed  atomic.Int32 // how many changes keep it closed
	waits   atomic.Int64 // how often a request found it closed
	stripes [gateStripes]gateStripe

	mu sync.Mutex //blockd:short
	// +checklocks:mu
	opened chan struct{} // closed when the gate opens; nil while open
	// +checklocks:mu
	kicked chan struct{} // closed when a count fell while closed; nil: nobody waits
}

type gateStripe struct {
	n atomic.Int64
	_ [120]byte
}

// enter admits a request. The result is for leave.
func (g *gate) enter(ctx context.Context) (int, error) {
	for {
		i := int(rand.Uint32() & (gateStripes - 1))
		g.stripes[i].n.Add(1)
		if g.closed.Load() == 0 {
			return i, nil
		}
		g.leave(i)
		g.waits.Add(1)
		if err := g.waitOpen(ctx); err != nil {
			return 0, err
		}
	}
}

func (g *gate) leave(i int) {
	g.stripes[i].n.Add(-1)
	if g.closed.Load() != 0 {
		g.mu.Lock()
		if g.kicked != nil {
			close(g.kicked)
			g.kicked = nil
		}
		g.mu.Unlock()
	}
}

func (g *gate) waitOpen(ctx context.Context) error {
	g.mu.Lock()
	c := g.opened
	g.mu.Unlock()
	if c == nil {
		return nil
	}
	select {
	case <-c:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// close keeps new requests out until open is called as often.
func (g *gate) close() {
	g.mu.Lock()
	if g.closed.Add(1) == 1 {
		g.opened = make(chan struct{})
	}
	g.mu.Unlock()
}

func (g *gate) open() {
	g.mu.Lock()
	if g.closed.Add(-1) == 0 {
		close(g.opened)
		g.opened = nil
	}
	g.mu.Unlock()
}

// inFlight returns how many requests are inside.
func (g *gate) inFlight() int64 {
	var n int64
	for i := range g.stripes {
		n += g.stripes[i].n.Load()
	}
	return n
}

// quiet waits until no request is in flight behind a closed gate.
func (g *gate) quiet(ctx context.Context) error {
	for {
		g.mu.Lock()
		if g.kicked == nil {
			g.kicked = make(chan struct{})
		}
		c := g.kicked
		g.mu.Unlock()
		if g.inFlight() == 0 {
			return nil
		}
		select {
		case <-c:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
