package file

import (
	"context"
	"syscall"

	"golang.org/x/sys/unix"

	"blockd/blockgraph"
)

// copyPiece is the most bytes of one copy_file_range call, so that a slot is
// not held for long.
const copyPiece = 4 << 20

// CopyRangeFrom copies [srcOff, srcOff+n) of src to dstOff by copy_file_range.
// ErrNotSupported: it is switched off, src is no file of this package, or the
// kernel cannot; then, as on any other error, some of the range may have been
// copied.
func (d *driver) CopyRangeFrom(ctx context.Context, src blockgraph.Driver, srcOff, dstOff, n int64) error {
	s, ok := src.(*driver)
	if !ok || !d.host.cfg.CopyRange {
		return blockgraph.ErrNotSupported
	}
	defer d.noteWrite()
	for n > 0 {
		var k int
		err := d.file.Do(ctx, func(fd int) (err error) {
			from, to := srcOff, dstOff
			k, err = unix.CopyFileRange(s.file.Fd(), &from, fd, &to, int(min(n, copyPiece)), 0)
			return err
		})
		switch {
		case unsupported(err) || err == unix.EXDEV || err == unix.EINVAL:
			return blockgraph.ErrNotSupported
		case err != nil:
			return err
		case k == 0: // the source ends here
			return syscall.ENOSPC
		}
		srcOff, dstOff, n = srcOff+int64(k), dstOff+int64(k), n-int64(k)
	}
	return nil
}
