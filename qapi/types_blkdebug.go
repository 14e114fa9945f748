package qapi

import "slices"

// The options of the blkdebug filter.

// BlkdebugEvent names a fault point.
type BlkdebugEvent string

// BlkdebugEventNone is the event of opening the filter itself.
const BlkdebugEventNone BlkdebugEvent = "none"

var blkdebugEvents = []string{
	"l1_update", "l1_grow_alloc_table", "l1_grow_write_table", "l1_grow_activate_table",
	"l2_load", "l2_update", "l2_update_compressed", "l2_alloc_cow_read", "l2_alloc_write",
	"read_aio", "read_backing_aio", "read_compressed", "write_aio", "write_compressed",
	"vmstate_load", "vmstate_save", "cow_read", "cow_write",
	"reftable_load", "reftable_grow", "reftable_update",
	"refblock_load", "refblock_update", "refblock_update_part", "refblock_alloc",
	"refblock_alloc_hookup", "refblock_alloc_write", "refblock_alloc_write_blocks",
	"refblock_alloc_write_table", "refblock_alloc_switch_table",
	"cluster_alloc", "cluster_alloc_bytes", "cluster_free", "flush_to_os", "flush_to_disk",
	"pwritev_rmw_head", "pwritev_rmw_after_head", "pwritev_rmw_tail", "pwritev_rmw_after_tail",
	"pwritev", "pwritev_zero", "pwritev_done", "empty_image_prepare",
	"l1_shrink_write_table", "l1_shrink_free_l2_clusters", "cor_write", "cluster_alloc_space",
	"none",
}

// QAPIEnum lists the values.
func (BlkdebugEvent) QAPIEnum() []string { return slices.Clone(blkdebugEvents) }

// BlkdebugIOType is a kind of request that an injected error may hit.
type BlkdebugIOType string

// Values of BlkdebugIOType.
const (
	BlkdebugIOTypeRead        BlkdebugIOType = "read"
	BlkdebugIOTypeWrite       BlkdebugIOType = "write"
	BlkdebugIOTypeWriteZeroes BlkdebugIOType = "write-zeroes"
	BlkdebugIOTypeDiscard     BlkdebugIOType = "discard"
	BlkdebugIOTypeFlush       BlkdebugIOType = "flush"
	BlkdebugIOTypeBlockStatus BlkdebugIOType = "block-status"
)

// QAPIEnum lists the values.
func (BlkdebugIOType) QAPIEnum() []string {
	return []string{"read", "write", "write-zeroes", "discard", "flush", "block-status"}
}

// BlkdebugInjectErrorOptions is a rule that has requests fail once its event
// has come.
type BlkdebugInjectErrorOptions struct {
	Event BlkdebugEvent `qapi:"event"`
	// The state in which the rule holds; 0 is every one. Default 0.
	State *int64 `qapi:"state"`
	// The requests that fail. Default: all but block-status.
	IOType *BlkdebugIOType `qapi:"iotype"`
	// Default 5 (EIO).
	Errno *int64 `qapi:"errno"`
	// Fail only requests that touch this sector of 512 bytes; -1 is any. Default
	// -1.
	Sector *int64 `qapi:"sector"`
	// Fail one request only. Default false.
	Once *bool `qapi:"once"`
	// Fail without going through the event loop; no difference here. Default
	// false.
	Immediately *bool `qapi:"immediately"`
}

// BlkdebugSetStateOptions is a rule by which an event changes the state.
type BlkdebugSetStateOptions struct {
	Event BlkdebugEvent `qapi:"event"`
	// The state in which the rule holds; 0 is every one. Default 0.
	State    *int64 `qapi:"state"`
	NewState int64  `qapi:"new_state"`
}

// BlockdevOptionsBlkdebug are the options of blkdebug.
type BlockdevOptionsBlkdebug struct {
	Image BlockdevRef `qapi:"image"`
	// Path of a file with rules.
	Config *string `qapi:"config"`
	// Alignment of requests in bytes, a power of two.
	Align *int64 `qapi:"align"`
	// Bytes; multiples of the alignment.
	MaxTransfer  *int32 `qapi:"max-transfer"`
	OptWriteZero *int32 `qapi:"opt-write-zero"`
	MaxWriteZero *int32 `qapi:"max-write-zero"`
	OptDiscard   *int32 `qapi:"opt-discard"`
	MaxDiscard   *int32 `qapi:"max-discard"`

	InjectError []BlkdebugInjectErrorOptions `qapi:"inject-error,optional"`
	SetState    []BlkdebugSetStateOptions    `qapi:"set-state,optional"`
	// Permissions taken on the image besides what the users need.
	TakeChildPerms []BlockPermission `qapi:"take-child-perms,optional"`
	// Permissions not shared on the image.
	UnshareChildPerms []BlockPermission `qapi:"unshare-child-perms,optional"`
}
