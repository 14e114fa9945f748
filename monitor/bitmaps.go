package monitor

import (
	"context"

	"blockd/blockgraph"
	"blockd/qapi"
	"blockd/qmp"
)

// The commands for dirty bitmaps. Each is a transaction of one action, but for
// the debugging command.

func (m *Monitor) registerBitmaps(r *qmp.Registry) {
	qmp.Register(r, "block-dirty-bitmap-add", qmp.CommandOptions{}, func(c *qmp.Context, a *qapi.BlockDirtyBitmapAdd) (struct{}, error) {
		return struct{}{}, m.runActions(c, "block-dirty-bitmap-add", []action{&bitmapAdd{m, *a}})
	})
	for _, name := range []string{"block-dirty-bitmap-remove", "block-dirty-bitmap-clear", "block-dirty-bitmap-enable", "block-dirty-bitmap-disable"} {
		qmp.Register(r, name, qmp.CommandOptions{}, func(c *qmp.Context, a *qapi.BlockDirtyBitmap) (struct{}, error) {
			return struct{}{}, m.runActions(c, name, []action{bitmapActionOf(name, *a)})
		})
	}
	qmp.Register(r, "block-dirty-bitmap-merge", qmp.CommandOptions{}, func(c *qmp.Context, a *qapi.BlockDirtyBitmapMerge) (struct{}, error) {
		return struct{}{}, m.runActions(c, "block-dirty-bitmap-merge", []action{&bitmapMerge{*a}})
	})
	qmp.Register(r, "x-debug-block-dirty-bitmap-sha256", qmp.CommandOptions{Unstable: true}, func(_ *qmp.Context, a *qapi.BlockDirtyBitmap) (qapi.BlockDirtyBitmapSha256, error) {
		b, err := m.publishedBitmap(a)
		if err != nil {
			return qapi.BlockDirtyBitmapSha256{}, err
		}
		return qapi.BlockDirtyBitmapSha256{Sha256: b.Bits.SHA256()}, nil
	})
}

// publishedBitmap finds a bitmap of the published graph.
func (m *Monitor) publishedBitmap(a *qapi.BlockDirtyBitmap) (b *blockgraph.DirtyBitmap, err error) {
	m.loop.Do(func() {
		n := m.graph.LookUp(a.Node)
		if n == nil {
			err = qapi.Errorf("Node '%s' not found", a.Node)
			return
		}
		if b = n.State().Bitmap(a.Name); b == nil {
			err = qapi.Errorf("Dirty bitmap '%s' not found", a.Name)
		}
	})
	return b, err
}

// bitmapAdd gives a node a bitmap.
type bitmapAdd struct {
	m *Monitor
	qapi.BlockDirtyBitmapAdd
}

func (b *bitmapAdd) kind() string { return "block-dirty-bitmap-add" }

func (b *bitmapAdd) source(tx *blockgraph.Tx) *blockgraph.Node { return sourceNode(tx, b.Node) }

func (b *bitmapAdd) prepare(tx *blockgraph.Tx) error {
	if b.Name == "" {
		return qapi.Errorf("Bitmap name cannot be empty")
	}
	n, err := findNode(tx, b.Node)
	if err != nil {
		return err
	}
	granularity := int64(defaultGranularity)
	if b.Granularity != nil {
		if granularity = int64(*b.Granularity); granularity < 512 || granularity&(granularity-1) != 0 {
			return qapi.Errorf("Granularity must be power of 2 and at least 512")
		}
	} else if c, err := clusterSize(tx.Context(), n); err == nil && c > 0 {
		granularity = max(minGranularity, c)
	}
	return tx.AddBitmap(n, b.Name, granularity, isTrue(b.Persistent), isTrue(b.Disabled))
}

// Granularities in bytes when the user chooses none: that of nodes without
// clusters, and the least.
const (
	defaultGranularity = 64 << 10
	minGranularity     = 4 << 10
)

// clusterSize returns a node's cluster size in bytes, 0 without one. A filter
// has that of what is below it.
func clusterSize(ctx context.Context, n *blockgraph.Node) (int64, error) {
	for {
		if d, ok := n.Driver().(blockgraph.ImageInformer); ok {
			var info qapi.ImageInfo
			if err := d.ImageInfo(ctx, &info); err != nil || info.ClusterSize == nil {
				return 0, err
			}
			return *info.ClusterSize, nil
		}
		e := n.Filtered()
		if e == nil {
			return 0, nil
		}
		n = e.Child()
	}
}

