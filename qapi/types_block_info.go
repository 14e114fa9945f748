package qapi

// Results of query-named-block-nodes and query-block: nodes, images, bitmaps.

// ImageInfoSpecificKind selects the format's part of ImageInfo.
type ImageInfoSpecificKind string

// Values of ImageInfoSpecificKind.
const (
	ImageInfoSpecificKindLUKS  ImageInfoSpecificKind = "luks"
	ImageInfoSpecificKindQcow2 ImageInfoSpecificKind = "qcow2"
	ImageInfoSpecificKindFile  ImageInfoSpecificKind = "file"
)

// QAPIEnum lists the values that blockd accepts.
func (ImageInfoSpecificKind) QAPIEnum() []string {
	return []string{"qcow2", "luks", "file"}
}

// Qcow2BitmapInfoFlags are the flags of a bitmap stored in an image.
type Qcow2BitmapInfoFlags string

// Values of Qcow2BitmapInfoFlags.
const (
	Qcow2BitmapInfoFlagsInUse Qcow2BitmapInfoFlags = "in-use"
	Qcow2BitmapInfoFlagsAuto  Qcow2BitmapInfoFlags = "auto"
)

// QAPIEnum lists the values that blockd accepts.
func (Qcow2BitmapInfoFlags) QAPIEnum() []string {
	return []string{"in-use", "auto"}
}

// BlockDeviceIoStatus is the state that the error policy left a device in.
type BlockDeviceIoStatus string

// Values of BlockDeviceIoStatus.
const (
	BlockDeviceIoStatusOk      BlockDeviceIoStatus = "ok"
	BlockDeviceIoStatusFailed  BlockDeviceIoStatus = "failed"
	BlockDeviceIoStatusNospace BlockDeviceIoStatus = "nospace"
)

// QAPIEnum lists the values that blockd accepts.
func (BlockDeviceIoStatus) QAPIEnum() []string {
	return []string{"ok", "failed", "nospace"}
}

// QueryNamedBlockNodesArg is the argument of query-named-block-nodes.
type QueryNamedBlockNodesArg struct {
	// Leave out the chain of backing images. Default false.
	Flat *bool `qapi:"flat"`
}

// BlockdevCacheInfo are the cache settings in effect.
type BlockdevCacheInfo struct {
	Writeback bool `qapi:"writeback"`
	Direct    bool `qapi:"direct"`
	NoFlush   bool `qapi:"no-flush"`
}

// BlockdevChild is an edge of the graph, seen from its parent.
type BlockdevChild struct {
	// Name of the edge.
	Child    string `qapi:"child"`
	NodeName string `qapi:"node-name"`
}

// BlockDirtyInfo describes a dirty bitmap.
type BlockDirtyInfo struct {
	Name *string `qapi:"name"`
	// Dirty bytes.
	Count int64 `qapi:"count"`
	// Bytes per bit.
	Granularity  uint32 `qapi:"granularity"`
	Recording    bool   `qapi:"recording"`
	Busy         bool   `qapi:"busy"`
	Persistent   bool   `qapi:"persistent"`
	Inconsistent *bool  `qapi:"inconsistent"`
}

// SnapshotInfo describes an internal snapshot.
type SnapshotInfo struct {
	ID   string `qapi:"id"`
	Name string `qapi:"name"`
	// Bytes.
	VMStateSize int64  `qapi:"vm-state-size"`
	DateSec     int64  `qapi:"date-sec"`
	DateNsec    int64  `qapi:"date-nsec"`
	VMClockSec  int64  `qapi:"vm-clock-sec"`
	VMClockNsec int64  `qapi:"vm-clock-nsec"`
	Icount      *int64 `qapi:"icount"`
}

// BlockLimitsInfo are a node's I/O limits. All sizes are bytes; an absent
// maximum is no limit.
type BlockLimitsInfo struct {
	RequestAlignment     uint32  `qapi:"request-alignment"`
	MaxDiscard           *uint64 `qapi:"max-discard"`
	DiscardAlignment     *uint32 `qapi:"discard-alignment"`
	MaxWriteZeroes       *uint64 `qapi:"max-write-zeroes"`
	WriteZeroesAlignment *uint32 `qapi:"write-zeroes-alignment"`
	OptTransfer          *uint32 `qapi:"opt-transfer"`
	MaxTransfer          *uint32 `qapi:"max-transfer"`
	MaxHWTransfer        *uint32 `qapi:"max-hw-transfer"`
	MaxIOV               int64   `qapi:"max-iov"`
	MaxHWIOV             *int64  `qapi:"max-hw-iov"`
	MinMemAlignment      uint64  `qapi:"min-mem-alignment,size"`
	OptMemAlignment      uint64  `qapi:"opt-mem-alignment,size"`
}

// ImageInfo describes an image. Sizes are bytes.
type ImageInfo struct {
	Filename  string `qapi:"filename"`
	Format    string `qapi:"format"`
	DirtyFlag *bool  `qapi:"dirty-flag"`
	// Bytes allocated on the host.
	ActualSize  *int64 `qapi:"actual-size"`
	VirtualSize int64  `qapi:"virtual-size"`
	ClusterSize *int64 `qapi:"cluster-size"`
	Encrypted   *bool  `qapi:"encrypted"`
	Compressed  *bool  `qapi:"compressed"`
	// As the header spells it.
	BackingFilename *string `qapi:"backing-filename"`
	// Resolved against the image's own name.
	FullBackingFilename   *string            `qapi:"full-backing-filename"`
	BackingFilenameFormat *string            `qapi:"backing-filename-format"`
	Snapshots             []SnapshotInfo     `qapi:"snapshots,optional"`
	Limits                *BlockLimitsInfo   `qapi:"limits"`
	FormatSpecific        *ImageInfoSpecific `qapi:"format-specific"`
	BackingImage          *ImageInfo         `qapi:"backing-image"`
}

