package qcow2

import (
	"context"
	"syscall"

	"blockd/blockgraph"
	"blockd/qapi"
)

// PrepareReopen switches between read-only and read-write. An image that
// becomes read-only is written back whole; one that becomes writable has done
// to it what opening it for writing does. On a worker, no request in flight;
// the file is writable whenever the image is.
func (d *Driver) PrepareReopen(ctx context.Context, _ *qapi.BlockdevOptions, readOnly bool) (commit, abort func(), err error) {
	nothing := func() {}
	was := d.readOnly.Load()
	switch {
	case readOnly == was:
		return nothing, nothing, nil
	case readOnly:
		if d.broken.Load() {
			break // nothing of it can be written any more
		}
		if err := d.settle(ctx); err != nil {
			return nil, nil, err
		}
		d.background.wait(ctx)
	case d.h.incompatible&incompatCorrupt != 0 || d.broken.Load():
		return nil, nil, blockgraph.Errorf(syscall.EACCES, "qcow2: Image is corrupt; cannot be opened read/write")
	default:
		d.readOnly.Store(false) // startWriting writes
		if err := d.startWriting(ctx); err != nil {
			d.readOnly.Store(true)
			return nil, nil, err
		}
	}
	return func() { d.readOnly.Store(readOnly) }, func() { d.readOnly.Store(was) }, nil
}
