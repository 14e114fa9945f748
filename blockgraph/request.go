package blockgraph

// Flags say how a request is to be done. A driver sees only flags that its
// Caps announce as Native; the checked wrapper emulates or refuses the rest.
type Flags uint32

const (
	// FUA: the data is on stable storage before the request completes.
	FUA Flags = 1 << iota
	// MayUnmap: a zero write may free the space.
	MayUnmap
	// NoFallback: a zero write fails with ErrNotSupported where it would be
	// slower than writing data.
	NoFallback
	// WriteUnchanged: the write does not change what a reader of the node sees
	// (populating an overlay from its backing file). It needs the permission
	// PermWriteUnchanged only, and marks nothing dirty.
	WriteUnchanged
	// OnlyUnallocated, with WriteUnchanged: clusters that have data or zeroes in
	// this node by now are left alone. The driver decides under its
	// allocator's lock, so that a newer guest write is never overwritten.
	OnlyUnallocated
	// Compressed: store the data compressed.
	Compressed
	// Prefetch: a read for its side effects only; the vector may be nil.
	Prefetch
	// CopyOnRead: a read populates what is unallocated in the node.
	CopyOnRead
	// Serialising: the request overlaps with no other one on this node, reads
	// included. Only a Serialiser sends it.
	Serialising
)

// StatusFlags describe a range of a node, in the field's terms.
type StatusFlags uint8

const (
	// StatusData: the range has data in this node's file.
	StatusData StatusFlags = 1 << iota
	// StatusZero: the range reads as zeroes.
	StatusZero
	// StatusOffsetValid: Offset and File say where the range is stored.
	StatusOffsetValid
	// StatusAllocated: this node, not a backing file, decides the content.
	StatusAllocated
	// StatusEOF: the range reaches the end of the node.
	StatusEOF
	// StatusCompressed: the range is stored compressed.
	StatusCompressed
	// StatusRecurse: the driver passes the range through to File at Offset; the
	// wrapper asks there for zeroes. Of a node that it describes by itself: File
	// shows here what its own chain has.
	StatusRecurse
)

// Status is the answer to a block status query.
type Status struct {
	Flags StatusFlags
	// N is the length in bytes for which the answer holds, from the queried
	// offset on; at least 1, and at most what was asked for.
	N int64
	// Offset is the position in File, in bytes, with StatusOffsetValid.
	Offset int64
	// File is the node that holds the data, with StatusOffsetValid.
	File *Node
}

// StatusMode says how much effort a status query is worth.
type StatusMode uint8

const (
	// StatusPrecise looks for holes and zeroes below formats, too.
	StatusPrecise StatusMode = iota
	// StatusAllocation needs only to know who decides the content; it may
	// answer Data for what is zero.
	StatusAllocation
)
