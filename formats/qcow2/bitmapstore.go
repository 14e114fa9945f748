package qcow2

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"log/slog"
	"slices"
	"sync/atomic"
	"syscall"

	"blockd/blockgraph"
	"blockd/formats/bitmapstore"
	"blockd/ioengine"
	"blockd/qapi"
)

// Storing of bitmaps so that they survive a crash.
//
// At every moment the directory in the image describes bitmaps that have at
// least the dirty bits of those in memory, and says so: `in_use` is 0. Whoever
// opens the image after a crash, QEMU too, finds a superset of what changed.
// (The specification says that in_use SHOULD be set meanwhile; its purpose, that
// nobody trusts outdated bits, is served by there being none. With the option
// x-bitmaps=on-close the field's way is followed.) Two things see to it:
//
//   - A change of the list (new, removed, cleared, merged, enabled) writes the
//     tables and data of what it changes and a new directory to new clusters,
//     makes them and all of the image's data durable, and then switches to them
//     by one sector of the header. What the bitmaps are relative to is as
//     durable as they are.
//   - Before the first change in a region of the disk that is clean in the
//     image its bits there are set in place: see package bitmapstore.
//
// The data in place thus has bits too many ("loose"); closing the image, or the
// next change of that bitmap, writes it anew.

// bitmapStore is what the image has of bitmaps.
type bitmapStore struct {
	// onClose: the field's way, in_use while the image is open for writing.
	onClose bool
	// ahead has the turn of whoever writes, which guards what follows.
	ahead *bitmapstore.Ahead
	// want is the node's list, which is what was loaded until StoreBitmaps is
	// given another; stored: the image is known to have it.
	want   []*blockgraph.DirtyBitmap
	stored bool
	dir    []*storedBitmap
	at     place // of the directory
	// final: the image is given up; in_use is taken back.
	final bool
	// doubtful: the header was to refer to these clusters instead of dir's, and
	// writing it failed. What the disk has is known when it succeeds again.
	doubtful []extent

	infos atomic.Pointer[[]qapi.Qcow2BitmapInfo]
}

// setStored is called with the turn held, or by open.
func (s *bitmapStore) setStored(stored bool) {
	s.stored = stored
	// In the field's way nothing need be done once the bitmaps are marked as in
	// use.
	s.ahead.Exempt(stored && s.onClose && !s.final)
}

func (s *bitmapStore) setDir(dir []*storedBitmap, at place) {
	s.dir, s.at = dir, at
	infos := bitmapInfos(dir)
	s.infos.Store(&infos)
}

// LoadBitmaps returns the image's bitmaps, which open has read, the newest
// first. In the field's way they are marked as in use from here on.
func (d *Driver) LoadBitmaps(ctx context.Context) ([]*blockgraph.DirtyBitmap, error) {
	s := &d.bitmaps
	if s.onClose && len(s.want) > 0 && !d.readOnly.Load() {
		if err := d.StoreBitmaps(ctx, s.want); err != nil {
			return nil, blockgraph.Errorf(blockgraph.Errno(err), "Can't update bitmap directory: %s", blockgraph.Strerror(err))
		}
	}
	return s.want, nil
}

// StoreBitmaps makes the persistent ones of the list those of the image,
// durably, all or nothing.
func (d *Driver) StoreBitmaps(ctx context.Context, list []*blockgraph.DirtyBitmap) error {
	s := &d.bitmaps
	if err := s.ahead.Lock(ctx); err != nil {
		return err
	}
	defer s.ahead.Unlock()
	s.want = list
	s.setStored(false)
	if d.alone.Load() && slices.ContainsFunc(list, func(b *blockgraph.DirtyBitmap) bool { return b.Persistent }) {
		return syscall.EBUSY
	}
	return d.storeWanted(ctx, d.size.Load(), nil)
}

