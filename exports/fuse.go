package exports

import (
	"context"
	"math"
	"slices"

	"blockd/blockgraph"
	"blockd/exports/fuse"
	"blockd/qapi"
)

// addFuse makes an export that is a file of the host. It shows the disk from the
// commit on; who opens it before waits.
func (r *Registry) addFuse(tx *blockgraph.Tx, n *blockgraph.Node, e *export, o *qapi.BlockExportOptions) error {
	e.file = o.Fuse.Mountpoint
	r.mu.Lock()
	taken := slices.ContainsFunc(r.exports, func(x *export) bool { return x.file == e.file && !x.shuttingDown })
	r.mu.Unlock()
	// Before anybody looks at the file, which would ask ourselves.
	if e.file != "" && (taken || r.isStaged(o.Type, e.file)) {
		return fuse.Taken(e.file)
	}
	cfg := fuse.Config{
		Mountpoint: e.file, Backend: e.root, Writable: isOn(o.Writable), Writethrough: isOn(o.Writethrough), Growable: isOn(o.Fuse.Growable),
		AllowOther: qapi.FuseExportAllowOtherAuto, Alignment: uint32(min(max(n.Limits().RequestAlignment, 1), math.MaxUint32)),
		Clock: r.Clock, Allow: r.AllowFile, Taken: r.isMount, InFlight: e.root.InFlight,
		Resize: func(ctx context.Context, size int64, grow bool, prealloc qapi.PreallocMode) error {
			return r.resize(ctx, e, size, grow, prealloc)
		},
	}
	if o.Fuse.AllowOther != nil {
		cfg.AllowOther = *o.Fuse.AllowOther
	}
	file, err := fuse.Mount(cfg)
	if err != nil {
		return err
	}
	tx.OnAbort(file.Close)
	e.device = file.Device()
	r.stage(tx, staged{o.ID, o.Type, e.file, e.device})
	tx.OnCommit(func() { r.list(e, file) })
	tx.After(file.Show)
	return nil
}

// isMount tells whether the device is that of an export's file, which may have
// been found by another of its names, and which is there until the mount has gone.
func (r *Registry) isMount(device uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return device != 0 && (slices.ContainsFunc(r.exports, func(x *export) bool { return x.device == device }) ||
		slices.ContainsFunc(r.staged, func(s staged) bool { return s.device == device }))
}

// resize changes the length of an export's disk in bytes. With grow it leaves one
// that is as long already as it is.
func (r *Registry) resize(ctx context.Context, e *export, size int64, grow bool, prealloc qapi.PreallocMode) error {
	return r.Graph.Update(ctx, blockgraph.Cause{}, func(tx *blockgraph.Tx) error {
		switch n := e.root.Node(); {
		case n == nil:
			return blockgraph.ErrNoMedium
		case grow && n.Size() >= size:
			return nil
		}
		return tx.ResizeRoot(e.root, size, prealloc)
	})
}
