package qapi

// Arguments of transaction.

// TransactionActionKind is the kind of an action.
type TransactionActionKind string

// Values of TransactionActionKind.
const (
	TransactionActionKindAbort                TransactionActionKind = "abort"
	TransactionActionKindBlockdevBackup       TransactionActionKind = "blockdev-backup"
	TransactionActionKindBlockdevSnapshot     TransactionActionKind = "blockdev-snapshot"
	TransactionActionKindBlockdevSnapshotSync TransactionActionKind = "blockdev-snapshot-sync"
	TransactionActionKindDriveBackup          TransactionActionKind = "drive-backup"
)

// QAPIEnum lists the values that blockd accepts.
func (TransactionActionKind) QAPIEnum() []string {
	return []string{"abort", "blockdev-backup", "blockdev-snapshot", "blockdev-snapshot-sync", "drive-backup"}
}

// QAPIEnumFeatures gives the features of single values.
func (TransactionActionKind) QAPIEnumFeatures() map[string][]string {
	return map[string][]string{"drive-backup": {"deprecated"}}
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
	Type                 TransactionActionKind `qapi:"type,discriminator"`
	Abort                *Abort                `qapi:",case=abort,wrap"`
	BlockdevBackup       *BlockdevBackup       `qapi:",case=blockdev-backup,wrap"`
	BlockdevSnapshot     *BlockdevSnapshot     `qapi:",case=blockdev-snapshot,wrap"`
	BlockdevSnapshotSync *BlockdevSnapshotSync `qapi:",case=blockdev-snapshot-sync,wrap"`
	DriveBackup          *DriveBackup          `qapi:",case=drive-backup,wrap"`
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