// closeBitmaps writes what the bitmaps have by now, for good: those of list, or
// of the node's present one if that is nil.
func (d *Driver) closeBitmaps(ctx context.Context, list []*blockgraph.DirtyBitmap) error {
	s := &d.bitmaps
	if err := s.ahead.Lock(ctx); err != nil {
		return err
	}
	defer s.ahead.Unlock()
	if was := s.want; list != nil {
		s.want = list
		defer func() { s.want = was }()
	}
	s.final = true
	defer func() { s.final = false }()
	if err := d.storeWanted(ctx, d.size.Load(), nil); err != nil {
		return err
	}
	for _, e := range s.dir {
		e.settled = true
	}
	return nil
}

// reopenBitmaps undoes closeBitmaps.
func (d *Driver) reopenBitmaps(ctx context.Context) {
	s := &d.bitmaps
	if err := s.ahead.Lock(ctx); err != nil {
		return
	}
	defer s.ahead.Unlock()
	if err := d.storeWanted(ctx, d.size.Load(), nil); err != nil {
		slog.Error("the stored dirty bitmaps cannot be marked as in use", "error", err)
	}
}

// setSizeWithBitmaps changes the length of the disk and of the stored bitmaps
// in one moment, where they have to change with it: their tables must fit it
// exactly.
func (d *Driver) setSizeWithBitmaps(ctx context.Context, size int64) (done bool, err error) {
	s := &d.bitmaps
	if err := s.ahead.Lock(ctx); err != nil {
		return true, err
	}
	defer s.ahead.Unlock()
	fits := func(e *storedBitmap) bool {
		return size >= e.size && d.h.tableEntries(size, e.granularityBits) == e.tableSize
	}
	if !slices.ContainsFunc(s.dir, func(e *storedBitmap) bool { return !fits(e) }) {
		return false, nil
	}
	if size == 0 {
		return true, errBitmapOfNothing
	}
	// Everything that the size needs, before it.
	if err := d.writeBack(ctx); err != nil {
		return true, err
	}
	err = d.storeWanted(ctx, size, func(b []byte) { binary.BigEndian.PutUint64(b[fieldSize:], uint64(size)) })
	if err == nil {
		d.mu.Lock()
		d.nextSize, d.diskFields.size = size, size
		d.mu.Unlock()
	}
	return true, err
}

// storeWanted brings what is wanted to the image, for a disk of size bytes.
// edit, if not nil, changes fixed fields of the header in the same moment. turn is
// held.
func (d *Driver) storeWanted(ctx context.Context, size int64, edit func(sector []byte)) error {
	s := &d.bitmaps
	if d.readOnly.Load() {
		return nil
	}
	if d.broken.Load() {
		return syscall.EIO
	}
	w := &bitmapWriter{d: d, size: size}
	next, changed, err := w.plan(ctx)
	if err == nil && !changed && edit == nil && s.doubtful == nil {
		s.setStored(true)
		return nil
	}
	var dirAt, dirLen int64
	same := !changed && edit == nil
	if same {
		dirAt, dirLen = s.at.from, s.at.to-s.at.from
	} else if err == nil && len(next) > 0 {
		dir := encodeDir(next)
		dirLen = int64(len(dir))
		dirAt, err = w.put(ctx, dir)
	}
	if err == nil {
		// The clusters' counts, what is in them, and what guests wrote before.
		err = d.writeBack(ctx)
	}
	if err != nil {
		d.giveUp(w.fresh...)
		return err
	}
	s.setStored(false)
	var old []extent
	if !same {
		old = d.bitmapExtents(next)
	}
	err = d.switchHeader(ctx, func(ext *extensions) {
		ext.setBitmaps(len(next), dirAt, dirLen)
	}, func(b []byte) {
		auto := uint64(0)
		if len(next) > 0 {
			auto = autoclearBitmaps
		}
		be := binary.BigEndian
		if d.h.version >= 3 {
			be.PutUint64(b[fieldAutoclear:], be.Uint64(b[fieldAutoclear:])&^autoclearBitmaps|auto)
		}
		if edit != nil {
			edit(b)
		}
	})
	if err != nil {
		// Nobody knows which of the two directories the disk has: neither's
		// clusters can be used for anything else yet.
		s.doubtful = append(s.doubtful, w.fresh...)
		return blockgraph.Errorf(blockgraph.Errno(err), "Failed to update bitmap extension: %s", blockgraph.Strerror(err))
	}
	d.giveUp(append(old, s.doubtful...)...)
	s.doubtful = nil
	s.setDir(next, place{dirAt, dirAt + dirLen, kindBitmapDir})
	s.ahead.Forget()
	d.meta.setPlaces(kindBitmapDir, s.at)
	s.setStored(true)
	return nil
}

