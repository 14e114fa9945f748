package qapi

// Arguments and results of the jobs that look after images. The commands are
// blockd's own.

// ImageFix is what a check repairs, as in qemu-img check -r.
type ImageFix string

// Values of ImageFix.
const (
	ImageFixNone  ImageFix = "none"
	ImageFixLeaks ImageFix = "leaks"
	ImageFixAll   ImageFix = "all"
)

// QAPIEnum lists the values that blockd accepts.
func (ImageFix) QAPIEnum() []string { return []string{"none", "leaks", "all"} }

// XBlockdevCheckArg is the argument of x-blockdev-check.
type XBlockdevCheckArg struct {
	JobID    string `qapi:"job-id"`
	NodeName string `qapi:"node-name"`
	// Default none.
	Fix *ImageFix `qapi:"fix"`
	// Bytes of metadata per second; 0 is no limit. Default 0.
	Speed *int64 `qapi:"speed"`
	// Default true.
	AutoFinalize *bool `qapi:"auto-finalize"`
	// Default true.
	AutoDismiss *bool `qapi:"auto-dismiss"`
}

// ImageCheck is the result of a check, as `qemu-img check --output=json` prints
// it: what is 0 is absent. Counts are clusters.
type ImageCheck struct {
	Filename string `qapi:"filename"`
	Format   string `qapi:"format"`
	// What kept the check from being complete.
	CheckErrors int64 `qapi:"check-errors"`
	// Bytes.
	ImageEndOffset     *int64 `qapi:"image-end-offset"`
	Corruptions        *int64 `qapi:"corruptions"`
	Leaks              *int64 `qapi:"leaks"`
	CorruptionsFixed   *int64 `qapi:"corruptions-fixed"`
	LeaksFixed         *int64 `qapi:"leaks-fixed"`
	TotalClusters      *int64 `qapi:"total-clusters"`
	AllocatedClusters  *int64 `qapi:"allocated-clusters"`
	FragmentedClusters *int64 `qapi:"fragmented-clusters"`
	CompressedClusters *int64 `qapi:"compressed-clusters"`
	// The first findings. Not in QEMU.
	XMessages []string `qapi:"x-messages,optional,features=unstable"`
}

// XBlockdevCompactArg is the argument of x-blockdev-compact.
type XBlockdevCompactArg struct {
	JobID    string `qapi:"job-id"`
	NodeName string `qapi:"node-name"`
	// Bytes per second; 0 is no limit. Default 0.
	Speed *int64 `qapi:"speed"`
	// Default true.
	AutoFinalize *bool `qapi:"auto-finalize"`
	// Default true.
	AutoDismiss *bool `qapi:"auto-dismiss"`
}

// ImageCompact is the result of a compaction. Not in QEMU.
type ImageCompact struct {
	// Length of the image file in bytes, before and after.
	FileSizeBefore int64 `qapi:"file-size-before"`
	FileSizeAfter  int64 `qapi:"file-size-after"`
	// Clusters that were moved, tables of metadata among them.
	MovedClusters int64 `qapi:"moved-clusters"`
	// Clusters that should have been moved, and could not.
	UnmovableClusters int64 `qapi:"unmovable-clusters"`
	// Free bytes within the file that were given to the storage, which may know
	// them as free already.
	DiscardedBytes int64 `qapi:"discarded-bytes"`
}
