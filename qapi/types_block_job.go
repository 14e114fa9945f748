package qapi

// Arguments of the commands that start copying jobs.

// BlockdevOnError is the policy for failed requests of a job.
type BlockdevOnError string

// Values of BlockdevOnError.
const (
	BlockdevOnErrorReport BlockdevOnError = "report"
	BlockdevOnErrorIgnore BlockdevOnError = "ignore"
	BlockdevOnErrorEnospc BlockdevOnError = "enospc"
	BlockdevOnErrorStop   BlockdevOnError = "stop"
	BlockdevOnErrorAuto   BlockdevOnError = "auto"
)

// QAPIEnum lists the values that blockd accepts.
func (BlockdevOnError) QAPIEnum() []string {
	return []string{"report", "ignore", "enospc", "stop", "auto"}
}

// MirrorSyncMode is what part of the source a job copies.
type MirrorSyncMode string

// Values of MirrorSyncMode.
const (
	MirrorSyncModeTop         MirrorSyncMode = "top"
	MirrorSyncModeFull        MirrorSyncMode = "full"
	MirrorSyncModeNone        MirrorSyncMode = "none"
	MirrorSyncModeIncremental MirrorSyncMode = "incremental"
	MirrorSyncModeBitmap      MirrorSyncMode = "bitmap"
)

// QAPIEnum lists the values that blockd accepts.
func (MirrorSyncMode) QAPIEnum() []string {
	return []string{"top", "full", "none", "incremental", "bitmap"}
}

// BitmapSyncMode is what becomes of the bitmap when the job ends.
type BitmapSyncMode string

// Values of BitmapSyncMode.
const (
	BitmapSyncModeOnSuccess BitmapSyncMode = "on-success"
	BitmapSyncModeNever     BitmapSyncMode = "never"
	BitmapSyncModeAlways    BitmapSyncMode = "always"
)

// QAPIEnum lists the values that blockd accepts.
func (BitmapSyncMode) QAPIEnum() []string {
	return []string{"on-success", "never", "always"}
}

// BackupPerf tunes a backup job.
type BackupPerf struct {
	// Default false.
	UseCopyRange *bool `qapi:"use-copy-range"`
	// Default 64.
	MaxWorkers *int64 `qapi:"max-workers"`
	// Bytes; 0 is no limit. Default 0.
	MaxChunk *int64 `qapi:"max-chunk"`
	// Bytes; 0 follows the target. Default 0.
	MinClusterSize *uint64 `qapi:"min-cluster-size,size"`
}

// ScratchWhenFull is what a guest's write does when a backup's scratch has no
// room for what it overwrites.
type ScratchWhenFull string

// Values of ScratchWhenFull.
const (
	ScratchWhenFullWait          ScratchWhenFull = "wait"
	ScratchWhenFullBreakSnapshot ScratchWhenFull = "break-snapshot"
)

// QAPIEnum lists the values that blockd accepts.
func (ScratchWhenFull) QAPIEnum() []string { return []string{"wait", "break-snapshot"} }

// BackupScratch says whether guests' writes wait for a backup's target, or what
// they overwrite is kept for a while. Not in QEMU.
type BackupScratch struct {
	// Default true where the job can have a scratch.
	Enable *bool `qapi:"enable"`
	// Bytes; 0 is no limit but the daemon's. Default 0.
	MaxSize *uint64 `qapi:"max-size,size"`
	// Default wait.
	WhenFull *ScratchWhenFull `qapi:"when-full"`
}

// ScratchOptions are those of the option --scratch. Not in QEMU.
type ScratchOptions struct {
	Directory *string `qapi:"directory"`
	// Bytes; default 256 MiB.
	Memory *uint64 `qapi:"memory,size"`
	// Bytes of files; default 16 GiB.
	MaxSize *uint64 `qapi:"max-size,size"`
}

