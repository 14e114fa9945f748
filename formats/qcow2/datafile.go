package qcow2

import (
	"context"
	"errors"
	"log/slog"
	"syscall"

	"blockd/blockgraph"
	"blockd/qapi"
)

// External data files (specification: incompatible feature bit 2, autoclear bit
// 1). Guest clusters lie in a file of their own, at the guest's offsets; so they
// are not counted, always written in place, and never compressed. Flushing an
// image flushes the data file first.
//
// A cluster that was unmapped may be mapped again at once, to the same place.
// So its space is given up (discarded) only if that has not happened meanwhile,
// and with the cluster claimed.
//
// A raw data file (data-file-raw) holds what the guest sees, metadata or not.
// All of its clusters are mapped from the beginning, and zero writes and
// discards are zero writes to it that leave the mapping alone: so both ways of
// reading agree at every moment, after a crash too. Images that other programs
// made may mark zeroes; they are followed.

// dataFile is the child that holds guest clusters that are not compressed.
func (d *Driver) dataFile() storage {
	if d.h.external {
		return d.ch.data()
	}
	return d.file()
}

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
	case ext.dataFile == "" || named == nil:
		return blockgraph.Errorf(syscall.EINVAL, "'data-file' is required for this image")
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

// freeData notes that clusters of the data file are mapped no more. Driver.mu
// is held.
//
// +checklocks:d.mu
func (d *Driver) freeData(first, n int64, why discardKind) {
	if d.h.raw || !d.options().discards[why] {
		return
	}
	d.frees.count += n
	d.frees.external += n
	d.frees.add(extent{first: first, n: n, kind: why, external: true})
}

// retake notes that clusters of the data file get mapped, so that they are not
// discarded. Driver.mu is held.
//
// +checklocks:d.mu
func (d *Driver) retake(first, n int64) {
	f := &d.frees
	if f.external == 0 {
		return
	}
	if f.retaken == nil {
		f.retaken = map[int64]struct{}{}
	}
	for c := first; c < first+n; c++ {
		f.retaken[c] = struct{}{}
	}
}

// dropExternal discards the clusters of x that are still not mapped. Their
// unmapping is durable, and nobody uses the old mapping any more.
func (d *Driver) dropExternal(ctx context.Context, x *extent) {
	for x.n > 0 {
		first, run, c := d.claimDropped(x)
		if c == nil {
			continue
		}
		cb := d.h.clusterBits
		f := d.dataFile()
		end := min((first+run)<<cb, f.Size())
		if first<<cb < end {
			if err := f.Discard(ctx, first<<cb, end-first<<cb); err != nil && !errors.Is(err, blockgraph.ErrNotSupported) {
				slog.Debug("qcow2: a freed cluster keeps its space", "error", err)
			}
		}
		d.mu.Lock()
		d.unclaim(c)
		d.mu.Unlock()
	}
}

// claimDropped takes clusters from the front of x and claims those that are to
// be discarded; a nil claim: none of them.
func (d *Driver) claimDropped(x *extent) (first, n int64, c *claim) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := &d.frees
	first = x.first
	want := d.stillDropped(first)
	for n = 1; n < x.n && d.stillDropped(first+n) == want; n++ {
	}
	x.first += n
	x.n -= n
	f.count -= n
	if f.external -= n; f.external == 0 {
		f.retaken = nil
	}
	if want {
		c = d.claim(first, first+n)
	}
	return first, n, c
}

// stillDropped tells whether a cluster that was unmapped has not come back.
// Driver.mu is held.
//
// +checklocks:d.mu
func (d *Driver) stillDropped(cluster int64) bool {
	_, again := d.frees.retaken[cluster]
	return !again && d.claimed(cluster, cluster+1) == nil
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
