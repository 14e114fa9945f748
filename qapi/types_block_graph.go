package qapi

// Arguments of the commands that open and close nodes: blockdev-add, blockdev-
// del, blockdev-set-active and what BlockdevOptions consists of. Options that
// a driver of the field has and blockd does not yet have are absent, so that
// they are refused as unexpected.

// BlockdevDriver names a block driver.
type BlockdevDriver string

// Values of BlockdevDriver.
const (
	BlockdevDriverBlkdebug        BlockdevDriver = "blkdebug"
	BlockdevDriverBlklogwrites    BlockdevDriver = "blklogwrites"
	BlockdevDriverBlkverify       BlockdevDriver = "blkverify"
	BlockdevDriverCompress        BlockdevDriver = "compress"
	BlockdevDriverCopyBeforeWrite BlockdevDriver = "copy-before-write"
	BlockdevDriverCopyOnRead      BlockdevDriver = "copy-on-read"
	BlockdevDriverFile            BlockdevDriver = "file"
	BlockdevDriverHostDevice      BlockdevDriver = "host_device"
	BlockdevDriverLUKS            BlockdevDriver = "luks"
	BlockdevDriverNbd             BlockdevDriver = "nbd"
	BlockdevDriverNullAIO         BlockdevDriver = "null-aio"
	BlockdevDriverNullCo          BlockdevDriver = "null-co"
	BlockdevDriverPreallocate     BlockdevDriver = "preallocate"
	BlockdevDriverQcow2           BlockdevDriver = "qcow2"
	BlockdevDriverQuorum          BlockdevDriver = "quorum"
	BlockdevDriverRaw             BlockdevDriver = "raw"
	BlockdevDriverSnapshotAccess  BlockdevDriver = "snapshot-access"
	BlockdevDriverThrottle        BlockdevDriver = "throttle"
)

// QAPIEnum lists the values that blockd accepts.
func (BlockdevDriver) QAPIEnum() []string {
	return []string{"blkdebug", "blklogwrites", "blkverify", "compress", "copy-before-write", "copy-on-read", "file", "host_device", "luks", "nbd", "null-aio", "null-co", "preallocate", "qcow2", "quorum", "raw", "snapshot-access", "throttle"}
}

// BlockdevDiscardOptions tells what becomes of discard requests.
type BlockdevDiscardOptions string

// Values of BlockdevDiscardOptions.
const (
	BlockdevDiscardOptionsIgnore BlockdevDiscardOptions = "ignore"
	BlockdevDiscardOptionsUnmap  BlockdevDiscardOptions = "unmap"
)

// QAPIEnum lists the values that blockd accepts.
func (BlockdevDiscardOptions) QAPIEnum() []string {
	return []string{"ignore", "unmap"}
}

// BlockdevDetectZeroesOptions tells whether writes of zeroes are turned into
// zero writes ("on") or, where discard allows it, into discards ("unmap").
type BlockdevDetectZeroesOptions string

// Values of BlockdevDetectZeroesOptions.
const (
	BlockdevDetectZeroesOptionsOff   BlockdevDetectZeroesOptions = "off"
	BlockdevDetectZeroesOptionsOn    BlockdevDetectZeroesOptions = "on"
	BlockdevDetectZeroesOptionsUnmap BlockdevDetectZeroesOptions = "unmap"
)

// QAPIEnum lists the values that blockd accepts.
func (BlockdevDetectZeroesOptions) QAPIEnum() []string {
	return []string{"off", "on", "unmap"}
}

// BlockdevAioOptions is how file I/O is submitted.
type BlockdevAioOptions string

// Values of BlockdevAioOptions.
const (
	BlockdevAioOptionsThreads BlockdevAioOptions = "threads"
	BlockdevAioOptionsNative  BlockdevAioOptions = "native"
	BlockdevAioOptionsIOUring BlockdevAioOptions = "io_uring"
)

// QAPIEnum lists the values that blockd accepts.
func (BlockdevAioOptions) QAPIEnum() []string {
	return []string{"threads", "native", "io_uring"}
}

// OnOffAuto is a switch with a default that depends on circumstances.
type OnOffAuto string

// Values of OnOffAuto.
const (
	OnOffAutoAuto OnOffAuto = "auto"
	OnOffAutoOn   OnOffAuto = "on"
	OnOffAutoOff  OnOffAuto = "off"
)

