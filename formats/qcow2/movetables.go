package qcow2

// Compacting metadata (compact.go).

// moveTable moves an L2 table of the active L1 table alone.
func (c *compaction) moveTable(table int64) error {
	d := c.d
	err := c.retry(func() error { return c.tryMoveTable(table) })
	if err != nil {
		d.mu.Lock()
		delete(d.unsharing, table) // what was loaded for it may go again
		d.mu.Unlock()
	}
	return err
}

// tryMoveTable moves an L2 table of the active L1 table alone. Driver.mu is
// held.
//
// +checklocksignore
func (c *compaction) tryMoveTable(table int64) error {
	d := c.d
	t := d.l1.Load()
	if table >= int64(len(t.entries)) || d.broken.Load() {
		return nil
	}
	entry := t.entries[table].Load()
	old := int64(entry & l1OffsetMask)
	_, fresh := d.newTables[table]
	if c.full || fresh || entry&flagCopied == 0 || old&(d.h.clusterSize-1) != 0 || old>>d.h.clusterBits < c.target {
		delete(d.unsharing, table)
		return nil
	}
	if i := d.wholeTable(t, table); i >= 0 {
		d.unsharing[table] = struct{}{} // what is loaded so far stays
		return missingSlice{table, i}
	}
	count, err := d.refcount(old >> d.h.clusterBits)
	if err != nil {
		return err
	}
	cluster := int64(-1)
	if count == 1 {
		if cluster, err = c.place(1); err != nil {
			return err
		}
	}
	delete(d.unsharing, table)
	if cluster < 0 {
		return nil
	}
	d.replaceTable(t, table, cluster, discardNever)
	c.res.Moved++
	return nil
}

// moveBlocks moves refcount blocks.
func (c *compaction) moveBlocks() error {
	d := c.d
	for index := int64(0); !c.full && index < int64(len(d.refs.table)); index++ {
		if err := c.retry(func() error { return c.tryMoveBlock(index) }); err != nil {
			return err
		}
		if err := c.rest(1); err != nil {
			return err
		}
	}
	return nil
}

// tryMoveBlock moves a refcount block. Driver.mu is held.
//
// +checklocksignore
func (c *compaction) tryMoveBlock(index int64) error {
	d := c.d
	r := &d.refs
	if index >= int64(len(r.table)) || int64(r.table[index]&refTableMask)>>d.h.clusterBits < c.target || d.broken.Load() {
		return nil
	}
	b, err := d.refBlockAt(index)
	if err != nil || b == nil || b.fresh {
		return err
	}
	old := b.off >> d.h.clusterBits
	count, err := d.refcount(old)
	if err != nil || count != 1 {
		return err
	}
	cluster, err := c.place(1)
	if err != nil || cluster < 0 {
		return err
	}
	d.blockChanged(index, r.table[index], uint64(cluster)<<d.h.clusterBits)
	b.off, b.fresh = cluster<<d.h.clusterBits, true
	b.dirty.add(0, d.h.clusterSize)
	r.dirty[b] = struct{}{}
	r.table[index] = uint64(b.off)
	r.tableDirty.add(index*8, index*8+8)
	d.meta.remove(old)
	d.meta.add(cluster, kindRefBlock)
	d.free(old, 1, discardNever)
	c.res.Moved++
	return nil
}

// moveRefTable moves the refcount table.
func (c *compaction) moveRefTable() error {
	d := c.d
	return c.retry(func() error {
		r := &d.refs
		n := int64(len(r.table)) * 8 >> d.h.clusterBits
		old := r.tableOffset >> d.h.clusterBits
		if old+n <= c.target || r.moved || d.broken.Load() {
			return nil
		}
		first, err := c.place(n)
		if err != nil || first < 0 {
			return err
		}
		r.tableOffset, r.moved = first<<d.h.clusterBits, true
		d.meta.setPlaces(kindRefTable, place{r.tableOffset, r.tableOffset + int64(len(r.table))*8, kindRefTable})
		d.free(old, n, discardNever)
		c.res.Moved += n
		return nil
	})
}

// moveL1 moves the active L1 table, while nobody makes it longer.
func (c *compaction) moveL1() error {
	for done := false; !done; {
		err := c.d.makeOnce(c.ctx, kindActiveL1, 0, func() error {
			done = true
			return c.retry(c.tryMoveL1)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// tryMoveL1 is moveL1, where nothing is missing. Driver.mu is held.
//
// +checklocksignore
func (c *compaction) tryMoveL1() error {
	d := c.d
	t := d.l1.Load()
	n := d.h.clusters(int64(len(t.entries)) * l1EntrySize)
	old := t.offset >> d.h.clusterBits
	if n == 0 || old+n <= c.target || d.l1Moved || d.broken.Load() {
		return nil
	}
	first, err := c.place(n)
	if err != nil || first < 0 {
		return err
	}
	d.replaceL1(t, first<<d.h.clusterBits, int64(len(t.entries)))
	d.free(old, n, discardNever)
	c.res.Moved += n
	return nil
}
