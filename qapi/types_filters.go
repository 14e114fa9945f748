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