// QAPIEnum lists the values that blockd accepts.
func (OnOffAuto) QAPIEnum() []string {
	return []string{"auto", "on", "off"}
}

// OnCbwError is what a copy-before-write filter does when the copy fails.
type OnCbwError string

// Values of OnCbwError.
const (
	OnCbwErrorBreakGuestWrite OnCbwError = "break-guest-write"
	OnCbwErrorBreakSnapshot   OnCbwError = "break-snapshot"
)

// QAPIEnum lists the values that blockd accepts.
func (OnCbwError) QAPIEnum() []string {
	return []string{"break-guest-write", "break-snapshot"}
}

// BlockdevCacheOptions are the cache settings of a node.
type BlockdevCacheOptions struct {
	// Bypass the host page cache (O_DIRECT). Default false.
	Direct *bool `qapi:"direct"`
	// Ignore flush requests. Default false.
	NoFlush *bool `qapi:"no-flush"`
}

// BlockdevOptions is the argument of blockdev-add: what all drivers share, and
// one branch by Driver. Drivers without a branch have no options of their own.
type BlockdevOptions struct {
	Driver   BlockdevDriver `qapi:"driver,discriminator"`
	NodeName *string        `qapi:"node-name"`
	// Default ignore.
	Discard *BlockdevDiscardOptions `qapi:"discard"`
	Cache   *BlockdevCacheOptions   `qapi:"cache"`
	// Default true.
	Active *bool `qapi:"active"`
	// Default false.
	ReadOnly *bool `qapi:"read-only"`
	// Fall back to read-only when the image cannot be opened for writing. Default
	// false.
	AutoReadOnly *bool `qapi:"auto-read-only"`
	// Share all permissions, which only read-only users may. Default false.
	ForceShare *bool `qapi:"force-share"`
	// Default off.
	DetectZeroes    *BlockdevDetectZeroesOptions  `qapi:"detect-zeroes"`
	Blkdebug        *BlockdevOptionsBlkdebug      `qapi:",case=blkdebug"`
	Blklogwrites    *BlockdevOptionsBlklogwrites  `qapi:",case=blklogwrites"`
	Blkverify       *BlockdevOptionsBlkverify     `qapi:",case=blkverify"`
	Compress        *BlockdevOptionsGenericFormat `qapi:",case=compress"`
	CopyBeforeWrite *BlockdevOptionsCbw           `qapi:",case=copy-before-write"`
	CopyOnRead      *BlockdevOptionsCor           `qapi:",case=copy-on-read"`
	// For the drivers file and host_device.
	File *BlockdevOptionsFile `qapi:",case=file|host_device"`
	LUKS *BlockdevOptionsLUKS `qapi:",case=luks"`
	NBD  *BlockdevOptionsNbd  `qapi:",case=nbd"`
	// For the drivers null-aio and null-co.
	Null  *BlockdevOptionsNull  `qapi:",case=null-aio|null-co"`
	Qcow2 *BlockdevOptionsQcow2 `qapi:",case=qcow2"`
	Raw   *BlockdevOptionsRaw   `qapi:",case=raw"`

	Preallocate    *BlockdevOptionsPreallocate   `qapi:",case=preallocate"`
	Quorum         *BlockdevOptionsQuorum        `qapi:",case=quorum"`
	SnapshotAccess *BlockdevOptionsGenericFormat `qapi:",case=snapshot-access"`

	Throttle *BlockdevOptionsThrottle `qapi:",case=throttle"`
}

// BlockdevRef refers to a node: by name, or by the options to open it with.
type BlockdevRef struct {
	Definition *BlockdevOptions `qapi:",alt"`
	Reference  *string          `qapi:",alt"`
}

// BlockdevRefOrNull is a BlockdevRef or, for "no node at all", null.
type BlockdevRefOrNull struct {
	Definition *BlockdevOptions `qapi:",alt"`
	Reference  *string          `qapi:",alt"`
	Null       *Null            `qapi:",alt"`
}

// BlockdevOptionsCbw are the options of copy-before-write.
type BlockdevOptionsCbw struct {
	File BlockdevRef `qapi:"file"`
	// Where old data goes before it is overwritten.
	Target BlockdevRef `qapi:"target"`
	// Copy only what this bitmap marks.
	Bitmap *BlockDirtyBitmap `qapi:"bitmap"`
	// Default break-guest-write.
	OnCBWError *OnCbwError `qapi:"on-cbw-error"`
	// Seconds after which a copy counts as failed; 0 is never. Default 0.
	CBWTimeout *uint32 `qapi:"cbw-timeout"`
	// Least granularity of copying in bytes; 0 follows the target. Default 0.
	MinClusterSize *uint64 `qapi:"min-cluster-size,size"`
}

