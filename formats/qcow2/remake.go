package qcow2

import (
	"context"
	"encoding/binary"
	"math/bits"
	"syscall"

	"blockd/blockgraph"
	"blockd/qapi"
)

// Changing what an image was created with (the field: qemu-img amend): its version,
// the width of its refcounts, what its header says of lazy refcounts and of its data
// file. Nobody else uses the image meanwhile. It is done in steps:
//
//	upgrade    the snapshot table anew, with what version 3 wants in it; header
//	refcounts  structures of the new width beside the old ones; header
//	header     names and flags
//	downgrade  entries that version 2 does not know are replaced (expand.go); header
//
// Each ends with one write of the header's first sector, so a crash leaves the image
// before a step or after it. Everything is checked before the first one. What is done
// when a later one fails stays, and the rest can be asked for again.
//
// A step has a driver of its own for the image, since a driver's geometry does not
// change; who asked opens the image anew when all is done. Each of its accesses is
// admitted by itself (entering.go), so a step may be as long as the image is.

// remake is what an image is to become.
type remake struct {
	version uint32
	order   uint32
	lazy    bool
	raw     bool
	name    *string // of the data file; nil: as it is
}

// errRemade refuses what an outdated driver cannot do.
var errRemade = blockgraph.Errorf(syscall.EBUSY, "Image is being amended, or could not be opened again since")

// SetAmending implements blockgraph.Amender. The image's file is nobody else's anyhow.
func (d *Driver) SetAmending(amending, alone bool) {
	if alone {
		d.alone.Store(amending)
	}
}

// Amend implements blockgraph.Amender.
func (d *Driver) Amend(ctx context.Context, enter blockgraph.EnterFunc, o *qapi.BlockdevAmendOptions, force bool) error {
	if d.alone.Load() && !d.AmendsAlone(o) {
		return errRemade // an earlier one has left it outdated
	}
	if d.AmendsAlone(o) {
		// Should nobody come to open the image anew, nothing is written by what this
		// driver knows of it.
		defer d.broken.Store(true)
	}
	if err := d.amendKeys(ctx, enter, o.Qcow2.Encrypt, force); err != nil || !d.AmendsAlone(o) {
		return err
	}
	return d.remake(ctx, enter, o.Qcow2)
}

// AmendsAlone implements blockgraph.Amender.
func (d *Driver) AmendsAlone(o *qapi.BlockdevAmendOptions) bool {
	q := o.Qcow2
	return q.XCompat != nil || q.XRefcountBits != nil || q.XLazyRefcounts != nil || q.XDataFile != nil || q.XDataFileRaw != nil
}

// sameChildren are a driver's, for another driver of the same image.
type sameChildren struct {
	children
	crypt *encryption
}

func (c sameChildren) openCrypt(context.Context, *header, *extensions, *qapi.BlockdevOptions) (*encryption, error) {
	return c.crypt, nil
}

// step has a driver of its own do a step.
//
//blockd:blocking
func (d *Driver) step(ctx context.Context, enter blockgraph.EnterFunc, do func(p *Driver) error) error {
	p, err := open(ctx, entering{sameChildren{d.ch, d.crypt}, enter}, &qapi.BlockdevOptions{}, false)
	if err != nil {
		return err
	}
	err = do(p)
	// What a step that was cancelled has counted is brought to disk, too.
	if e := p.Close(context.WithoutCancel(ctx)); err == nil {
		err = e
	}
	return err
}

// remake changes an image at rest. Errors are the field's texts.
//
//blockd:blocking
func (d *Driver) remake(ctx context.Context, enter blockgraph.EnterFunc, o *qapi.BlockdevAmendOptionsQcow2) error {
	var m *remake
	var was uint32
	err := d.step(ctx, enter, func(p *Driver) (err error) {
		was = p.h.version
		m, err = p.checkRemake(ctx, o)
		return err
	})
	if err == nil && m.version > was {
		err = d.step(ctx, enter, func(p *Driver) error { return p.upgrade(ctx) })
	}
	if err == nil {
		err = d.step(ctx, enter, func(p *Driver) error { return p.changeRefcountOrder(ctx, m.order) })
	}
	if err == nil {
		err = d.step(ctx, enter, func(p *Driver) error { return p.changeFlags(ctx, m) })
	}
	if err == nil && m.version < was {
		err = d.step(ctx, enter, func(p *Driver) error { return p.downgrade(ctx) })
	}
	return err
}

// checkRemake refuses what cannot be.
func (d *Driver) checkRemake(ctx context.Context, o *qapi.BlockdevAmendOptionsQcow2) (*remake, error) {
	h := d.h
	isLazy := h.compatible&compatLazyRefcounts != 0
	m := &remake{version: h.version, order: h.refcountOrder, lazy: is(o.XLazyRefcounts, isLazy), raw: is(o.XDataFileRaw, h.raw), name: o.XDataFile}
	if o.XCompat != nil {
		m.version = 3
		if *o.XCompat == qapi.BlockdevQcow2VersionV2 {
			m.version = 2
		}
	}
	if n := o.XRefcountBits; n != nil {
		if *n < 1 || *n > 64 || !isPowerOfTwo(uint64(*n)) {
			return nil, errHeader("Refcount width must be a power of two and may not exceed 64 bits")
		}
		m.order = uint32(bits.TrailingZeros64(uint64(*n)))
	}
	switch {
	case m.name != nil && !h.external:
		return nil, errHeader("data-file can only be set for images that use an external data file")
	case m.raw && !h.raw:
		return nil, errHeader("data-file-raw cannot be set on existing images")
	case m.order != h.refcountOrder && m.version < 3 && m.order != 4:
		return nil, errHeader("Refcount widths other than 16 bits require compatibility level 1.1 or above (use compat=1.1 or greater)")
	case m.lazy != isLazy && m.lazy && m.version < 3:
		return nil, errHeader("Lazy refcounts only supported with compatibility level 1.1 and above (use compat=1.1 or greater)")
	}
	if err := d.checkWidth(ctx, m.order); err != nil {
		return nil, err
	}
	if m.version < h.version {
		return m, d.checkDowngrade(ctx, m)
	}
	return m, nil
}

