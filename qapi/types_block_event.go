package qapi

// Data of the events that nodes raise.

// BlockImageCorrupted is the data of BLOCK_IMAGE_CORRUPTED.
type BlockImageCorrupted struct {
	Device   string  `qapi:"device"`
	NodeName *string `qapi:"node-name"`
	Msg      string  `qapi:"msg"`
	// Bytes into the image file.
	Offset *int64 `qapi:"offset"`
	// Bytes.
	Size  *int64 `qapi:"size"`
	Fatal bool   `qapi:"fatal"`
}

// BlockIOError is the data of BLOCK_IO_ERROR.
type BlockIOError struct {
	QOMPath   string           `qapi:"qom-path"`
	Device    string           `qapi:"device"`
	NodeName  *string          `qapi:"node-name"`
	Operation IoOperationType  `qapi:"operation"`
	Action    BlockErrorAction `qapi:"action"`
	Nospace   *bool            `qapi:"nospace"`
	Reason    string           `qapi:"reason"`
}

// BlockWriteThreshold is the data of BLOCK_WRITE_THRESHOLD.
type BlockWriteThreshold struct {
	NodeName string `qapi:"node-name"`
	// Bytes past the threshold.
	AmountExceeded uint64 `qapi:"amount-exceeded"`
	// Bytes.
	WriteThreshold uint64 `qapi:"write-threshold"`
}

// BlockSetWriteThresholdArg is the argument of block-set-write-threshold.
type BlockSetWriteThresholdArg struct {
	NodeName string `qapi:"node-name"`
	// Bytes; 0 turns it off.
	WriteThreshold uint64 `qapi:"write-threshold"`
}
