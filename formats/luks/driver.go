package luks

import (
	"context"
	"math"
	"sync/atomic"
	"syscall"

	"blockd/blockgraph"
	"blockd/ioengine"
	"blockd/qapi"
)

// The format driver `luks`: a file with a LUKS header and, behind it, the
// encrypted disk; or these two in files of their own.

const (
	name        = "luks"
	headerChild = "header" // the child with a detached header
)

// DriverType returns the driver for the graph's registry.
func DriverType(cfg Config) *blockgraph.DriverType {
	return &blockgraph.DriverType{
		Name:         name,
		Probe:        Probe,
		OpeningPerms: childPerms,
		Children: func(o *qapi.BlockdevOptions) []blockgraph.ChildSpec {
			file := blockgraph.ChildSpec{Name: "file", Role: blockgraph.RoleData | blockgraph.RoleMetadata | blockgraph.RolePrimary, Ref: o.LUKS.File}
			if o.LUKS.Header == nil {
				return []blockgraph.ChildSpec{file}
			}
			return []blockgraph.ChildSpec{file, {Name: headerChild, Role: blockgraph.RoleMetadata, Ref: *o.LUKS.Header}}
		},
		Open: func(ctx context.Context, r *blockgraph.OpenRequest) (blockgraph.Driver, error) {
			d := &driver{node: r.Node, detached: r.Options.LUKS.Header != nil}
			var err error
			if r.NoIO {
				d.volume, err = inspect(ctx, headerStore{d.header}, d.detached, cfg)
			} else {
				d.volume, err = open(ctx, headerStore{d.header}, d.detached, r.Options.LUKS.KeySecret, "", cfg)
			}
			if err != nil {
				return nil, err
			}
			return d, nil
		},
		Required: blockgraph.RequiredChildren("file"),
		WithFile: func(file qapi.BlockdevRef) *qapi.BlockdevOptions {
			return &qapi.BlockdevOptions{Driver: qapi.BlockdevDriverLUKS, LUKS: &qapi.BlockdevOptionsLUKS{File: file}}
		},
		Remembers: true,
		StrongOptions: func(o *qapi.BlockdevOptions) *qapi.Object {
			if o.LUKS.KeySecret == nil {
				return nil
			}
			return qapi.NewObject("key-secret", *o.LUKS.KeySecret)
		},
	}
}

// headerStore is the header at the start of a file.
type headerStore struct{ file func() *blockgraph.Edge }

func (s headerStore) ReadAt(ctx context.Context, off int64, p []byte) error {
	return headerFailed("read", s.file().ReadV(ctx, off, blockgraph.MakeIOVec(p), 0))
}

func (s headerStore) WriteAt(ctx context.Context, off int64, p []byte) error {
	return headerFailed("write", s.file().WriteV(ctx, off, blockgraph.MakeIOVec(p), 0))
}

func (s headerStore) Flush(ctx context.Context) error {
	return headerFailed("write", s.file().Flush(ctx))
}

func headerFailed(what string, err error) error {
	if err == nil {
		return nil
	}
	return blockgraph.Errorf(blockgraph.Errno(err), "Could not %s encryption header: %s", what, blockgraph.Strerror(err))
}

// driver is one opened image.
type driver struct {
	node     *blockgraph.Node
	volume   *Volume
	detached bool // the header is in a file of its own
	// amending: so many jobs change key slots, and nobody else may use the file.
	// It changes within graph changes only.
	amending atomic.Int32
}

// header is the child that has the header.
func (d *driver) header() *blockgraph.Edge {
	if d.detached {
		return d.node.Child(headerChild)
	}
	return d.node.File()
}

// ReadV reads and decrypts.
func (d *driver) ReadV(ctx context.Context, off int64, v *blockgraph.IOVec, _ blockgraph.Flags) error {
	return d.volume.ReadV(ctx, d.node.File(), d.volume.PayloadOffset()+off, v, uint64(off)/SectorSize)
}

// WriteV encrypts a copy and writes it.
func (d *driver) WriteV(ctx context.Context, off int64, v *blockgraph.IOVec, flags blockgraph.Flags) error {
	return d.volume.WriteV(ctx, d.node.File(), d.volume.PayloadOffset()+off, v, uint64(off)/SectorSize, flags)
}

// WriteZeroes has the wrapper write zeroes: they are encrypted like all else.
func (d *driver) WriteZeroes(context.Context, int64, int64, blockgraph.Flags) error {
	return blockgraph.ErrNotSupported
}

// Discard does nothing, as in the field: holes would show what is in use.
func (d *driver) Discard(context.Context, int64, int64) error { return blockgraph.ErrNotSupported }

// Flush passes through.
func (d *driver) Flush(ctx context.Context) error {
	e := d.node.File()
	e.DebugEvent("flush_to_disk")
	return e.Flush(ctx)
}

// BlockStatus: all is data. A hole in the file reads as the decryption of
// zeroes.
func (d *driver) BlockStatus(_ context.Context, _, n int64, _ blockgraph.StatusMode) (blockgraph.Status, error) {
	return blockgraph.Status{Flags: blockgraph.StatusData | blockgraph.StatusAllocated, N: n}, nil
}

