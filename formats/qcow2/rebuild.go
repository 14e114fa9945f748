package qcow2

import (
	"context"
	"encoding/binary"
	"maps"
	"slices"
	"syscall"

	"blockd/blockgraph"
	"blockd/ioengine"
)

// Rebuilding refcount structures that are lost: the table or a block cannot be
// read, lies outside of the file or over something else, or there is no room for
// a block that is missing. What is in use is known from the mappings; new
// structures are made from that alone (the field: qemu-img check -r all).
//
// They go to clusters that nothing refers to and that the old structures do not
// name, behind the end of a file that grows: blocks and table are written and
// made durable, then one sector of the header switches to them. A crash leaves the
// old structures or the new ones. The space of the old ones is free then.
//
// It needs an image at rest: nobody else uses it, and nothing in memory differs
// from the disk.

// newRefcounts are refcount structures that are being made.
type newRefcounts struct {
	at       int64           // the table's first cluster
	clusters int64           // of the table
	blocks   map[int64]int64 // cluster of the block of each index that is needed
	own      []int64         // all clusters that they take, sorted
}

// rebuildRefcounts replaces the refcount structures on disk and in memory. The
// image is at rest. On an error the old ones are still in force, or, where it is
// not known which ones are, nothing is written any more.
func (d *Driver) rebuildRefcounts(ctx context.Context) error {
	d.mu.Lock()
	busy := d.frees.count > 0 || len(d.claims) > 0 || d.writing != nil
	d.mu.Unlock()
	if busy {
		return syscall.EBUSY
	}
	c, err := newChecker(ctx, d.file())
	if err == nil {
		err = c.countReferences()
	}
	if err != nil {
		return err
	}
	n, err := d.placeRefcounts(c)
	if err != nil {
		return err
	}
	if err := d.writeRefcounts(ctx, c, n); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.adoptRefcounts(n)
	return nil
}

// placeRefcounts finds places for the structures that count the references in c
// and themselves.
func (d *Driver) placeRefcounts(c *checker) (*newRefcounts, error) {
	h := c.h
	needed := map[int64]struct{}{0: {}}
	end := h.clusters(d.file().Size())
	c.counts.each(func(cl int64, _ uint64) {
		needed[cl>>h.refBlockBits] = struct{}{}
		end = max(end, cl+1)
	})
	old := d.oldRefcounts()
	free := func(cl int64) bool {
		_, is := old[cl]
		return !is && c.count(cl) == 0
	}
	first, limit := end, int64(maxHostOffset)>>h.clusterBits
	if !d.file().Grows() {
		first, limit = 0, d.file().Size()>>h.clusterBits
	}
	for {
		n := &newRefcounts{blocks: map[int64]int64{}}
		last := slices.Max(slices.Collect(maps.Keys(needed)))
		n.clusters = h.clusters((last + 1) * 8)
		if n.clusters<<h.clusterBits > maxRefTableSize {
			return nil, syscall.EFBIG
		}
		run := int64(0)
		for n.at = first; run < n.clusters; {
			switch {
			case n.at+run >= limit:
				return nil, syscall.ENOSPC
			case free(n.at + run):
				run++
			default:
				n.at, run = n.at+run+1, 0
			}
		}
		for cl := n.at; cl < n.at+n.clusters; cl++ {
			n.own = append(n.own, cl)
		}
		cl := first
		for _, index := range slices.Sorted(maps.Keys(needed)) {
			for cl < limit && (cl >= n.at && cl < n.at+n.clusters || !free(cl)) {
				cl++
			}
			if cl >= limit {
				return nil, syscall.ENOSPC
			}
			n.blocks[index] = cl
			n.own = append(n.own, cl)
			cl++
		}
		slices.Sort(n.own)
		was := len(needed)
		for _, cl := range n.own {
			needed[cl>>h.refBlockBits] = struct{}{}
		}
		if len(needed) == was {
			return n, nil
		}
	}
}

// oldRefcounts are the clusters that the present structures name.
func (d *Driver) oldRefcounts() map[int64]struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := &d.refs
	old := map[int64]struct{}{}
	first := r.tableOffset >> d.h.clusterBits
	for i := range d.h.clusters(int64(len(r.table)) * 8) {
		old[first+i] = struct{}{}
	}
	for _, e := range r.table {
		if off := int64(e & refTableMask); off > 0 {
			old[off>>d.h.clusterBits] = struct{}{}
		}
	}
	return old
}

