package file

import (
	"context"
	"slices"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"blockd/blockgraph"
)

// Activate implements blockgraph.Activator: another program, on another host
// maybe, may have written to the file. What the page cache has of it is
// dropped, unless the drop-cache option forbids that, and what is remembered
// of its extents forgotten.
func (d *driver) Activate(ctx context.Context) error {
	d.extent.forget()
	if d.direct || !valueOr(d.options.File.DropCache, true) {
		return nil
	}
	err := d.Flush(ctx)
	if err == nil {
		err = d.file.Do(ctx, func(fd int) error { return unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED) })
	}
	if err == nil && isSet(d.options.File.XCheckCacheDropped) {
		return d.checkDropped(ctx)
	}
	if err != nil {
		return blockgraph.Errorf(blockgraph.Errno(err), "Could not drop the page cache of '%s': %s", d.name, blockgraph.Strerror(err))
	}
	return nil
}

// checkWindow is how much of a file is looked at in one go, in bytes.
const checkWindow = 128 << 20

// checkDropped fails when the page cache still has something of the file, as it
// does while another program uses that.
func (d *driver) checkDropped(ctx context.Context) error {
	return d.file.Do(ctx, func(fd int) error {
		end, err := fileSize(fd)
		if err != nil {
			return blockgraph.Errorf(blockgraph.Errno(err), "Could not get the length of '%s': %s", d.name, blockgraph.Strerror(err))
		}
		for off := int64(0); off < end; off += checkWindow {
			cached, err := resident(fd, off, min(end-off, checkWindow))
			if err != nil {
				return err
			}
			if cached {
				return blockgraph.Errorf(syscall.EBUSY, "page cache still in use!")
			}
		}
		return nil
	})
}

// resident tells whether a page of bytes [off, off+n) is in the page cache.
func resident(fd int, off, n int64) (bool, error) {
	window, err := unix.Mmap(fd, off, int(n), unix.PROT_NONE, unix.MAP_PRIVATE)
	if err != nil {
		return false, blockgraph.Errorf(blockgraph.Errno(err), "mmap failed: %s", blockgraph.Strerror(err))
	}
	defer func() { _ = unix.Munmap(window) }()
	page := unix.Getpagesize()
	pages := make([]byte, (len(window)+page-1)/page)
	if _, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&window[0])), uintptr(n), uintptr(unsafe.Pointer(&pages[0]))); errno != 0 {
		return false, blockgraph.Errorf(errno, "mincore failed: %s", blockgraph.Strerror(errno))
	}
	return slices.ContainsFunc(pages, func(p byte) bool { return p&1 != 0 }), nil
}
