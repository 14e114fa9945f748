package qcow2

import (
	"blockd/qapi"
)

// The end of a compaction (compact.go): space is given back.

// cut shortens the file to the last cluster in use, which is most likely the one
// before end. Nothing is allocated behind it meanwhile.
func (c *compaction) cut(end int64) error {
	d := c.d
	f := d.file()
	if !f.Grows() {
		return nil
	}
	d.mu.Lock()
	d.reserve(&reservation{first: end, open: true})
	d.mu.Unlock()
	// What was allocated before that lies in the file's part that stays.
	end, err := c.lastUsed(end)
	cut := err == nil && end<<d.h.clusterBits < f.Size()
	if cut {
		err = f.Truncate(c.ctx, end<<d.h.clusterBits, false, qapi.PreallocModeOff, false)
	}
	d.mu.Lock()
	if cut && err == nil {
		d.refs.untouched = end
	}
	d.unreserve()
	d.mu.Unlock()
	return err
}

// lastUsed returns the end of the last cluster in use, at least first, and moves
// the reservation there.
func (c *compaction) lastUsed(first int64) (int64, error) {
	d := c.d
	r := &d.refs
	d.mu.Lock()
	defer d.mu.Unlock()
	for index := int64(len(r.table)) - 1; index >= first>>r.blockBits; {
		b, err := d.refBlockAt(index)
		if err != nil {
			d.mu.Unlock()
			err = d.fetch(c.ctx, err)
			d.mu.Lock()
			if err != nil {
				return 0, err
			}
			continue
		}
		if b != nil && b.free < 1<<r.blockBits {
			for i := int64(1)<<r.blockBits - 1; i >= 0 && index<<r.blockBits+i >= first; i-- {
				if refAt(b.data, r.order, i) != 0 {
					first = index<<r.blockBits + i + 1
					d.reserved.first = first
					return first, nil
				}
			}
		}
		index--
	}
	return first, nil
}

// punch gives the space of free clusters to the storage.
func (c *compaction) punch() error {
	d := c.d
	if n := d.file().Node(); n != nil && !n.Discards() {
		return nil
	}
	limit := d.file().Size() >> d.h.clusterBits
	for next := int64(0); next < limit; {
		first, n, err := c.freeRun(next, limit)
		if err != nil {
			return err
		}
		if n == 0 {
			return nil
		}
		err = d.discardClusters(c.ctx, first, n)
		d.mu.Lock()
		d.unreserve()
		d.mu.Unlock()
		if err != nil {
			return nil // the storage keeps it
		}
		c.res.Discarded += n << d.h.clusterBits
		next = first + n
		if err := c.spend(d.h.clusterSize); err != nil {
			return err
		}
	}
	return nil
}

// freeRun reserves the first run of free clusters in [next, limit); n is 0 where
// there is none.
func (c *compaction) freeRun(next, limit int64) (first, n int64, err error) {
	d := c.d
	r := &d.refs
	for next < limit {
		d.mu.Lock()
		index := next >> r.blockBits
		b, err := d.refBlockAt(index)
		end := min((index+1)<<r.blockBits, limit)
		if err == nil && b != nil && b.free > 0 {
			for next < end && refAt(b.data, r.order, next&(1<<r.blockBits-1)) != 0 {
				next++
			}
			for next+n < end && n < punchClusters && refAt(b.data, r.order, (next+n)&(1<<r.blockBits-1)) == 0 {
				n++
			}
			if n > 0 {
				d.reserve(&reservation{first: next, end: next + n})
			}
		} else if err == nil {
			next = end
		}
		d.mu.Unlock()
		if err != nil {
			if err := d.fetch(c.ctx, err); err != nil {
				return 0, 0, err
			}
			continue
		}
		if n > 0 {
			return next, n, nil
		}
		if err := c.spend(1); err != nil {
			return 0, 0, err
		}
	}
	return next, 0, nil
}