// BlockdevOptionsCor are the options of copy-on-read.
type BlockdevOptionsCor struct {
	File BlockdevRef `qapi:"file"`
	// Name of the lowest node of the chain whose data is copied up.
	Bottom *string `qapi:"bottom"`
}

// QAPIFeatures gives the features of the type.
func (BlockdevOptionsFile) QAPIFeatures() []string { return []string{"dynamic-auto-read-only"} }

// BlockdevOptionsFile are the options of file and host_device.
type BlockdevOptionsFile struct {
	// Path, or /dev/fdset/N.
	Filename string `qapi:"filename"`
	// Default none.
	PRManager *string `qapi:"pr-manager"`
	// Default auto.
	Locking *OnOffAuto `qapi:"locking"`
	// Default threads.
	AIO *BlockdevAioOptions `qapi:"aio"`
	// Requests per submission; 0 lets the engine choose. Default 0.
	AIOMaxBatch *int64 `qapi:"aio-max-batch"`
	// Default true.
	DropCache *bool `qapi:"drop-cache"`
	// Verifies that the cache was dropped. Default false.
	XCheckCacheDropped *bool `qapi:"x-check-cache-dropped,features=unstable"`
}

// BlockdevOptionsNbd are the options of nbd.
type BlockdevOptionsNbd struct {
	Server SocketAddress `qapi:"server"`
	// Name of the export. Default "".
	Export *string `qapi:"export"`
	// Id of the credentials with which to use TLS.
	TLSCreds *string `qapi:"tls-creds"`
	// Name that the server's certificate must have. Default: the server's host.
	TLSHostname *string `qapi:"tls-hostname"`
	// Metadata context to show instead of the block status.
	XDirtyBitmap *string `qapi:"x-dirty-bitmap,features=unstable"`
	// Seconds for which requests wait for a lost connection to come back. Default 0.
	ReconnectDelay *uint32 `qapi:"reconnect-delay"`
	// Seconds for which to try to connect when the node is opened; 0 is once.
	// Default 0.
	OpenTimeout *uint32 `qapi:"open-timeout"`
	// Connections to make where the server allows several, 1 to 16. Default 1.
	XConnections *uint32 `qapi:"x-connections"`
}

// BlockdevOptionsNull are the options of null-co and null-aio.
type BlockdevOptionsNull struct {
	// Bytes. Default 1 GiB.
	Size *int64 `qapi:"size"`
	// Nanoseconds that each request takes. Default 0.
	LatencyNs *uint64 `qapi:"latency-ns"`
	// Give zeroes to readers instead of leaving their buffers alone. Default
	// false.
	ReadZeroes *bool `qapi:"read-zeroes"`
}

// BlockdevOptionsRaw are the options of raw.
type BlockdevOptionsRaw struct {
	File BlockdevRef `qapi:"file"`
	// Bytes into the file where the image starts. Default 0.
	Offset *int64 `qapi:"offset"`
	// Bytes. Default: to the end of the file.
	Size *int64 `qapi:"size"`
	// Whether persistent dirty bitmaps are kept beside the image. Default off.
	XBitmaps *RawBitmapPersistence `qapi:"x-bitmaps,features=unstable"`
	// The file that has them. Default: the image's name with .bitmaps behind it.
	XBitmapsFile *string `qapi:"x-bitmaps-file,features=unstable"`
}

// RawBitmapPersistence says whether a raw image has persistent dirty bitmaps.
// Beyond the field.
type RawBitmapPersistence string

// Values of RawBitmapPersistence.
const (
	// RawBitmapPersistenceOff: it has none.
	RawBitmapPersistenceOff RawBitmapPersistence = "off"
	// RawBitmapPersistenceSidecar: they are in a file beside the image, and after
	// an unclean end inconsistent.
	RawBitmapPersistenceSidecar RawBitmapPersistence = "sidecar"
	// RawBitmapPersistenceSidecarExclusive: nobody but blockd writes to the image,
	// so that the bitmaps are valid after an unclean end, too.
	RawBitmapPersistenceSidecarExclusive RawBitmapPersistence = "sidecar-exclusive"
)