// BackupCommon are the arguments that drive-backup and blockdev-backup share.
type BackupCommon struct {
	// Default: the device's name.
	JobID *string `qapi:"job-id"`
	// Root or node to copy.
	Device string         `qapi:"device"`
	Sync   MirrorSyncMode `qapi:"sync"`
	// Bytes per second; 0 is no limit. Default 0.
	Speed      *int64          `qapi:"speed"`
	Bitmap     *string         `qapi:"bitmap"`
	BitmapMode *BitmapSyncMode `qapi:"bitmap-mode"`
	// Default false.
	Compress *bool `qapi:"compress"`
	// Default report.
	OnSourceError *BlockdevOnError `qapi:"on-source-error"`
	// Default report.
	OnTargetError *BlockdevOnError `qapi:"on-target-error"`
	// Default break-guest-write.
	OnCBWError *OnCbwError `qapi:"on-cbw-error"`
	// Default true.
	AutoFinalize *bool `qapi:"auto-finalize"`
	// Default true.
	AutoDismiss *bool `qapi:"auto-dismiss"`
	// Default: a generated name.
	FilterNodeName *string `qapi:"filter-node-name"`
	// Default false.
	DiscardSource *bool       `qapi:"discard-source"`
	XPerf         *BackupPerf `qapi:"x-perf,features=unstable"`
	// Not in QEMU.
	XScratch *BackupScratch `qapi:"x-scratch,features=unstable"`
}

// DriveBackup is the argument of drive-backup.
type DriveBackup struct {
	BackupCommon
	// File name.
	Target string `qapi:"target"`
	// Default: the source's, or probed with mode existing.
	Format *string `qapi:"format"`
	// Default absolute-paths.
	Mode *NewImageMode `qapi:"mode"`
}

// BlockdevBackup is the argument of blockdev-backup.
type BlockdevBackup struct {
	BackupCommon
	// Root or node.
	Target string `qapi:"target"`
}

// MirrorCopyMode says how what guests write gets to a mirror's target.
type MirrorCopyMode string

// Values of MirrorCopyMode.
const (
	MirrorCopyModeBackground    MirrorCopyMode = "background"
	MirrorCopyModeWriteBlocking MirrorCopyMode = "write-blocking"
)

// QAPIEnum lists the values that blockd accepts.
func (MirrorCopyMode) QAPIEnum() []string { return []string{"background", "write-blocking"} }

// BlockdevMirror is the argument of blockdev-mirror.
type BlockdevMirror struct {
	// Default: the device's name.
	JobID *string `qapi:"job-id"`
	// Root or node to copy.
	Device string `qapi:"device"`
	// Root or node to copy to.
	Target string `qapi:"target"`
	// Node that the target takes the place of. Default: the device's.
	Replaces *string        `qapi:"replaces"`
	Sync     MirrorSyncMode `qapi:"sync"`
	// Bytes per second; 0 is no limit. Default 0.
	Speed *int64 `qapi:"speed"`
	// Bytes. Default: the target's cluster size, between 4 KiB and 64 KiB.
	Granularity *uint32 `qapi:"granularity"`
	// Bytes that may be in flight. Default 16 MiB.
	BufSize *int64 `qapi:"buf-size"`
	// Default report.
	OnSourceError *BlockdevOnError `qapi:"on-source-error"`
	// Default report.
	OnTargetError *BlockdevOnError `qapi:"on-target-error"`
	// Default: a generated name.
	FilterNodeName *string `qapi:"filter-node-name"`
	// Default background.
	CopyMode *MirrorCopyMode `qapi:"copy-mode"`
	// Default true.
	AutoFinalize *bool `qapi:"auto-finalize"`
	// Default true.
	AutoDismiss *bool `qapi:"auto-dismiss"`
	// The target reads as zeroes. Default false.
	TargetIsZero *bool `qapi:"target-is-zero"`
	// Seconds after which a job that is not ready yet changes to the copy mode
	// write-blocking. Default: never.
	XWriteBlockingAfter *uint32 `qapi:"x-write-blocking-after,features=unstable"`
}