// bitmapAction is one of the actions that name a bitmap and nothing else.
type bitmapAction struct {
	name string
	qapi.BlockDirtyBitmap
	change func(tx *blockgraph.Tx, n *blockgraph.Node, b *blockgraph.DirtyBitmap) error
}

func bitmapActionOf(name string, at qapi.BlockDirtyBitmap) action {
	a := &bitmapAction{name: name, BlockDirtyBitmap: at}
	switch name {
	case "block-dirty-bitmap-remove":
		return &bitmapRemove{bitmapAction: a}
	case "block-dirty-bitmap-clear":
		a.change = (*blockgraph.Tx).ClearBitmap
	case "block-dirty-bitmap-enable":
		a.change = func(tx *blockgraph.Tx, n *blockgraph.Node, b *blockgraph.DirtyBitmap) error {
			return tx.EnableBitmap(n, b, true)
		}
	case "block-dirty-bitmap-disable":
		a.change = func(tx *blockgraph.Tx, n *blockgraph.Node, b *blockgraph.DirtyBitmap) error {
			return tx.EnableBitmap(n, b, false)
		}
	}
	return a
}

func (b *bitmapAction) kind() string { return b.name }

func (b *bitmapAction) source(tx *blockgraph.Tx) *blockgraph.Node { return sourceNode(tx, b.Node) }

func (b *bitmapAction) prepare(tx *blockgraph.Tx) error {
	n, found, err := tx.LookUpBitmap(b.Node, b.Name)
	if err != nil {
		return err
	}
	return b.change(tx, n, found)
}

// bitmapRemove keeps the bitmap in use until all actions are prepared, so that
// none of them can take its name.
type bitmapRemove struct {
	*bitmapAction
	n *blockgraph.Node
}

func (b *bitmapRemove) prepare(tx *blockgraph.Tx) error {
	n, found, err := tx.LookUpBitmap(b.Node, b.Name)
	if err != nil {
		return err
	}
	if err := found.Check(blockgraph.BitmapRemove); err != nil {
		return err
	}
	b.n = n
	return tx.HoldBitmap(n, found)
}

func (b *bitmapRemove) finish(tx *blockgraph.Tx) error {
	if err := tx.ReleaseBitmap(b.n, b.Name); err != nil {
		return err
	}
	return tx.RemoveBitmap(b.n, tx.Bitmap(b.n, b.Name))
}

// bitmapMerge merges bitmaps into another.
type bitmapMerge struct{ qapi.BlockDirtyBitmapMerge }

func (b *bitmapMerge) kind() string { return "block-dirty-bitmap-merge" }

func (b *bitmapMerge) source(tx *blockgraph.Tx) *blockgraph.Node { return sourceNode(tx, b.Node) }

func (b *bitmapMerge) prepare(tx *blockgraph.Tx) error {
	n, target, err := tx.LookUpBitmap(b.Node, b.Target)
	if err != nil {
		return err
	}
	for _, ref := range b.Bitmaps {
		srcNode, src := n, (*blockgraph.DirtyBitmap)(nil)
		if ref.External != nil {
			if srcNode, src, err = tx.LookUpBitmap(ref.External.Node, ref.External.Name); err != nil {
				return err
			}
		} else if src = tx.Bitmap(n, *ref.Local); src == nil {
			return qapi.Errorf("Dirty bitmap '%s' not found", *ref.Local)
		}
		if err := tx.MergeBitmap(n, target, srcNode, src); err != nil {
			return err
		}
		target = tx.Bitmap(n, b.Target)
	}
	return nil
}

// bitmapInfos tells about a node's bitmaps.
func bitmapInfos(s *blockgraph.NodeState) []qapi.BlockDirtyInfo {
	var list []qapi.BlockDirtyInfo
	for _, b := range s.Bitmaps {
		if next := b.Successor; next != nil {
			list = append(list, qapi.BlockDirtyInfo{Count: next.Count(), Granularity: uint32(next.Granularity()), Recording: !b.Disabled})
		}
	}
	for _, b := range s.Bitmaps {
		info := qapi.BlockDirtyInfo{
			Name: &b.Name, Count: b.Bits.Count(), Granularity: uint32(b.Bits.Granularity()),
			Recording: b.Recorder() != nil, Busy: b.Busy, Persistent: b.Persistent,
		}
		if b.Inconsistent {
			inconsistent := true
			info.Inconsistent = &inconsistent
		}
		list = append(list, info)
	}
	return list
}
