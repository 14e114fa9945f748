package qcow2

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"

	"blockd/blockgraph"
	"blockd/clock"
	"blockd/formats/bitmapstore"
	"blockd/formats/luks"
	"blockd/qapi"
)

// Type is the driver's entry in the registry of a program without secrets: it
// opens no encrypted images.
var Type = DriverType(luks.Config{
	Secret: func(id string) (string, error) { return "", errHeader("No secret with id '%s'", id) },
	Clock:  clock.Real(),
}, qapi.Qcow2BitmapPersistenceCrashSafe)

// DriverType returns the driver for the graph's registry, with the keys of
// encrypted images, and how dirty bitmaps are stored unless x-bitmaps says.
func DriverType(keys luks.Config, persistence qapi.Qcow2BitmapPersistence) *blockgraph.DriverType {
	return &blockgraph.DriverType{
		Name:  "qcow2",
		Probe: probe,
		Children: func(o *qapi.BlockdevOptions) []blockgraph.ChildSpec {
			list := []blockgraph.ChildSpec{{Name: "file", Role: blockgraph.RoleData | blockgraph.RoleMetadata | blockgraph.RolePrimary, Ref: o.Qcow2.File}}
			if o.Qcow2.DataFile != nil {
				list = append(list, blockgraph.ChildSpec{Name: "data-file", Role: blockgraph.RoleData, Ref: *o.Qcow2.DataFile})
			}
			return list
		},
		Open: func(ctx context.Context, r *blockgraph.OpenRequest) (blockgraph.Driver, error) {
			ch := openingChildren{nodeChildren{r.Node}, r, keys}
			o := withPersistence(r.Options, persistence)
			d, err := openFor(ctx, ch, o, opening{readOnly: r.ReadOnly, repair: r.Repair && !r.ReadOnly})
			if err != nil && r.AutoReadOnly && !r.ReadOnly && errors.Is(err, syscall.EACCES) {
				r.Node.FallBackReadOnly()
				d, err = open(ctx, ch, o, true)
			}
			if err != nil {
				return nil, err
			}
			d.ch = ch.nodeChildren
			return d, nil
		},
		Required: blockgraph.RequiredChildren("file"),
		WithFile: func(file qapi.BlockdevRef) *qapi.BlockdevOptions {
			return &qapi.BlockdevOptions{Driver: qapi.BlockdevDriverQcow2, Qcow2: &qapi.BlockdevOptionsQcow2{File: file}}
		},
		BackingOption: func(o *qapi.BlockdevOptions) **qapi.BlockdevRefOrNull { return &o.Qcow2.Backing },
		Reopenable:    reopenable,
		Remembers:     true,
		StrongOptions: strongOptions,
	}
}

// withPersistence returns options with x-bitmaps; those of the node stay as the
// user gave them.
func withPersistence(o *qapi.BlockdevOptions, p qapi.Qcow2BitmapPersistence) *qapi.BlockdevOptions {
	if o.Qcow2 == nil || o.Qcow2.XBitmaps != nil {
		return o
	}
	whole, own := *o, *o.Qcow2
	own.XBitmaps, whole.Qcow2 = &p, &own
	return &whole
}

// strongOptions: without its key an image cannot be read.
func strongOptions(o *qapi.BlockdevOptions) *qapi.Object {
	e := o.Qcow2.Encrypt
	switch {
	case e == nil:
	case e.LUKS != nil && e.LUKS.KeySecret != nil:
		return qapi.NewObject("encrypt.key-secret", *e.LUKS.KeySecret)
	case e.AES != nil && e.AES.KeySecret != nil:
		return qapi.NewObject("encrypt.key-secret", *e.AES.KeySecret)
	}
	return nil
}

func probe(head []byte) int {
	if len(head) >= 8 && binary.BigEndian.Uint32(head) == magic && binary.BigEndian.Uint32(head[4:]) >= 2 {
		return 100
	}
	return 0
}

// opening says what an image is opened for.
type opening struct {
	readOnly bool
	// repair: it is opened for writing to be checked and repaired, and for nothing
	// else, so one that is marked as corrupt or dirty, or has no refcount table to
	// be read, is opened as it is.
	repair bool
}

// open opens an image. Nothing is left open on an error.
//
//blockd:blocking
func open(ctx context.Context, ch children, o *qapi.BlockdevOptions, readOnly bool) (*Driver, error) {
	return openFor(ctx, ch, o, opening{readOnly: readOnly})
}