// bitmapExtents returns the clusters of the present directory and of what it
// has and the next one has not.
func (d *Driver) bitmapExtents(next []*storedBitmap) []extent {
	cb := d.h.clusterBits
	var list []extent
	if at := d.bitmaps.at; at.to > at.from {
		list = append(list, extent{first: at.from >> cb, n: d.h.clusters(at.to - at.from), kind: discardOther})
	}
	kept := make(map[int64]struct{}, len(next))
	for _, e := range next {
		kept[e.tableOffset] = struct{}{}
	}
	for _, e := range d.bitmaps.dir {
		if _, ok := kept[e.tableOffset]; ok {
			continue
		}
		list = append(list, extent{first: e.tableOffset >> cb, n: d.h.clusters(e.tableSize * 8), kind: discardOther})
		for _, v := range e.table {
			if off := int64(v & l2OffsetMask); off != 0 {
				list = append(list, extent{first: off >> cb, n: 1, kind: discardOther})
			}
		}
	}
	return list
}

// bitmapWriter writes bitmaps to new clusters.
type bitmapWriter struct {
	d     *Driver
	size  int64
	fresh []extent
}

// plan returns the directory that is wanted, with everything that it needs
// written, and whether it differs from the present one.
func (w *bitmapWriter) plan(ctx context.Context) (next []*storedBitmap, changed bool, err error) {
	s := &w.d.bitmaps
	byName := make(map[string]*storedBitmap, len(s.dir))
	for _, e := range s.dir {
		byName[e.name] = e
	}
	for _, b := range s.inOrder() {
		old := byName[b.Name]
		if old == nil && s.onClose && !s.final {
			continue // the image learns of it when it is given up
		}
		if b.Inconsistent {
			if old == nil {
				return nil, false, syscall.EINVAL
			}
			next = append(next, old)
			continue
		}
		e := &storedBitmap{name: b.Name, granularityBits: bitmapstore.GranularityBits(b.Bits), bits: b.Bits, settled: old != nil && old.settled}
		if !b.Disabled {
			e.flags |= bitmapAuto
		}
		if s.onClose && !s.final {
			e.flags |= bitmapInUse
		}
		if w.keeps(old, e) {
			e.tableOffset, e.tableSize, e.table, e.size, e.loose = old.tableOffset, old.tableSize, old.table, old.size, old.loose
			changed = changed || e.flags != old.flags
		} else {
			changed = true
			if err := w.putBitmap(ctx, e, b); err != nil {
				return next, changed, err
			}
		}
		next = append(next, e)
	}
	same := func(a, b *storedBitmap) bool { return a.name == b.name }
	return next, changed || !slices.EqualFunc(next, s.dir, same), nil
}

