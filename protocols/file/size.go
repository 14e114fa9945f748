package file

import (
	"context"
	"io"
	"unsafe"

	"golang.org/x/sys/unix"

	"blockd/qapi"
)

// Size returns the length of the file or device in bytes, asked anew.
func (d *driver) Size(ctx context.Context) (n int64, err error) {
	err = d.file.Do(ctx, func(fd int) error {
		var err error
		n, err = fileSize(fd)
		return err
	})
	return n, err
}

func fileSize(fd int) (int64, error) { return unix.Seek(fd, 0, io.SeekEnd) }

// AllocatedSize returns what the file takes on its file system, in bytes.
func (d *driver) AllocatedSize(ctx context.Context) (n int64, err error) {
	err = d.file.Do(ctx, func(fd int) error {
		var st unix.Stat_t
		err := unix.Fstat(fd, &st)
		n = st.Blocks * 512
		return err
	})
	return n, err
}

// ImageInfo adds what is special about a file: XFS's extent size hint, and that
// it is never dirty, as the field has it.
func (d *driver) ImageInfo(_ context.Context, info *qapi.ImageInfo) error {
	clean := false
	info.DirtyFlag = &clean
	if d.device {
		return nil
	}
	f := &qapi.ImageInfoSpecificFile{}
	var a fsxattr
	if a.get(d.file.Fd()) == nil && a.xflags&fsXflagExtsize != 0 {
		hint := uint64(a.extsize)
		f.ExtentSizeHint = &hint
	}
	info.FormatSpecific = &qapi.ImageInfoSpecific{Type: qapi.ImageInfoSpecificKindFile, File: f}
	return nil
}

// fsxattr is the kernel's struct fsxattr (linux/fs.h).
type fsxattr struct {
	xflags, extsize, nextents, projid, cowextsize uint32
	_                                             [8]byte
}

const (
	fsIocGetXattr  = 0x801c581f // _IOR('X', 31, struct fsxattr)
	fsIocSetXattr  = 0x401c5820 // _IOW('X', 32, struct fsxattr)
	fsXflagExtsize = 0x800
	fsNocowFlag    = 0x800000
)

func (a *fsxattr) get(fd int) error { return a.ioctl(fd, fsIocGetXattr) }
func (a *fsxattr) set(fd int) error { return a.ioctl(fd, fsIocSetXattr) }

func (a *fsxattr) ioctl(fd int, request uintptr) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(a))); errno != 0 {
		return errno
	}
	return nil
}
