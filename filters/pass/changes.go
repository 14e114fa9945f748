package pass

import "sync/atomic"

// Changes counts what was asked to be changed, so that a filter can tell a flush
// that has something to do from one that has not: in the field, the latter never
// reaches a driver. The zero value has nothing to do. Any goroutine.
type Changes struct{ made, flushed atomic.Int64 }

// Made notes a change, when it has ended, failed or not.
func (c *Changes) Made() { c.made.Add(1) }

// Pending tells whether there were changes since the last flush, and what is to
// be given to Flushed if this one succeeds.
func (c *Changes) Pending() (upTo int64, pending bool) {
	upTo = c.made.Load()
	return upTo, upTo != c.flushed.Load()
}

// Flushed notes a flush that succeeded.
func (c *Changes) Flushed(upTo int64) { c.flushed.Store(upTo) }