// inOrder returns the persistent bitmaps that are wanted in the order of the
// field's directories, by which clients see them when the image is opened
// again: those that it was opened with stay where they are, and new ones follow,
// the newest first. turn is held.
func (s *bitmapStore) inOrder() []*blockgraph.DirtyBitmap {
	rank := make(map[string]int, len(s.dir))
	for i, e := range s.dir {
		if e.settled {
			rank[e.name] = i - len(s.dir)
		}
	}
	var list []*blockgraph.DirtyBitmap
	for _, b := range s.want {
		if b.Persistent {
			list = append(list, b)
		}
	}
	slices.SortStableFunc(list, func(a, b *blockgraph.DirtyBitmap) int { return cmp.Compare(rank[a.Name], rank[b.Name]) })
	return list
}

// keeps tells whether the image's data of a bitmap may stay.
func (w *bitmapWriter) keeps(old, e *storedBitmap) bool {
	s := &w.d.bitmaps
	return old != nil && old.bits == e.bits && old.granularityBits == e.granularityBits &&
		old.tableSize == w.d.h.tableEntries(w.size, e.granularityBits) && old.size <= w.size &&
		!(s.final && (old.loose || s.onClose))
}

// putBitmap writes a bitmap's data and table.
func (w *bitmapWriter) putBitmap(ctx context.Context, e *storedBitmap, b *blockgraph.DirtyBitmap) error {
	d := w.d
	if w.size == 0 {
		return errBitmapOfNothing
	}
	if !d.h.canStore(w.size, e.granularityBits) {
		return blockgraph.Errorf(syscall.EFBIG, "Too much space will be occupied by the bitmap. Use larger granularity")
	}
	content, err := bitmapstore.Content(b, w.size)
	if err != nil {
		return err
	}
	cs := d.h.clusterSize
	e.size, e.tableSize = w.size, d.h.tableEntries(w.size, e.granularityBits)
	e.table = make([]uint64, e.tableSize)
	raw := make([]byte, e.tableSize*8)
	data := ioengine.Bounce(int(cs))
	defer data.Release()
	for i := range e.table {
		if !content.Serialize(int64(i)*cs, data.Bytes()) {
			continue
		}
		off, err := w.put(ctx, data.Bytes())
		if err != nil {
			return err
		}
		e.table[i] = uint64(off)
		binary.BigEndian.PutUint64(raw[i*8:], uint64(off))
	}
	e.tableOffset, err = w.put(ctx, raw)
	return err
}

// put writes b to new clusters.
func (w *bitmapWriter) put(ctx context.Context, b []byte) (int64, error) {
	x, err := w.d.writeFresh(ctx, b)
	if x.n > 0 {
		w.fresh = append(w.fresh, x)
	}
	return x.first << w.d.h.clusterBits, err
}

// writeFresh writes b, not empty, to new clusters. They are the caller's to give
// up, after an error, too, unless they are none.
func (d *Driver) writeFresh(ctx context.Context, b []byte) (extent, error) {
	n := d.h.clusters(int64(len(b)))
	off, err := d.allocateRun(ctx, n)
	if err != nil {
		return extent{}, err
	}
	x := extent{first: off >> d.h.clusterBits, n: n, kind: discardOther}
	if err := d.checkOverlap(off, n<<d.h.clusterBits, 0); err != nil {
		return x, err
	}
	if rest := int64(len(b)) % sector; rest != 0 {
		b = append(bytes.Clone(b), make([]byte, sector-rest)...)
	}
	return x, writeAt(ctx, d.file(), off, b)
}

// giveUp frees clusters that the disk refers to no more, or never did.
func (d *Driver) giveUp(list ...extent) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, x := range list {
		d.free(x.first, x.n, x.kind)
	}
}

// allocateRun takes n contiguous clusters and returns their offset.
func (d *Driver) allocateRun(ctx context.Context, n int64) (int64, error) {
	freed := false
	for {
		d.mu.Lock()
		first, _, err := d.allocate(n, forOther)
		d.unlock()
		if err == nil {
			return first << d.h.clusterBits, nil
		}
		if err := d.fetch(ctx, err); err != nil && !d.freedRoom(ctx, err, &freed) {
			return 0, err
		}
	}
}
