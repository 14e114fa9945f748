package qcow2

import (
	"context"
	"syscall"

	"blockd/blockgraph"
	"blockd/ioengine"
)

// Guest clusters on storage: the one place through which their stored bytes are
// read, written, zeroed and given up. The rest of the driver says which guest
// bytes and where they lie; here it is known in which child that is, what
// protects the image's metadata from it, and what is stored for what the guest
// wrote. Metadata does not come here, nor what a backing file has.
//
// host is a byte offset in the child that holds the data, and within a run of
// it guest bytes lie one after the other.

// freshReadsZero tells whether places past the end of the file, when it becomes
// longer, read as zeroes to the guest, so that the rest of a new cluster need not
// be written. Metadata is always written whole.
func (d *Driver) freshReadsZero() bool { return d.crypt == nil && d.dataFile().FreshZero() }

// checkGuestOverlap holds that guest data may be written at host.
func (d *Driver) checkGuestOverlap(host, n int64) error {
	if d.h.external {
		return nil
	}
	return d.checkOverlap(host, n, 0)
}

// readGuest fills v with guest bytes from off on, which are stored at host.
func (d *Driver) readGuest(ctx context.Context, off, host int64, v *blockgraph.IOVec) error {
	d.file().DebugEvent("read_aio")
	if c := d.crypt; c != nil {
		return c.ReadV(ctx, d.dataFile(), host, v, c.sectorOf(off, host))
	}
	return d.dataFile().ReadV(ctx, host, v, 0)
}

// writeGuest stores v, guest bytes from off on, at host. copied: some of it was
// read for copy-on-write.
func (d *Driver) writeGuest(ctx context.Context, off, host int64, v *blockgraph.IOVec, copied bool) error {
	if err := d.checkGuestOverlap(host, v.Len()); err != nil {
		return err
	}
	f := d.file()
	if copied {
		f.DebugEvent("cow_write")
	}
	f.DebugEvent("write_aio")
	if c := d.crypt; c != nil {
		return c.WriteV(ctx, d.dataFile(), host, v, c.sectorOf(off, host), 0)
	}
	return d.dataFile().WriteV(ctx, host, v, 0)
}

// zeroGuest makes n guest bytes from off on, stored at host, read as zeroes.
func (d *Driver) zeroGuest(ctx context.Context, off, host, n int64) error {
	if err := d.checkGuestOverlap(host, n); err != nil {
		return err
	}
	if d.crypt != nil {
		return d.zeroEncrypted(ctx, off, host, n)
	}
	return d.dataFile().WriteZeroes(ctx, host, n, 0)
}

// zeroEncrypted stores zeroes as they look encrypted.
func (d *Driver) zeroEncrypted(ctx context.Context, off, host, n int64) error {
	for pos := int64(0); pos < n; {
		var v blockgraph.IOVec
		appendZeroes(&v, min(n-pos, 1<<20))
		if err := d.writeGuest(ctx, off+pos, host+pos, &v, false); err != nil {
			return err
		}
		pos += v.Len()
	}
	return nil
}

// readPacked fills out, one cluster long, with the compressed cluster of an
// L2 entry.
func (d *Driver) readPacked(ctx context.Context, entry uint64, out []byte) error {
	off, n := d.h.compressedExtent(entry)
	f := d.file()
	f.DebugEvent("read_compressed")
	buf := ioengine.Bounce(int(n))
	defer buf.Release()
	if err := readAt(ctx, f, off, buf.Bytes()); err != nil {
		return err
	}
	if err := decompress(d.h.compression, out, buf.Bytes()); err != nil {
		return syscall.EIO
	}
	return nil
}

// writePacked stores compressed data at host.
func (d *Driver) writePacked(ctx context.Context, host int64, p []byte) error {
	if err := d.checkOverlap(host, int64(len(p)), 0); err != nil {
		return err
	}
	f := d.file()
	f.DebugEvent("write_compressed")
	return writeAt(ctx, f, host, p)
}

// discardClusters gives up the storage of n clusters of the image file, from
// cluster first on, that nothing refers to any more.
func (d *Driver) discardClusters(ctx context.Context, first, n int64) error {
	cb := d.h.clusterBits
	return d.file().Discard(ctx, first<<cb, n<<cb)
}
