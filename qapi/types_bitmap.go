package qapi

// Arguments and results of the commands for dirty bitmaps.

// BlockDirtyBitmap names a bitmap of a node.
type BlockDirtyBitmap struct {
	Node string `qapi:"node"`
	Name string `qapi:"name"`
}

// BlockDirtyBitmapAdd is the argument of block-dirty-bitmap-add.
type BlockDirtyBitmapAdd struct {
	Node string `qapi:"node"`
	Name string `qapi:"name"`
	// Bytes per bit. Default: the image's cluster size, at least 4096, or 65536.
	Granularity *uint32 `qapi:"granularity"`
	// Store it in the image. Default false.
	Persistent *bool `qapi:"persistent"`
	// Do not record changes. Default false.
	Disabled *bool `qapi:"disabled"`
}

// BlockDirtyBitmapMerge is the argument of block-dirty-bitmap-merge.
type BlockDirtyBitmapMerge struct {
	Node    string                  `qapi:"node"`
	Target  string                  `qapi:"target"`
	Bitmaps []BlockDirtyBitmapOrStr `qapi:"bitmaps"`
}

// BlockDirtyBitmapOrStr is a bitmap of another node, or the name of one of the
// node in question.
type BlockDirtyBitmapOrStr struct {
	Local    *string           `qapi:",alt"`
	External *BlockDirtyBitmap `qapi:",alt"`
}

// BlockDirtyBitmapSha256 is the result of x-debug-block-dirty-bitmap-sha256.
type BlockDirtyBitmapSha256 struct {
	Sha256 string `qapi:"sha256"`
}