// writeRefcounts writes new structures and switches to them.
func (d *Driver) writeRefcounts(ctx context.Context, c *checker, n *newRefcounts) error {
	h, f := c.h, d.file()
	buf := ioengine.Bounce(int(h.clusterSize))
	defer buf.Release()
	b := buf.Bytes()
	for _, index := range slices.Sorted(maps.Keys(n.blocks)) {
		if err := n.fill(b, c, index); err != nil {
			return err
		}
		f.DebugEvent("refblock_alloc_write_blocks")
		if err := writeAt(ctx, f, n.blocks[index]<<h.clusterBits, b); err != nil {
			return err
		}
	}
	perCluster := h.clusterSize / 8
	for i := range n.clusters {
		for k := range perCluster {
			binary.BigEndian.PutUint64(b[k*8:], uint64(n.blocks[i*perCluster+k]<<h.clusterBits))
		}
		f.DebugEvent("refblock_alloc_write_table")
		if err := writeAt(ctx, f, (n.at+i)<<h.clusterBits, b); err != nil {
			return err
		}
	}
	if err := f.Flush(ctx); err != nil {
		return err
	}
	f.DebugEvent("refblock_alloc_switch_table")
	err := d.updateHeader(ctx, func(s []byte) {
		binary.BigEndian.PutUint64(s[fieldRefTableOffset:], uint64(n.at<<h.clusterBits))
		binary.BigEndian.PutUint32(s[fieldRefTableSize:], uint32(n.clusters))
		if h.version >= 3 {
			binary.BigEndian.PutUint32(s[fieldRefcountOrder:], h.refcountOrder)
		}
	})
	if err == nil {
		err = f.Flush(ctx)
	}
	if err != nil {
		// Nobody knows which structures the disk has: no more writes.
		d.broken.Store(true)
	}
	return err
}

// fill makes the content of a block.
func (n *newRefcounts) fill(b []byte, c *checker, index int64) (err error) {
	h := c.h
	clear(b)
	from, to := index<<h.refBlockBits, (index+1)<<h.refBlockBits
	c.counts.between(from, to, func(cl int64, times uint64) {
		if times > maxRef(h.refcountOrder) {
			err = blockgraph.Errorf(syscall.EIO, "Cluster at %#x has %d references, more than its refcount can tell", cl<<h.clusterBits, times)
			return
		}
		setRefAt(b, h.refcountOrder, cl-from, times)
	})
	i, _ := slices.BinarySearch(n.own, from)
	for ; i < len(n.own) && n.own[i] < to; i++ {
		setRefAt(b, h.refcountOrder, n.own[i]-from, 1)
	}
	return err
}

// adoptRefcounts has the driver use the structures that are in force on disk now.
// Driver.mu is held.
//
// +checklocks:d.mu
func (d *Driver) adoptRefcounts(n *newRefcounts) {
	r := &d.refs
	for _, e := range r.table {
		// What else lies there stays known.
		if off := int64(e & refTableMask); off > 0 && d.meta.at(off, 1, kindRefBlock) != 0 {
			d.meta.remove(off >> d.h.clusterBits)
		}
	}
	table := make([]uint64, n.clusters<<d.h.clusterBits/8)
	for index, cl := range n.blocks {
		table[index] = uint64(cl << d.h.clusterBits)
		d.meta.add(cl, kindRefBlock)
	}
	d.refs = refcounts{
		order: r.order, blockBits: r.blockBits, capacity: r.capacity,
		table: table, tableOffset: n.at << d.h.clusterBits,
		blocks: map[int64]*refBlock{}, loading: map[int64]*loading{}, dirty: map[*refBlock]struct{}{},
		untouched: d.h.clusters(d.file().Size()),
	}
	d.packAt = 0
	d.diskFields.refTableOffset, d.diskFields.refTableClusters = d.refs.tableOffset, uint32(n.clusters)
	d.meta.setPlaces(kindRefTable, place{d.refs.tableOffset, d.refs.tableOffset + int64(len(table))*8, kindRefTable})
}
