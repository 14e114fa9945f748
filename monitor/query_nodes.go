package monitor

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"blockd/blockgraph"
	"blockd/qapi"
	"blockd/qmp"
)

func (m *Monitor) registerQueries(r *qmp.Registry) {
	qmp.Register(r, "query-named-block-nodes", qmp.CommandOptions{ReadOnly: true}, m.queryNamedBlockNodes)
	qmp.Register(r, "x-debug-query-block-graph", qmp.CommandOptions{Unstable: true, ReadOnly: true}, m.queryBlockGraph)
	qmp.Register(r, "query-block", qmp.CommandOptions{ReadOnly: true}, m.queryBlock)
	qmp.Register(r, "query-blockstats", qmp.CommandOptions{ReadOnly: true}, m.queryBlockstats)
}

// nodes returns the published nodes, in the field's order.
func (m *Monitor) nodes() []*blockgraph.Node {
	var nodes []*blockgraph.Node
	m.graph.Loop().Do(func() { nodes = m.graph.Nodes() })
	return nodes
}

func (m *Monitor) queryNamedBlockNodes(c *qmp.Context, a *qapi.QueryNamedBlockNodesArg) ([]qapi.BlockDeviceInfo, error) {
	return m.queryInfos(c, isTrue(a.Flat))
}

func (m *Monitor) queryInfos(ctx context.Context, flat bool) ([]qapi.BlockDeviceInfo, error) {
	for {
		infos, err := m.view().deviceInfos(ctx, flat)
		// A node that was closed meanwhile is not in the next view.
		if !errors.Is(err, blockgraph.ErrNodeClosed) {
			return infos, err
		}
	}
}

// view is the graph as of one instant. What only drivers know is asked later,
// off the loop, because it takes system calls.
type view struct {
	nodes  []*blockgraph.Node // in the field's order
	states map[*blockgraph.Node]*blockgraph.NodeState
	limits map[*blockgraph.Node]blockgraph.Limits
	names  *blockgraph.Naming
	// working are the bitmaps of nodes that drivers work with.
	working map[*blockgraph.Node][]qapi.BlockDirtyInfo
	// implicit: chains show nodes that jobs inserted for themselves, too.
	implicit bool
}

func (m *Monitor) view() *view {
	v := &view{implicit: true, states: map[*blockgraph.Node]*blockgraph.NodeState{}, limits: map[*blockgraph.Node]blockgraph.Limits{},
		working: map[*blockgraph.Node][]qapi.BlockDirtyInfo{}}
	m.loop.Do(func() {
		v.nodes = m.graph.Nodes()
		for _, n := range v.nodes {
			v.states[n], v.limits[n] = n.State(), n.Limits()
			if w, ok := n.Driver().(blockgraph.BitmapWorker); ok {
				own, below := w.WorkingBitmaps()
				v.working[n] = append(v.working[n], own...)
				if f := n.Filtered(); f != nil {
					v.working[f.Child()] = append(v.working[f.Child()], below...)
				}
			}
		}
	})
	v.names = blockgraph.NewNaming(v.states)
	return v
}

func (v *view) deviceInfos(ctx context.Context, flat bool) ([]qapi.BlockDeviceInfo, error) {
	infos := make([]qapi.BlockDeviceInfo, len(v.nodes))
	for i, n := range v.nodes {
		if err := v.deviceInfo(ctx, n, flat, &infos[i]); err != nil {
			return nil, err
		}
	}
	return infos, nil
}

// queryBlock lists devices; a storage daemon has none.
func (m *Monitor) queryBlock(c *qmp.Context, _ *struct{}) ([]qapi.BlockInfo, error) {
	if m.Devices == nil {
		return []qapi.BlockInfo{}, nil
	}
	return m.Devices.QueryBlock(c)
}

// NodeInfo tells of a node and its chain as query-block does of what is
// inserted; nil: it is closed by now.
func (m *Monitor) NodeInfo(ctx context.Context, n *blockgraph.Node) (*qapi.BlockDeviceInfo, error) {
	v := m.view()
	if v.states[n] == nil {
		return nil, nil
	}
	var info qapi.BlockDeviceInfo
	v.implicit = false
	err := v.deviceInfo(ctx, n, false, &info)
	if errors.Is(err, blockgraph.ErrNodeClosed) {
		return nil, nil
	}
	return &info, err
}