// checkDowngrade refuses what version 2 cannot tell.
func (d *Driver) checkDowngrade(ctx context.Context, m *remake) error {
	bad := func(format string, args ...any) error { return blockgraph.Errorf(syscall.ENOTSUP, format, args...) }
	h := d.h
	switch {
	case m.order != 4:
		return bad("compat=0.10 requires refcount_bits=16")
	case h.external:
		return bad("Cannot downgrade an image with a data file")
	}
	for _, s := range d.snapshots.Load().list {
		if s.vmStateSize > 1<<32-1 || int64(s.diskSize) != d.size.Load() {
			return bad("Internal snapshots prevent downgrade of image")
		}
	}
	if has := h.incompatible &^ (incompatDirty | incompatCompression); has != 0 {
		return bad("Cannot downgrade an image with incompatible features 0x%x set", has)
	}
	if len(d.bitmaps.dir) > 0 {
		return bad("Persistent dirty bitmaps prevent downgrade of image")
	}
	if h.compression == compressionZlib {
		return nil
	}
	found := false
	err := d.eachTableOfAll(ctx, func(_, _ int64, l2 []byte) error {
		for j := range int64(1) << h.l2Bits {
			found = found || h.entryAt(l2, j).word&flagCompressed != 0
		}
		return nil
	})
	if err == nil && found {
		err = bad("Cannot downgrade an image with zstd compression type and existing compressed clusters")
	}
	return err
}

// eachTableOfAll is eachTable for the active table and those of snapshots, each L2
// table once.
func (d *Driver) eachTableOfAll(ctx context.Context, f func(i, at int64, l2 []byte) error) error {
	seen := map[int64]struct{}{}
	once := func(i, at int64, l2 []byte) error {
		if _, again := seen[at]; again {
			return nil
		}
		seen[at] = struct{}{}
		return f(i, at, l2)
	}
	if err := d.eachTable(ctx, d.activeL1(), once); err != nil {
		return err
	}
	return d.eachInactiveTable(ctx, once)
}

// eachInactiveTable is eachTable for the tables of snapshots, one after the other.
func (d *Driver) eachInactiveTable(ctx context.Context, f func(i, at int64, l2 []byte) error) error {
	for _, s := range d.snapshots.Load().list {
		l1, err := d.snapshotL1(ctx, &s)
		if err == nil {
			err = d.eachTable(ctx, l1, f)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// upgrade makes an image of version 2 one of version 3.
func (d *Driver) upgrade(ctx context.Context) error {
	if old := d.snapshots.Load(); len(old.list) > 0 {
		// Written anew it has the length of the disk, which version 3 wants.
		fresh, known, err := d.switchSnapshots(ctx, old.list, false)
		if err != nil {
			if known {
				d.giveUp(fresh...)
			}
			return headerError("Failed to update the snapshot table", err)
		}
		d.giveUp(d.extentOf(old.at)...)
		if err := d.settle(ctx); err != nil {
			return headerError("Failed to update the snapshot table", err)
		}
	}
	err := d.relayHeader(ctx, ourHeader, func(ext *extensions) { ext.features = ourFeatures() }, func(b []byte) {
		clear(b[fieldIncompatible:ourHeader])
		be := binary.BigEndian
		be.PutUint32(b[4:], 3)
		be.PutUint32(b[fieldRefcountOrder:], d.h.refcountOrder)
		be.PutUint32(b[fieldHeaderLength:], ourHeader)
	})
	return remakeFailed(err)
}

// downgrade makes an image of version 3, which version 2 can tell, one of version 2.
func (d *Driver) downgrade(ctx context.Context) error {
	if err := d.expandZeroes(ctx); err != nil {
		return headerError("Failed to turn zero into data clusters", err)
	}
	err := d.relayHeader(ctx, v2HeaderLength, func(ext *extensions) { ext.features = nil }, func(b []byte) {
		binary.BigEndian.PutUint32(b[4:], 2)
	})
	return remakeFailed(err)
}

// changeFlags brings what the header says of lazy refcounts and of the data file.
func (d *Driver) changeFlags(ctx context.Context, m *remake) error {
	name := d.ext.dataFile
	if m.name != nil {
		name = *m.name
	}
	if name == d.ext.dataFile && m.raw == d.h.raw && m.lazy == (d.h.compatible&compatLazyRefcounts != 0) {
		return nil
	}
	err := d.switchHeader(ctx, func(ext *extensions) { ext.dataFile = name }, func(b []byte) {
		set := func(field int, bit uint64, on bool) {
			v := binary.BigEndian.Uint64(b[field:]) &^ bit
			if on {
				v |= bit
			}
			binary.BigEndian.PutUint64(b[field:], v)
		}
		if d.h.version >= 3 {
			set(fieldCompatible, compatLazyRefcounts, m.lazy)
			set(fieldAutoclear, autoclearRaw, m.raw)
		}
	})
	return remakeFailed(err)
}

func remakeFailed(err error) error {
	if err != nil {
		return headerError("Failed to update the image header", err)
	}
	return nil
}
