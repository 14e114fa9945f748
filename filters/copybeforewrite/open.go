package copybeforewrite

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"syscall"
	"time"

	"blockd/blockgraph"
	"blockd/clock"
	"blockd/jobs/copy"
	"blockd/qapi"
)

// maxCluster bounds min-cluster-size, in bytes: a cluster is copied through
// one buffer.
const maxCluster = 64 << 20

// Type returns the driver type for the registry. real is the clock of
// cbw-timeout.
func Type(real clock.Clock) *blockgraph.DriverType {
	return &blockgraph.DriverType{
		Name:         string(qapi.BlockdevDriverCopyBeforeWrite),
		Filter:       true,
		NamedByChild: true,
		Children: func(o *qapi.BlockdevOptions) []blockgraph.ChildSpec {
			return []blockgraph.ChildSpec{
				{Name: "file", Role: blockgraph.RoleFiltered | blockgraph.RolePrimary, Ref: o.CopyBeforeWrite.File},
				{Name: "target", Role: blockgraph.RoleData, Ref: o.CopyBeforeWrite.Target},
			}
		},
		Bitmap: func(o *qapi.BlockdevOptions) *qapi.BlockDirtyBitmap { return o.CopyBeforeWrite.Bitmap },
		Open: func(ctx context.Context, r *blockgraph.OpenRequest) (blockgraph.Driver, error) {
			return open(ctx, r, real)
		},
	}
}

func open(ctx context.Context, r *blockgraph.OpenRequest, real clock.Clock) (blockgraph.Driver, error) {
	o := r.Options.CopyBeforeWrite
	f := &Filter{node: r.Node, clock: real, onError: qapi.OnCbwErrorBreakGuestWrite, brokenSig: make(chan struct{})}
	if o.OnCBWError != nil {
		f.onError = *o.OnCBWError
	}
	if o.CBWTimeout != nil {
		f.timeout = time.Duration(*o.CBWTimeout) * time.Second
	}
	var least int64
	if o.MinClusterSize != nil {
		if *o.MinClusterSize > math.MaxInt64 {
			return nil, qapi.Errorf("min-cluster-size too large: %d > %d", *o.MinClusterSize, int64(math.MaxInt64))
		}
		least = int64(*o.MinClusterSize)
	}
	source, target := r.Node.File().Child(), r.Node.Child("target").Child()
	size, err := clusterSize(ctx, target, least)
	if err != nil {
		return nil, err
	}
	f.clusters = copy.NewClusters(source.Size(), size)
	f.overwritten = newOverwritten((source.Size() + size - 1) / size)
	if b := r.Bitmap; b != nil {
		if to, from := source.Size(), b.Bits.Size(); to != from {
			return nil, qapi.Errorf("Failed to merge bitmap '%s' to internal copy-bitmap: Bitmaps are of different sizes (destination size is %d, source size is %d) and can't be merged", b.Name, to, from)
		}
		f.restrict(b.Bits)
	}
	if target.ChainContains(source) {
		// Readers of the target read through to the source what is not saved
		// yet: they must not overlap with saving it.
		f.flags |= blockgraph.Serialising
	}
	return f, nil
}

// clusterSize returns the granularity of copying in bytes: at least the
// target's cluster size, since without a backing file the target cannot fill
// in the rest of a cluster.
func clusterSize(ctx context.Context, target *blockgraph.Node, least int64) (int64, error) {
	const prefix = "Cannot create block-copy-state: "
	if least&(least-1) != 0 {
		return 0, qapi.Errorf(prefix + "min-cluster-size needs to be a power of 2")
	}
	if least > maxCluster {
		return 0, qapi.Errorf(prefix+"min-cluster-size too large: %d > %d", least, maxCluster)
	}
	least = max(least, copy.DefaultCluster)
	n, err := targetCluster(ctx, target)
	cow := target.BackingChain() != nil
	switch {
	case err == nil:
		return max(least, n), nil
	case cow:
		return least, nil
	case errors.Is(err, blockgraph.ErrNotSupported):
		slog.Warn("The target block device doesn't provide information about the block size and it doesn't have a backing file. The default block size is used. If the actual block size of the target exceeds this default, the backup may be unusable", "node", target.Name(), "bytes", least)
		return least, nil
	default:
		return 0, qapi.Errorf(prefix+"Couldn't determine the cluster size of the target image, which has no backing file: %s", blockgraph.Strerror(err))
	}
}

// targetCluster returns a node's cluster size, 0 for an image without
// clusters, or ErrNotSupported when the driver does not tell.
func targetCluster(ctx context.Context, n *blockgraph.Node) (int64, error) {
	for {
		if i, ok := n.Driver().(blockgraph.ImageInformer); ok {
			var info qapi.ImageInfo
			if err := i.ImageInfo(ctx, &info); err != nil {
				return 0, err
			}
			if info.ClusterSize == nil {
				return 0, nil
			}
			if c := *info.ClusterSize; c <= 0 || c&(c-1) != 0 || c > maxCluster {
				return 0, blockgraph.Errorf(syscall.EINVAL, "cluster size %d", c)
			}
			return *info.ClusterSize, nil
		}
		e := n.Filtered()
		if e == nil {
			return 0, blockgraph.ErrNotSupported
		}
		n = e.Child()
	}
}
