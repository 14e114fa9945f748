package qcow2

import (
	"context"
	"syscall"

	"blockd/blockgraph"
	"blockd/formats/luks"
	"blockd/qapi"
)

// storage is what the driver uses of a child: its file, or a backing file.
// Offsets and lengths are bytes.
type storage interface {
	ReadV(ctx context.Context, off int64, v *blockgraph.IOVec, flags blockgraph.Flags) error
	WriteV(ctx context.Context, off int64, v *blockgraph.IOVec, flags blockgraph.Flags) error
	WriteZeroes(ctx context.Context, off, n int64, flags blockgraph.Flags) error
	Discard(ctx context.Context, off, n int64) error
	Flush(ctx context.Context) error
	Truncate(ctx context.Context, size int64, exact bool, prealloc qapi.PreallocMode, zeroed bool) error
	DebugEvent(event string)
	// Size is the present length in bytes.
	Size() int64
	// Grows tells whether a write past the end makes it longer.
	Grows() bool
	// FreshZero tells whether what is new in a longer file reads as zeroes.
	FreshZero() bool
	// ReadsZero tells whether a range is known to read as zeroes through the
	// whole chain below.
	ReadsZero(ctx context.Context, off, n int64) bool
	// Node is the node for Status.File.
	Node() *blockgraph.Node
}

// children gives the present children of a node; both may change while no
// request is in flight.
type children interface {
	file() storage
	// backing returns nil without a backing file.
	backing() storage
	// data is the external data file; nil without one.
	data() storage
	// node is the image's own node, or nil in tests.
	node() *blockgraph.Node
}

// edge is a child of a node in a graph.
type edge struct{ *blockgraph.Edge }

func (e edge) Size() int64            { return e.Child().Size() }
func (e edge) Grows() bool            { return e.Child().Caps().Grow }
func (e edge) FreshZero() bool        { return e.Child().Caps().FreshZero }
func (e edge) Node() *blockgraph.Node { return e.Child() }

// Discard does nothing without the permission to write. The edge to a data file has
// it only as long as somebody may write to the image: what was freed last, and not
// flushed, keeps its space when the last one leaves.
func (e edge) Discard(ctx context.Context, off, n int64) error {
	if perm, _ := e.Perms(); perm&blockgraph.PermWrite == 0 {
		return blockgraph.ErrNotSupported
	}
	return e.Edge.Discard(ctx, off, n)
}

func (e edge) ReadsZero(ctx context.Context, off, n int64) bool {
	for n > 0 {
		if off >= e.Size() {
			return true
		}
		st, _, err := e.Child().StatusAbove(ctx, nil, off, n, blockgraph.StatusPrecise)
		if err != nil || st.Flags&blockgraph.StatusZero == 0 || st.N <= 0 {
			return false
		}
		off += st.N
		n -= st.N
	}
	return true
}

type nodeChildren struct{ n *blockgraph.Node }

func (c nodeChildren) data() storage {
	if e := c.n.Child("data-file"); e != nil {
		return edge{e}
	}
	return nil
}

func (c nodeChildren) file() storage { return edge{c.n.File()} }

func (c nodeChildren) node() *blockgraph.Node { return c.n }

func (c nodeChildren) backing() storage {
	if b := c.n.Backing(); b != nil {
		return edge{b}
	}
	return nil
}

// dataOpener are children that can come to have the data file that the header
// names.
//
//blockd:blocking
type dataOpener interface{ openData(name string) error }

// openingChildren are those of a node that is being opened.
type openingChildren struct {
	nodeChildren
	r    *blockgraph.OpenRequest
	keys luks.Config
}

//blockd:blocking
func (c openingChildren) openCrypt(ctx context.Context, h *header, ext *extensions, o *qapi.BlockdevOptions) (*encryption, error) {
	if c.r.NoIO {
		return inspectCrypt(ctx, c.file, h, ext, c.keys)
	}
	return openCrypt(ctx, c.file, h, ext, o, c.keys)
}

//blockd:blocking
func (c openingChildren) openData(name string) error {
	switch {
	case c.r.NoIO:
		return nil // it is not looked at
	case name == "":
		return errNoDataFile
	}
	return c.r.OpenFile("data-file", blockgraph.RoleData, name)
}

// readAt reads all of p. What lies past the end of the file is zeroes, and is
// not asked for.
func readAt(ctx context.Context, s storage, off int64, p []byte) error {
	if off < 0 {
		return syscall.EINVAL
	}
	inside := min(max(s.Size()-off, 0), int64(len(p)))
	clear(p[inside:])
	if p = p[:inside]; inside == 0 {
		return nil
	}
	var v blockgraph.IOVec
	v.SetBytes(p)
	return s.ReadV(ctx, off, &v, 0)
}

// tableAt reads a table of n bytes as far as it lies within the file: what the
// header says of its length is no reason to take memory.
func tableAt(ctx context.Context, s storage, off, n int64) ([]byte, error) {
	p := make([]byte, min(n, max(s.Size()-off+7, 0)&^7))
	if len(p) == 0 {
		return nil, nil
	}
	return p, readAt(ctx, s, off, p)
}

// writeAt writes all of p.
func writeAt(ctx context.Context, s storage, off int64, p []byte) error {
	var v blockgraph.IOVec
	v.SetBytes(p)
	return s.WriteV(ctx, off, &v, 0)
}