// Size is what the file has behind the header, in whole sectors: a part of one
// cannot be decrypted (the field shows it, as garbage). EIO: the file ends within
// the header.
func (d *driver) Size(ctx context.Context) (int64, error) {
	size, err := d.node.File().Child().Driver().Size(ctx)
	if err != nil {
		return 0, err
	}
	if size -= d.volume.PayloadOffset(); size < 0 {
		return 0, syscall.EIO
	}
	return size &^ (SectorSize - 1), nil
}

// Truncate resizes the file. What is new reads as the decryption of whatever
// the file then has, unless zeroed has zeroes written there.
func (d *driver) Truncate(ctx context.Context, size int64, exact bool, prealloc qapi.PreallocMode, zeroed bool) error {
	start := d.volume.PayloadOffset()
	if size > math.MaxInt64-start {
		return blockgraph.Errorf(syscall.EFBIG, "The requested file size is too large")
	}
	old := d.node.Size()
	if err := d.node.File().Truncate(ctx, size+start, exact, prealloc, false); err != nil || !zeroed {
		return err
	}
	if err := d.zero(ctx, old, size&^(SectorSize-1)); err != nil {
		_ = d.node.File().Truncate(context.WithoutCancel(ctx), old+start, false, qapi.PreallocModeOff, false)
		return blockgraph.Errorf(blockgraph.Errno(err), "Failed to zero out the new area: %s", blockgraph.Strerror(err))
	}
	return nil
}

// zero writes encrypted zeroes to bytes [off, end).
func (d *driver) zero(ctx context.Context, off, end int64) error {
	for off < end {
		if err := ctx.Err(); err != nil {
			return err
		}
		v := blockgraph.MakeIOVec(ioengine.Zeroes(end - off))
		if err := d.WriteV(ctx, off, v, 0); err != nil {
			return err
		}
		off += v.Len()
	}
	return nil
}

// ImageInfo describes the encryption, and has the file's cluster size.
func (d *driver) ImageInfo(ctx context.Context, info *qapi.ImageInfo) error {
	if i, ok := d.node.File().Child().Driver().(blockgraph.ImageInformer); ok {
		var below qapi.ImageInfo
		if err := i.ImageInfo(ctx, &below); err != nil {
			return err
		}
		info.ClusterSize = below.ClusterSize
	}
	yes, no := true, false
	info.Encrypted, info.DirtyFlag = &yes, &no
	info.FormatSpecific = &qapi.ImageInfoSpecific{Type: qapi.ImageInfoSpecificKindLUKS, LUKS: d.volume.Info()}
	return nil
}

// Limits: whole sectors only.
func (d *driver) Limits() blockgraph.Limits {
	return blockgraph.Limits{RequestAlignment: SectorSize}
}

// Caps: a write can be made durable where the file's can. The disk grows with
// the file, and what is new is no zeroes when decrypted.
func (d *driver) Caps() blockgraph.Caps {
	c := d.node.File().Child().Caps()
	return blockgraph.Caps{FUA: c.FUA, WriteUnchanged: c.WriteUnchanged, Grow: c.Grow}
}

// childPerms are those of a filter more than those of a format: others may
// write, and the file is written only when somebody writes the disk.
func childPerms(e *blockgraph.Edge, writable bool, perm, shared blockgraph.Perm) (blockgraph.Perm, blockgraph.Perm) {
	const own = blockgraph.PermWrite | blockgraph.PermResize
	np, ns := blockgraph.DefaultChildPerms(e.Role(), writable, perm, shared)
	return np&^own | perm&own, ns | shared&own
}

// ChildPerms: while key slots are changed, nobody else may even read the file
// that has them.
func (d *driver) ChildPerms(e *blockgraph.Edge, writable bool, perm, shared blockgraph.Perm) (blockgraph.Perm, blockgraph.Perm) {
	np, ns := childPerms(e, writable, perm, shared)
	if d.amending.Load() > 0 && d.detached == (e.Name() == headerChild) {
		np |= blockgraph.PermWrite
		ns &^= blockgraph.PermConsistentRead | blockgraph.PermWrite
	}
	return np, ns
}

// PrepareReopen has nothing of its own to change.
func (d *driver) PrepareReopen(context.Context, *blockgraph.ReopenRequest) (*blockgraph.Reopening, error) {
	return &blockgraph.Reopening{}, nil
}

// Close has nothing to write.
func (d *driver) Close(context.Context) error { return nil }

// SetAmending implements blockgraph.Amender.
func (d *driver) SetAmending(amending, _ bool) {
	if amending {
		d.amending.Add(1)
	} else {
		d.amending.Add(-1)
	}
}

// AmendsAlone implements blockgraph.Amender.
func (d *driver) AmendsAlone(*qapi.BlockdevAmendOptions) bool { return false }

// Amend implements blockgraph.Amender.
func (d *driver) Amend(ctx context.Context, enter blockgraph.EnterFunc, o *qapi.BlockdevAmendOptions, force bool) error {
	return d.volume.Amend(ctx, Entering(headerStore{d.header}, enter), &o.LUKS.QCryptoBlockAmendOptionsLUKS, force)
}
