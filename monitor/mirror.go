package monitor

import (
	"blockd/blockgraph"
	"blockd/jobs"
	"blockd/jobs/mirror"
	"blockd/qapi"
	"blockd/qmp"
)

func (m *Monitor) registerMirror(r *qmp.Registry) {
	qmp.Register(r, "blockdev-mirror", qmp.CommandOptions{}, func(c *qmp.Context, a *qapi.BlockdevMirror) (struct{}, error) {
		return struct{}{}, m.update(c, "blockdev-mirror", (&blockdevMirror{m, a}).prepare)
	})
	qmp.Register(r, "drive-mirror", qmp.CommandOptions{}, func(c *qmp.Context, a *qapi.DriveMirror) (struct{}, error) {
		return struct{}{}, m.update(c, "drive-mirror", func(tx *blockgraph.Tx) error { return m.driveMirror(tx, a) })
	})
	qmp.Register(r, "block-job-change", qmp.CommandOptions{}, m.blockJobChange)
}

// blockdevMirror starts a mirror to a node.
type blockdevMirror struct {
	m *Monitor
	a *qapi.BlockdevMirror
}

func (b *blockdevMirror) kind() string { return string(qapi.TransactionActionKindXBlockdevMirror) }

func (b *blockdevMirror) source(tx *blockgraph.Tx) *blockgraph.Node {
	return sourceNode(tx, b.a.Device)
}

func (b *blockdevMirror) prepare(tx *blockgraph.Tx) error {
	source, err := findRoot(tx, b.a.Device)
	if err != nil {
		return err
	}
	target, err := findNode(tx, b.a.Target)
	if err != nil {
		return err
	}
	a := *b.a
	a.JobID = jobID(tx, a.JobID, source)
	_, err = mirror.Prepare(tx, mirror.Request{Jobs: b.m.jobs, Source: source, Target: target, Args: &a, Unmap: true})
	return err
}

// driveMirror starts a mirror to an image that it makes or opens itself.
func (m *Monitor) driveMirror(tx *blockgraph.Tx, a *qapi.DriveMirror) error {
	source, err := findRoot(tx, a.Device)
	if err != nil {
		return err
	}
	// An early check, so that no image is made in vain.
	if err := tx.CheckBlocked(source, blockgraph.OpMirrorSource); err != nil {
		return err
	}
	existing := a.Mode != nil && *a.Mode == qapi.NewImageModeExisting
	if a.Replaces != nil && a.NodeName == nil {
		return qapi.Errorf("a node-name must be provided when replacing a named node of the graph")
	}
	format := ""
	switch {
	case a.Format != nil:
		format = *a.Format
	case !existing:
		format = source.Type().Name
	}
	// backing is what the new image is made on top of.
	var backing *blockgraph.Node
	switch a.Sync {
	case qapi.MirrorSyncModeFull:
	case qapi.MirrorSyncModeNone:
		backing = source
	default:
		backing = source.BackingChain()
	}
	how := mirror.HeaderBacking
	if !existing {
		how = mirror.SourceBacking
		img := NewImage{File: a.Target, Format: format, Size: source.Size()}
		if backing != nil {
			explicit := backing.SkipImplicit()
			img.Backing, img.BackingFormat = tx.Filename(explicit), explicit.Type().Name
		}
		if err := m.createImage(tx, img); err != nil {
			return err
		}
	}
	o := tx.State(source).Options
	target, err := m.openImage(tx, a.Target, format, func(n *qapi.BlockdevOptions) {
		n.NodeName, n.Cache, n.Discard = a.NodeName, o.Cache, o.Discard
		noBacking(tx, n)
	})
	if err != nil {
		return err
	}
	_, err = mirror.Prepare(tx, mirror.Request{
		Jobs: m.jobs, Source: source, Target: target,
		Args: &qapi.BlockdevMirror{
			JobID: jobID(tx, a.JobID, source), Replaces: a.Replaces, Sync: a.Sync, Speed: a.Speed, Granularity: a.Granularity, BufSize: a.BufSize,
			OnSourceError: a.OnSourceError, OnTargetError: a.OnTargetError, CopyMode: a.CopyMode,
			AutoFinalize: a.AutoFinalize, AutoDismiss: a.AutoDismiss, XWriteBlockingAfter: a.XWriteBlockingAfter,
		},
		Unmap: a.Unmap == nil || *a.Unmap, Fresh: !existing, Backing: how,
	})
	return err
}

func (m *Monitor) blockJobChange(c *qmp.Context, a *qapi.BlockJobChangeOptions) (struct{}, error) {
	var j *jobs.Job
	var err error
	m.loop.Do(func() { j, err = m.jobs.FindBlock(a.ID) })
	if err != nil {
		return struct{}{}, err
	}
	return struct{}{}, j.ChangeOptions(c, a)
}

// findRoot finds a node that is no part of another one.
func findRoot(tx *blockgraph.Tx, name string) (*blockgraph.Node, error) {
	n, err := findNode(tx, name)
	if err == nil && !isRoot(tx, n) {
		err = qapi.Errorf("Need a root block node")
	}
	return n, err
}
