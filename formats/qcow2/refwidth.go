package qcow2

import (
	"context"
	"syscall"

	"blockd/blockgraph"
	"blockd/ioengine"
)

// Another width of refcounts. The counts stay as they are, of leaked clusters too;
// new structures are made for them and switched to as when they are made anew
// (rebuild.go), and the clusters of the old ones are free.

// storedCounts returns the counts on disk, but for what the present structures take,
// for structures of another width. A count that does not fit it is an error.
func (d *Driver) storedCounts(ctx context.Context, order uint32) (*checker, error) {
	h := *d.h
	h.refcountOrder = order
	h.setGeometry()
	c := &checker{ctx: ctx, f: d.file(), h: &h, counts: newReferences(), most: maxCheckMemory}
	old := d.oldRefcounts()
	buf := ioengine.Bounce(int(h.clusterSize))
	defer buf.Release()
	r := &d.refs
	seen := map[int64]struct{}{}
	for index, e := range r.table {
		off := int64(e & refTableMask)
		if off == 0 {
			continue
		}
		if _, again := seen[off]; again || off&(h.clusterSize-1) != 0 || off >= d.file().Size() {
			return nil, d.corrupt(true, -1, -1, "Refblock offset %#x unaligned (reftable index: %#x)", off, index)
		}
		seen[off] = struct{}{}
		if err := readAt(ctx, d.file(), off, buf.Bytes()); err != nil {
			return nil, err
		}
		for k := range int64(1) << r.blockBits {
			cluster, n := int64(index)<<r.blockBits+k, refAt(buf.Bytes(), r.order, k)
			if n == 0 {
				continue
			}
			if _, is := old[cluster]; is {
				n--
			}
			if n > maxRef(order) {
				return nil, errHeader("Cannot decrease refcount entry width to %d bits: Cluster at offset %#x has a refcount of %d", 1<<order, cluster<<h.clusterBits, n)
			}
			if n > 0 {
				c.counts.add(cluster, n)
			}
		}
		if err := c.room(); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// checkWidth holds that counts of another width can tell what there is to tell.
func (d *Driver) checkWidth(ctx context.Context, order uint32) error {
	if order >= d.h.refcountOrder {
		return nil
	}
	_, err := d.storedCounts(ctx, order)
	return err
}

// changeRefcountOrder gives the image on disk counts of 1<<order bits. What the
// driver has in memory is outdated then.
func (d *Driver) changeRefcountOrder(ctx context.Context, order uint32) error {
	if order == d.h.refcountOrder {
		return nil
	}
	if d.h.version < 3 {
		return syscall.ENOTSUP
	}
	c, err := d.storedCounts(ctx, order)
	if err != nil {
		return err
	}
	if !d.file().Grows() {
		if err := d.countsTellAll(ctx, c); err != nil {
			return err
		}
	}
	n, err := d.placeRefcounts(c)
	if err != nil {
		return blockgraph.Errorf(blockgraph.Errno(err), "Failed to allocate the new reftable: %s", blockgraph.Strerror(err))
	}
	d.readOnly.Store(true) // it is outdated from here on, whatever happens
	if err := d.writeRefcounts(ctx, c, n); err != nil {
		return headerError("Failed to write the new reftable", err)
	}
	return nil
}

// countsTellAll holds that no cluster is in use that the counts call free: where the
// file does not grow the new structures go among what is in use.
func (d *Driver) countsTellAll(ctx context.Context, c *checker) error {
	inUse, err := newChecker(ctx, d.file())
	if err == nil {
		err = inUse.countReferences()
	}
	if err != nil {
		return headerError("Failed to allocate the new reftable", err)
	}
	inUse.counts.each(func(cl int64, _ uint64) {
		if err == nil && c.count(cl) == 0 {
			err = blockgraph.Errorf(syscall.EIO, "Cannot change the refcount width: Cluster at offset %#x is in use and has a refcount of 0", cl<<d.h.clusterBits)
		}
	})
	return err
}
