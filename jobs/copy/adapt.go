package copy

import "time"

const (
	// firstChunk is the size of the first pieces at speed 0, growChunk the
	// largest to which they grow while that gains.
	firstChunk = 1 << 20
	growChunk  = 4 << 20

	firstZero = 16 << 20
	growZero  = 1 << 30

	// epochTime is how long a measurement of the rate takes. Whatever copies a
	// gigabyte in that time gains nothing from larger pieces: their buffers are
	// memory anew, for the server of a network disk as well.
	epochTime = time.Second
	// gain is by how much a larger size must be faster to be kept.
	gain = 1.05

	// slowStep is how long a step should take at most: longer ones
	// hold up cancels and guests' writes.
	slowStep = 250 * time.Millisecond
	// fastZero is how long a zero step may take for the next to be larger.
	fastZero = 5 * time.Millisecond
)

// adaptation finds the size of pieces at speed 0. It doubles the size of data
// pieces while the whole job's rate gains by it, goes back one step when it
// no longer does, and stays there; steps that take long make it smaller. It
// also bounds the bytes in flight to what the measured rate moves in twice slowStep.
// Guarded by Job.mu.
type adaptation struct {
	unit, most int64

	data, zero int64
	settled    bool
	lastRate   float64 // bytes per second of the epoch before
	rate       float64 // of the latest epoch
	bytes      int64   // of this epoch
	moved      int64   // by all steps, zeroes included
	since      time.Time
}

func newAdaptation(unit, most int64, now time.Time) adaptation {
	a := adaptation{unit: unit, most: max(unit, min(most, max(unit, growChunk))), since: now}
	a.data = a.fit(firstChunk)
	a.zero = max(unit, firstZero)
	return a
}

// fit rounds a size of data pieces to units within the bounds.
func (a *adaptation) fit(n int64) int64 {
	return max(a.unit, min(n, a.most)/a.unit*a.unit)
}

// stepped accounts for a finished step.
func (a *adaptation) stepped(p Piece, took time.Duration, now time.Time) {
	a.moved += p.N
	if p.Kind == Zero {
		switch {
		case took > slowStep/5 && p.N <= a.zero:
			a.zero = max(a.unit, a.zero/2)
		case took < fastZero && p.N == a.zero:
			a.zero = min(a.zero*2, growZero)
		}
		return
	}
	if took > slowStep && p.N <= a.data && a.data > a.unit {
		a.data = a.fit(a.data / 2)
		a.settled = true
	} else if took < slowStep/16 && p.N == a.data && a.data < firstChunk {
		a.data = a.fit(a.data * 2) // it was slow and recovered
	}
	a.bytes += p.N
	elapsed := now.Sub(a.since)
	if elapsed < epochTime {
		return
	}
	a.rate = float64(a.bytes) / elapsed.Seconds()
	a.bytes, a.since = 0, now
	if a.settled {
		return
	}
	switch {
	case a.lastRate == 0 || a.rate > a.lastRate*gain:
		a.lastRate = a.rate
		if bigger := a.fit(a.data * 2); bigger > a.data {
			a.data = bigger
		} else {
			a.settled = true
		}
	default:
		a.data = a.fit(a.data / 2)
		a.settled = true
	}
}

// window returns how many bytes may be in flight, at most limit.
func (a *adaptation) window(limit int64) int64 {
	if a.rate == 0 {
		return limit
	}
	return min(limit, max(2*a.data, int64(a.rate*2*slowStep.Seconds())))
}

// restart forgets the measurement after a pause.
func (a *adaptation) restart(now time.Time) { a.bytes, a.since = 0, now }
