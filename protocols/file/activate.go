package file

import (
	"context"

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
	if err != nil {
		return blockgraph.Errorf(blockgraph.Errno(err), "Could not drop the page cache of '%s': %s", d.name, blockgraph.Strerror(err))
	}
	return nil
}