//blockd:blocking
func openFor(ctx context.Context, ch children, o *qapi.BlockdevOptions, way opening) (*Driver, error) {
	f, readOnly := ch.file(), way.readOnly
	h, ext, head, err := readHeader(ctx, f)
	if err != nil {
		return nil, err
	}
	if h.refTableClusters == 0 && !way.repair {
		return nil, errHeader("Image does not contain a reference count table")
	}
	if h.incompatible&incompatCorrupt != 0 && !readOnly && !way.repair {
		return nil, blockgraph.Errorf(syscall.EACCES, "qcow2: Image is corrupt; cannot be opened read/write")
	}
	if err := attachData(h, ext, ch); err != nil {
		return nil, err
	}
	opts, err := parseOptions(h, int64(h.size), o)
	if err != nil {
		return nil, err
	}
	var crypt *encryption
	if k, ok := ch.(keyHolder); ok && h.cryptMethod != cryptNone {
		if crypt, err = k.openCrypt(ctx, h, ext, o); err != nil {
			return nil, err
		}
	} else if h.cryptMethod != cryptNone {
		return nil, errHeader("Parameter 'encrypt.key-secret' is required for cipher")
	}
	d := &Driver{
		crypt: crypt,
		ch:    ch, h: h, head: head, ext: ext, headerTurn: make(chan struct{}, 1),
		sliceBits: sliceBits(h, opts),
		meta:      newMetadataMap(h.clusterBits),
		newTables: map[int64]struct{}{}, unsharing: map[int64]struct{}{}, making: map[roomKey]*loading{},
		cache: sliceCache{loads: map[missingSlice]*loading{}, dirty: map[*slice]struct{}{}},
		refs: refcounts{
			order: h.refcountOrder, blockBits: h.refBlockBits, tableOffset: int64(h.refTableOffset),
			blocks: map[int64]*refBlock{}, loading: map[int64]*loading{}, dirty: map[*refBlock]struct{}{},
			untouched: h.clusters(f.Size()),
		},
		nextSize: int64(h.size),
	}
	defer d.background.wait(context.WithoutCancel(ctx)) // which may mark the image as corrupt
	d.bitmaps.ahead, d.bitmaps.onClose = bitmapstore.NewAhead(), opts.bitmapsOnClose
	d.readOnly.Store(readOnly)
	d.size.Store(int64(h.size))
	d.diskFields = headerFields{int64(h.refTableOffset), h.refTableClusters, int64(h.l1Offset), h.l1Size, int64(h.size)}
	if err := d.readTables(ctx, f, way); err != nil {
		return nil, err
	}
	d.apply(opts)
	if err := d.readBackingName(); err != nil {
		return nil, err
	}
	if err := d.loadBitmaps(ctx); err != nil {
		return nil, err
	}
	if !readOnly {
		d.marked = way.repair && h.incompatible&(incompatDirty|incompatCorrupt) != 0
		if err := d.startWriting(ctx); err != nil {
			return nil, err
		}
		if err := d.protectInactive(ctx, opts); err != nil {
			return nil, err
		}
	}
	d.cleaner.every(d, opts.cleanInterval)
	return d, nil
}

// readHeader reads and checks the first cluster as far as it is in use.
func readHeader(ctx context.Context, f storage) (*header, *extensions, []byte, error) {
	first := make([]byte, sector)
	if err := readAt(ctx, f, 0, first); err != nil {
		return nil, nil, nil, blockgraph.Errorf(blockgraph.Errno(err), "Could not read qcow2 header: %s", blockgraph.Strerror(err))
	}
	h, err := parseHeader(first)
	if err != nil {
		return nil, nil, nil, err
	}
	head := make([]byte, h.clusterSize)
	if err := readAt(ctx, f, 0, head); err != nil {
		return nil, nil, nil, blockgraph.Errorf(blockgraph.Errno(err), "Could not read qcow2 header: %s", blockgraph.Strerror(err))
	}
	limit := h.clusterSize
	if h.backingOffset != 0 {
		limit = int64(h.backingOffset)
	}
	ext, extErr := parseExtensions(h, head, int64(h.length), limit)
	if err := h.checkFeatures(ext); err != nil {
		return nil, nil, nil, err
	}
	if err := h.checkTables(); err != nil {
		return nil, nil, nil, err
	}
	if extErr != nil {
		return nil, nil, nil, extErr
	}
	end := ext.end
	if h.backingOffset != 0 {
		end = int64(h.backingOffset)
		if n := int64(h.backingSize); n <= maxBackingName && end+n <= h.clusterSize {
			end += n
		}
	}
	used := min((max(end, sector)+sector-1)&^(sector-1), h.clusterSize)
	return h, ext, append([]byte(nil), head[:used]...), nil
}

