package raw

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/bits"
	"slices"
	"syscall"

	"blockd/bitmaps"
	"blockd/blockgraph"
	"blockd/formats/bitmapstore"
	"blockd/qapi"
)

// Persistent dirty bitmaps of a raw image, in a file beside it.
//
// While the image is open for writing the file says that it is not clean, and
// at every moment has a superset of the dirty bits (package bitmapstore). At a
// clean close it gets the exact bits and, with the clean flag, which file the
// image is, its size and its times. Whoever opens the image next believes the
// bitmaps if all of that is still so. After an unclean end only the promise of
// the option, that nobody else writes to the image, makes the bitmaps worth
// anything: what blockd itself wrote is in them.

// sideSuffix is what the file is called after the image.
const sideSuffix = ".bitmaps"

// sidecar is the bitmaps of one node. What is not said otherwise is guarded by
// the turn of ahead, or belongs to opening and closing.
type sidecar struct {
	d         *driver
	host      blockgraph.SidecarHost
	name      string // of the file; empty: beside the image
	exclusive bool   // nobody else writes to the image
	readOnly  bool

	ahead *bitmapstore.Ahead
	// want is the node's list; stored: the file is known to have it.
	want   []*blockgraph.DirtyBitmap
	stored bool

	file    blockgraph.Sidecar // nil while nothing is to be written
	header  *sideHeader        // as it is durable; nil without a file
	slot    int                // that has it
	tried   uint64             // the highest generation that may be in the file
	entries []*sideEntry
	reflag  bool // the file does not say of all that are inconsistent that they are
	// doubtful are areas of headers that may or may not be in the file.
	doubtful []area
}

// newSidecar checks the options; nil without bitmaps.
func newSidecar(ctx context.Context, d *driver, r *blockgraph.OpenRequest) (*sidecar, error) {
	o := r.Options.Raw
	if o.XBitmaps == nil || *o.XBitmaps == qapi.RawBitmapPersistenceOff {
		if o.XBitmapsFile != nil {
			return nil, blockgraph.Errorf(syscall.EINVAL, "Parameter 'x-bitmaps-file' needs 'x-bitmaps'")
		}
		return nil, nil
	}
	if r.FromHeader {
		return nil, blockgraph.Errorf(syscall.EPERM, "An image header may not ask for dirty bitmaps beside a raw image")
	}
	s := &sidecar{d: d, exclusive: *o.XBitmaps == qapi.RawBitmapPersistenceSidecarExclusive, readOnly: r.ReadOnly, ahead: bitmapstore.NewAhead()}
	if o.XBitmapsFile != nil {
		s.name = *o.XBitmapsFile
	}
	file := r.Node.File().Child()
	var ok bool
	if s.host, ok = file.Driver().(blockgraph.SidecarHost); !ok {
		return nil, blockgraph.Errorf(syscall.ENOTSUP, "Dirty bitmaps beside a raw image need a file or block device of this host below it, not '%s'", file.Name())
	}
	id, err := s.host.Identity(ctx)
	if err != nil {
		return nil, err
	}
	if id.Device && !s.exclusive {
		return nil, blockgraph.Errorf(syscall.EINVAL, "Dirty bitmaps of a block device need 'x-bitmaps=%s': it does not tell who has written to it", qapi.RawBitmapPersistenceSidecarExclusive)
	}
	return s, nil
}

func (s *sidecar) open(ctx context.Context, create bool) (blockgraph.Sidecar, error) {
	return s.host.OpenSidecar(ctx, s.name, sideSuffix, !s.readOnly, create)
}

