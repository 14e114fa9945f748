package qcow2

import (
	"context"
	"encoding/binary"
	"errors"
	"syscall"

	"blockd/ioengine"
)

// Reference counts and copied flags while a snapshot comes or goes. An L1 table
// counts for one reference to each L2 table that it names, and to each cluster
// that these name.
//
// All of this runs with no request in flight and nothing changed in memory that
// the disk does not have, so L2 tables are read and written whole; slices of
// them that are cached follow. Counts change in memory and are written back as
// ever.

// addReferences counts the references of one more L1 table with these entries.
// What it names is shared from then on: its copied flags are cleared on disk,
// and those of the active L1 table in memory.
func (d *Driver) addReferences(ctx context.Context, l1 []uint64) error {
	return d.eachTable(ctx, l1, func(i int64, at int64, l2 []byte) error {
		clusters := []int64{at >> d.h.clusterBits}
		changed := false
		for j := range int64(1) << d.h.l2Bits {
			e := d.h.entryAt(l2, j)
			if off, n := d.h.placeOf(e); n > 0 {
				for c := off >> d.h.clusterBits; c <= (off+n-1)>>d.h.clusterBits; c++ {
					clusters = append(clusters, c)
				}
			}
			if e.word&flagCopied != 0 && d.h.hasPlace(e) {
				d.h.setWordAt(l2, j, e.word&^flagCopied)
				changed = true
			}
		}
		if err := d.addRefs(ctx, clusters); err != nil {
			return err
		}
		return d.putTable(ctx, i, at, l2, changed, false)
	})
}

// dropReferences gives up the references of an L1 table that the disk knows no
// more. The counts fall with the following write-backs.
func (d *Driver) dropReferences(ctx context.Context, l1 []uint64) error {
	return d.eachTable(ctx, l1, func(_ int64, at int64, l2 []byte) error {
		d.mu.Lock()
		for j := range int64(1) << d.h.l2Bits {
			d.freeEntry(d.h.entryAt(l2, j), discardSnapshot)
		}
		d.free(at>>d.h.clusterBits, 1, discardSnapshot)
		due := d.frees.count > maxPendingFrees
		d.mu.Unlock()
		if due {
			return d.settle(ctx)
		}
		return nil
	})
}

// fitFlags makes the copied flags of the active tables fit the counts.
func (d *Driver) fitFlags(ctx context.Context) error {
	return d.eachTable(ctx, d.activeL1(), func(i int64, at int64, l2 []byte) error {
		own, err := d.ownCluster(ctx, at>>d.h.clusterBits)
		if err != nil {
			return err
		}
		changed := false
		for j := range int64(1) << d.h.l2Bits {
			e := d.h.entryAt(l2, j)
			if !d.h.hasPlace(e) {
				continue
			}
			next := e.word &^ flagCopied
			if one, err := d.ownCluster(ctx, int64(e.word&l2OffsetMask)>>d.h.clusterBits); err != nil {
				return err
			} else if one {
				next |= flagCopied
			}
			if next != e.word {
				d.h.setWordAt(l2, j, next)
				changed = true
			}
		}
		return d.putTable(ctx, i, at, l2, changed, own)
	})
}

// eachTable reads the L2 tables of an L1 table one after the other, with the
// index of each and its place in bytes. Entries that make no sense are a
// corruption.
func (d *Driver) eachTable(ctx context.Context, l1 []uint64, f func(i, at int64, l2 []byte) error) error {
	buf := ioengine.Bounce(int(d.h.clusterSize))
	defer buf.Release()
	for i, e := range l1 {
		at := int64(e & l1OffsetMask)
		if at == 0 {
			continue
		}
		if err := d.readWholeTable(ctx, int64(i), at, buf.Bytes()); err != nil {
			return err
		}
		if err := f(int64(i), at, buf.Bytes()); err != nil {
			return err
		}
	}
	return nil
}

func (d *Driver) readWholeTable(ctx context.Context, i, at int64, l2 []byte) error {
	if at&(d.h.clusterSize-1) != 0 {
		return d.corrupt(true, -1, -1, "L2 table offset %#x unaligned (L1 index: %#x)", at, i)
	}
	if err := readAt(ctx, d.file(), at, l2); err != nil {
		return err
	}
	for j := range int64(1) << d.h.l2Bits {
		e := d.h.entryAt(l2, j)
		if host := e.word & l2OffsetMask; d.h.hasPlace(e) && host&uint64(d.h.clusterSize-1) != 0 {
			return d.corrupt(true, -1, -1, "Cluster allocation offset %#x unaligned (L2 offset: %#x, L2 index: %#x)", host, at, j)
		}
	}
	return nil
}

// entryAt decodes entry j of an L2 table as it is on disk.
func (h *header) entryAt(l2 []byte, j int64) l2Entry {
	p := l2[j<<h.l2EntryBits:]
	e := l2Entry{word: binary.BigEndian.Uint64(p)}
	if h.extended {
		e.bitmap = binary.BigEndian.Uint64(p[8:])
	}
	return e
}

// setWordAt changes the word of entry j.
func (h *header) setWordAt(l2 []byte, j int64, word uint64) {
	binary.BigEndian.PutUint64(l2[j<<h.l2EntryBits:], word)
}

