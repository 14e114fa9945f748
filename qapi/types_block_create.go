package qapi

// Arguments of the commands that create images and put overlays on top of
// nodes: blockdev-create, blockdev-snapshot, blockdev-snapshot-sync, change-
// backing-file.

// PreallocMode is how much of a new image is allocated.
type PreallocMode string

// Values of PreallocMode.
const (
	PreallocModeOff      PreallocMode = "off"
	PreallocModeMetadata PreallocMode = "metadata"
	PreallocModeFalloc   PreallocMode = "falloc"
	PreallocModeFull     PreallocMode = "full"
)

// QAPIEnum lists the values that blockd accepts.
func (PreallocMode) QAPIEnum() []string {
	return []string{"off", "metadata", "falloc", "full"}
}

// NewImageMode tells whether a command creates its image.
type NewImageMode string

// Values of NewImageMode.
const (
	NewImageModeExisting      NewImageMode = "existing"
	NewImageModeAbsolutePaths NewImageMode = "absolute-paths"
)

// QAPIEnum lists the values that blockd accepts.
func (NewImageMode) QAPIEnum() []string {
	return []string{"existing", "absolute-paths"}
}

// BlockdevQcow2Version is the format version of a new image.
type BlockdevQcow2Version string

// Values of BlockdevQcow2Version.
const (
	BlockdevQcow2VersionV2 BlockdevQcow2Version = "v2"
	BlockdevQcow2VersionV3 BlockdevQcow2Version = "v3"
)

// QAPIEnum lists the values that blockd accepts.
func (BlockdevQcow2Version) QAPIEnum() []string {
	return []string{"v2", "v3"}
}

// Qcow2CompressionType is the algorithm of compressed clusters.
type Qcow2CompressionType string

// Values of Qcow2CompressionType.
const (
	Qcow2CompressionTypeZlib Qcow2CompressionType = "zlib"
	Qcow2CompressionTypeZstd Qcow2CompressionType = "zstd"
)

// QAPIEnum lists the values that blockd accepts.
func (Qcow2CompressionType) QAPIEnum() []string {
	return []string{"zlib", "zstd"}
}

// BlockdevCreateArg is the argument of blockdev-create.
type BlockdevCreateArg struct {
	JobID   string                `qapi:"job-id"`
	Options BlockdevCreateOptions `qapi:"options"`
}

// BlockdevCreateOptions describes a new image. Drivers without a branch cannot
// create images.
type BlockdevCreateOptions struct {
	Driver BlockdevDriver              `qapi:"driver,discriminator"`
	File   *BlockdevCreateOptionsFile  `qapi:",case=file"`
	LUKS   *BlockdevCreateOptionsLUKS  `qapi:",case=luks"`
	Qcow2  *BlockdevCreateOptionsQcow2 `qapi:",case=qcow2"`
}

// BlockdevCreateOptionsFile describes a new plain file.
type BlockdevCreateOptionsFile struct {
	Filename string `qapi:"filename"`
	// Bytes.
	Size uint64 `qapi:"size,size"`
	// off, falloc or full. Default off.
	Preallocation *PreallocMode `qapi:"preallocation"`
	// Turn off copy-on-write on btrfs. Default false.
	Nocow *bool `qapi:"nocow"`
	// Bytes; 0 sets none. Default 1 MiB.
	ExtentSizeHint *uint64 `qapi:"extent-size-hint,size"`
}

// BlockdevCreateOptionsQcow2 describes a new qcow2 image, written into the
// node File.
type BlockdevCreateOptionsQcow2 struct {
	File BlockdevRef `qapi:"file"`
	// Where guest clusters lie. Default: in File.
	DataFile *BlockdevRef `qapi:"data-file"`
	// DataFile alone is to be what the guest sees. Default false.
	DataFileRaw *bool `qapi:"data-file-raw"`
	// 32 subclusters for each cluster, in L2 entries of twice the size. Default
	// false.
	ExtendedL2 *bool `qapi:"extended-l2"`
	// Virtual size in bytes.
	Size uint64 `qapi:"size,size"`
	// Default v3.
	Version     *BlockdevQcow2Version `qapi:"version"`
	BackingFile *string               `qapi:"backing-file"`
	BackingFmt  *BlockdevDriver       `qapi:"backing-fmt"`
	// Default: the image is not encrypted.
	Encrypt *QCryptoBlockCreateOptions `qapi:"encrypt"`
	// Bytes; a power of two from 512 to 2 MiB. Default 64 KiB.
	ClusterSize *uint64 `qapi:"cluster-size,size"`
	// Default off.
	Preallocation *PreallocMode `qapi:"preallocation"`
	// Default false.
	LazyRefcounts *bool `qapi:"lazy-refcounts"`
	// Bits per refcount. Default 16.
	RefcountBits *int64 `qapi:"refcount-bits"`
	// Default zlib.
	CompressionType *Qcow2CompressionType `qapi:"compression-type"`
}

// BlockdevSnapshot is the argument of blockdev-snapshot.
type BlockdevSnapshot struct {
	Node    string `qapi:"node"`
	Overlay string `qapi:"overlay"`
}

// BlockdevSnapshotSync is the argument of blockdev-snapshot-sync.
type BlockdevSnapshotSync struct {
	Device           *string `qapi:"device"`
	NodeName         *string `qapi:"node-name"`
	SnapshotFile     string  `qapi:"snapshot-file"`
	SnapshotNodeName *string `qapi:"snapshot-node-name"`
	// Default qcow2.
	Format *string `qapi:"format"`
	// Default absolute-paths.
	Mode *NewImageMode `qapi:"mode"`
}

// BlockdevSnapshotInternal is the argument of blockdev-snapshot-internal-sync.
type BlockdevSnapshotInternal struct {
	Device string `qapi:"device"`
	Name   string `qapi:"name"`
}

// InternalSnapshotArg names an internal snapshot, for
// blockdev-snapshot-delete-internal-sync and x-blockdev-snapshot-revert. One of ID
// and Name may be absent.
type InternalSnapshotArg struct {
	Device string  `qapi:"device"`
	ID     *string `qapi:"id"`
	Name   *string `qapi:"name"`
}

// ChangeBackingFileArg is the argument of change-backing-file.
type ChangeBackingFileArg struct {
	Device        string `qapi:"device"`
	ImageNodeName string `qapi:"image-node-name"`
	BackingFile   string `qapi:"backing-file"`
}
