// Package chain is how stream and commit look at a chain of backing files, as
// of a graph change: which node is below another, which image a file name
// means, and what the header of an image is to say about the next one.
//
// All functions are called on a worker with the graph token held. It must not
// import formats, exports or qmp.
//
//blockd:io
package chain

import (
	"path/filepath"

	"blockd/blockgraph"
	"blockd/qapi"
)

// Below returns the next node of a chain as of this change, or nil. The file
// below an image is none.
func Below(tx *blockgraph.Tx, n *blockgraph.Node) *blockgraph.Node {
	if e := n.FilterOrCOWIn(tx.State(n)); e != nil {
		return e.Child()
	}
	return nil
}

// Contains tells whether n is top or below it.
func Contains(tx *blockgraph.Tx, top, n *blockgraph.Node) bool {
	for x := top; x != nil; x = Below(tx, x) {
		if x == n {
			return true
		}
	}
	return false
}

// SkipFilters returns the first node at or below n that is no filter, or nil.
func SkipFilters(tx *blockgraph.Tx, n *blockgraph.Node) *blockgraph.Node {
	for n != nil && n.Type().Filter {
		n = Below(tx, n)
	}
	return n
}

// Next returns the image below the image at or below n, filters left out, or
// nil.
func Next(tx *blockgraph.Tx, n *blockgraph.Node) *blockgraph.Node {
	n = SkipFilters(tx, n)
	if n == nil || !HasBacking(tx, n) {
		return nil
	}
	return SkipFilters(tx, Below(tx, n))
}

// Overlay returns the image of the chain below top whose next image is that at
// or below n, or nil. With n nil it is the lowest image.
func Overlay(tx *blockgraph.Tx, top, n *blockgraph.Node) *blockgraph.Node {
	n = SkipFilters(tx, n)
	for x := SkipFilters(tx, top); x != nil; x = Next(tx, x) {
		if Next(tx, x) == n {
			return x
		}
	}
	return nil
}

// HasBacking tells whether an image has a backing file.
func HasBacking(tx *blockgraph.Tx, n *blockgraph.Node) bool {
	for _, e := range tx.State(n).Edges {
		if e.Role()&blockgraph.RoleCOW != 0 {
			return true
		}
	}
	return false
}

// Lookup finds a node by a name that must be a node's.
func Lookup(tx *blockgraph.Tx, name string) (*blockgraph.Node, error) {
	if n := tx.Find(name); n != nil {
		return n, nil
	}
	return nil, qapi.Errorf("Cannot find device='' nor node-name='%s'", name)
}

// FindBacking finds an image of the chain below top by file name, or nil. Where
// an image has the backing file that its header names, the name is taken from
// where the image is, and any way to write the same path will do; elsewhere only
// the file name that queries show.
func FindBacking(tx *blockgraph.Tx, top *blockgraph.Node, name string) *blockgraph.Node {
	names := tx.Naming()
	n := SkipFilters(tx, top)
	for n != nil && HasBacking(tx, n) {
		next := SkipFilters(tx, Below(tx, n))
		header := tx.State(n).BackingName
		switch {
		case names.BackingOverridden(n):
			if name == names.Filename(next) {
				return next
			}
		case blockgraph.HasProtocol(name) || blockgraph.HasProtocol(header):
			if full, err := n.ResolveName(header); name == header || err == nil && name == full {
				return next
			}
		case samePath(n, name, header):
			return next
		}
		n = next
	}
	return nil
}

// samePath tells whether two names, taken from where an image is, lead to the
// same file.
func samePath(image *blockgraph.Node, a, b string) bool {
	a, errA := image.ResolveName(a)
	b, errB := image.ResolveName(b)
	if errA != nil || errB != nil {
		return false
	}
	if a == b {
		return true
	}
	a, errA = realPath(a)
	b, errB = realPath(b)
	return errA == nil && errB == nil && a == b
}

func realPath(name string) (string, error) {
	abs, err := filepath.Abs(name)
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(abs)
}