// putTable writes an L2 table whose flags have changed, and has what is cached
// of it follow; own is the flag of its entry in the active L1 table, if that is
// where it belongs.
func (d *Driver) putTable(ctx context.Context, i, at int64, l2 []byte, changed, own bool) error {
	if changed {
		// Of tables that are shared, too, the flags are put right where they lie.
		if err := d.checkOverlap(at, int64(len(l2)), kindActiveL2|kindInactiveL2); err != nil {
			return err
		}
		d.file().DebugEvent("l2_update")
		if err := writeAt(ctx, d.file(), at, l2); err != nil {
			return err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	t := d.l1.Load()
	if i >= int64(len(t.entries)) || int64(t.entries[i].Load()&l1OffsetMask) != at {
		return nil
	}
	entry := uint64(at)
	if own {
		entry |= flagCopied
	}
	if t.entries[i].Load() != entry {
		t.entries[i].Store(entry)
		d.dirtyL1.add(i*l1EntrySize, (i+1)*l1EntrySize)
	}
	for k := range d.slicesPerTable() {
		s := t.peek(i, k)
		for j := int64(0); changed && s != nil && j < s.len(); j++ {
			s.store(j, d.h.entryAt(l2, k<<d.sliceBits+j))
		}
	}
	return nil
}

// activeL1 returns the entries of the active L1 table.
func (d *Driver) activeL1() []uint64 {
	t := d.l1.Load()
	words := make([]uint64, len(t.entries))
	for i := range words {
		words[i] = t.entries[i].Load()
	}
	return words
}

// addRefs counts one more reference to each of the clusters, in memory.
func (d *Driver) addRefs(ctx context.Context, clusters []int64) error {
	for len(clusters) > 0 {
		d.mu.Lock()
		var err error
		for err == nil && len(clusters) > 0 {
			if err = d.addRef(clusters[0]); err == nil {
				clusters = clusters[1:]
			}
		}
		crowded := d.pressed()
		d.mu.Unlock()
		if err != nil {
			if err = d.fetch(ctx, err); err != nil {
				return err
			}
		}
		if crowded {
			if err := d.writeBack(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// addRef counts one more reference to a cluster that is in use. A count that
// does not fit its width gives EINVAL, as in the field. Driver.mu is held.
//
// +checklocks:d.mu
func (d *Driver) addRef(cluster int64) error {
	r := &d.refs
	b, err := d.refBlockAt(cluster >> r.blockBits)
	if err != nil {
		return err
	}
	i := cluster & (1<<r.blockBits - 1)
	if b == nil || refAt(b.data, r.order, i) == 0 {
		return d.corrupt(false, cluster<<d.h.clusterBits, d.h.clusterSize, "Refcount of cluster %#x is 0, but it was in use", cluster<<d.h.clusterBits)
	}
	n := refAt(b.data, r.order, i)
	if n == maxRef(r.order) {
		return syscall.EINVAL
	}
	d.setRef(b, i, n+1)
	return nil
}

// ownCluster tells whether a cluster has exactly one reference.
func (d *Driver) ownCluster(ctx context.Context, cluster int64) (bool, error) {
	for {
		d.mu.Lock()
		n, err := d.refcount(cluster)
		d.mu.Unlock()
		if err == nil {
			return n == 1, nil
		}
		if err := d.fetch(ctx, err); err != nil {
			return false, err
		}
	}
}

// beginUncounted marks that counts are about to be out of order: in version 3
// by the dirty bit, durably, so that whoever opens the image after a crash puts
// them in order. In version 2 a crash leaves clusters that count too much, and
// copied flags that do not fit, which writers of the image can live with.
func (d *Driver) beginUncounted(ctx context.Context) error {
	if err := d.settle(ctx); err != nil {
		return err
	}
	d.uncounted++
	if d.h.version < 3 || d.uncounted > 1 {
		return nil
	}
	err := d.updateHeader(ctx, setDirtyBit)
	if err == nil {
		err = d.file().Flush(ctx)
	}
	if err != nil {
		d.uncounted--
	}
	return err
}

func setDirtyBit(b []byte) {
	be := binary.BigEndian
	be.PutUint64(b[fieldIncompatible:], be.Uint64(b[fieldIncompatible:])|incompatDirty)
}

// endUncounted brings everything to disk and ends beginUncounted, in which
// counts and flags are in order again.
func (d *Driver) endUncounted(ctx context.Context) error {
	if err := d.settle(ctx); err != nil {
		return err
	}
	if d.uncounted--; d.h.version < 3 || d.uncounted > 0 {
		return nil
	}
	return d.clearFeatures(ctx, incompatDirty)
}

// recount puts counts and flags in order after an addReferences that was cut
// off, and ends beginUncounted. If it cannot, clusters count too much, the dirty
// bit stays, and the next one to open the image does it.
func (d *Driver) recount(ctx context.Context, cause error) error {
	if d.broken.Load() || d.uncounted > 1 {
		// With two changes under way what the disk refers to is not all that
		// counts.
		return cause
	}
	err := d.settle(ctx)
	if err == nil {
		err = d.repairCounts(ctx)
	}
	if err == nil {
		err = d.endUncounted(ctx)
	}
	return errors.Join(cause, err)
}
