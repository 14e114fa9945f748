package backup

import (
	"math"

	"blockd/blockgraph"
	"blockd/qapi"
)

// params are the arguments of a backup, checked, with defaults filled in.
type params struct {
	top, none      bool
	compress       bool
	maxWorkers     int
	maxChunk       int64
	minCluster     uint64
	onRead, onCopy qapi.BlockdevOnError
	onCBW          qapi.OnCbwError

	bitmap   string // of the source, which is kept in step; "": none
	syncMode qapi.BitmapSyncMode
	marked   bool // copy only what the bitmap marks

	scratch, breakIfFull bool
	tellScratch          bool // in queries, even if it was not needed
	scratchSize          int64
}

// check refuses arguments that can be refused by themselves, with the field's
// texts. bitmap finds one of the source's, or returns nil.
func check(a *qapi.BackupCommon, bitmap func(name string) *blockgraph.DirtyBitmap) error {
	mode := func(m qapi.BitmapSyncMode) bool { return a.BitmapMode != nil && *a.BitmapMode == m }
	syncs := a.Sync == qapi.MirrorSyncModeBitmap || a.Sync == qapi.MirrorSyncModeIncremental
	switch {
	case syncs && a.Bitmap == nil:
		return qapi.Errorf("must provide a valid bitmap name for '%s' sync mode", a.Sync)
	case a.Sync == qapi.MirrorSyncModeIncremental && a.BitmapMode != nil && !mode(qapi.BitmapSyncModeOnSuccess):
		return qapi.Errorf("Bitmap sync mode must be '%s' when using sync mode '%s'", qapi.BitmapSyncModeOnSuccess, a.Sync)
	case a.Bitmap == nil && a.BitmapMode != nil:
		return qapi.Errorf("Cannot specify bitmap sync mode without a bitmap")
	case a.Bitmap == nil:
		return nil
	}
	found := bitmap(*a.Bitmap)
	switch {
	case found == nil:
		return qapi.Errorf("Bitmap '%s' could not be found", *a.Bitmap)
	case a.BitmapMode == nil && a.Sync != qapi.MirrorSyncModeIncremental:
		return qapi.Errorf("Bitmap sync mode must be given when providing a bitmap")
	case found.Check(blockgraph.BitmapRead) != nil:
		return found.Check(blockgraph.BitmapRead)
	case a.Sync == qapi.MirrorSyncModeNone:
		return qapi.Errorf("sync mode '%s' does not produce meaningful bitmap outputs", a.Sync)
	case mode(qapi.BitmapSyncModeNever) && !syncs:
		return qapi.Errorf("Bitmap sync mode '%s' has no meaningful effect when combined with sync mode '%s'", *a.BitmapMode, a.Sync)
	}
	return nil
}

// defaults fills in what the arguments leave out.
func defaults(a *qapi.BackupCommon) params {
	p := params{
		top:        a.Sync == qapi.MirrorSyncModeTop,
		none:       a.Sync == qapi.MirrorSyncModeNone,
		compress:   a.Compress != nil && *a.Compress,
		maxWorkers: 64,
		onRead:     qapi.Or(a.OnSourceError, qapi.BlockdevOnErrorReport),
		onCopy:     qapi.Or(a.OnTargetError, qapi.BlockdevOnErrorReport),
		onCBW:      qapi.Or(a.OnCBWError, qapi.OnCbwErrorBreakGuestWrite),
	}
	if a.Bitmap != nil {
		p.bitmap, p.syncMode = *a.Bitmap, qapi.Or(a.BitmapMode, qapi.BitmapSyncModeOnSuccess)
		p.marked = a.Sync == qapi.MirrorSyncModeBitmap || a.Sync == qapi.MirrorSyncModeIncremental
	}
	if x := a.XPerf; x != nil {
		p.maxChunk = qapi.Or(x.MaxChunk, 0)
		p.minCluster = qapi.Or(x.MinClusterSize, 0)
	}
	return p
}

// perf checks the x-perf arguments that do not depend on the cluster size.
func (p *params) perf(x *qapi.BackupPerf) error {
	workers := int64(64)
	if x != nil {
		workers = qapi.Or(x.MaxWorkers, 64)
	}
	if workers < 1 || workers > math.MaxInt32 {
		return qapi.Errorf("max-workers must be between 1 and %d", math.MaxInt32)
	}
	if p.maxChunk < 0 {
		return qapi.Errorf("max-chunk must be zero (which means no limit) or positive")
	}
	p.maxWorkers = int(workers)
	return nil
}
