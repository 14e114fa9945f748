package qcow2

import (
	"math/rand/v2"
	"sync/atomic"
)

// epochs tell when every request that may have seen an old mapping has ended.
// A request that uses a mapping without having allocated it pins the present
// epoch while it looks the mapping up and does its I/O. A cluster that was
// unmapped before an epoch began is nobody's any more when the requests of the
// epoch before have ended.
//
// Pins are counted in stripes, so that requests on several cores touch no
// common cache line.
type epochs struct {
	now   atomic.Uint64
	count [2][pinStripes]pinCounter // by the epoch's parity
}

const pinStripes = 8 // power of two

// pinCounter has the pins that are held in its low bits, and above them how many
// there ever were, so that counting both takes one addition.
type pinCounter struct {
	n atomic.Int64
	_ [56]byte
}

const (
	heldBits = 20 // more requests than fit a stripe are never under way
	held     = 1<<heldBits - 1
	onePin   = 1<<heldBits + 1
)

// pin is a request's hold on its epoch.
type pin struct{ c *pinCounter }

func (e *epochs) pin() pin {
	stripe := rand.Uint32() & (pinStripes - 1)
	for {
		now := e.now.Load()
		c := &e.count[now&1][stripe]
		c.n.Add(onePin)
		if e.now.Load() == now {
			return pin{c}
		}
		c.n.Add(-onePin)
	}
}

func (p pin) unpin() { p.c.n.Add(-1) }

// advance begins the next epoch. The one before the present must be quiet.
func (e *epochs) advance() { e.now.Add(1) }

// quiet tells whether all requests of the epoch before the present one have
// ended. Once true it stays true until advance.
func (e *epochs) quiet() bool {
	old := &e.count[(e.now.Load()+1)&1]
	for i := range old {
		if old[i].n.Load()&held != 0 {
			return false
		}
	}
	return true
}

// total returns how many pins there ever were.
func (e *epochs) total() uint64 {
	var n uint64
	for i := range e.count {
		for j := range e.count[i] {
			n += uint64(e.count[i][j].n.Load()) >> heldBits
		}
	}
	return n
}