// DriveMirror is the argument of drive-mirror.
type DriveMirror struct {
	// Default: the device's name.
	JobID *string `qapi:"job-id"`
	// Root or node to copy.
	Device string `qapi:"device"`
	// File name.
	Target string `qapi:"target"`
	// Default: the source's, or probed with mode existing.
	Format *string `qapi:"format"`
	// Name of the target's node. Default: a generated name.
	NodeName *string `qapi:"node-name"`
	// Node that the target takes the place of. Default: the device's.
	Replaces *string        `qapi:"replaces"`
	Sync     MirrorSyncMode `qapi:"sync"`
	// Default absolute-paths.
	Mode *NewImageMode `qapi:"mode"`
	// Bytes per second; 0 is no limit. Default 0.
	Speed *int64 `qapi:"speed"`
	// Bytes. Default: the target's cluster size, between 4 KiB and 64 KiB.
	Granularity *uint32 `qapi:"granularity"`
	// Bytes that may be in flight. Default 16 MiB.
	BufSize *int64 `qapi:"buf-size"`
	// Default report.
	OnSourceError *BlockdevOnError `qapi:"on-source-error"`
	// Default report.
	OnTargetError *BlockdevOnError `qapi:"on-target-error"`
	// Default true.
	Unmap *bool `qapi:"unmap"`
	// Default background.
	CopyMode *MirrorCopyMode `qapi:"copy-mode"`
	// Default true.
	AutoFinalize *bool `qapi:"auto-finalize"`
	// Default true.
	AutoDismiss *bool `qapi:"auto-dismiss"`
	// Seconds after which a job that is not ready yet changes to the copy mode
	// write-blocking. Default: never.
	XWriteBlockingAfter *uint32 `qapi:"x-write-blocking-after,features=unstable"`
}

// BlockStreamArg is the argument of block-stream. Base, BaseNode and Bottom
// exclude each other.
type BlockStreamArg struct {
	// Default: the device's name.
	JobID  *string `qapi:"job-id"`
	Device string  `qapi:"device"`
	// File name of the image that stays below.
	Base *string `qapi:"base"`
	// Node that stays below.
	BaseNode *string `qapi:"base-node"`
	// What to write into the header. Default: chosen from the new chain.
	BackingFile *string `qapi:"backing-file"`
	// Write "raw" for a protocol node's format. Default false.
	BackingMaskProtocol *bool `qapi:"backing-mask-protocol"`
	// Lowest node that is streamed.
	Bottom *string `qapi:"bottom"`
	// Bytes per second; 0 is no limit. Default 0.
	Speed *int64 `qapi:"speed"`
	// Default report.
	OnError *BlockdevOnError `qapi:"on-error"`
	// Default: a generated name.
	FilterNodeName *string `qapi:"filter-node-name"`
	// Default true.
	AutoFinalize *bool `qapi:"auto-finalize"`
	// Default true.
	AutoDismiss *bool `qapi:"auto-dismiss"`
}

// BlockCommitArg is the argument of block-commit. Top and TopNode exclude each
// other, and so do Base and BaseNode.
type BlockCommitArg struct {
	// Default: the device's name.
	JobID  *string `qapi:"job-id"`
	Device string  `qapi:"device"`
	// Node that is merged into. Default: the lowest image.
	BaseNode *string `qapi:"base-node"`
	// The same by file name.
	Base *string `qapi:"base,features=deprecated"`
	// Highest node that is merged. Default: the device.
	TopNode *string `qapi:"top-node"`
	// The same by file name.
	Top *string `qapi:"top,features=deprecated"`
	// What to write into the header of the overlay. Default: chosen from the
	// new chain.
	BackingFile *string `qapi:"backing-file"`
	// Write "raw" for a protocol node's format. Default false.
	BackingMaskProtocol *bool `qapi:"backing-mask-protocol"`
	// Bytes per second; 0 is no limit. Default 0.
	Speed *int64 `qapi:"speed"`
	// Default report.
	OnError *BlockdevOnError `qapi:"on-error"`
	// Default: a generated name.
	FilterNodeName *string `qapi:"filter-node-name"`
	// Default true.
	AutoFinalize *bool `qapi:"auto-finalize"`
	// Default true.
	AutoDismiss *bool `qapi:"auto-dismiss"`
}
