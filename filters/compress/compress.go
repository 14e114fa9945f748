// Package compress is the filter that has everything written through it stored
// compressed (the field: compress), by a format that can.
//
// A format compresses whole clusters only, so requests are aligned to them;
// smaller ones are widened by reading first. A cluster that is written again
// gets a new place: the filter is for filling images, not for guests.
//
// It has no state. What blocks: what blocks below. It must not import jobs, qmp
// or formats.
//
//blockd:io
package compress

import (
	"context"
	"syscall"

	"blockd/blockgraph"
	"blockd/filters/pass"
	"blockd/qapi"
)

// maxCluster is the largest alignment that an image may ask for, in bytes.
const maxCluster = 64 << 20

// Filter is the driver of a compress node.
type Filter struct {
	pass.Through
	cluster int64 // alignment in bytes; 0: none
}

// Type returns the driver type for the graph's registry.
func Type() *blockgraph.DriverType {
	return &blockgraph.DriverType{
		Name:     string(qapi.BlockdevDriverCompress),
		Filter:   true,
		Required: blockgraph.RequiredChildren("file"),
		Children: func(o *qapi.BlockdevOptions) []blockgraph.ChildSpec {
			return []blockgraph.ChildSpec{{Name: "file", Role: blockgraph.RoleFiltered | blockgraph.RolePrimary, Ref: o.Compress.File}}
		},
		Open: open,
	}
}

func open(ctx context.Context, r *blockgraph.OpenRequest) (blockgraph.Driver, error) {
	f := &Filter{Through: pass.Through{Node: r.Node}}
	below := f.Below().Child()
	if below.Caps().Compressed != blockgraph.CapNative {
		return nil, blockgraph.Errorf(syscall.ENOTSUP, "Compression is not supported for underlying format: %s", below.Type().Name)
	}
	if i, ok := below.SkipFilters().Driver().(blockgraph.ImageInformer); ok {
		var info qapi.ImageInfo
		if err := i.ImageInfo(ctx, &info); err == nil && info.ClusterSize != nil {
			if c := *info.ClusterSize; c > 0 && c&(c-1) == 0 && c <= maxCluster {
				f.cluster = c
			}
		}
	}
	return f, nil
}

// WriteV has the data compressed.
func (f *Filter) WriteV(ctx context.Context, off int64, v *blockgraph.IOVec, flags blockgraph.Flags) error {
	return f.Below().WriteV(ctx, off, v, flags|blockgraph.Compressed)
}

// Limits implements blockgraph.LimitsReader.
func (f *Filter) Limits() blockgraph.Limits {
	l := f.Through.Limits()
	l.RequestAlignment = f.cluster
	return l
}
