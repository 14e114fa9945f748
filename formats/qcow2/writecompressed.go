package qcow2

import (
	"context"
	"errors"
	"sync"
	"syscall"

	"blockd/blockgraph"
	"blockd/ioengine"
)

// Writing of compressed clusters. Their data is packed: it begins where the
// last one ended, so that several share a cluster of the file, each with a
// reference to it.

// maxCompressing is how many clusters of a request are compressed at a time.
const maxCompressing = 4

// writeCompressed stores v, whole clusters of guest data, compressed. Clusters
// that do not shrink are stored as they are, those side by side in one write.
func (d *Driver) writeCompressed(ctx context.Context, off int64, v *blockgraph.IOVec, flags blockgraph.Flags) error {
	if d.h.external {
		return blockgraph.ErrNotSupported
	}
	cs := d.h.clusterSize
	n := v.Len()
	if off&(cs-1) != 0 || (off+n)&(cs-1) != 0 && off+n != d.size.Load() {
		return syscall.EINVAL
	}
	if n <= cs {
		err := d.compressCluster(ctx, off, v, flags)
		if errors.Is(err, errIncompressible) {
			err = d.WriteV(ctx, off, v, flags&^blockgraph.Compressed)
		}
		return err
	}
	var (
		wg    sync.WaitGroup
		slots = make(chan struct{}, maxCompressing)
		errs  = make([]error, (n+cs-1)/cs)
	)
	for i := range errs {
		slots <- struct{}{}
		wg.Go(func() {
			pos := int64(i) * cs
			errs[i] = d.compressCluster(ctx, off+pos, v.Slice(pos, min(cs, n-pos)), flags)
			<-slots
		})
	}
	wg.Wait()
	for i := 0; i < len(errs); {
		first := i
		for i < len(errs) && errors.Is(errs[i], errIncompressible) {
			i++
		}
		if first < i {
			pos := int64(first) * cs
			if err := d.WriteV(ctx, off+pos, v.Slice(pos, min(int64(i)*cs, n)-pos), flags&^blockgraph.Compressed); err != nil {
				return err
			}
			continue
		}
		if errs[i] != nil {
			return errs[i]
		}
		i++
	}
	return nil
}

// compressCluster stores one cluster, unless that returns errIncompressible.
func (d *Driver) compressCluster(ctx context.Context, off int64, v *blockgraph.IOVec, flags blockgraph.Flags) error {
	cs := int(d.h.clusterSize)
	out := ioengine.Bounce(2 * cs)
	defer out.Release()
	whole := v.Bytes()
	if len(whole) < cs { // in pieces, or the disk ends in it
		in := ioengine.Bounce(cs)
		defer in.Release()
		whole = in.Bytes()
		v.CopyOut(0, whole[:v.Len()])
		clear(whole[v.Len():])
	}
	n, err := compress(d.h.compression, out.Bytes(), whole)
	if errors.Is(err, errIncompressible) {
		return err
	}
	if err != nil {
		return syscall.EIO
	}
	cluster := off >> d.h.clusterBits
	d.file().DebugEvent("cluster_alloc_bytes")
	freed := false
	for {
		d.mu.Lock()
		s, c, host, wait, err := d.beginCompressed(cluster, int64(n), flags)
		d.unlock()
		if wait != nil {
			if err := wait.wait(ctx); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			if err := d.fetch(ctx, err); err != nil && !d.freedRoom(ctx, err, &freed) {
				return err
			}
			continue
		}
		if c == nil {
			// Some of it has data: the rest is left as it is.
			return d.WriteV(ctx, off, v, flags&^blockgraph.Compressed)
		}
		err = d.writePacked(ctx, host, out.Bytes()[:n])
		if err = d.endCompressed(ctx, s, c, cluster, host, int64(n), err); err != nil && d.freedRoom(ctx, err, &freed) {
			continue
		}
		return err
	}
}

// beginCompressed finds a place of n bytes for a guest cluster. Driver.mu is
// held.
//
// +checklocks:d.mu
func (d *Driver) beginCompressed(cluster, n int64, flags blockgraph.Flags) (*slice, *claim, int64, *claim, error) {
	if c := d.claimed(cluster, cluster+1); c != nil {
		return nil, nil, 0, c, nil
	}
	p := d.position(cluster << d.h.clusterBits)
	s, err := d.writable(p)
	if err != nil {
		return nil, nil, 0, nil, err
	}
	if flags&blockgraph.OnlyUnallocated != 0 && !d.h.allUnallocated(s.load(p.entry)) {
		return nil, nil, 0, nil, nil
	}
	host, err := d.allocateBytes(n)
	if err != nil {
		return nil, nil, 0, nil, err
	}
	s.pins++
	return s, d.claim(cluster, cluster+1), host, nil, nil
}

// endCompressed maps a guest cluster to its compressed data.
func (d *Driver) endCompressed(ctx context.Context, s *slice, c *claim, cluster, host, n int64, err error) error {
	if err == nil {
		d.file().DebugEvent("l2_update_compressed")
	}
	d.mu.Lock()
	p := d.position(cluster << d.h.clusterBits)
	entry := l2Entry{word: uint64(host) | flagCompressed | uint64((host+n-1)/sector-host/sector)<<d.h.compressedShift}
	if err == nil {
		old := s.load(p.entry)
		d.setEntry(s, p.entry, entry)
		d.freeEntry(old, discardOther)
	} else {
		d.freeEntry(entry, discardNever)
	}
	s.pins--
	d.unclaim(c)
	crowded := d.pressed()
	d.mu.Unlock()
	if crowded {
		_ = d.writeBack(ctx)
	}
	return err
}

// allocateBytes finds n bytes, at most a cluster, for compressed data, and
// counts a reference for each cluster that they touch. Driver.mu is held.
//
// +checklocks:d.mu
func (d *Driver) allocateBytes(n int64) (int64, error) {
	cs, cb := d.h.clusterSize, d.h.clusterBits
	host := d.packAt
	in := host & (cs - 1)
	var count uint64
	var err error
	if host != 0 {
		if count, err = d.refcount(host >> cb); err != nil {
			return 0, err
		}
	}
	if host == 0 || in == 0 || count == 0 || count >= maxRef(d.refs.order) {
		host, in = 0, 0
	}
	if host == 0 || in+n > cs {
		first, _, err := d.allocate(1, forPacked)
		if err != nil {
			return 0, err
		}
		if host == 0 || first != host>>cb+1 {
			host, in = first<<cb, 0
		}
	}
	if uint64(host+n) > 1<<d.h.compressedShift {
		d.release((host+n-1)>>cb, 1)
		return 0, syscall.EFBIG
	}
	if in > 0 {
		b, err := d.refBlockAt(host >> cb >> d.refs.blockBits)
		if err != nil {
			// It was in memory just now; only a load evicts.
			panic("qcow2: refcount block vanished under the lock")
		}
		d.setRef(b, host>>cb&(1<<d.refs.blockBits-1), count+1)
	}
	d.packAt = host + n
	return host, nil
}
