package graphtest

import (
	"context"

	"blockd/blockgraph"
	"blockd/qapi"
)

// ClusteredType is ImageType(true) under another name, whose images say that their
// clusters have that many bytes.
func ClusteredType(name string, cluster int64) *blockgraph.DriverType {
	t := ImageType(true)
	t.Name = name
	open := t.Open
	t.Open = func(ctx context.Context, r *blockgraph.OpenRequest) (blockgraph.Driver, error) {
		d, err := open(ctx, r)
		if err != nil {
			return nil, err
		}
		return clustered{d.(*ImageDriver), cluster}, nil
	}
	return t
}

type clustered struct {
	*ImageDriver
	cluster int64
}

// ImageInfo implements blockgraph.ImageInformer.
func (c clustered) ImageInfo(_ context.Context, info *qapi.ImageInfo) error {
	info.ClusterSize = &c.cluster
	return nil
}
