// Package throttle is the filter that delays requests so that the limits of a
// throttle group hold (the field: throttle). Groups are objects that nodes
// name; several nodes in one group share its limits.
//
// Reads count as reads; writes, zero writes and discards as writes of their
// length; flushes and status queries pass. What waits is released by a drain
// of any root that it was admitted at, and ends with its context.
//
// Locks: Filter.mu, a leaf above the group's own. Blocking: reads, writes,
// zero writes and discards wait for the group, holding nothing.
// It must not import jobs, exports or formats.
//
//blockd:io
package throttle

import (
	"context"
	"sync"
	"sync/atomic"

	"blockd/blockgraph"
	"blockd/objects"
	"blockd/objects/throttlegroup"
	"blockd/qapi"
)

// Filter is the driver of a throttle node.
type Filter struct {
	node    *blockgraph.Node
	objects *objects.Registry
	now     atomic.Pointer[membership]

	mu sync.Mutex
	// +checklocks:mu
	releases []*throttlegroup.Member // of each ReleaseBegin without its end
}

// membership is a node's place in a group, which is in use by it.
type membership struct {
	member *throttlegroup.Member
	leave  func()
}

// Type returns the driver type for the graph's registry. Groups are objects of
// r.
func Type(r *objects.Registry) *blockgraph.DriverType {
	return &blockgraph.DriverType{
		Name:     string(qapi.BlockdevDriverThrottle),
		Filter:   true,
		Required: append(blockgraph.RequiredChildren("file"), blockgraph.RequiredOption{Name: "throttle-group", Text: "Please specify a throttle group"}),
		Children: func(o *qapi.BlockdevOptions) []blockgraph.ChildSpec {
			return []blockgraph.ChildSpec{
				{Name: "file", Role: blockgraph.RoleFiltered | blockgraph.RolePrimary, Ref: o.Throttle.File},
			}
		},
		Open: func(_ context.Context, q *blockgraph.OpenRequest) (blockgraph.Driver, error) {
			f := &Filter{node: q.Node, objects: r}
			m, err := f.join(q.Options)
			if err != nil {
				return nil, err
			}
			f.now.Store(m)
			return f, nil
		},
		Reopenable: []string{"throttle-group"},
		StrongOptions: func(o *qapi.BlockdevOptions) *qapi.Object {
			return qapi.NewObject("throttle-group", o.Throttle.ThrottleGroup)
		},
	}
}

// join enters the group that the options name.
//
//blockd:blocking
func (f *Filter) join(o *qapi.BlockdevOptions) (*membership, error) {
	name := o.Throttle.ThrottleGroup
	g, leave, ok := objects.Acquire[*objects.ThrottleGroup](f.objects, name)
	if !ok {
		return nil, qapi.Errorf("Throttle group '%s' does not exist", name)
	}
	return &membership{g.Group().Join(), leave}, nil
}

func (f *Filter) below() *blockgraph.Edge { return f.node.File() }

func (f *Filter) wait(ctx context.Context, dir throttlegroup.Direction, n int64) error {
	return f.now.Load().member.Wait(ctx, dir, n)
}

// ReadV waits and passes through.
func (f *Filter) ReadV(ctx context.Context, off int64, v *blockgraph.IOVec, flags blockgraph.Flags) error {
	if err := f.wait(ctx, throttlegroup.Read, v.Len()); err != nil {
		return err
	}
	return f.below().ReadV(ctx, off, v, flags)
}

// WriteV waits and passes through.
func (f *Filter) WriteV(ctx context.Context, off int64, v *blockgraph.IOVec, flags blockgraph.Flags) error {
	if err := f.wait(ctx, throttlegroup.Write, v.Len()); err != nil {
		return err
	}
	return f.below().WriteV(ctx, off, v, flags)
}

// WriteZeroes waits and passes through.
func (f *Filter) WriteZeroes(ctx context.Context, off, n int64, flags blockgraph.Flags) error {
	if err := f.wait(ctx, throttlegroup.Write, n); err != nil {
		return err
	}
	return f.below().WriteZeroes(ctx, off, n, flags)
}

// Discard waits and passes through.
func (f *Filter) Discard(ctx context.Context, off, n int64) error {
	if err := f.wait(ctx, throttlegroup.Write, n); err != nil {
		return err
	}
	return f.below().Discard(ctx, off, n)
}

// Flush passes through.
func (f *Filter) Flush(ctx context.Context) error { return f.below().Flush(ctx) }

// BlockStatus refers to the node below.
func (f *Filter) BlockStatus(_ context.Context, off, n int64, _ blockgraph.StatusMode) (blockgraph.Status, error) {
	return blockgraph.Status{
		Flags: blockgraph.StatusRecurse | blockgraph.StatusOffsetValid,
		N:     n, Offset: off, File: f.below().Child(),
	}, nil
}

// Size is that of the node below.
func (f *Filter) Size(ctx context.Context) (int64, error) {
	return f.below().Child().Driver().Size(ctx)
}

// Close leaves the group.
func (f *Filter) Close(context.Context) error {
	f.now.Load().leave()
	return nil
}

// Limits are those of the node below, except that alignment is left to it: a
// guest's request counts by its own length.
func (f *Filter) Limits() blockgraph.Limits {
	l := f.below().Child().Limits()
	return blockgraph.Limits{MaxTransfer: l.MaxTransfer, OptTransfer: l.OptTransfer, MemAlignment: l.MemAlignment}
}

// Caps are those of the node below; what can be passed on without harm, always
// is.
func (f *Filter) Caps() blockgraph.Caps {
	c := f.below().Child().Caps()
	c.Backing = false
	c.WriteZeroes = blockgraph.CapNative
	c.MayUnmap = blockgraph.CapNative
	c.NoFallback = blockgraph.CapNative
	c.Discard = blockgraph.CapNative
	c.WriteUnchanged = blockgraph.CapNative
	return c
}

// ImageInfo tells what holds for the image below.
func (f *Filter) ImageInfo(ctx context.Context, info *qapi.ImageInfo) error {
	i, ok := f.below().Child().SkipFilters().Driver().(blockgraph.ImageInformer)
	if !ok {
		return nil
	}
	var below qapi.ImageInfo
	if err := i.ImageInfo(ctx, &below); err != nil {
		return err
	}
	info.ClusterSize, info.DirtyFlag = below.ClusterSize, below.DirtyFlag
	return nil
}

// ReleaseBegin implements blockgraph.Releaser: requests that wait pass.
func (f *Filter) ReleaseBegin() {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.now.Load().member
	m.Release()
	f.releases = append(f.releases, m)
}

// ReleaseEnd implements blockgraph.Releaser.
func (f *Filter) ReleaseEnd() {
	f.mu.Lock()
	defer f.mu.Unlock()
	last := len(f.releases) - 1
	f.releases[last].Restrain()
	f.releases = f.releases[:last]
}

// PrepareReopen moves the node to the group that the options name.
func (f *Filter) PrepareReopen(_ context.Context, r *blockgraph.ReopenRequest) (*blockgraph.Reopening, error) {
	m, err := f.join(r.Options)
	if err != nil {
		return nil, err
	}
	was := f.now.Load()
	return &blockgraph.Reopening{
		Apply: func() { f.now.Store(m) },
		Keep:  func() { was.leave() },
		Undo: func(context.Context) {
			f.now.Store(was)
			m.leave()
		},
	}, nil
}
