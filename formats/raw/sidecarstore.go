package raw

import (
	"cmp"
	"context"
	"hash/crc32"
	"slices"
	"syscall"
	"time"

	"github.com/google/uuid"

	"blockd/blockgraph"
	"blockd/clock"
	"blockd/formats/bitmapstore"
)

// Writing of the file: what is new goes where the present header refers to
// nothing, everything is made durable, the disk's data included, and then the
// other header is written.

// store brings what is wanted to the file. clean: the image is given up. The
// turn is held.
func (s *sidecar) store(ctx context.Context, clean bool) error {
	return s.storeFor(ctx, s.d.node.Size(), clean)
}

// storeFor is store for a disk of that many bytes.
func (s *sidecar) storeFor(ctx context.Context, disk int64, clean bool) error {
	if s.readOnly {
		return nil
	}
	if s.file == nil {
		if err := s.begin(ctx); err != nil || s.file == nil {
			return err
		}
	}
	w := &sideWriter{s: s, disk: disk, clean: clean}
	next, changed, err := w.plan(ctx)
	if err != nil {
		return sideError("write", err)
	}
	if !changed && s.header != nil && s.header.clean == clean && s.header.disk == disk && s.header.next == disk {
		s.stored = true
		return nil
	}
	h := &sideHeader{clean: clean, start: s.d.now.Load().offset, disk: disk, next: disk}
	if s.header != nil {
		h.id, h.dir, h.dirSum = s.header.id, s.header.dir, s.header.dirSum
	} else {
		h.id = uuid.New()
	}
	if changed || s.header == nil {
		dir := encodeSideDir(next)
		h.dir, h.dirSum = area{n: int64(len(dir))}, crc32.Checksum(dir, crcTable)
		if len(dir) > 0 {
			if h.dir, err = w.put(ctx, dir); err != nil {
				return sideError("write", err)
			}
		}
	}
	// What the bits are relative to is as durable as they are.
	if err := s.d.node.File().Flush(ctx); err != nil {
		return err
	}
	if h.image, err = s.identity(ctx, clean); err != nil {
		return err
	}
	s.stored = false
	if err := s.writeHeader(ctx, h); err != nil {
		s.doubtful = append(s.doubtful, w.fresh...)
		return sideError("write", err)
	}
	s.entries, s.doubtful, s.reflag = next, nil, false
	s.ahead.Forget()
	s.stored = true
	if clean {
		// What is behind the last area is of no use to anybody. That it stays after
		// a failure does no harm.
		if size, err := s.file.Size(ctx); err == nil && size > s.end() {
			_ = s.file.Truncate(ctx, s.end())
		}
	}
	return nil
}

// timeGrain is longer than the step in which the kernel's clock of files goes on.
const timeGrain = 20 * time.Millisecond

// identity tells which file the image is. settled: whoever changes it from now on
// gives it other times than it has; what changes twice within a step of the clock
// has the same ones.
func (s *sidecar) identity(ctx context.Context, settled bool) (blockgraph.FileIdentity, error) {
	id, err := s.host.Identity(ctx)
	if err != nil || id.Device || !settled {
		return id, err
	}
	rest := timeGrain - clock.Real().Now().Sub(time.Unix(0, id.Changed))
	if rest <= 0 || rest > timeGrain { // or the clock was set
		return id, nil
	}
	if err := clock.Real().Sleep(ctx, rest); err != nil {
		return id, err
	}
	return s.host.Identity(ctx)
}

// begin opens the file for writing. It stays nil when there is nothing to store
// and no file either.
func (s *sidecar) begin(ctx context.Context) error {
	persistent := slices.ContainsFunc(s.want, func(b *blockgraph.DirtyBitmap) bool { return b.Persistent })
	if s.header == nil && !persistent {
		s.stored = true
		return nil
	}
	f, err := s.open(ctx, s.header == nil)
	if err != nil {
		return err
	}
	if err := s.checkSame(ctx, f); err != nil {
		f.Close()
		return err
	}
	s.file = f
	return nil
}

// checkSame fails when the file is not as it was left.
func (s *sidecar) checkSame(ctx context.Context, f blockgraph.Sidecar) error {
	b := make([]byte, dataStart)
	if err := f.ReadAt(ctx, b, 0); err != nil {
		return sideError("read", err)
	}
	h, _, err := chooseHeader(b)
	if err != nil {
		return sideError("read", err)
	}
	known := s.header
	if (h == nil) != (known == nil) || h != nil && (h.id != known.id || h.generation != known.generation) {
		return sideError("write", syscall.ESTALE)
	}
	return nil
}

// writeHeader makes h the header that counts. On an error it may or may not be.
func (s *sidecar) writeHeader(ctx context.Context, h *sideHeader) error {
	s.tried++
	h.generation = s.tried
	h.idSum = sumID(h.image.ID)
	slot := 1 - s.slot
	// First what the header refers to.
	if err := s.file.Flush(ctx); err != nil {
		return err
	}
	if err := s.file.WriteAt(ctx, h.encode(), int64(slot)*slotSize); err != nil {
		return err
	}
	if err := s.file.Flush(ctx); err != nil {
		return err
	}
	s.header, s.slot = h, slot
	return nil
}

// announce has the file say that the disk is about to have another length.
func (s *sidecar) announce(ctx context.Context, size int64) error {
	if s.file == nil || s.header == nil {
		return nil
	}
	h := *s.header
	h.next = size
	if err := s.writeHeader(ctx, &h); err != nil {
		return sideError("write", err)
	}
	return nil
}