// load reads the file, if there is one. It is called once.
func (s *sidecar) load(ctx context.Context) ([]*blockgraph.DirtyBitmap, error) {
	f, err := s.open(ctx, false)
	if blockgraph.Errno(err) == syscall.ENOENT {
		s.stored = true
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	err = s.read(ctx, f)
	if err == nil && !s.readOnly && s.header != nil {
		s.file = f
		// From here on the image may differ from what the header says of it.
		if err = s.store(ctx, false); err == nil {
			return s.want, nil
		}
		s.file = nil
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	s.stored = err == nil
	return s.want, err
}

// read takes over what the file has.
func (s *sidecar) read(ctx context.Context, f blockgraph.Sidecar) error {
	size, err := f.Size(ctx)
	if err != nil {
		return sideError("read", err)
	}
	b := make([]byte, dataStart)
	if err := f.ReadAt(ctx, b, 0); err != nil {
		return sideError("read", err)
	}
	h, slot, err := chooseHeader(b)
	if err != nil || h == nil {
		return sideError("read", err)
	}
	if h.dir.n > size || h.dir.off > size-h.dir.n {
		return sideError("read", errNotSide)
	}
	b = make([]byte, h.dir.n)
	if err := f.ReadAt(ctx, b, h.dir.off); err != nil {
		return sideError("read", err)
	}
	entries, err := decodeSideDir(h, b)
	if err != nil {
		return sideError("read", err)
	}
	id, err := s.host.Identity(ctx)
	if err != nil {
		return err
	}
	why := s.distrust(h, id)
	if why != "" && len(entries) > 0 {
		slog.Warn("the dirty bitmaps beside a raw image are inconsistent", "node", s.d.node.Name(), "file", h.id.String(), "reason", why)
	}
	loaded := int64(0)
	for _, e := range entries {
		if why != "" || e.data.off > size-e.data.n {
			s.reflag = s.reflag || e.flags&entryInconsistent == 0
			e.flags |= entryInconsistent
		}
		m, err := s.readBitmap(ctx, f, h, e, &loaded)
		if err != nil {
			return err
		}
		s.want = append(s.want, m)
	}
	// The newest is the first in memory and the last in the file.
	slices.Reverse(s.want)
	s.header, s.slot, s.tried, s.entries = h, slot, h.generation, entries
	return nil
}

// distrust tells why the bitmaps of a header may lack dirty bits of the image;
// empty: they do not.
func (s *sidecar) distrust(h *sideHeader, id blockgraph.FileIdentity) string {
	disk := s.d.node.Size()
	was := &h.image
	switch {
	case was.Device != id.Device, id.Device && h.idSum != sumID(id.ID), !id.Device && (was.Dev != id.Dev || was.Ino != id.Ino),
		id.Device && id.ID == "" && was.Dev != id.Dev:
		return "they belong to another image"
	case h.start != s.d.now.Load().offset:
		return "they belong to another part of the image"
	case h.clean && (was.Size != id.Size || was.Modified != id.Modified || was.Changed != id.Changed):
		return "the image has changed since"
	case h.disk != disk && (h.clean || h.next != disk):
		return "the image has another size"
	case !h.clean && !s.exclusive:
		return "the image was not closed, and may have been changed by others since"
	}
	return ""
}

// doubt tells whether others have changed the image since it was given up. The
// entries are then inconsistent; that is written with the next change.
func (s *sidecar) doubt(ctx context.Context) (bool, error) {
	if s.header == nil || !s.header.clean {
		return false, nil
	}
	id, err := s.host.Identity(ctx)
	if err != nil {
		return false, err
	}
	why := s.distrust(s.header, id)
	if why == "" || len(s.entries) == 0 {
		return false, nil
	}
	slog.Warn("the dirty bitmaps beside a raw image are inconsistent", "node", s.d.node.Name(), "file", s.header.id.String(), "reason", why)
	for _, e := range s.entries {
		e.flags |= entryInconsistent
	}
	s.reflag = true
	return true, nil
}

// readBitmap makes the bitmap of an entry.
func (s *sidecar) readBitmap(ctx context.Context, f blockgraph.Sidecar, h *sideHeader, e *sideEntry, loaded *int64) (*blockgraph.DirtyBitmap, error) {
	disk, granularity := s.d.node.Size(), int64(1)<<e.granularityBits
	m := &blockgraph.DirtyBitmap{
		Name: e.name, Persistent: true, ReadOnly: s.readOnly,
		Disabled: e.flags&entryEnabled == 0, Inconsistent: e.flags&entryInconsistent != 0,
	}
	size := disk
	if !m.Inconsistent {
		size = h.disk
	}
	if err := bitmaps.Check(max(size, disk), granularity); err != nil {
		return nil, err
	}
	// What the bits take, and an empty bitmap, roughly.
	if *loaded += e.data.n + sideBytes(disk, e.granularityBits)/32; *loaded > maxSideLoaded {
		return nil, blockgraph.Errorf(syscall.EFBIG, "Could not read bitmap '%s' from image: %s", e.name, blockgraph.Strerror(syscall.EFBIG))
	}
	m.Bits = bitmaps.New(size, granularity)
	if m.Inconsistent {
		return m, nil
	}
	buf := make([]byte, min(e.data.n, sidePiece))
	for at := int64(0); at < e.data.n; at += int64(len(buf)) {
		buf = buf[:min(int64(len(buf)), e.data.n-at)]
		if err := f.ReadAt(ctx, buf, e.data.off+at); err != nil {
			return nil, blockgraph.Errorf(blockgraph.Errno(err), "Could not read bitmap '%s' from image: %s", e.name, blockgraph.Strerror(err))
		}
		m.Bits.Deserialize(at, buf)
	}
	e.bits = m.Bits
	// What was not clean has bits too many in the file; they are in memory, too.
	return m, m.Bits.Resize(disk)
}

// sidePiece is how much of a bitmap's data is in memory at a time, in bytes.
const sidePiece = 1 << 20

func sideError(action string, err error) error {
	if err == nil {
		return nil
	}
	why := blockgraph.Strerror(err)
	if errors.Is(err, errNotSide) {
		why = "It holds something else, or is damaged"
		err = syscall.EINVAL
	}
	return blockgraph.Errorf(blockgraph.Errno(err), "Could not %s the file of the dirty bitmaps: %s", action, why)
}

// canStore is CanStoreBitmap.
func (s *sidecar) canStore(list []*blockgraph.DirtyBitmap, name string, granularity int64) error {
	refuse := func(format string, args ...any) error {
		return qapi.Errorf("Can't make bitmap '%s' persistent in '%s': %s", name, s.d.node.Name(), fmt.Sprintf(format, args...))
	}
	gb := bits.TrailingZeros64(uint64(granularity))
	count := 1
	for _, b := range list {
		if b.Persistent {
			count++
		}
	}
	switch {
	case gb > maxSideBits:
		return refuse("Granularity exceeds maximum (%d bytes)", int64(1)<<maxSideBits)
	case gb < minSideBits:
		return refuse("Granularity is under minimum (%d bytes)", int64(1)<<minSideBits)
	case sideBytes(s.d.node.Size(), uint8(gb)) > maxSideBytes:
		return refuse("Too much space will be occupied by the bitmap. Use larger granularity")
	case len(name) > blockgraph.MaxBitmapName:
		return refuse("Name length exceeds maximum (%d characters)", blockgraph.MaxBitmapName)
	case count > maxSideBitmaps:
		return refuse("Maximum number of persistent bitmaps is already reached")
	}
	return nil
}

// Ready, Recorded and SetDirty: see bitmapstore.Image.
func (s *sidecar) Ready(ctx context.Context) error {
	if s.stored {
		return nil
	}
	return s.store(ctx, false)
}

func (s *sidecar) Recorded() (size int64, granularityBits uint) {
	for _, e := range s.entries {
		if e.recording() {
			granularityBits = max(granularityBits, uint(e.granularityBits))
		}
	}
	return s.d.node.Size(), granularityBits
}

// SetDirty sets bits in place.
func (s *sidecar) SetDirty(ctx context.Context, from, to int64) error {
	if s.file == nil || s.header == nil {
		return syscall.EIO
	}
	to = min(to, s.header.disk)
	for _, e := range s.entries {
		if !e.recording() {
			continue
		}
		e.loose = true
		bit := func(off int64) int64 { return (off + 1<<e.granularityBits - 1) >> e.granularityBits }
		first, end := bit(from)/8, bit(to)
		for last := (end + 7) / 8; first < last; {
			ones := make([]byte, min(last-first, sidePiece))
			for i := range ones {
				ones[i] = 0xff
			}
			if next := first + int64(len(ones)); next == last && end%8 != 0 {
				ones[len(ones)-1] = 1<<(end%8) - 1
			}
			if err := s.file.WriteAt(ctx, ones, e.data.off+first); err != nil {
				return err
			}
			first += int64(len(ones))
		}
	}
	return s.file.Flush(ctx)
}