// ImageInfoSpecific is the format's own part of ImageInfo.
type ImageInfoSpecific struct {
	Type  ImageInfoSpecificKind   `qapi:"type,discriminator"`
	LUKS  *QCryptoBlockInfoLUKS   `qapi:",case=luks,wrap"`
	Qcow2 *ImageInfoSpecificQCow2 `qapi:",case=qcow2,wrap"`
	File  *ImageInfoSpecificFile  `qapi:",case=file,wrap"`
}

// ImageInfoSpecificQCow2 describes a qcow2 image.
type ImageInfoSpecificQCow2 struct {
	// "0.10" or "1.1".
	Compat        string                            `qapi:"compat"`
	DataFile      *string                           `qapi:"data-file"`
	DataFileRaw   *bool                             `qapi:"data-file-raw"`
	ExtendedL2    *bool                             `qapi:"extended-l2"`
	LazyRefcounts *bool                             `qapi:"lazy-refcounts"`
	Corrupt       *bool                             `qapi:"corrupt"`
	RefcountBits  int64                             `qapi:"refcount-bits"`
	Encrypt       *ImageInfoSpecificQCow2Encryption `qapi:"encrypt"`
	Bitmaps       []Qcow2BitmapInfo                 `qapi:"bitmaps,optional"`
	// Writes that waited until they were dirty in the stored bitmaps, and for
	// how many nanoseconds in all. Beyond QEMU.
	XBitmapWaits    *int64               `qapi:"x-bitmap-waits,features=unstable"`
	XBitmapWaitNs   *int64               `qapi:"x-bitmap-wait-ns,features=unstable"`
	CompressionType Qcow2CompressionType `qapi:"compression-type"`
}

// Qcow2BitmapInfo describes a bitmap stored in a qcow2 image.
type Qcow2BitmapInfo struct {
	Name string `qapi:"name"`
	// Bytes per bit.
	Granularity uint32                 `qapi:"granularity"`
	Flags       []Qcow2BitmapInfoFlags `qapi:"flags"`
}

// ImageInfoSpecificFile describes a plain file.
type ImageInfoSpecificFile struct {
	// Bytes.
	ExtentSizeHint *uint64 `qapi:"extent-size-hint,size"`
}

// BlockDeviceInfo describes a node. The limits of throttling are per second,
// bytes or operations; the _length members are seconds.
type BlockDeviceInfo struct {
	File             string                      `qapi:"file"`
	NodeName         string                      `qapi:"node-name"`
	RO               bool                        `qapi:"ro"`
	Drv              string                      `qapi:"drv"`
	BackingFile      *string                     `qapi:"backing_file"`
	BackingFileDepth int64                       `qapi:"backing_file_depth"`
	Children         []BlockdevChild             `qapi:"children"`
	Active           bool                        `qapi:"active"`
	Encrypted        bool                        `qapi:"encrypted"`
	DetectZeroes     BlockdevDetectZeroesOptions `qapi:"detect_zeroes"`
	BPS              int64                       `qapi:"bps"`
	BPSRd            int64                       `qapi:"bps_rd"`
	BPSWr            int64                       `qapi:"bps_wr"`
	IOPS             int64                       `qapi:"iops"`
	IOPSRd           int64                       `qapi:"iops_rd"`
	IOPSWr           int64                       `qapi:"iops_wr"`
	Image            ImageInfo                   `qapi:"image"`
	BPSMax           *int64                      `qapi:"bps_max"`
	BPSRdMax         *int64                      `qapi:"bps_rd_max"`
	BPSWrMax         *int64                      `qapi:"bps_wr_max"`
	IOPSMax          *int64                      `qapi:"iops_max"`
	IOPSRdMax        *int64                      `qapi:"iops_rd_max"`
	IOPSWrMax        *int64                      `qapi:"iops_wr_max"`
	BPSMaxLength     *int64                      `qapi:"bps_max_length"`
	BPSRdMaxLength   *int64                      `qapi:"bps_rd_max_length"`
	BPSWrMaxLength   *int64                      `qapi:"bps_wr_max_length"`
	IOPSMaxLength    *int64                      `qapi:"iops_max_length"`
	IOPSRdMaxLength  *int64                      `qapi:"iops_rd_max_length"`
	IOPSWrMaxLength  *int64                      `qapi:"iops_wr_max_length"`
	IOPSSize         *int64                      `qapi:"iops_size"`
	Group            *string                     `qapi:"group"`
	Cache            BlockdevCacheInfo           `qapi:"cache"`
	// Bytes; 0 is off.
	WriteThreshold int64            `qapi:"write_threshold"`
	DirtyBitmaps   []BlockDirtyInfo `qapi:"dirty-bitmaps,optional"`
}

// BlockInfo describes a named root, for query-block.
type BlockInfo struct {
	Device    string               `qapi:"device"`
	Qdev      *string              `qapi:"qdev"`
	Type      string               `qapi:"type"`
	Removable bool                 `qapi:"removable"`
	Locked    bool                 `qapi:"locked"`
	Inserted  *BlockDeviceInfo     `qapi:"inserted"`
	TrayOpen  *bool                `qapi:"tray_open"`
	IOStatus  *BlockDeviceIoStatus `qapi:"io-status"`
}
