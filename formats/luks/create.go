package luks

import (
	"context"
	"math"
	"syscall"

	"blockd/blockgraph"
	"blockd/qapi"
)

// CreateImage makes an image of the driver `luks` in a file, whose length it
// sets, with the header in another one if that is not nil; file may be nil then:
// there is a disk already, or will be. Errors are the field's texts. On a worker.
//
//blockd:blocking
func CreateImage(ctx context.Context, file, detached *blockgraph.Edge, o *qapi.BlockdevCreateOptionsLUKS, cfg Config) error {
	prealloc := or(o.Preallocation, qapi.PreallocModeOff)
	switch {
	case file == nil && detached == nil:
		return invalid("Either the parameter 'header' or 'file' must be specified")
	case file == nil && prealloc != qapi.PreallocModeOff:
		return invalid("Parameter 'preallocation' requires 'file' to be specified for formatting LUKS disk")
	case prealloc == qapi.PreallocModeMetadata:
		prealloc = qapi.PreallocModeOff // the header is all the metadata there is
	}
	_, err := create(ctx, &o.QCryptoBlockCreateOptionsLUKS, detached != nil, "", cfg, func(n int64) (Store, error) {
		before := n // the disk
		header := file
		if detached != nil {
			before, header = 0, detached
			if err := detached.Truncate(ctx, n, false, qapi.PreallocModeOff, false); err != nil {
				return nil, err
			}
		}
		switch {
		case file == nil:
		case o.Size > uint64(math.MaxInt64-before):
			return nil, blockgraph.Errorf(syscall.EFBIG, "The requested file size is too large")
		default:
			if err := file.Truncate(ctx, int64(o.Size)+before, false, prealloc, false); err != nil {
				return nil, err
			}
		}
		return headerStore{func() *blockgraph.Edge { return header }}, nil
	})
	return err
}
