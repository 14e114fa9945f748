package qcow2

import (
	"context"
	"log/slog"

	"blockd/qapi"
)

// cutTail gives up what lies behind the last cluster of the image file that is in
// use, as the field does when a disk becomes shorter. Nothing is lost by a failure.
// No request is in flight, and everything is on disk.
func (d *Driver) cutTail(ctx context.Context) {
	f := d.file()
	if !f.Grows() {
		return // a device
	}
	end, err := d.lastInUse(ctx, d.h.clusters(f.Size()))
	if err == nil && end<<d.h.clusterBits < f.Size() {
		err = f.Truncate(ctx, end<<d.h.clusterBits, false, qapi.PreallocModeOff, false)
	}
	if err != nil {
		slog.Warn("qcow2: the end of an image that became shorter keeps its space", "file", fileName(f), "error", err)
	}
}

// lastInUse returns the end of the last cluster before end whose count is not 0.
func (d *Driver) lastInUse(ctx context.Context, end int64) (int64, error) {
	r := &d.refs
	for end > 0 {
		d.mu.Lock()
		b, err := d.refBlockAt((end - 1) >> r.blockBits)
		switch {
		case err != nil:
		case b == nil:
			end = (end - 1) >> r.blockBits << r.blockBits // all of the block's are 0
		default:
			for from := b.index << r.blockBits; end > from && refAt(b.data, r.order, (end-1)-from) == 0; end-- {
			}
			if end > b.index<<r.blockBits {
				d.mu.Unlock()
				return end, nil
			}
		}
		d.mu.Unlock()
		if err != nil {
			if err := d.fetch(ctx, err); err != nil {
				return 0, err
			}
		}
	}
	return end, nil
}
