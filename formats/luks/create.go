package luks

import (
	"context"
	"math"
	"syscall"

	"blockd/blockgraph"
	"blockd/qapi"
)

// CreateImage makes an image of the driver `luks` in a file, whose length it
// sets. Errors are the field's texts. On a worker.
//
//blockd:blocking
func CreateImage(ctx context.Context, file *blockgraph.Edge, o *qapi.BlockdevCreateOptionsLUKS, cfg Config) error {
	_, err := Create(ctx, &o.QCryptoBlockCreateOptionsLUKS, "", cfg, func(n int64) (Store, error) {
		if o.Size > uint64(math.MaxInt64-n) {
			return nil, blockgraph.Errorf(syscall.EFBIG, "The requested file size is too large")
		}
		prealloc := or(o.Preallocation, qapi.PreallocModeOff)
		if prealloc == qapi.PreallocModeMetadata {
			prealloc = qapi.PreallocModeOff // the header is all the metadata there is
		}
		if err := file.Truncate(ctx, int64(o.Size)+n, false, prealloc, false); err != nil {
			return nil, err
		}
		return headerStore{func() *blockgraph.Edge { return file }}, nil
	})
	return err
}
