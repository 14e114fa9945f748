package qapi

// Arguments of transaction.

// TransactionActionKind is the kind of an action.
type TransactionActionKind string

// Values of TransactionActionKind.
const (
	TransactionActionKindAbort                        TransactionActionKind = "abort"
	TransactionActionKindBlockDirtyBitmapAdd          TransactionActionKind = "block-dirty-bitmap-add"
	TransactionActionKindBlockDirtyBitmapClear        TransactionActionKind = "block-dirty-bitmap-clear"
	TransactionActionKindBlockDirtyBitmapDisable      TransactionActionKind = "block-dirty-bitmap-disable"
	TransactionActionKindBlockDirtyBitmapEnable       TransactionActionKind = "block-dirty-bitmap-enable"
	TransactionActionKindBlockDirtyBitmapMerge        TransactionActionKind = "block-dirty-bitmap-merge"
	TransactionActionKindBlockDirtyBitmapRemove       TransactionActionKind = "block-dirty-bitmap-remove"
	TransactionActionKindBlockdevBackup               TransactionActionKind = "blockdev-backup"
	TransactionActionKindBlockdevSnapshot             TransactionActionKind = "blockdev-snapshot"
	TransactionActionKindBlockdevSnapshotInternalSync TransactionActionKind = "blockdev-snapshot-internal-sync"
	TransactionActionKindBlockdevSnapshotSync         TransactionActionKind = "blockdev-snapshot-sync"
	TransactionActionKindDriveBackup                  TransactionActionKind = "drive-backup"
	TransactionActionKindXBlockdevAdd                 TransactionActionKind = "x-blockdev-add"
	TransactionActionKindXBlockdevDel                 TransactionActionKind = "x-blockdev-del"
	TransactionActionKindXBlockdevReopen              TransactionActionKind = "x-blockdev-reopen"
	TransactionActionKindXBlockdevSnapshotRevert      TransactionActionKind = "x-blockdev-snapshot-revert"
	TransactionActionKindXBlockdevMirror              TransactionActionKind = "x-blockdev-mirror"
	TransactionActionKindXBlockCommit                 TransactionActionKind = "x-block-commit"
	TransactionActionKindXBlockExportAdd              TransactionActionKind = "x-block-export-add"
	TransactionActionKindXBlockStream                 TransactionActionKind = "x-block-stream"
)

// QAPIEnum lists the values that blockd accepts.
func (TransactionActionKind) QAPIEnum() []string {
	return []string{"abort",
		"block-dirty-bitmap-add", "block-dirty-bitmap-clear", "block-dirty-bitmap-disable", "block-dirty-bitmap-enable", "block-dirty-bitmap-merge", "block-dirty-bitmap-remove",
		"blockdev-backup", "blockdev-snapshot", "blockdev-snapshot-internal-sync", "blockdev-snapshot-sync", "drive-backup",
		"x-block-commit", "x-block-export-add", "x-block-stream", "x-blockdev-add", "x-blockdev-del", "x-blockdev-mirror", "x-blockdev-reopen", "x-blockdev-snapshot-revert"}
}

// QAPIEnumFeatures gives the features of single values.
func (TransactionActionKind) QAPIEnumFeatures() map[string][]string {
	unstable := []string{"unstable"}
	return map[string][]string{
		"drive-backup":   {"deprecated"},
		"x-block-commit": unstable, "x-block-export-add": unstable, "x-block-stream": unstable,
		"x-blockdev-add": unstable, "x-blockdev-del": unstable, "x-blockdev-mirror": unstable, "x-blockdev-reopen": unstable, "x-blockdev-snapshot-revert": unstable,
	}
}

// ActionCompletionMode tells whether the jobs of a transaction end together.
type ActionCompletionMode string

// Values of ActionCompletionMode.
const (
	ActionCompletionModeIndividual ActionCompletionMode = "individual"
	ActionCompletionModeGrouped    ActionCompletionMode = "grouped"
)

// QAPIEnum lists the values that blockd accepts.
func (ActionCompletionMode) QAPIEnum() []string {
	return []string{"individual", "grouped"}
}

// Abort is the data of the action abort, which always fails.
type Abort struct {
}

// TransactionAction is one action of a transaction. The branch stands under
// the member data.
type TransactionAction struct {
	Type                         TransactionActionKind     `qapi:"type,discriminator"`
	Abort                        *Abort                    `qapi:",case=abort,wrap"`
	BlockDirtyBitmapAdd          *BlockDirtyBitmapAdd      `qapi:",case=block-dirty-bitmap-add,wrap"`
	BlockDirtyBitmapClear        *BlockDirtyBitmap         `qapi:",case=block-dirty-bitmap-clear,wrap"`
	BlockDirtyBitmapDisable      *BlockDirtyBitmap         `qapi:",case=block-dirty-bitmap-disable,wrap"`
	BlockDirtyBitmapEnable       *BlockDirtyBitmap         `qapi:",case=block-dirty-bitmap-enable,wrap"`
	BlockDirtyBitmapMerge        *BlockDirtyBitmapMerge    `qapi:",case=block-dirty-bitmap-merge,wrap"`
	BlockDirtyBitmapRemove       *BlockDirtyBitmap         `qapi:",case=block-dirty-bitmap-remove,wrap"`
	BlockdevBackup               *BlockdevBackup           `qapi:",case=blockdev-backup,wrap"`
	BlockdevSnapshot             *BlockdevSnapshot         `qapi:",case=blockdev-snapshot,wrap"`
	BlockdevSnapshotInternalSync *BlockdevSnapshotInternal `qapi:",case=blockdev-snapshot-internal-sync,wrap"`
	BlockdevSnapshotSync         *BlockdevSnapshotSync     `qapi:",case=blockdev-snapshot-sync,wrap"`
	DriveBackup                  *DriveBackup              `qapi:",case=drive-backup,wrap"`
	// blockd's own.
	XBlockdevAdd            *BlockdevOptions     `qapi:",case=x-blockdev-add,wrap"`
	XBlockdevDel            *BlockdevDelArg      `qapi:",case=x-blockdev-del,wrap"`
	XBlockdevReopen         *BlockdevReopenArg   `qapi:",case=x-blockdev-reopen,wrap"`
	XBlockdevMirror         *BlockdevMirror      `qapi:",case=x-blockdev-mirror,wrap"`
	XBlockCommit            *BlockCommitArg      `qapi:",case=x-block-commit,wrap"`
	XBlockExportAdd         *BlockExportOptions  `qapi:",case=x-block-export-add,wrap"`
	XBlockStream            *BlockStreamArg      `qapi:",case=x-block-stream,wrap"`
	XBlockdevSnapshotRevert *InternalSnapshotArg `qapi:",case=x-blockdev-snapshot-revert,wrap"`
}

// TransactionProperties apply to a whole transaction.
type TransactionProperties struct {
	// Default individual.
	CompletionMode *ActionCompletionMode `qapi:"completion-mode"`
}

// TransactionArg is the argument of transaction.
type TransactionArg struct {
	Actions    []TransactionAction    `qapi:"actions"`
	Properties *TransactionProperties `qapi:"properties"`
}
