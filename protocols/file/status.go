package file

import (
	"context"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"blockd/blockgraph"
)

// This file finds the holes of a file. The last data extent that was found is
// remembered, so that a fully allocated file costs no system call per query.
// Holes are not remembered: whoever writes into one, another program even,
// would make the memory a lie, whereas taking a hole for data is merely slow.

// extent is a range known to hold data.
type extent struct{ off, end int64 }

// extentCache remembers an extent until something frees a part of the file.
type extentCache struct {
	now   atomic.Pointer[extent]
	epoch atomic.Int64 // how often it was forgotten
}

// find returns how many bytes from off on are known to be data, or 0.
func (c *extentCache) find(off int64) int64 {
	if e := c.now.Load(); e != nil && off >= e.off && off < e.end {
		return e.end - off
	}
	return 0
}

// remember keeps what was found by a search that began in the given epoch,
// unless something was freed since.
func (c *extentCache) remember(e extent, epoch int64) {
	c.now.Store(&e)
	if c.epoch.Load() != epoch {
		c.now.Store(nil)
	}
}

func (c *extentCache) forget() {
	c.epoch.Add(1)
	c.now.Store(nil)
}

// BlockStatus tells data from holes by SEEK_DATA and SEEK_HOLE. A file system
// that cannot say has data everywhere.
func (d *driver) BlockStatus(ctx context.Context, off, n int64, mode blockgraph.StatusMode) (blockgraph.Status, error) {
	st := blockgraph.Status{Flags: blockgraph.StatusData | blockgraph.StatusOffsetValid, N: n, Offset: off, File: d.node}
	if mode != blockgraph.StatusPrecise {
		return st, nil
	}
	if k := d.extent.find(off); k > 0 {
		st.N = min(n, d.wholeBlocks(k, true))
		return st, nil
	}
	epoch := d.extent.epoch.Load()
	var data, hole int64
	err := d.file.Do(ctx, func(fd int) (err error) {
		if data, err = unix.Seek(fd, off, unix.SEEK_DATA); err != nil || data > off {
			return err
		}
		hole, err = unix.Seek(fd, off, unix.SEEK_HOLE)
		return err
	})
	if _, ok := err.(syscall.Errno); err != nil && !ok {
		return blockgraph.Status{}, err // it was not asked
	}
	switch {
	case err == unix.ENXIO: // no data from here to the end
		st.Flags ^= blockgraph.StatusData | blockgraph.StatusZero
	case err != nil:
	case data > off:
		// A block that begins in a hole and ends in data counts as data.
		if k := d.wholeBlocks(data-off, false); k > 0 {
			st.Flags ^= blockgraph.StatusData | blockgraph.StatusZero
			st.N = min(n, k)
		} else {
			st.N = min(n, d.requestAlign.Load())
		}
	case hole > off:
		d.extent.remember(extent{off, hole}, epoch)
		st.N = min(n, d.wholeBlocks(hole-off, true))
	}
	return st, nil
}

// wholeBlocks rounds the length of an extent to the request alignment: data up,
// for the last block of a file may be a part of one, and holes down.
func (d *driver) wholeBlocks(n int64, up bool) int64 {
	a := d.requestAlign.Load()
	if up {
		n += a - 1
	}
	return n &^ (a - 1)
}
