package file

import (
	"context"
	"syscall"

	"golang.org/x/sys/unix"

	"blockd/blockgraph"
	"blockd/ioengine"
	"blockd/qapi"
)

// Truncate changes the length of a regular file to exactly size bytes and
// allocates what is new as prealloc says; it reads as zeroes in any case. A
// device cannot change, but counts as shortened when not exact. Errors have
// the field's texts.
func (d *driver) Truncate(ctx context.Context, size int64, exact bool, prealloc qapi.PreallocMode, _ bool) error {
	defer d.noteWrite()
	d.extent.forget()
	defer d.extent.forget()
	if d.kind == unix.S_IFREG {
		return resize(ctx, d.file, d.name, size, prealloc)
	}
	if prealloc != qapi.PreallocModeOff && prealloc != "" {
		return blockgraph.Errorf(syscall.ENOTSUP, "Preallocation mode '%s' unsupported for this non-regular file", prealloc)
	}
	now, err := d.Size(ctx)
	switch {
	case err != nil:
		return blockgraph.Errorf(blockgraph.Errno(err), "Could not get image size: %s", blockgraph.Strerror(err))
	case size != now && exact:
		return blockgraph.Errorf(syscall.ENOTSUP, "Cannot resize device files")
	case size > now:
		return blockgraph.Errorf(syscall.EINVAL, "Cannot grow device files")
	}
	return nil
}

// resize makes a regular file size bytes long. When preallocation fails the
// file has its old length.
func resize(ctx context.Context, f *ioengine.File, name string, size int64, prealloc qapi.PreallocMode) error {
	var st unix.Stat_t
	err := f.Do(ctx, func(fd int) error { return unix.Fstat(fd, &st) })
	if err != nil {
		return failed(err, "Could not stat file")
	}
	if st.Size > size && prealloc != qapi.PreallocModeOff && prealloc != "" {
		return blockgraph.Errorf(syscall.ENOTSUP, "Cannot use preallocation for shrinking files")
	}
	switch prealloc {
	case qapi.PreallocModeOff, "":
		err := f.Do(ctx, func(fd int) error {
			if err := unix.Ftruncate(fd, size); err != nil {
				return err
			}
			if st.Size == 0 {
				allocateFirstBlock(fd, size)
			}
			return nil
		})
		return failed(err, "Could not resize file")
	case qapi.PreallocModeFalloc:
		err = allocate(ctx, f, name, st, size)
	case qapi.PreallocModeFull:
		err = fill(ctx, f, name, st, size)
	default:
		return blockgraph.Errorf(syscall.ENOTSUP, "Unsupported preallocation mode: %s", prealloc)
	}
	if err != nil {
		// Not the caller's context: what was begun is undone even if the caller
		// has given up.
		_ = f.Do(context.WithoutCancel(ctx), func(fd int) error { return unix.Ftruncate(fd, st.Size) })
	}
	return err
}

// allocate reserves space for what is new, or writes it where the file system
// cannot.
func allocate(ctx context.Context, f *ioengine.File, name string, st unix.Stat_t, size int64) error {
	if size == st.Size {
		return nil
	}
	err := f.Do(ctx, func(fd int) error {
		err := unix.Fallocate(fd, 0, st.Size, size-st.Size)
		if err == nil && st.Size == 0 {
			allocateFirstBlock(fd, size)
		}
		return err
	})
	if unsupported(err) {
		return fill(ctx, f, name, st, size)
	}
	return failed(err, "Could not preallocate new data")
}

// fill writes zeroes to what is new and makes them durable. The context is
// honoured between pieces.
func fill(ctx context.Context, f *ioengine.File, name string, st unix.Stat_t, size int64) error {
	// The final length first, so that the file system can plan for it.
	if err := f.Do(ctx, func(fd int) error { return unix.Ftruncate(fd, size) }); err != nil {
		return failed(err, "Could not resize file")
	}
	out := f
	if f.Direct() { // the old end need not be aligned
		fd, err := reopen(f.Fd(), name, unix.O_WRONLY, st.Mode)
		if err != nil {
			return err
		}
		out = ioengine.ProcessCalls.NewFile(fd)
		defer out.Close()
	}
	for off := st.Size; off < size; {
		if err := ctx.Err(); err != nil {
			return failed(err, "Could not write zeros for preallocation")
		}
		z := ioengine.Zeroes(size - off)
		n, err := out.WriteV(ctx, off, [][]byte{z})
		if err != nil {
			return failed(err, "Could not write zeros for preallocation")
		}
		off += n
	}
	return failed(out.Do(ctx, unix.Fsync), "Could not flush file to disk")
}

// allocateFirstBlock gives a file that was empty its first block. With a hole
// there, some file systems take direct reads of any alignment, and a later
// probe would learn nothing. Best effort.
func allocateFirstBlock(fd int, size int64) {
	if size > 0 {
		_, _ = unix.Pwrite(fd, ioengine.Zeroes(min(size, largestBlock)), 0)
	}
}

// failed puts what could not be done before the reason; nil stays nil.
func failed(err error, what string) error {
	if err == nil {
		return nil
	}
	return blockgraph.Errorf(blockgraph.Errno(err), "%s: %s", what, blockgraph.Strerror(err))
}