// QAPIEnum lists the values that blockd accepts.
func (RawBitmapPersistence) QAPIEnum() []string {
	return []string{"off", "sidecar", "sidecar-exclusive"}
}

// BlockdevOptionsThrottle are the options of throttle.
type BlockdevOptionsThrottle struct {
	// Id of the throttle-group object that limits the node.
	ThrottleGroup string      `qapi:"throttle-group"`
	File          BlockdevRef `qapi:"file"`
}

// BlockdevOptionsQcow2 are the options of qcow2.
type BlockdevOptionsQcow2 struct {
	File BlockdevRef `qapi:"file"`
	// Default: what the header names.
	Backing *BlockdevRefOrNull `qapi:"backing"`
	// Default: what the header says.
	LazyRefcounts *bool `qapi:"lazy-refcounts"`
	// Default: whether discard is unmap.
	PassDiscardRequest *bool `qapi:"pass-discard-request"`
	// Default true.
	PassDiscardSnapshot *bool `qapi:"pass-discard-snapshot"`
	// Default false.
	PassDiscardOther *bool `qapi:"pass-discard-other"`
	// Keep the mapping of discarded clusters. Default false.
	DiscardNoUnref *bool `qapi:"discard-no-unref"`
	// Default cached.
	OverlapCheck *Qcow2OverlapChecks `qapi:"overlap-check"`
	// Bytes of all metadata caches together.
	CacheSize *int64 `qapi:"cache-size"`
	// Bytes.
	L2CacheSize *int64 `qapi:"l2-cache-size"`
	// Bytes; a power of two from 512 to the cluster size.
	L2CacheEntrySize *int64 `qapi:"l2-cache-entry-size"`
	// Bytes.
	RefcountCacheSize *int64 `qapi:"refcount-cache-size"`
	// Seconds after which unused cache entries are dropped; 0 is never. Default
	// 600.
	CacheCleanInterval *int64 `qapi:"cache-clean-interval"`
	// How to open an encrypted image.
	Encrypt *BlockdevQcow2Encryption `qapi:"encrypt"`
	// Where guest clusters lie, when that is not in File. Default: the file that
	// the header names.
	DataFile *BlockdevRef `qapi:"data-file"`
	// How persistent dirty bitmaps are stored. Default crash-safe.
	XBitmaps *Qcow2BitmapPersistence `qapi:"x-bitmaps,features=unstable"`
}

// Qcow2BitmapPersistence says how persistent dirty bitmaps are stored. Beyond
// the field.
type Qcow2BitmapPersistence string

// Values of Qcow2BitmapPersistence.
const (
	// Qcow2BitmapPersistenceCrashSafe: the image always has a superset of the
	// dirty bits, valid after a crash.
	Qcow2BitmapPersistenceCrashSafe Qcow2BitmapPersistence = "crash-safe"
	// Qcow2BitmapPersistenceOnClose: bits are stored when the image is closed;
	// after a crash the bitmaps are inconsistent (the field's way).
	Qcow2BitmapPersistenceOnClose Qcow2BitmapPersistence = "on-close"
)

// QAPIEnum lists the values that blockd accepts.
func (Qcow2BitmapPersistence) QAPIEnum() []string { return []string{"crash-safe", "on-close"} }

// Qcow2OverlapCheckMode is a set of overlap checks.
type Qcow2OverlapCheckMode string

// Values of Qcow2OverlapCheckMode.
const (
	Qcow2OverlapCheckModeNone     Qcow2OverlapCheckMode = "none"
	Qcow2OverlapCheckModeConstant Qcow2OverlapCheckMode = "constant"
	Qcow2OverlapCheckModeCached   Qcow2OverlapCheckMode = "cached"
	Qcow2OverlapCheckModeAll      Qcow2OverlapCheckMode = "all"
)

// QAPIEnum lists the values that blockd accepts.
func (Qcow2OverlapCheckMode) QAPIEnum() []string {
	return []string{"none", "constant", "cached", "all"}
}

// Qcow2OverlapCheckFlags switches overlap checks one by one.
type Qcow2OverlapCheckFlags struct {
	// The set to start from. Default cached.
	Template        *Qcow2OverlapCheckMode `qapi:"template"`
	MainHeader      *bool                  `qapi:"main-header"`
	ActiveL1        *bool                  `qapi:"active-l1"`
	ActiveL2        *bool                  `qapi:"active-l2"`
	RefcountTable   *bool                  `qapi:"refcount-table"`
	RefcountBlock   *bool                  `qapi:"refcount-block"`
	SnapshotTable   *bool                  `qapi:"snapshot-table"`
	InactiveL1      *bool                  `qapi:"inactive-l1"`
	InactiveL2      *bool                  `qapi:"inactive-l2"`
	BitmapDirectory *bool                  `qapi:"bitmap-directory"`
}

