package ioengine

import "sync/atomic"

// statStripes is how many copies of the counters there are, so that files do
// not share a cache line. A power of two.
const statStripes = 8

type counters struct {
	reads, readBytes     atomic.Int64
	writes, writtenBytes atomic.Int64
	others               atomic.Int64
	inlineMisses         atomic.Int64
	slotWaits            atomic.Int64
	shorts               atomic.Int64
}

// Stats counts what went through a Calls since the process began.
type Stats struct {
	// Reads, Writes and Others are system calls: preadv and its kin, pwritev and
	// its kin, and everything else (fdatasync, fallocate, lseek, ioctl).
	Reads, Writes, Others int64
	// ReadBytes and WrittenBytes are what they moved.
	ReadBytes, WrittenBytes int64
	// InlineMisses are reads that were tried without waiting and found their
	// data, or part of it, not in memory.
	InlineMisses int64
	// Shorts are transfers that had to be continued with another call.
	Shorts int64
	// SlotWaits is how often a request had to wait for a slot.
	SlotWaits int64
	// InFlight is how many blocking calls are being made now, and Waiting how
	// many requests wait for a slot.
	InFlight, Waiting int64
}

// Stats returns the counters. Any goroutine.
func (c *Calls) Stats() Stats {
	s := Stats{InFlight: c.taken.Load(), Waiting: c.waiting.Load()}
	for i := range c.stats {
		k := &c.stats[i]
		s.Reads += k.reads.Load()
		s.ReadBytes += k.readBytes.Load()
		s.Writes += k.writes.Load()
		s.WrittenBytes += k.writtenBytes.Load()
		s.Others += k.others.Load()
		s.InlineMisses += k.inlineMisses.Load()
		s.Shorts += k.shorts.Load()
		s.SlotWaits += k.slotWaits.Load()
	}
	return s
}