// deviceInfo fills in what a query tells about one node.
func (v *view) deviceInfo(ctx context.Context, n *blockgraph.Node, flat bool, info *qapi.BlockDeviceInfo) error {
	s := v.states[n]
	o := s.Options
	*info = qapi.BlockDeviceInfo{
		File: v.names.Filename(n), NodeName: n.Name(), RO: s.ReadOnly, Drv: n.Type().Name,
		Active: !s.Inactive, DetectZeroes: s.DetectZeroes,
		Cache:    qapi.BlockdevCacheInfo{Writeback: true, Direct: isTrue(o.Cache.Direct), NoFlush: isTrue(o.Cache.NoFlush)},
		Children: children(s), WriteThreshold: int64(n.WriteThreshold()), DirtyBitmaps: slices.Concat(v.working[n], bitmapInfos(s)),
	}
	if b := s.Backing(); b != nil && !n.Type().Filter {
		below := b.Child()
		if !v.implicit {
			below = below.SkipImplicit()
		}
		name := v.names.Filename(below)
		info.BackingFile = &name
	}
	image := &info.Image
	for {
		if err := v.imageInfo(ctx, n, image); err != nil {
			return err
		}
		if info.NodeName == n.Name() {
			info.Encrypted = isTrue(image.Encrypted)
		}
		next := n.FilterOrCOWIn(v.states[n])
		if flat || next == nil {
			return nil
		}
		info.BackingFileDepth++
		if n = next.Child(); !v.implicit {
			n = n.SkipImplicit()
		}
		image.BackingImage = &qapi.ImageInfo{}
		image = image.BackingImage
	}
}

func children(s *blockgraph.NodeState) []qapi.BlockdevChild {
	list := make([]qapi.BlockdevChild, 0, len(s.Edges))
	for _, e := range s.Edges {
		list = append(list, qapi.BlockdevChild{Child: e.Name(), NodeName: e.Child().Name()})
	}
	// The field keeps the newest child first.
	slices.Reverse(list)
	return list
}

func (v *view) imageInfo(ctx context.Context, n *blockgraph.Node, info *qapi.ImageInfo) error {
	s := v.states[n]
	*info = qapi.ImageInfo{Filename: v.names.Filename(n), Format: n.Type().Name, VirtualSize: n.Size(), Limits: limitsInfo(v.limits[n])}
	size, known, err := n.AllocatedSize(ctx, func(n *blockgraph.Node) *blockgraph.NodeState { return v.states[n] })
	if err != nil {
		return err
	}
	if known {
		info.ActualSize = &size
	}
	if s.BackingName != "" {
		name := s.BackingName
		info.BackingFilename = &name
		if full, err := n.ResolveName(name); err == nil {
			info.FullBackingFilename = &full
		}
		if f := s.BackingFormat; f != "" {
			info.BackingFilenameFormat = &f
		}
	}
	if err := v.driverInfo(ctx, n, info); err != nil {
		return err
	}
	return v.snapshots(n, info)
}

// driverInfo adds what the driver knows; a filter that knows nothing has the
// cluster size of what is below it.
func (v *view) driverInfo(ctx context.Context, n *blockgraph.Node, info *qapi.ImageInfo) error {
	var err error
	silent := false
	if !n.Inspect(func(drv blockgraph.Driver) {
		d, ok := drv.(blockgraph.ImageInformer)
		if silent = !ok; ok {
			err = d.ImageInfo(ctx, info)
		}
	}) {
		return blockgraph.ErrNodeClosed
	}
	if err != nil || !silent || !n.Type().Filter {
		return err
	}
	var below qapi.ImageInfo
	if e := n.FilterOrCOWIn(v.states[n]); e != nil {
		err = v.driverInfo(ctx, e.Child(), &below)
	}
	info.ClusterSize, info.DirtyFlag = below.ClusterSize, below.DirtyFlag
	return err
}

// snapshots lists the internal snapshots of a node, or of what is below it.
func (v *view) snapshots(n *blockgraph.Node, info *qapi.ImageInfo) error {
	n = blockgraph.Snapshotting(n, func(n *blockgraph.Node) []*blockgraph.Edge { return v.states[n].Edges })
	if n != nil && !n.Inspect(func(drv blockgraph.Driver) {
		info.Snapshots = drv.(blockgraph.InternalSnapshotter).InternalSnapshots()
	}) {
		return blockgraph.ErrNodeClosed
	}
	return nil
}

func limitsInfo(l blockgraph.Limits) *qapi.BlockLimitsInfo {
	info := &qapi.BlockLimitsInfo{
		RequestAlignment: uint32(max(1, l.RequestAlignment)),
		MaxIOV:           maxIOV,
		MinMemAlignment:  uint64(cmp.Or(l.MemAlignment, 512)),
		OptMemAlignment:  uint64(max(l.MemAlignment, pageSize)),
	}
	set64(&info.MaxDiscard, l.MaxDiscard)
	set64(&info.MaxWriteZeroes, l.MaxZero)
	set32(&info.DiscardAlignment, l.DiscardAlignment)
	set32(&info.WriteZeroesAlignment, l.ZeroAlignment)
	set32(&info.OptTransfer, l.OptTransfer)
	set32(&info.MaxTransfer, l.MaxTransfer)
	return info
}

const (
	maxIOV   = 1024 // IOV_MAX
	pageSize = 4096
)

func set64(p **uint64, v int64) {
	if v != 0 {
		u := uint64(v)
		*p = &u
	}
}

func set32(p **uint32, v int64) {
	if v != 0 {
		u := uint32(min(v, 1<<32-1))
		*p = &u
	}
}

func isTrue(p *bool) bool { return p != nil && *p }
