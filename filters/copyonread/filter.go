// Package copyonread is the filter that populates the node below with what is
// read from deeper in the chain (the field: copy-on-read). A stream inserts
// one over its top node and reads through it with the flags
// Prefetch|CopyOnRead; users may add one, too.
//
// A populate never overwrites newer data of a guest. The format decides that
// under its allocator's lock, by the flag OnlyUnallocated. Over a format that
// does not know the flag (Caps.OnlyUnallocated), guests' writes through the
// filter share a range lock with each other and exclude populates of the same
// clusters, which ask again under it what is unallocated; such a format must
// not be written beside the filter.
//
// Populates of the same clusters exclude each other in any case, so that one
// reads and the other finds the work done.
//
// Locks: the filter's range locks, held across I/O below by admitted requests,
// which never wait for a gate; populating before writing. What blocks: every
// I/O method. It must not import jobs, qmp or formats.
//
//blockd:io
package copyonread

import (
	"context"

	"blockd/blockgraph"
	"blockd/qapi"
)

// Filter is the driver of a copy-on-read node.
type Filter struct {
	node    *blockgraph.Node
	bottom  *blockgraph.Node // nil: populate whatever the node below lacks; else it stays below the filter
	cluster int64            // granularity in bytes, of the node below; power of two

	populating blockgraph.RangeLock // exclusive: by populates of whole clusters
	writing    blockgraph.RangeLock // for formats without OnlyUnallocated
}

// Type returns the driver type for the registry.
func Type() *blockgraph.DriverType {
	return &blockgraph.DriverType{
		Name:     string(qapi.BlockdevDriverCopyOnRead),
		Filter:   true,
		Required: blockgraph.RequiredChildren("file"),
		Children: func(o *qapi.BlockdevOptions) []blockgraph.ChildSpec {
			return []blockgraph.ChildSpec{
				{Name: "file", Role: blockgraph.RoleFiltered | blockgraph.RolePrimary, Ref: o.CopyOnRead.File},
			}
		},
		Open: open,
	}
}

//blockd:blocking
func open(ctx context.Context, r *blockgraph.OpenRequest) (blockgraph.Driver, error) {
	f := &Filter{node: r.Node, cluster: 1}
	below := r.Node.File().Child()
	if name := r.Options.CopyOnRead.Bottom; name != nil {
		n := r.FindBelow(*name)
		switch {
		case n == nil:
			return nil, qapi.Errorf("Bottom node '%s' not found", *name)
		case n.Type().Filter:
			return nil, qapi.Errorf("Bottom node '%s' is a filter", *name)
		}
		f.bottom = n
		if err := r.FreezeDownTo(n); err != nil {
			return nil, err
		}
	}
	if i, ok := below.SkipFilters().Driver().(blockgraph.ImageInformer); ok {
		var info qapi.ImageInfo
		if err := i.ImageInfo(ctx, &info); err == nil && info.ClusterSize != nil {
			if c := *info.ClusterSize; c > 0 && c&(c-1) == 0 && c <= maxCluster {
				f.cluster = c
			}
		}
	}
	f.cluster = max(f.cluster, below.Limits().RequestAlignment)
	return f, nil
}

// maxCluster is the largest granularity that an image may ask for, in bytes.
const maxCluster = 64 << 20

// Cluster returns the granularity of populating in bytes: the cluster size of
// the image below, 1 when it has none. Any goroutine.
func (f *Filter) Cluster() int64 { return f.cluster }

// native tells whether the node below takes OnlyUnallocated.
func (f *Filter) native() bool {
	return f.node.File().Child().Caps().OnlyUnallocated == blockgraph.CapNative
}

// Limits implements blockgraph.LimitsReader: those of the node below.
func (f *Filter) Limits() blockgraph.Limits { return f.node.File().Child().Limits() }

// Caps implements blockgraph.LimitsReader: those of the node below, and what
// this filter adds to them.
func (f *Filter) Caps() blockgraph.Caps {
	c := f.node.File().Child().Caps()
	c.CopyOnRead = blockgraph.CapNative
	c.WriteUnchanged = blockgraph.CapNative
	c.OnlyUnallocated = blockgraph.CapNative
	c.Backing = false
	return c
}

