package throttlegroup

import "time"

// bucket is one limit at work: a leaky bucket. Requests fill it, time empties
// it at the average rate, and while it is over its size requests wait. A burst
// is what it takes to fill it: Max times Length. A second, small bucket that
// empties at the burst rate keeps bursts longer than a second at that rate.
//
// A request is admitted at a full bucket, too, as long as it is not over full,
// and pays for its length afterwards. So the longest request passes the
// smallest bucket.
//
// Levels are floating point: a group's lifetime of nanosecond steps adds up
// to less error than one request.
type bucket struct {
	Rate
	level float64 // bytes or requests
	burst float64 // of the second bucket; with Length over 1 only
}

// freeSeconds is how much of the average rate a bucket without bursts lets
// through at once, and the second bucket of the burst rate: otherwise every
// other request would wait.
const freeSeconds = 0.1

// maxWait bounds what a single timer waits for; then it is looked at again.
const maxWait = time.Hour

// leak lets time pass.
func (b *bucket) leak(d time.Duration) {
	s := d.Seconds()
	b.level = max(0, b.level-float64(b.Avg)*s)
	b.burst = max(0, b.burst-float64(b.Max)*s)
}

// fill accounts for an admitted request.
func (b *bucket) fill(units float64) {
	b.level += units
	if b.Length > 1 {
		b.burst += units
	}
}

// wait returns how long it takes until the next request may pass.
func (b *bucket) wait() time.Duration {
	if b.Avg == 0 {
		return 0
	}
	size := float64(b.Avg) * freeSeconds
	if b.Max > 0 {
		size = float64(b.Max) * float64(b.Length)
	}
	wait := emptying(b.level-size, b.Avg)
	if b.Length > 1 {
		wait = max(wait, emptying(b.burst-float64(b.Max)*freeSeconds, b.Max))
	}
	return wait
}

// emptying returns how long it takes to leak what is over. It rounds down: a
// rest of less than a nanosecond is not waited for, so that a timer which
// fires on time finds the request due.
func emptying(over float64, rate uint64) time.Duration {
	if over <= 0 {
		return 0
	}
	s := over / float64(rate)
	if s >= maxWait.Seconds() {
		return maxWait
	}
	return time.Duration(s * float64(time.Second))
}
