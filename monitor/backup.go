package monitor

import (
	"blockd/blockgraph"
	"blockd/jobs"
	"blockd/jobs/backup"
	"blockd/qapi"
	"blockd/qmp"
)

func (m *Monitor) registerBackup(r *qmp.Registry) {
	qmp.Register(r, "blockdev-backup", qmp.CommandOptions{}, func(c *qmp.Context, a *qapi.BlockdevBackup) (struct{}, error) {
		return struct{}{}, m.runActions(c, "blockdev-backup", []action{&blockdevBackup{m: m, BlockdevBackup: *a}})
	})
	qmp.Register(r, "drive-backup", qmp.CommandOptions{Deprecated: true}, func(c *qmp.Context, a *qapi.DriveBackup) (struct{}, error) {
		return struct{}{}, m.runActions(c, "drive-backup", []action{&driveBackup{m: m, DriveBackup: *a}})
	})
}

// blockdevBackup starts a backup to a node.
type blockdevBackup struct {
	m   *Monitor
	txn *jobs.Txn // nil: the job ends by itself
	qapi.BlockdevBackup
}

func (b *blockdevBackup) kind() string { return "blockdev-backup" }

func (b *blockdevBackup) source(tx *blockgraph.Tx) *blockgraph.Node { return sourceNode(tx, b.Device) }

func (b *blockdevBackup) prepare(tx *blockgraph.Tx) error {
	source, err := findNode(tx, b.Device)
	if err != nil {
		return err
	}
	target, err := findNode(tx, b.Target)
	if err != nil {
		return err
	}
	b.JobID = jobID(tx, b.JobID, source)
	_, err = backup.Prepare(tx, backup.Request{Jobs: b.m.jobs, Txn: b.txn, Source: source, Target: target, Args: &b.BackupCommon, Scratch: b.m.Scratch})
	return err
}

// driveBackup starts a backup to an image that it makes or opens itself.
type driveBackup struct {
	m   *Monitor
	txn *jobs.Txn
	qapi.DriveBackup
}

func (b *driveBackup) kind() string { return "drive-backup" }

func (b *driveBackup) source(tx *blockgraph.Tx) *blockgraph.Node { return sourceNode(tx, b.Device) }

func (b *driveBackup) prepare(tx *blockgraph.Tx) error {
	source, err := findNode(tx, b.Device)
	if err != nil {
		return err
	}
	// An early check, so that no image is made in vain.
	if err := tx.CheckBlocked(source, blockgraph.OpBackupSource); err != nil {
		return err
	}
	existing := b.Mode != nil && *b.Mode == qapi.NewImageModeExisting
	format := ""
	switch {
	case b.Format != nil:
		format = *b.Format
	case !existing:
		format = source.Type().Name
	}
	// backing is what the new image is made on top of.
	var backing *blockgraph.Node
	switch b.Sync {
	case qapi.MirrorSyncModeTop:
		if backing = source.BackingChain(); backing == nil {
			b.Sync = qapi.MirrorSyncModeFull
		}
	case qapi.MirrorSyncModeNone:
		backing = source
	}
	if !existing {
		img := NewImage{File: b.Target, Format: format, Size: source.Size()}
		if backing != nil {
			explicit := backing.SkipImplicit()
			img.Backing, img.BackingFormat = tx.Filename(explicit), explicit.Type().Name
		}
		if err := b.m.createImage(tx, img); err != nil {
			return err
		}
	}
	none := b.Sync == qapi.MirrorSyncModeNone
	target, err := b.m.openTarget(tx, b.Target, format, source, none)
	if err != nil {
		return err
	}
	if none {
		if err := tx.SetChild(target, "backing", blockgraph.RoleCOW, source); err != nil {
			return err
		}
	}
	b.JobID = jobID(tx, b.JobID, source)
	_, err = backup.Prepare(tx, backup.Request{Jobs: b.m.jobs, Txn: b.txn, Source: source, Target: target, Args: &b.BackupCommon, Scratch: b.m.Scratch})
	return err
}

// openTarget opens a job's target image with the source's cache options.
func (m *Monitor) openTarget(tx *blockgraph.Tx, name, format string, source *blockgraph.Node, detached bool) (*blockgraph.Node, error) {
	return m.openImage(tx, name, format, func(o *qapi.BlockdevOptions) {
		discard, zeroes := qapi.BlockdevDiscardOptionsUnmap, qapi.BlockdevDetectZeroesOptionsUnmap
		o.Cache, o.Discard, o.DetectZeroes = tx.State(source).Options.Cache, &discard, &zeroes
		if detached {
			noBacking(tx, o)
		}
	})
}