// Qcow2OverlapChecks selects the checks before writes to qcow2 metadata.
type Qcow2OverlapChecks struct {
	Flags *Qcow2OverlapCheckFlags `qapi:",alt"`
	Mode  *Qcow2OverlapCheckMode  `qapi:",alt"`
}

// BlockdevDelArg is the argument of blockdev-del.
type BlockdevDelArg struct {
	NodeName string `qapi:"node-name"`
}

// BlockdevSetActiveArg is the argument of blockdev-set-active.
type BlockdevSetActiveArg struct {
	// Default: all nodes.
	NodeName *string `qapi:"node-name"`
	Active   bool    `qapi:"active"`
}

// BlockdevReopenArg is the argument of blockdev-reopen.
type BlockdevReopenArg struct {
	Options []BlockdevOptions `qapi:"options"`
}

// XBlockdevChangeArg is the argument of x-blockdev-change. One of Child and Node
// must be given.
type XBlockdevChangeArg struct {
	Parent string `qapi:"parent"`
	// The name of the child to remove.
	Child *string `qapi:"child"`
	// The name of the node to add.
	Node *string `qapi:"node"`
}

// StrOrNull is a string or null.
type StrOrNull struct {
	Name *string `qapi:",alt"`
	Null *Null   `qapi:",alt"`
}

// XBlockdevSetIothreadArg is the argument of x-blockdev-set-iothread.
type XBlockdevSetIothreadArg struct {
	NodeName string `qapi:"node-name"`
	// The object's id; null: the main thread.
	Iothread StrOrNull `qapi:"iothread"`
	// Do so although the node has users. Default false.
	Force *bool `qapi:"force"`
}

// BlockResizeArg is the argument of block_resize.
type BlockResizeArg struct {
	Device   *string `qapi:"device"`
	NodeName *string `qapi:"node-name"`
	// Bytes.
	Size int64 `qapi:"size"`
}

// XDbgBlockGraphNodeType is a kind of node in a picture of the graph.
type XDbgBlockGraphNodeType string

// Values of XDbgBlockGraphNodeType.
const (
	XDbgBlockGraphNodeTypeBlockBackend XDbgBlockGraphNodeType = "block-backend"
	XDbgBlockGraphNodeTypeBlockJob     XDbgBlockGraphNodeType = "block-job"
	XDbgBlockGraphNodeTypeBlockDriver  XDbgBlockGraphNodeType = "block-driver"
)

// QAPIEnum lists the values.
func (XDbgBlockGraphNodeType) QAPIEnum() []string {
	return []string{"block-backend", "block-job", "block-driver"}
}

// XDbgBlockGraphNode is a user of the graph or a block node.
type XDbgBlockGraphNode struct {
	// Good within one answer only.
	ID   uint64                 `qapi:"id"`
	Type XDbgBlockGraphNodeType `qapi:"type"`
	Name string                 `qapi:"name"`
}

// BlockPermission is what a user needs of a node or shares with others.
type BlockPermission string

// Values of BlockPermission.
const (
	BlockPermissionConsistentRead BlockPermission = "consistent-read"
	BlockPermissionWrite          BlockPermission = "write"
	BlockPermissionWriteUnchanged BlockPermission = "write-unchanged"
	BlockPermissionResize         BlockPermission = "resize"
)

// QAPIEnum lists the values.
func (BlockPermission) QAPIEnum() []string {
	return []string{"consistent-read", "write", "write-unchanged", "resize"}
}

// XDbgBlockGraphEdge is a use of a node.
type XDbgBlockGraphEdge struct {
	Parent     uint64            `qapi:"parent"`
	Child      uint64            `qapi:"child"`
	Name       string            `qapi:"name"`
	Perm       []BlockPermission `qapi:"perm"`
	SharedPerm []BlockPermission `qapi:"shared-perm"`
}

// XDbgBlockGraph is a picture of the whole graph.
type XDbgBlockGraph struct {
	Nodes []XDbgBlockGraphNode `qapi:"nodes"`
	Edges []XDbgBlockGraphEdge `qapi:"edges"`
}