func (d *Driver) readBackingName() error {
	h := d.h
	names := [2]string{"", d.ext.backingFormat}
	if h.backingOffset != 0 {
		if n := int64(h.backingSize); n > min(maxBackingName, h.clusterSize-int64(h.backingOffset)) {
			return errHeader("Backing file name too long")
		}
		names[0] = string(d.head[h.backingOffset : h.backingOffset+uint64(h.backingSize)])
	}
	d.names.Store(&names)
	return nil
}

// readTables reads what is always in memory: the L1 table, the refcount table
// and the list of snapshots.
func (d *Driver) readTables(ctx context.Context, f storage, way opening) error {
	h := d.h
	l1 := newL1Table(int64(h.l1Offset), int64(h.l1Size))
	raw, err := tableAt(ctx, f, l1.offset, int64(h.l1Size)*l1EntrySize)
	if err != nil {
		return blockgraph.Errorf(blockgraph.Errno(err), "Could not read L1 table: %s", blockgraph.Strerror(err))
	}
	for i := range len(raw) / l1EntrySize {
		e := binary.BigEndian.Uint64(raw[i*l1EntrySize:])
		l1.entries[i].Store(e)
		if off := e & l1OffsetMask; off != 0 {
			d.meta.add(int64(off)>>h.clusterBits, kindActiveL2)
		}
	}
	d.l1.Store(l1)

	f.DebugEvent("reftable_load")
	tableLen := int64(h.refTableClusters) << h.clusterBits
	raw, err = tableAt(ctx, f, d.refs.tableOffset, tableLen)
	if err != nil && (!way.repair || ctx.Err() != nil) {
		return blockgraph.Errorf(blockgraph.Errno(err), "Could not initialize refcount handling: %s", blockgraph.Strerror(err))
	}
	if err != nil {
		d.refs.damaged, raw = "cannot be read: "+blockgraph.Strerror(err), nil
	}
	d.refs.table = make([]uint64, tableLen/8)
	for i := range len(raw) / 8 {
		e := binary.BigEndian.Uint64(raw[i*8:])
		if e&refTableReserved != 0 {
			d.refs.damaged = fmt.Sprintf("has an entry, %d, with reserved bits set", i)
		}
		e &= refTableMask
		d.refs.table[i] = e
		if e != 0 && e < maxHostOffset {
			d.meta.add(int64(e)>>h.clusterBits, kindRefBlock)
		}
	}

	list, tableSize, err := readSnapshots(ctx, f, h)
	if err != nil {
		return err
	}
	d.snapshots.Store(&snapshotList{list, place{int64(h.snapshotsOffset), int64(h.snapshotsOffset) + tableSize, kindSnapshotTable}})
	d.meta.setPlaces(kindHeader, place{0, h.clusterSize, kindHeader})
	d.meta.setPlaces(kindActiveL1, place{l1.offset, l1.offset + int64(h.l1Size)*l1EntrySize, kindActiveL1})
	d.meta.setPlaces(kindRefTable, place{d.refs.tableOffset, d.refs.tableOffset + tableLen, kindRefTable})
	d.meta.setPlaces(kindSnapshotTable, d.snapshots.Load().at)
	d.meta.setPlaces(kindInactiveL1, l1Places(list)...)
	if b := d.ext.bitmaps; b.present {
		d.meta.setPlaces(kindBitmapDir, place{int64(b.offset), int64(b.offset + b.size), kindBitmapDir})
	}
	return nil
}

// startWriting makes an image ready to be changed: counts that a crash under
// lazy refcounts left wrong are repaired, unless that is what it was opened for,
// and the autoclear bits of what we do
// not maintain are cleared.
func (d *Driver) startWriting(ctx context.Context) error {
	be := binary.BigEndian
	if d.h.version < 3 {
		return nil
	}
	keep := uint64(0)
	if d.ext.bitmaps.present {
		keep = autoclearBitmaps
	}
	if d.h.raw {
		keep |= autoclearRaw
	}
	if be.Uint64(d.head[fieldAutoclear:])&^keep != 0 {
		err := d.updateHeader(ctx, func(b []byte) { be.PutUint64(b[fieldAutoclear:], keep) })
		if err == nil {
			err = d.file().Flush(ctx)
		}
		if err != nil {
			return blockgraph.Errorf(blockgraph.Errno(err), "Could not update qcow2 header: %s", blockgraph.Strerror(err))
		}
	}
	if be.Uint64(d.head[fieldIncompatible:])&incompatDirty == 0 || d.marked {
		return nil
	}
	if err := d.repairDirty(ctx); err != nil {
		return blockgraph.Errorf(blockgraph.Errno(err), "Could not repair dirty image: %s", blockgraph.Strerror(err))
	}
	return nil
}