// rest gives the file up with all that the bitmaps have by now. It is not opened
// again until something is to be stored. The turn is held.
func (s *sidecar) rest(ctx context.Context) error {
	if s.file == nil {
		return nil
	}
	var err error
	if s.present() {
		err = s.store(ctx, true)
	}
	if cerr := s.file.Close(); err == nil {
		err = cerr
	}
	s.file = nil
	s.stored = false
	return err
}

// present tells whether the image is still the one below the node: a job may
// have put another in its place. Then the file stays as after an unclean end, and
// tells of the old one.
func (s *sidecar) present() bool { return s.leadsTo(s.d.node.File().Child()) }

// leadsTo tells whether n is the image, or filters above it.
func (s *sidecar) leadsTo(n *blockgraph.Node) bool {
	for n != nil {
		if h, ok := n.Driver().(blockgraph.SidecarHost); ok {
			return h == s.host
		}
		e := n.FilterOrCOW()
		if e == nil {
			return false
		}
		n = e.Child()
	}
	return false
}

// used returns the areas that must not be written to, in their order.
func (s *sidecar) used(more []area) []area {
	list := append([]area{{0, dataStart}}, s.doubtful...)
	list = append(list, more...)
	if s.header != nil {
		list = append(list, s.header.dir)
	}
	for _, e := range s.entries {
		list = append(list, e.data)
	}
	slices.SortFunc(list, func(a, b area) int { return cmp.Compare(a.off, b.off) })
	return list
}

// end returns where the last used area ends.
func (s *sidecar) end() int64 {
	end := int64(dataStart)
	for _, a := range s.used(nil) {
		end = max(end, a.end())
	}
	return end
}

// sideWriter writes bitmaps to new areas.
type sideWriter struct {
	s     *sidecar
	disk  int64
	clean bool
	fresh []area
}

// plan returns the directory that is wanted, with everything that it needs
// written, and whether it differs from the present one.
func (w *sideWriter) plan(ctx context.Context) (next []*sideEntry, changed bool, err error) {
	changed = w.s.reflag
	byName := make(map[string]*sideEntry, len(w.s.entries))
	for _, e := range w.s.entries {
		byName[e.name] = e
	}
	for _, b := range slices.Backward(w.s.want) {
		if !b.Persistent {
			continue
		}
		old := byName[b.Name]
		if b.Inconsistent {
			if old == nil {
				return nil, false, syscall.EINVAL
			}
			e := *old
			// Its data means nothing, but has the length of any.
			if n := sideBytes(w.disk, e.granularityBits); n != e.data.n {
				changed = true
				if e.data, err = w.space(ctx, n); err != nil {
					return nil, false, err
				}
			}
			next = append(next, &e)
			continue
		}
		e := &sideEntry{name: b.Name, granularityBits: bitmapstore.GranularityBits(b.Bits), bits: b.Bits}
		if !b.Disabled {
			e.flags |= entryEnabled
		}
		if w.keeps(old, e) {
			e.data, e.loose = old.data, old.loose
			changed = changed || e.flags != old.flags
		} else {
			changed = true
			if err := w.putBitmap(ctx, e, b); err != nil {
				return nil, false, err
			}
		}
		next = append(next, e)
	}
	same := func(a, b *sideEntry) bool { return a.name == b.name }
	return next, changed || !slices.EqualFunc(next, w.s.entries, same), nil
}

// keeps tells whether the file's data of a bitmap may stay.
func (w *sideWriter) keeps(old, e *sideEntry) bool {
	return old != nil && old.bits == e.bits && old.granularityBits == e.granularityBits &&
		w.s.header.disk == w.disk && !(w.clean && old.loose)
}

// putBitmap writes a bitmap's data.
func (w *sideWriter) putBitmap(ctx context.Context, e *sideEntry, b *blockgraph.DirtyBitmap) error {
	n := sideBytes(w.disk, e.granularityBits)
	if n > maxSideBytes {
		return syscall.EFBIG
	}
	content, err := bitmapstore.Content(b, w.disk)
	if err != nil {
		return err
	}
	if e.data, err = w.space(ctx, n); err != nil {
		return err
	}
	buf := make([]byte, min(n, sidePiece))
	// Zeroes are written, too: setting bits in place then needs no space.
	for at := int64(0); at < n; at += int64(len(buf)) {
		buf = buf[:min(int64(len(buf)), n-at)]
		content.Serialize(at, buf)
		if err := w.s.file.WriteAt(ctx, buf, e.data.off+at); err != nil {
			return err
		}
	}
	return nil
}

// put writes b to a new area.
func (w *sideWriter) put(ctx context.Context, b []byte) (area, error) {
	a, err := w.space(ctx, int64(len(b)))
	if err != nil {
		return area{}, err
	}
	return a, w.s.file.WriteAt(ctx, b, a.off)
}

// space finds n bytes that nothing refers to.
func (w *sideWriter) space(ctx context.Context, n int64) (area, error) {
	at := int64(0)
	for _, u := range w.s.used(w.fresh) {
		if u.n == 0 {
			continue
		}
		if u.off-at >= n && at > 0 {
			break
		}
		at = max(at, (u.end()+slotSize-1)&^(slotSize-1))
	}
	a := area{at, n}
	size, err := w.s.file.Size(ctx)
	if err == nil && size < a.end() {
		err = w.s.file.Truncate(ctx, a.end())
	}
	if err != nil {
		return area{}, err
	}
	w.fresh = append(w.fresh, a)
	return a, nil
}
