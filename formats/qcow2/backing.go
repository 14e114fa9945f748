package qcow2

import (
	"bytes"
	"context"
	"encoding/binary"
	"syscall"

	"blockd/blockgraph"
)

// BackingFile returns the backing file's name and format as the header has
// them; an empty name: none.
func (d *Driver) BackingFile() (name, format string) {
	n := d.names.Load()
	if n[0] == "" {
		return "", ""
	}
	return n[0], n[1]
}

// ChangeBackingFile writes other names to the header, durably. It is atomic:
// the new name is written where nothing was, and one sector switches to it.
// A name that is too long gives EINVAL, one that has no room beside the old
// one ENOSPC. Control plane, on a worker.
func (d *Driver) ChangeBackingFile(ctx context.Context, name, format string) error {
	if len(name) > maxBackingName || len(format) > maxBackingFormat {
		return syscall.EINVAL
	}
	if name != "" && d.h.raw {
		return syscall.EINVAL // the data file alone would no longer do
	}
	if d.readOnly.Load() {
		return syscall.EROFS
	}
	if d.broken.Load() {
		return syscall.EIO
	}
	if name == "" {
		format = ""
	}
	if err := d.switchNames(ctx, &name, func(ext *extensions) { ext.backingFormat = format }, nil); err != nil {
		return err
	}
	d.names.Store(&[2]string{name, format})
	return nil
}

// switchHeader changes extensions and fixed fields of the header in one moment,
// durably: by its first sector, after what lies past that.
func (d *Driver) switchHeader(ctx context.Context, change func(ext *extensions), edit func(sector []byte)) error {
	return d.switchNames(ctx, nil, change, edit)
}

// relayHeader is switchHeader with fixed fields of another length in bytes. The
// driver's own copy of what follows from that is outdated then: it writes no more.
// Everything that has changed is on disk already.
func (d *Driver) relayHeader(ctx context.Context, length int64, change func(ext *extensions), edit func(sector []byte)) error {
	d.readOnly.Store(true)
	return d.switchLaid(ctx, length, nil, change, edit)
}

// switchNames is switchHeader with another name of the backing file, if that is
// not nil.
func (d *Driver) switchNames(ctx context.Context, name *string, change func(ext *extensions), edit func(sector []byte)) error {
	return d.switchLaid(ctx, int64(d.h.length), name, change, edit)
}

func (d *Driver) switchLaid(ctx context.Context, length int64, name *string, change func(ext *extensions), edit func(sector []byte)) error {
	select {
	case d.headerTurn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-d.headerTurn }()
	if name == nil {
		name = &d.names.Load()[0]
	}
	ext := *d.ext
	change(&ext)
	next, off, err := d.layHeader(length, &ext, *name)
	if err != nil {
		return err
	}
	if edit != nil {
		edit(next)
	}
	f := d.file()
	if len(next) > sector && !bytes.Equal(next[sector:], padded(d.head, len(next))[sector:]) {
		if err := writeAt(ctx, f, sector, next[sector:]); err != nil {
			return err
		}
		if err := f.Flush(ctx); err != nil {
			return err
		}
	}
	if err := writeAt(ctx, f, 0, next[:sector]); err != nil {
		return err
	}
	if err := f.Flush(ctx); err != nil {
		return err
	}
	ext.end = off
	d.head, d.ext = next, &ext
	return nil
}

func padded(b []byte, n int) []byte {
	p := make([]byte, max(n, len(b)))
	copy(p, b)
	return p
}

// layHeader returns the first cluster, as far as it is in use, with other
// extensions and another name behind fixed fields of that length, and the end of the
// extensions. headerTurn is held.
func (d *Driver) layHeader(length int64, ext *extensions, name string) ([]byte, int64, error) {
	for _, names := range []bool{true, false} {
		if next, end, ok := d.tryLayout(length, ext.encode(names), name); ok {
			return next, end, nil
		}
	}
	return nil, 0, syscall.ENOSPC
}

// tryLayout is layHeader for encoded extensions. Past the first sector it
// changes nothing that the present header refers to.
func (d *Driver) tryLayout(length int64, area []byte, name string) (next []byte, end int64, ok bool) {
	be := binary.BigEndian
	end = length + int64(len(area))
	if length > sector {
		return nil, 0, false
	}
	if end > sector && !(end == d.ext.end && bytes.Equal(area[sector-length:], d.head[sector:end])) {
		return nil, 0, false // extensions past the first sector would have to change
	}
	// What the present header uses past the first sector.
	oldFrom := int64(be.Uint64(d.head[fieldBackingOffset:]))
	oldTo := int64(0)
	if oldFrom != 0 {
		oldTo = oldFrom + int64(be.Uint32(d.head[fieldBackingSize:]))
	}
	keepTo := max(oldTo, d.ext.end, sector)
	keepFrom := keepTo
	if d.ext.end > sector {
		keepFrom = sector
	} else if oldTo > sector {
		keepFrom = max(oldFrom, sector)
	}
	at, n := end, int64(len(name))
	if max(at, sector) < keepTo && at+n > keepFrom {
		at = (keepTo + 7) &^ 7
	}
	if n > 0 && at+n > d.h.clusterSize {
		return nil, 0, false
	}
	used := (max(at+n, keepTo) + sector - 1) &^ (sector - 1)
	next = padded(d.head, int(min(used, d.h.clusterSize)))
	clear(next[length:sector])
	copy(next[length:sector], area)
	if n == 0 {
		at = 0
	}
	copy(next[at:], name)
	be.PutUint64(next[fieldBackingOffset:], uint64(at))
	be.PutUint32(next[fieldBackingSize:], uint32(n))
	return next, end, true
}

var _ blockgraph.BackingImage = (*Driver)(nil)
