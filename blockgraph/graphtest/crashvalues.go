package graphtest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"
)

// CrashValues is what the sectors of a disk may hold after a crash. Every
// sector is filled with a number; after a crash it must hold what it held at the
// guest's last flush, or something written since.
//
// Points in time are numbers of entries in the log of the files: something
// happened at k when k entries had been made.
type CrashValues struct {
	// Now tells how many entries the log has.
	Now func() int

	clock   atomic.Int64
	next    atomic.Uint64
	mu      sync.Mutex
	hist    [][]crashValue
	flushes []crashFlush
}

// crashValue is a new value of a guest sector. It began when the log had from
// entries; done is when it was complete, on the test's own clock.
type crashValue struct {
	value uint64
	from  int
	done  int64
}

// crashFlush began at start on the clock and ended when the log had to entries.
type crashFlush struct {
	start int64
	to    int
}

// Sector returns a sector full of a value.
func Sector(value uint64) []byte {
	b := make([]byte, CrashSector)
	if value != 0 {
		for i := 0; i < CrashSector; i += 8 {
			binary.LittleEndian.PutUint64(b[i:], value)
		}
	}
	return b
}

// SectorValue returns the value that a sector is full of.
func SectorValue(b []byte) (v uint64, whole bool) {
	return binary.LittleEndian.Uint64(b), bytes.Equal(b[8:CrashSector], b[:CrashSector-8])
}

// Begin takes what the disk holds at first.
func (c *CrashValues) Begin(content []byte) error {
	c.next.Store(1)
	for i := 0; i < len(content); i += CrashSector {
		v, whole := SectorValue(content[i : i+CrashSector])
		if !whole {
			return fmt.Errorf("sector %d at the beginning has no value", i/CrashSector)
		}
		c.hist = append(c.hist, []crashValue{{value: v}})
	}
	return nil
}

// NewValue returns one that no sector has had.
func (c *CrashValues) NewValue() uint64 { return c.next.Add(1) }

// Last returns the newest value of a sector. Nobody changes it.
func (c *CrashValues) Last(s int64) uint64 {
	list := c.hist[s]
	return list[len(list)-1].value
}

// Values returns the newest values of all sectors.
func (c *CrashValues) Values() []uint64 {
	v := make([]uint64, len(c.hist))
	for i := range v {
		v[i] = c.Last(int64(i))
	}
	return v
}

// Only forgets the sectors from the nth on.
func (c *CrashValues) Only(n int) { c.hist = c.hist[:n] }

// Change runs a request that gives sectors [s, s+n) the values that f returns.
func (c *CrashValues) Change(s, n int64, run func(), f func(i int64) uint64) {
	from := c.Now()
	run()
	c.Changed(from, s, n, f)
}

// Changed notes that a request which began at from has given sectors [s, s+n)
// the values that f returns.
func (c *CrashValues) Changed(from int, s, n int64, f func(i int64) uint64) {
	done := c.clock.Add(1)
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range n {
		for s+i >= int64(len(c.hist)) {
			c.hist = append(c.hist, nil)
		}
		c.hist[s+i] = append(c.hist[s+i], crashValue{f(i), from, done})
	}
}

// FlushBegins returns the time for Flushed.
func (c *CrashValues) FlushBegins() int64 { return c.clock.Add(1) }

// Flushed notes that everything that was complete at start is durable.
func (c *CrashValues) Flushed(start int64) { c.FlushedBy(start, c.Now()) }

// FlushedBy is Flushed when the log had to entries.
func (c *CrashValues) FlushedBy(start int64, to int) {
	c.mu.Lock()
	c.flushes = append(c.flushes, crashFlush{start, to})
	c.mu.Unlock()
}

// Judge tells what is wrong with the content of a disk after a crash.
func (c *CrashValues) Judge(x *CrashState, content []byte) error {
	for s := range len(content) / CrashSector {
		v, whole := SectorValue(content[s*CrashSector : (s+1)*CrashSector])
		if !whole {
			return fmt.Errorf("%v: sector %d is torn", x, s)
		}
		if !c.Allowed(s, v, x.K) || !c.Allowed(s, v, x.Until) {
			return fmt.Errorf("%v until %d: sector %d holds %d, history %+v, flushes %+v", x, x.Until, s, v, c.hist[s], c.flushes)
		}
	}
	return nil
}

// Holds tells whether the disk's content is what was written last.
func (c *CrashValues) Holds(content []byte) error {
	for s := range int64(len(content) / CrashSector) {
		v, whole := SectorValue(content[s*CrashSector : (s+1)*CrashSector])
		if want := c.Last(s); !whole || v != want {
			return fmt.Errorf("sector %d holds %d, not %d, without a crash: history %+v", s, v, want, c.hist[s])
		}
	}
	return nil
}

// Allowed tells whether a sector may hold value after a crash at k.
func (c *CrashValues) Allowed(s int, value uint64, k int) bool {
	durable := int64(-1)
	for _, f := range c.flushes {
		if f.to <= k {
			durable = max(durable, f.start)
		}
	}
	list := c.hist[s]
	first := 0
	for i, h := range list {
		if i > 0 && h.done < durable {
			first = i
		}
	}
	for i := first; i < len(list); i++ {
		if list[i].value == value && (i == first || list[i].from < k) {
			return true
		}
	}
	return false
}
