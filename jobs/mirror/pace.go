package mirror

import (
	"sync/atomic"
	"time"

	"blockd/clock"
	"blockd/qapi"
)

// sampleTime is the least time between two measurements.
const sampleTime = time.Second

// pace measures how fast the job copies and how fast guests make dirty. Guarded
// by mirror.mu but for copied.
type pace struct {
	copied atomic.Int64 // bytes, by the job itself

	clock       clock.Clock
	began, last time.Time
	lastCopied  int64
	lastLeft    int64
	started     bool
	known       bool
	copyRate    float64 // bytes per second
	dirtyRate   float64
}

func (p *pace) init(c clock.Clock) { p.clock, p.began = c, c.Now() }

// restart forgets what was measured; the next sample is the first.
func (p *pace) restart() { p.started = false }

// sample looks at how much is left, in bytes. It returns the job's age.
//
//blockd:any
func (p *pace) sample(left int64) time.Duration {
	now := p.clock.Now()
	copied := p.copied.Load()
	dt := now.Sub(p.last)
	if p.started && dt < sampleTime {
		return now.Sub(p.began)
	}
	if p.started {
		seconds := dt.Seconds()
		copyRate := float64(copied-p.lastCopied) / seconds
		dirtyRate := max(0, float64(left-p.lastLeft+copied-p.lastCopied)/seconds)
		if p.known { // an average that halves with every sample
			copyRate, dirtyRate = (copyRate+p.copyRate)/2, (dirtyRate+p.dirtyRate)/2
		}
		p.copyRate, p.dirtyRate, p.known = copyRate, dirtyRate, true
	}
	p.started = true
	p.last, p.lastCopied, p.lastLeft = now, copied, left
	return now.Sub(p.began)
}

// estimate tells how long left bytes will take; nil before anything is known,
// and while nobody writes.
//
//blockd:any
func (p *pace) estimate(left int64) *qapi.JobConvergence {
	if !p.known || p.dirtyRate < 1 {
		return nil
	}
	c := &qapi.JobConvergence{CopyRate: int64(p.copyRate), DirtyRate: int64(p.dirtyRate)}
	var t int64
	switch {
	case left <= 0:
	case p.copyRate > p.dirtyRate:
		t = int64(float64(left)/(p.copyRate-p.dirtyRate) + 0.5)
	default:
		return c
	}
	c.RemainingTime = &t
	return c
}
