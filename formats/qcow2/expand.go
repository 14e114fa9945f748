package qcow2

import (
	"context"
	"slices"

	"blockd/blockgraph"
)

// Version 2 has no clusters that read as zeroes by their entry. Where nothing lies
// below the image they are given up; elsewhere they become data. In tables that only
// snapshots have, what is new is durable and counted as often as the table is before
// the table is written where it lies, and what it referred to is given up after; the
// dirty bit says meanwhile that counts and copied flags may not fit.

// expandZeroes replaces all of them. The image is at rest.
func (d *Driver) expandZeroes(ctx context.Context) error {
	below := d.names.Load()[0] != "" || d.ch.backing() != nil
	if err := d.expandActive(ctx, below); err != nil {
		return err
	}
	if len(d.snapshots.Load().list) == 0 {
		return d.settle(ctx)
	}
	if err := d.beginUncounted(ctx); err != nil {
		return err
	}
	err := d.expandInactive(ctx, below)
	if err == nil {
		err = d.settle(ctx)
	}
	if err == nil {
		err = d.fitFlags(ctx)
	}
	if err != nil {
		return err // the next one to open the image puts its counts in order
	}
	return d.endUncounted(ctx)
}

// expandInactive does it for the tables of snapshots.
func (d *Driver) expandInactive(ctx context.Context, below bool) error {
	// How often each is named; its count may be higher, by a leak.
	times := map[int64]int64{}
	for _, e := range d.activeL1() {
		times[int64(e&l1OffsetMask)]++
	}
	for _, s := range d.snapshots.Load().list {
		l1, err := d.snapshotL1(ctx, &s)
		if err != nil {
			return err
		}
		for _, e := range l1 {
			times[int64(e&l1OffsetMask)]++
		}
	}
	return d.eachInactiveTable(ctx, func(i, at int64, l2 []byte) error {
		n := times[at]
		delete(times, at) // once
		return d.expandTable(ctx, i, at, l2, n, below)
	})
}

// expandActive does it for what the disk has now, by its usual changes.
func (d *Driver) expandActive(ctx context.Context, below bool) error {
	h := d.h
	end, all := h.clusters(d.size.Load()), int64(len(d.activeL1()))<<h.l2Bits
	from := end // what tables have past the disk is not read, and goes
	if !below {
		from = 0
	}
	if from < all {
		err := d.remap(ctx, from, all, unmapping{kind: discardOther}, func(e l2Entry) (l2Entry, error) {
			if k := h.kindOf(e, 0); k == zeroPlain || k == zeroAlloc {
				return l2Entry{}, nil
			}
			return e, nil
		})
		if err != nil || !below {
			return err
		}
	}
	for off, size := int64(0), d.size.Load(); off < size; {
		m, err := d.lookup(ctx, off, size-off, false)
		if err != nil {
			return err
		}
		if m.kind == zeroPlain || m.kind == zeroAlloc {
			m.n = min(m.n, max(h.clusterSize, 1<<20))
			v := &blockgraph.IOVec{}
			appendZeroes(v, m.n)
			if err := d.WriteV(ctx, off, v, 0); err != nil {
				return err
			}
		}
		off += m.n
	}
	return nil
}

// expandTable does it for a table of snapshots, at byte at, with index i in their L1
// tables, which name it so many times; 0: it has been done.
func (d *Driver) expandTable(ctx context.Context, i, at int64, l2 []byte, times int64, below bool) error {
	h := d.h
	changed := false
	var old []extent
	if times == 0 {
		return nil
	}
	for j := range int64(1) << h.l2Bits {
		e := h.entryAt(l2, j)
		if k := h.kindOf(e, 0); k != zeroPlain && k != zeroAlloc {
			continue
		}
		changed = true
		word := uint64(0)
		if below {
			place, err := d.putZeroes(ctx, (i<<h.l2Bits+j)<<h.clusterBits, times)
			if err != nil {
				return err
			}
			word = uint64(place)
		}
		if h.hasPlace(e) {
			old = append(old, extent{first: int64(e.word&l2OffsetMask) >> h.clusterBits, n: 1, kind: discardSnapshot})
		}
		h.setWordAt(l2, j, word)
	}
	if !changed {
		return nil
	}
	if err := d.writeBack(ctx); err != nil {
		return err
	}
	if err := d.putTable(ctx, i, at, l2, true, false); err != nil {
		return err
	}
	if err := d.file().Flush(ctx); err != nil {
		return err
	}
	for range times {
		d.giveUp(old...)
	}
	return d.settle(ctx)
}

// putZeroes stores a cluster of zeroes for guest byte off in a new place, which
// counts for so many references, and returns the place in bytes.
func (d *Driver) putZeroes(ctx context.Context, off, times int64) (int64, error) {
	place, err := d.allocateRun(ctx, 1)
	if err != nil {
		return 0, err
	}
	v := &blockgraph.IOVec{}
	appendZeroes(v, d.h.clusterSize)
	if err := d.writeGuest(ctx, off, place, v, false); err != nil {
		return 0, err
	}
	more := slices.Repeat([]int64{place >> d.h.clusterBits}, int(times-1))
	return place, d.addRefs(ctx, more)
}
