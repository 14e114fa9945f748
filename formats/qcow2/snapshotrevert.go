package qcow2

import (
	"context"
	"encoding/binary"
	"errors"
	"math"
	"syscall"

	"blockd/blockgraph"
)

// Going back to an internal snapshot: the active L1 table becomes a copy of the
// snapshot's, by one write of the header's first sector, which changes the
// length of the disk and the stored bitmaps in the same moment.
//
//	prepare  count the snapshot's references twice, write a copy of its L1
//	         table
//	switch   header
//	finish   drop the references of the table that was active, set the copied
//	         flags that fit
//
// Undoing it switches back and drops the references of the other table.

// maxChanged is how many ranges a revert tells apart. With more it says that all
// has changed.
const maxChanged = 65536

// reverting is a revert that has been prepared.
type reverting struct {
	d        *Driver
	old, new l1At
	changed  []blockgraph.Range
	fresh    []extent
	switched bool
	unknown  bool // which of the two tables the disk has
}

// l1At is an L1 table with its place and the length of the disk in bytes.
type l1At struct {
	words []uint64
	at    place
	size  int64
}

// PrepareRevert makes ready to go back to the first snapshot with that id and
// name, of which one may be nil. Nothing has changed for users of the disk. The
// caller ends it by Finish or Undo.
func (d *Driver) PrepareRevert(ctx context.Context, id, name *string) (blockgraph.Revert, error) {
	if err := d.canChangeSnapshots(); err != nil {
		return nil, err
	}
	list := d.snapshots.Load().list
	i := findSnapshot(list, id, name)
	if i < 0 {
		return nil, syscall.ENOENT
	}
	s := &list[i]
	size := int64(s.diskSize)
	need := d.h.l1Entries(s.diskSize)
	switch {
	case s.diskSize > math.MaxInt64 || need > maxL1Size/l1EntrySize || s.diskSize%sector != 0:
		return nil, blockgraph.Errorf(syscall.EFBIG, "Image is too big")
	case size != d.size.Load() && d.h.version < 3:
		return nil, blockgraph.Errorf(syscall.ENOTSUP, "Can't resize a v2 image which has snapshots")
	}
	words, err := d.snapshotL1(ctx, s)
	if err != nil {
		return nil, err
	}
	// What lies past the end of the disk is the state of a machine, which is the
	// snapshot's alone.
	next := make([]uint64, need)
	copy(next, words)
	if err := d.beginUncounted(ctx); err != nil {
		return nil, err
	}
	t := d.l1.Load()
	r := &reverting{d: d,
		old: l1At{d.activeL1(), place{t.offset, t.offset + int64(len(t.entries))*l1EntrySize, kindActiveL1}, d.size.Load()},
		new: l1At{words: next, size: size},
	}
	if err := r.prepare(ctx); err != nil {
		return nil, r.Undo(ctx, nil, err)
	}
	return r, nil
}

func (r *reverting) prepare(ctx context.Context) error {
	d := r.d
	if err := r.compare(ctx); err != nil {
		return err
	}
	if len(r.new.words) > 0 {
		x, err := d.writeFresh(ctx, encodeL1(r.new.words))
		r.fresh = append(r.fresh, x)
		if err != nil {
			return err
		}
		at := x.first << d.h.clusterBits
		r.new.at = place{at, at + int64(len(r.new.words))*l1EntrySize, kindActiveL1}
	}
	if err := d.addReferences(ctx, r.new.words); err != nil {
		return err
	}
	return d.writeBack(ctx)
}

// Size is the length of the disk in bytes as the snapshot has it.
func (r *reverting) Size() int64 { return r.new.size }

// Changed lists the ranges of the disk whose content may be another.
func (r *reverting) Changed() []blockgraph.Range { return r.changed }

// Switch makes the snapshot's content the disk's, durably, with these bitmaps.
func (r *reverting) Switch(ctx context.Context, list []*blockgraph.DirtyBitmap) error {
	if err := r.d.switchL1(ctx, &r.new, list); err != nil {
		r.unknown = true
		return err
	}
	r.switched = true
	return nil
}

// Finish gives up what the disk held before. An error leaks it.
func (r *reverting) Finish(ctx context.Context) error {
	return r.d.dropTable(ctx, r.old.words, r.old.at)
}

// Undo takes the revert back; the disk has these bitmaps again. It returns cause,
// joined by what went wrong.
func (r *reverting) Undo(ctx context.Context, list []*blockgraph.DirtyBitmap, cause error) error {
	d := r.d
	if r.switched || r.unknown {
		if err := d.switchL1(ctx, &r.old, list); err != nil {
			// Nobody knows what the disk holds: no more writes.
			d.broken.Store(true)
			return errors.Join(cause, err)
		}
		return errors.Join(cause, d.dropTable(ctx, r.new.words, r.new.at))
	}
	d.giveUp(r.fresh...)
	return d.recount(ctx, cause)
}

