package stream

import (
	"path/filepath"

	"blockd/blockgraph"
	"blockd/qapi"
)

// Check refuses arguments that exclude each other, before any node is looked
// up. Any goroutine.
func Check(a *qapi.BlockStreamArg) error {
	for _, x := range []struct {
		both bool
		a, b string
	}{
		{a.Base != nil && a.BaseNode != nil, "base", "base-node"},
		{a.Base != nil && a.Bottom != nil, "base", "bottom"},
		{a.Bottom != nil && a.BaseNode != nil, "bottom", "base-node"},
	} {
		if x.both {
			return qapi.Errorf("'%s' and '%s' cannot be specified at the same time", x.a, x.b)
		}
	}
	return nil
}

// part is the part of a chain that is streamed.
type part struct {
	top *blockgraph.Node
	// bottom is the lowest image whose data goes to the top.
	bottom *blockgraph.Node
	// aboveBase is the node right above what stays; between it and bottom there
	// are only filters. What is below it when the job ends is the new base.
	aboveBase *blockgraph.Node
}

// find works out which part of the chain the arguments mean, with the field's
// checks in the field's order. The token is held.
func find(tx *blockgraph.Tx, top *blockgraph.Node, a *qapi.BlockStreamArg) (part, error) {
	p := part{top: top}
	base, bottom, err := named(tx, top, a)
	if err != nil {
		return p, err
	}
	end := base
	if bottom != nil {
		end = below(tx, bottom)
	}
	for n := top; n != nil && n != end; n = below(tx, n) {
		if err := tx.CheckBlocked(n, blockgraph.OpStream); err != nil {
			return p, err
		}
	}
	if base == nil && a.BackingFile != nil {
		return p, qapi.Errorf("backing file specified, but streaming the entire chain")
	}
	if bottom != nil {
		p.bottom, p.aboveBase = bottom, bottom
		return p, nil
	}
	for n := top; n != base; n = below(tx, n) {
		if n == nil {
			return p, qapi.Errorf("'%s' is not in the backing chain of '%s'", base.Name(), top.Name())
		}
		p.aboveBase = n
		if n.Filtered() == nil {
			p.bottom = n
		}
	}
	return p, nil
}

// named finds the nodes that the arguments name.
func named(tx *blockgraph.Tx, top *blockgraph.Node, a *qapi.BlockStreamArg) (base, bottom *blockgraph.Node, err error) {
	switch {
	case a.Base != nil:
		if base = findBacking(tx, top, *a.Base); base == nil {
			return nil, nil, qapi.Errorf("Can't find '%s' in the backing chain", *a.Base)
		}
	case a.BaseNode != nil:
		if base, err = lookup(tx, *a.BaseNode); err != nil {
			return nil, nil, err
		}
		if base == top || !contains(tx, top, base) {
			return nil, nil, qapi.Errorf("Node '%s' is not a backing image of '%s'", *a.BaseNode, a.Device)
		}
	case a.Bottom != nil:
		if bottom, err = lookup(tx, *a.Bottom); err != nil {
			return nil, nil, err
		}
		if bottom.Filtered() != nil {
			return nil, nil, qapi.Errorf("Node '%s' is a filter, use a non-filter node as 'bottom'", *a.Bottom)
		}
		if !contains(tx, top, bottom) {
			return nil, nil, qapi.Errorf("Node '%s' is not in a chain starting from '%s'", *a.Bottom, a.Device)
		}
	}
	return base, bottom, nil
}

func lookup(tx *blockgraph.Tx, name string) (*blockgraph.Node, error) {
	if n := tx.Find(name); n != nil {
		return n, nil
	}
	return nil, qapi.Errorf("Cannot find device='' nor node-name='%s'", name)
}

// below returns the next node of a chain as of this change, or nil. The file
// below an image is none.
func below(tx *blockgraph.Tx, n *blockgraph.Node) *blockgraph.Node {
	if e := n.FilterOrCOWIn(tx.State(n)); e != nil {
		return e.Child()
	}
	return nil
}

func contains(tx *blockgraph.Tx, top, n *blockgraph.Node) bool {
	for x := top; x != nil; x = below(tx, x) {
		if x == n {
			return true
		}
	}
	return false
}

// skipFilters returns the first node at or below n, as of this change, that is
// no filter.
func skipFilters(tx *blockgraph.Tx, n *blockgraph.Node) *blockgraph.Node {
	for n != nil && n.Type().Filter {
		n = below(tx, n)
	}
	return n
}

// findBacking finds an image of the chain below top by file name, or nil. Where
// an image has the backing file that its header names, the name is taken from
// where the image is, and any way to write the same path will do; elsewhere only
// the file name that queries show.
func findBacking(tx *blockgraph.Tx, top *blockgraph.Node, name string) *blockgraph.Node {
	names := tx.Naming()
	n := skipFilters(tx, top)
	for hasBacking(tx, n) {
		next := skipFilters(tx, below(tx, n))
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
