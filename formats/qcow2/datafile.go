package qcow2

import (
	"context"
	"syscall"

	"blockd/blockgraph"
	"blockd/qapi"
)

// External data files (specification: incompatible feature bit 2, autoclear bit
// 1). Guest clusters lie in a file of their own, at the guest's offsets; so they
// are not counted, always written in place, and never compressed. Flushing an
// image flushes the data file first.
//
// A cluster that was unmapped may be mapped again at once, to the same place:
// keptspace.go has how its space is given up.
//
// A raw data file (data-file-raw) holds what the guest sees, metadata or not.
// All of its clusters are mapped from the beginning, and zero writes and
// discards are zero writes to it that leave the mapping alone: so both ways of
// reading agree at every moment, after a crash too. Images that other programs
// made may mark zeroes; they are followed.

// dataFile is the child that holds guest clusters that are not compressed.
func (d *Driver) dataFile() storage {
	if !d.h.external {
		return d.file()
	}
	if f := d.ch.data(); f != nil {
		return f
	}
	return unopened{}
}

// errNoDataFile: neither the header nor the options name the data file.
var errNoDataFile = blockgraph.Errorf(syscall.EINVAL, "'data-file' is required for this image")

// attachData sees to it that the image has the data file that it needs, and no
// other. The header may name it.
//
//blockd:blocking
func attachData(h *header, ext *extensions, ch children) error {
	named, _ := ch.(dataOpener)
	switch {
	case !h.external && ch.data() != nil:
		return blockgraph.Errorf(syscall.EINVAL, "'data-file' can only be set for images with an external data file")
	case !h.external && h.autoclear&autoclearRaw != 0:
		return blockgraph.Errorf(syscall.EINVAL, "data-file-raw requires a data file")
	case !h.external || ch.data() != nil:
		return nil
	case named == nil:
		return errNoDataFile
	}
	return named.openData(ext.dataFile)
}

// ChildPerms lets the image file be written without being resized by whoever
// writes guest data, if that goes elsewhere. Control plane.
func (d *Driver) ChildPerms(e *blockgraph.Edge, writable bool, perm, shared blockgraph.Perm) (blockgraph.Perm, blockgraph.Perm) {
	role := e.Role()
	if d.h.external && e.Name() == "file" {
		role &^= blockgraph.RoleData
	}
	return blockgraph.DefaultChildPerms(role, writable, perm, shared)
}

// flushAll makes guest data and metadata durable.
func (d *Driver) flushAll(ctx context.Context) error {
	if d.h.external {
		if err := d.dataFile().Flush(ctx); err != nil {
			return err
		}
	}
	return d.file().Flush(ctx)
}

// zeroRaw is WriteZeroes for an image with a raw data file. Where clusters are
// not mapped it leaves it to a write of zeroes.
func (d *Driver) zeroRaw(ctx context.Context, off, n int64, flags blockgraph.Flags) error {
	if d.crypt != nil {
		return blockgraph.ErrNotSupported // zeroes would not be zeroes to the guest
	}
	p := d.epochs.pin()
	defer p.unpin()
	for at := off; at < off+n; {
		m, err := d.lookup(ctx, at, off+n-at, false)
		if err != nil {
			return err
		}
		if m.kind != data {
			return blockgraph.ErrNotSupported
		}
		at += m.n
	}
	if flags&blockgraph.OnlyUnallocated != 0 {
		return nil
	}
	if d.broken.Load() {
		return syscall.EIO
	}
	d.file().DebugEvent("write_aio")
	return d.dataFile().WriteZeroes(ctx, off, n, flags)
}

// discardRaw is Discard for an image with a raw data file.
func (d *Driver) discardRaw(ctx context.Context, off, n int64) error {
	if !d.options().discards[discardRequest] {
		return blockgraph.ErrNotSupported
	}
	return d.zeroRaw(ctx, off, n, blockgraph.MayUnmap)
}

// resizeData gives the data file the length of the disk. A file that is longer
// stays so, unless exactly is set.
func (d *Driver) resizeData(ctx context.Context, size int64, exact, exactly bool, mode qapi.PreallocMode) error {
	f := d.dataFile()
	if mode == qapi.PreallocModeMetadata {
		mode = qapi.PreallocModeOff
	}
	if now := f.Size(); now == size || now > size && !exactly {
		return nil
	}
	return f.Truncate(ctx, size, exact, mode, false)
}
