package qapi

// Arguments and results of the export and NBD server commands.

// BlockExportType is the kind of an export.
type BlockExportType string

// Values of BlockExportType.
const (
	BlockExportTypeNBD  BlockExportType = "nbd"
	BlockExportTypeFuse BlockExportType = "fuse"
)

// QAPIEnum lists the values that blockd accepts.
func (BlockExportType) QAPIEnum() []string {
	return []string{"nbd", "fuse"}
}

// BlockExportRemoveMode tells whether an export with clients may be removed.
type BlockExportRemoveMode string

// Values of BlockExportRemoveMode.
const (
	BlockExportRemoveModeSafe BlockExportRemoveMode = "safe"
	BlockExportRemoveModeHard BlockExportRemoveMode = "hard"
)

// QAPIEnum lists the values that blockd accepts.
func (BlockExportRemoveMode) QAPIEnum() []string {
	return []string{"safe", "hard"}
}

// BlockExportOptions is the argument of block-export-add and of --export.
type BlockExportOptions struct {
	Type BlockExportType `qapi:"type,discriminator"`
	ID   string          `qapi:"id"`
	// Fail rather than use another thread than Iothread. Default false.
	FixedIothread *bool `qapi:"fixed-iothread"`
	// Default: the node's thread.
	Iothread *string `qapi:"iothread"`
	NodeName string  `qapi:"node-name"`
	// Default false.
	Writable *bool `qapi:"writable"`
	// Flush after each write. Default false.
	Writethrough *bool `qapi:"writethrough"`
	// Default false.
	AllowInactive *bool                   `qapi:"allow-inactive"`
	NBD           *BlockExportOptionsNbd  `qapi:",case=nbd"`
	Fuse          *BlockExportOptionsFuse `qapi:",case=fuse"`
}

// BlockExportOptionsNbd are the options of an NBD export.
type BlockExportOptionsNbd struct {
	// Default: the node's name.
	Name *string `qapi:"name"`
	// At most 4096 bytes.
	Description *string                 `qapi:"description"`
	Bitmaps     []BlockDirtyBitmapOrStr `qapi:"bitmaps,optional"`
	// Offer qemu:allocation-depth. Default false.
	AllocationDepth *bool `qapi:"allocation-depth"`
}

// FuseExportAllowOther tells whether other users may open an export's file.
type FuseExportAllowOther string

// Values of FuseExportAllowOther.
const (
	FuseExportAllowOtherOff  FuseExportAllowOther = "off"
	FuseExportAllowOtherOn   FuseExportAllowOther = "on"
	FuseExportAllowOtherAuto FuseExportAllowOther = "auto"
)

// QAPIEnum lists the values that blockd accepts.
func (FuseExportAllowOther) QAPIEnum() []string {
	return []string{"off", "on", "auto"}
}

// BlockExportOptionsFuse are the options of a FUSE export.
type BlockExportOptionsFuse struct {
	// A regular file, which shows the disk while there is the export.
	Mountpoint string `qapi:"mountpoint"`
	// A write past the end makes the disk longer. Default false.
	Growable *bool `qapi:"growable"`
	// Default auto: on if the host lets it.
	AllowOther *FuseExportAllowOther `qapi:"allow-other"`
}

// NbdServerAddArg is the argument of nbd-server-add.
type NbdServerAddArg struct {
	// Of the export, and its id. Default: device.
	Name *string `qapi:"name"`
	// At most 4096 bytes.
	Description *string `qapi:"description"`
	// The node.
	Device string `qapi:"device"`
	// Default false.
	Writable *bool `qapi:"writable"`
	// Bitmap to offer as a metadata context.
	Bitmap *string `qapi:"bitmap"`
}

// NbdServerRemoveArg is the argument of nbd-server-remove.
type NbdServerRemoveArg struct {
	Name string `qapi:"name"`
	// Default safe.
	Mode *BlockExportRemoveMode `qapi:"mode"`
}

// BlockExportDelArg is the argument of block-export-del.
type BlockExportDelArg struct {
	ID string `qapi:"id"`
	// Default safe.
	Mode *BlockExportRemoveMode `qapi:"mode"`
}

// BlockExportInfo describes an export.
type BlockExportInfo struct {
	ID           string          `qapi:"id"`
	Type         BlockExportType `qapi:"type"`
	NodeName     string          `qapi:"node-name"`
	ShuttingDown bool            `qapi:"shutting-down"`
}

// BlockExportDeleted is the data of BLOCK_EXPORT_DELETED.
type BlockExportDeleted struct {
	ID string `qapi:"id"`
}

// NbdServerOptionsBase are the options that --nbd-server and nbd-server-start
// share.
type NbdServerOptionsBase struct {
	// Seconds a client has to finish the handshake; 0 is no limit. Default 10.
	HandshakeMaxSeconds *uint32 `qapi:"handshake-max-seconds"`
	TLSCreds            *string `qapi:"tls-creds"`
	TLSAuthz            *string `qapi:"tls-authz"`
	// 0 is no limit. Default 100.
	MaxConnections *uint32 `qapi:"max-connections"`
}

// NbdServerOptions is the argument of --nbd-server.
type NbdServerOptions struct {
	NbdServerOptionsBase
	Addr SocketAddress `qapi:"addr"`
}

// NbdServerStartArg is the argument of nbd-server-start.
type NbdServerStartArg struct {
	NbdServerOptionsBase
	Addr SocketAddressLegacy `qapi:"addr"`
}