// switchL1 makes a table the active one, on disk and in memory, with the length
// of the disk and the bitmaps that go with it.
func (d *Driver) switchL1(ctx context.Context, to *l1At, list []*blockgraph.DirtyBitmap) error {
	if err := d.writeBack(ctx); err != nil {
		return err
	}
	edit := func(b []byte) {
		be := binary.BigEndian
		be.PutUint32(b[fieldL1Size:], uint32(len(to.words)))
		be.PutUint64(b[fieldL1Offset:], uint64(to.at.from))
		be.PutUint64(b[fieldSize:], uint64(to.size))
	}
	if err := d.switchWithBitmaps(ctx, to.size, list, edit); err != nil {
		return err
	}
	d.forgetTables(d.sliceBits, nil)
	next := newL1Table(to.at.from, int64(len(to.words)))
	for i, e := range to.words {
		next.entries[i].Store(e & l1OffsetMask)
	}
	was := d.activeL1()
	d.mu.Lock()
	clear(d.unsharing)
	d.l1.Store(next)
	d.nextSize = to.size
	d.diskFields.l1Offset, d.diskFields.l1Size, d.diskFields.size = to.at.from, uint32(len(to.words)), to.size
	d.mu.Unlock()
	for _, e := range was {
		if at := int64(e & l1OffsetMask); at != 0 {
			d.meta.remove(at >> d.h.clusterBits)
		}
	}
	for _, e := range to.words {
		if at := int64(e & l1OffsetMask); at != 0 {
			d.meta.add(at>>d.h.clusterBits, kindActiveL2)
		}
	}
	d.meta.setPlaces(kindActiveL1, to.at)
	d.size.Store(to.size)
	d.reverts++
	return nil
}

// switchWithBitmaps changes the header's fixed fields by edit, for a disk of size
// bytes, and what is stored of bitmaps in the same moment.
func (d *Driver) switchWithBitmaps(ctx context.Context, size int64, list []*blockgraph.DirtyBitmap, edit func(sector []byte)) error {
	s := &d.bitmaps
	if err := s.ahead.Lock(ctx); err != nil {
		return err
	}
	defer s.ahead.Unlock()
	persistent := false
	for _, b := range list {
		persistent = persistent || b.Persistent
	}
	if persistent || len(s.dir) > 0 {
		s.want = list
		s.setStored(false)
		return d.storeWanted(ctx, size, edit)
	}
	if err := d.updateHeader(ctx, edit); err != nil {
		return err
	}
	return d.file().Flush(ctx)
}

// compare finds what differs between the two tables.
func (r *reverting) compare(ctx context.Context) error {
	d := r.d
	span := d.h.clusterSize << d.h.l2Bits
	both := min(r.old.size, r.new.size)
	r.add(both, max(r.old.size, r.new.size)-both)
	a, b := make([]byte, d.h.clusterSize), make([]byte, d.h.clusterSize)
	for i := int64(0); i*span < both; i++ {
		from, to := l2TableAt(r.old.words, i), l2TableAt(r.new.words, i)
		if from == to {
			continue
		}
		for _, x := range []struct {
			at int64
			b  []byte
		}{{from, a}, {to, b}} {
			clear(x.b)
			if x.at != 0 {
				if err := d.readWholeTable(ctx, i, x.at, x.b); err != nil {
					return err
				}
			}
		}
		for j := range int64(1) << d.h.l2Bits {
			was, is := d.h.entryAt(a, j), d.h.entryAt(b, j)
			if (was.word^is.word)&^flagCopied != 0 || was.bitmap != is.bitmap {
				off := i*span + j<<d.h.clusterBits
				r.add(off, min(d.h.clusterSize, both-off))
			}
		}
	}
	return nil
}

func l2TableAt(l1 []uint64, i int64) int64 {
	if i >= int64(len(l1)) {
		return 0
	}
	return int64(l1[i] & l1OffsetMask)
}

// add notes that bytes [off, off+n) may differ.
func (r *reverting) add(off, n int64) {
	if n <= 0 {
		return
	}
	if k := len(r.changed); k > 0 {
		last := &r.changed[k-1]
		switch {
		case k == 1 && last.Off == 0 && last.N >= max(r.old.size, r.new.size):
			return
		case last.Off+last.N == off:
			last.N += n
			return
		case k >= maxChanged:
			r.changed = append(r.changed[:0], blockgraph.Range{N: max(r.old.size, r.new.size)})
			return
		}
	}
	r.changed = append(r.changed, blockgraph.Range{Off: off, N: n})
}