// WriteV implements blockgraph.Driver.
func (f *Filter) WriteV(ctx context.Context, off int64, v *blockgraph.IOVec, flags blockgraph.Flags) error {
	file := f.node.File()
	if f.native() {
		return file.WriteV(ctx, off, v, flags)
	}
	if flags&blockgraph.OnlyUnallocated != 0 {
		return f.onlyUnallocated(ctx, off, v.Len(), func(a, n int64) error {
			return file.WriteV(ctx, a, v.Slice(a-off, n), flags&^blockgraph.OnlyUnallocated)
		})
	}
	h, err := f.writing.Lock(ctx, off, v.Len(), false)
	if err != nil {
		return err
	}
	defer f.writing.Unlock(h)
	return file.WriteV(ctx, off, v, flags)
}

// WriteZeroes implements blockgraph.Driver.
func (f *Filter) WriteZeroes(ctx context.Context, off, n int64, flags blockgraph.Flags) error {
	file := f.node.File()
	if f.native() {
		return file.WriteZeroes(ctx, off, n, flags)
	}
	if flags&blockgraph.OnlyUnallocated != 0 {
		return f.onlyUnallocated(ctx, off, n, func(a, n int64) error {
			return file.WriteZeroes(ctx, a, n, flags&^blockgraph.OnlyUnallocated)
		})
	}
	h, err := f.writing.Lock(ctx, off, n, false)
	if err != nil {
		return err
	}
	defer f.writing.Unlock(h)
	return file.WriteZeroes(ctx, off, n, flags)
}

// onlyUnallocated calls write for the parts of [off, off+n) that are
// unallocated in the node below, while nobody writes there.
func (f *Filter) onlyUnallocated(ctx context.Context, off, n int64, write func(off, n int64) error) error {
	h, err := f.writing.Lock(ctx, off, n, true)
	if err != nil {
		return err
	}
	defer f.writing.Unlock(h)
	file := f.node.File()
	for end := off + n; off < end; {
		st, err := file.BlockStatus(ctx, off, end-off, blockgraph.StatusAllocation)
		if err != nil {
			return err
		}
		if st.N == 0 {
			return nil
		}
		if st.Flags&blockgraph.StatusAllocated == 0 {
			if err := write(off, st.N); err != nil {
				return err
			}
		}
		off += st.N
	}
	return nil
}

// Discard implements blockgraph.Driver.
func (f *Filter) Discard(ctx context.Context, off, n int64) error {
	if !f.native() {
		h, err := f.writing.Lock(ctx, off, n, false)
		if err != nil {
			return err
		}
		defer f.writing.Unlock(h)
	}
	return f.node.File().Discard(ctx, off, n)
}

// Flush implements blockgraph.Driver.
func (f *Filter) Flush(ctx context.Context) error { return f.node.File().Flush(ctx) }

// BlockStatus implements blockgraph.Driver.
func (f *Filter) BlockStatus(_ context.Context, off, n int64, _ blockgraph.StatusMode) (blockgraph.Status, error) {
	return blockgraph.Status{Flags: blockgraph.StatusRecurse | blockgraph.StatusOffsetValid, N: n, Offset: off, File: f.node.File().Child()}, nil
}

// Size implements blockgraph.Driver.
func (f *Filter) Size(context.Context) (int64, error) { return f.node.File().Child().Size(), nil }

// Close implements blockgraph.Driver.
func (f *Filter) Close(context.Context) error { return nil }

// ChildPerms implements blockgraph.ChildPermissioner: populating needs to write
// unchanged, whoever uses the filter.
func (f *Filter) ChildPerms(_ *blockgraph.Edge, _ bool, perm, shared blockgraph.Perm) (blockgraph.Perm, blockgraph.Perm) {
	return perm | blockgraph.PermWriteUnchanged, shared | blockgraph.PermWriteUnchanged
}
