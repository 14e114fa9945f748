package file

import (
	"context"
	"errors"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"blockd/blockgraph"
	"blockd/ioengine"
	"blockd/qapi"
)

// This file writes zeroes without data and gives space back, by fallocate on
// files and block devices and by ioctl on devices that know no better. What
// the file system turns out not to have is not tried again.

// WriteZeroes makes [off, off+n) read as zeroes. With MayUnmap the space may
// be freed. It fails with ErrNotSupported where writing zeroes as data would
// be no slower.
func (d *driver) WriteZeroes(ctx context.Context, off, n int64, flags blockgraph.Flags) error {
	if d.kind == unix.S_IFCHR {
		return blockgraph.ErrNotSupported
	}
	defer d.noteWrite()
	d.extent.forget()
	err := d.file.Do(ctx, func(fd int) error {
		if flags&blockgraph.MayUnmap != 0 {
			err := d.punch(fd, off, n)
			if err == nil {
				return d.extend(fd, off, n)
			}
			if !unsupported(err) && err != unix.EINVAL && err != unix.EBUSY {
				return err
			}
		}
		if d.kind == unix.S_IFBLK {
			return d.zeroDevice(fd, off, n, flags)
		}
		return d.zeroFile(fd, off, n)
	})
	d.extent.forget()
	if unsupported(err) {
		return blockgraph.ErrNotSupported
	}
	return err
}

// zeroFile allocates the range, unwritten.
func (d *driver) zeroFile(fd int, off, n int64) error {
	if !d.noZeroRange.Load() {
		err := unix.Fallocate(fd, unix.FALLOC_FL_ZERO_RANGE, off, n)
		// Some file systems wrongly refuse unaligned ranges by EINVAL; there is
		// more to try.
		if !remember(&d.noZeroRange, err) && err != unix.EINVAL {
			return err
		}
	}
	if !d.noPunch.Load() && !d.noAllocate.Load() {
		err := d.punch(fd, off, n)
		if err == nil {
			err = unix.Fallocate(fd, 0, off, n)
			if !remember(&d.noAllocate, err) {
				return err
			}
		} else if !unsupported(err) && err != unix.EINVAL {
			return err
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if off >= st.Size && !d.noAllocate.Load() {
		err := unix.Fallocate(fd, 0, off, n)
		if !remember(&d.noAllocate, err) {
			return err
		}
	}
	return syscall.ENOTSUP
}

// zeroDevice zeroes a part of a block device, by way of its own command where
// it has one. NoFallback leaves only freeing, which was tried: the kernel may
// do all others by writing.
func (d *driver) zeroDevice(fd int, off, n int64, flags blockgraph.Flags) error {
	if flags&blockgraph.NoFallback != 0 {
		return syscall.ENOTSUP
	}
	if !d.noZeroRange.Load() {
		err := unix.Fallocate(fd, unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, off, n)
		if !remember(&d.noZeroRange, err) && err != unix.EINVAL {
			return err
		}
	}
	// The ioctl leaves old data in the page cache, so it is for O_DIRECT.
	if d.noZeroOut.Load() || !d.file.Direct() {
		return syscall.ENOTSUP
	}
	err := ioctlRange(fd, unix.BLKZEROOUT, off, n)
	remember(&d.noZeroOut, err)
	return err
}

// punch frees a range, which then reads as zeroes. The length of the file
// stays.
func (d *driver) punch(fd int, off, n int64) error {
	if d.noPunch.Load() {
		return syscall.ENOTSUP
	}
	err := unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	remember(&d.noPunch, err)
	return err
}

// extend makes a regular file reach off+n, by writing zeroes at the end of the
// range: unlike ftruncate that cannot cut off what another request appends at
// the same time.
func (d *driver) extend(fd int, off, n int64) error {
	if d.kind != unix.S_IFREG {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	end := off + n
	if st.Size >= end {
		return nil
	}
	z := ioengine.Zeroes(min(n, max(1, d.requestAlign.Load())))
	for len(z) > 0 {
		k, err := unix.Pwrite(fd, z, end-int64(len(z)))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if k == 0 {
			return syscall.EIO
		}
		z = z[k:]
	}
	return nil
}

// Discard frees [off, off+n).
func (d *driver) Discard(ctx context.Context, off, n int64) error {
	if d.kind == unix.S_IFCHR || d.noPunch.Load() {
		return blockgraph.ErrNotSupported
	}
	defer d.noteWrite()
	d.extent.forget()
	err := d.file.Do(ctx, func(fd int) error {
		if d.kind == unix.S_IFBLK {
			err := ioctlRange(fd, unix.BLKDISCARD, off, n)
			remember(&d.noPunch, err)
			return err
		}
		return d.punch(fd, off, n)
	})
	d.extent.forget()
	if err != nil {
		d.discards.failed.Add(1)
		if unsupported(err) {
			return blockgraph.ErrNotSupported
		}
		return err
	}
	d.discards.ok.Add(1)
	d.discards.bytes.Add(n)
	return nil
}

// DriverStats tells how many discards succeeded and failed, and how many bytes
// they gave back (query-blockstats, driver-specific). Any goroutine.
func (d *driver) DriverStats(name string) *qapi.BlockStatsSpecific {
	return &qapi.BlockStatsSpecific{
		Driver: qapi.BlockdevDriver(name),
		File: &qapi.BlockStatsSpecificFile{
			DiscardNbOk: uint64(d.discards.ok.Load()), DiscardNbFailed: uint64(d.discards.failed.Load()), DiscardBytesOk: uint64(d.discards.bytes.Load()),
		},
	}
}

// unsupported tells whether err means that there is no such operation here.
func unsupported(err error) bool {
	return errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTTY)
}

// remember notes in lacks that an operation is unsupported, and tells so.
func remember(lacks *atomic.Bool, err error) bool {
	if !unsupported(err) {
		return false
	}
	lacks.Store(true)
	return true
}

// ioctlRange makes a block device ioctl on a range of bytes.
func ioctlRange(fd int, request uint, off, n int64) error {
	r := [2]uint64{uint64(off), uint64(n)}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(unsafe.Pointer(&r))); errno != 0 {
		return errno
	}
	return nil
}
