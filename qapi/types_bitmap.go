package qapi

// Names of dirty bitmaps in arguments.

// BlockDirtyBitmap names a bitmap of a node.
type BlockDirtyBitmap struct {
	Node string `qapi:"node"`
	Name string `qapi:"name"`
}

// BlockDirtyBitmapOrStr is a bitmap of another node, or the name of one of the
// node in question.
type BlockDirtyBitmapOrStr struct {
	Local    *string           `qapi:",alt"`
	External *BlockDirtyBitmap `qapi:",alt"`
}
