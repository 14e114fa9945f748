package qcow2

import (
	"context"
	"encoding/binary"
	"syscall"
	"time"

	"blockd/blockgraph"
	"blockd/ioengine"
)

// Making the image's bitmaps dirty ahead of the disk: this format's part of
// package bitmapstore.

// BitmapWaits returns how often a change of the image waited until it was dirty
// in the stored bitmaps, and for how long in all. Any goroutine.
func (d *Driver) BitmapWaits() (n int64, total time.Duration) { return d.bitmaps.ahead.Waits() }

// BeforeChange sees to it that bytes [off, off+n) are dirty in the stored
// bitmaps that record. Data plane.
func (d *Driver) BeforeChange(ctx context.Context, off, n int64) error {
	return d.bitmaps.ahead.Before(ctx, bitmapSide{d}, off, n)
}

// bitmapSide is the driver as the package bitmapstore sees it.
type bitmapSide struct{ d *Driver }

// Ready stores the list that is wanted.
func (i bitmapSide) Ready(ctx context.Context) error {
	d, s := i.d, &i.d.bitmaps
	if d.broken.Load() {
		return syscall.EIO
	}
	if !s.stored {
		if err := d.storeWanted(ctx, d.size.Load(), nil); err != nil {
			return err
		}
	}
	if s.onClose {
		s.setStored(true)
	}
	return nil
}

// Recorded tells what the regions are made from.
func (i bitmapSide) Recorded() (size int64, granularityBits uint) {
	for _, e := range i.d.bitmaps.dir {
		if e.recording() {
			granularityBits = max(granularityBits, uint(e.granularityBits))
		}
	}
	return i.d.size.Load(), granularityBits
}

// SetDirty sets bits in the image.
func (i bitmapSide) SetDirty(ctx context.Context, from, to int64) error {
	return i.d.openRegions(ctx, from, to)
}

func (e *storedBitmap) recording() bool { return e.flags == bitmapAuto }

// openRegions sets the bits of [from, to) in the image. turn is held.
func (d *Driver) openRegions(ctx context.Context, from, to int64) error {
	var hooks []hook
	done := 0
	defer func() {
		// What no table has been told of. What may have been written leaks.
		for _, h := range hooks[done:] {
			if h.value != bitmapAllOnes {
				d.freeCluster(int64(h.value))
			}
		}
	}()
	for _, e := range d.bitmaps.dir {
		if !e.recording() {
			continue
		}
		e.loose = true
		more, err := d.setStored(ctx, e, from, min(to, d.size.Load()))
		hooks = append(hooks, more...)
		if err != nil {
			return err
		}
	}
	if len(hooks) == 0 {
		return d.file().Flush(ctx)
	}
	// New clusters, and their counts, before what refers to them.
	if err := d.writeBack(ctx); err != nil {
		return err
	}
	for _, h := range hooks {
		done++
		if err := d.hookUp(ctx, h); err != nil {
			return err
		}
	}
	return d.file().Flush(ctx)
}

func (d *Driver) freeCluster(off int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.free(off>>d.h.clusterBits, 1, discardOther)
}

// hook is a table entry to be written.
type hook struct {
	e     *storedBitmap
	index int64
	value uint64
}

// hookUp writes a table entry in place.
func (d *Driver) hookUp(ctx context.Context, h hook) error {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], h.value)
	if err := writeAt(ctx, d.file(), h.e.tableOffset+h.index*8, b[:]); err != nil {
		return err
	}
	h.e.table[h.index] = h.value
	return nil
}

// setStored sets the bits of [from, to), whole bytes of data, in one bitmap. It
// returns the table entries that are to change when what was written is
// durable.
func (d *Driver) setStored(ctx context.Context, e *storedBitmap, from, to int64) ([]hook, error) {
	cs := d.h.clusterSize
	bit := func(off int64) int64 { return (off + 1<<e.granularityBits - 1) >> e.granularityBits }
	first, end := bit(from), bit(to)
	var hooks []hook
	for first < end {
		index := first / 8 / cs
		stop := min(end, (index+1)*cs*8)
		at := first/8 - index*cs
		n := (stop+7)/8 - first/8
		ones := onesUpTo(n, stop)
		v := e.table[index]
		switch off := int64(v & l2OffsetMask); {
		case off != 0:
			err := writeAt(ctx, d.file(), off+at, ones.Bytes())
			ones.Release()
			if err != nil {
				return hooks, err
			}
		case v&bitmapAllOnes != 0:
			ones.Release()
		default:
			h, err := d.newData(ctx, e, index, at, ones.Bytes())
			ones.Release()
			if err != nil {
				return hooks, err
			}
			hooks = append(hooks, h)
		}
		first = stop
	}
	return hooks, nil
}

// onesUpTo returns n bytes of ones, the last of which ends at bit stop.
func onesUpTo(n, stop int64) *ioengine.Buffer {
	b := ioengine.Bounce(int(n))
	p := b.Bytes()
	for i := range p {
		p[i] = 0xff
	}
	if rest := stop % 8; rest != 0 {
		p[n-1] = 1<<rest - 1
	}
	return b
}

// newData gives a table entry that has no data a cluster with the bytes at,
// and zeroes around them. Without space for one the entry says that all its
// bits are set.
func (d *Driver) newData(ctx context.Context, e *storedBitmap, index, at int64, p []byte) (hook, error) {
	off, err := d.allocateRun(ctx, 1)
	if noSpace(err) {
		return hook{e, index, bitmapAllOnes}, nil
	}
	if err != nil {
		return hook{}, err
	}
	b := ioengine.Bounce(int(d.h.clusterSize))
	defer b.Release()
	clear(b.Bytes())
	copy(b.Bytes()[at:], p)
	err = d.checkOverlap(off, d.h.clusterSize, 0)
	if err == nil {
		err = writeAt(ctx, d.file(), off, b.Bytes())
	}
	if err != nil {
		d.freeCluster(off)
		return hook{}, err
	}
	return hook{e, index, uint64(off)}, nil
}

var _ blockgraph.BitmapStorer = (*Driver)(nil)
