package qapi

// Options of filters.

// BlockdevOptionsGenericFormat are the options of drivers that only have a node
// below: compress and snapshot-access.
type BlockdevOptionsGenericFormat struct {
	File BlockdevRef `qapi:"file"`
}

// BlockdevOptionsPreallocate are the options of preallocate.
type BlockdevOptionsPreallocate struct {
	File BlockdevRef `qapi:"file"`
	// Alignment in bytes of the end of what is preallocated. Default 1 MiB.
	PreallocAlign *int64 `qapi:"prealloc-align"`
	// Bytes to preallocate behind the data. Default 128 MiB.
	PreallocSize *int64 `qapi:"prealloc-size"`
}

// QuorumReadPattern is how a quorum reads.
type QuorumReadPattern string

// Values of QuorumReadPattern.
const (
	QuorumReadPatternQuorum QuorumReadPattern = "quorum"
	QuorumReadPatternFifo   QuorumReadPattern = "fifo"
)

// QAPIEnum lists the values.
func (QuorumReadPattern) QAPIEnum() []string { return []string{"quorum", "fifo"} }

// BlockdevOptionsQuorum are the options of quorum.
type BlockdevOptionsQuorum struct {
	// Compare two children, of which one is the reference. Default false.
	Blkverify *bool         `qapi:"blkverify"`
	Children  []BlockdevRef `qapi:"children"`
	// How many children have to agree.
	VoteThreshold int64 `qapi:"vote-threshold"`
	// Write what was agreed upon to children that differ. Default false.
	RewriteCorrupted *bool `qapi:"rewrite-corrupted"`
	// Default quorum.
	ReadPattern *QuorumReadPattern `qapi:"read-pattern"`
}

// QuorumOpType is a kind of request to a child of a quorum.
type QuorumOpType string

// Values of QuorumOpType.
const (
	QuorumOpTypeRead  QuorumOpType = "read"
	QuorumOpTypeWrite QuorumOpType = "write"
	QuorumOpTypeFlush QuorumOpType = "flush"
)

// QAPIEnum lists the values.
func (QuorumOpType) QAPIEnum() []string { return []string{"read", "write", "flush"} }

// QuorumFailure is the data of QUORUM_FAILURE.
type QuorumFailure struct {
	Reference string `qapi:"reference"`
	// Sectors of 512 bytes.
	SectorNum    int64 `qapi:"sector-num"`
	SectorsCount int64 `qapi:"sectors-count"`
}

// QuorumReportBad is the data of QUORUM_REPORT_BAD.
type QuorumReportBad struct {
	Type QuorumOpType `qapi:"type"`
	// Absent when the content differs.
	Error    *string `qapi:"error"`
	NodeName string  `qapi:"node-name"`
	// Sectors of 512 bytes.
	SectorNum    int64 `qapi:"sector-num"`
	SectorsCount int64 `qapi:"sectors-count"`
}

// BlockdevOptionsBlklogwrites are the options of blklogwrites.
type BlockdevOptionsBlklogwrites struct {
	File BlockdevRef `qapi:"file"`
	// Where the log goes.
	Log BlockdevRef `qapi:"log"`
	// Bytes; a power of two. Default 512.
	LogSectorSize *uint32 `qapi:"log-sector-size"`
	// Continue an existing log. Default false.
	LogAppend *bool `qapi:"log-append"`
	// Entries after which the superblock is written anew. Default 4096.
	LogSuperUpdateInterval *uint64 `qapi:"log-super-update-interval"`
}

// BlockdevOptionsBlkverify are the options of blkverify.
type BlockdevOptionsBlkverify struct {
	// The image under test.
	Test BlockdevRef `qapi:"test"`
	// The copy to compare it with.
	Raw BlockdevRef `qapi:"raw"`
}
