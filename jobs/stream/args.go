package stream

import (
	"blockd/blockgraph"
	"blockd/jobs/chain"
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
		end = chain.Below(tx, bottom)
	}
	for n := top; n != nil && n != end; n = chain.Below(tx, n) {
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
	for n := top; n != base; n = chain.Below(tx, n) {
		if n == nil {
			return p, qapi.Errorf("'%s' is not in the backing chain of '%s'", base.Name(), top.Name())
		}
		p.aboveBase = n
		if n.Filtered() == nil {
			p.bottom = n
		}
	}
	if p.bottom == nil { // only filters
		return p, qapi.Errorf("'%s' is not in the backing chain of '%s'", base.Name(), top.Name())
	}
	return p, nil
}

// named finds the nodes that the arguments name.
func named(tx *blockgraph.Tx, top *blockgraph.Node, a *qapi.BlockStreamArg) (base, bottom *blockgraph.Node, err error) {
	switch {
	case a.Base != nil:
		if base = chain.FindBacking(tx, top, *a.Base); base == nil {
			return nil, nil, qapi.Errorf("Can't find '%s' in the backing chain", *a.Base)
		}
	case a.BaseNode != nil:
		if base, err = chain.Lookup(tx, *a.BaseNode); err != nil {
			return nil, nil, err
		}
		if base == top || !chain.Contains(tx, top, base) {
			return nil, nil, qapi.Errorf("Node '%s' is not a backing image of '%s'", *a.BaseNode, a.Device)
		}
	case a.Bottom != nil:
		if bottom, err = chain.Lookup(tx, *a.Bottom); err != nil {
			return nil, nil, err
		}
		if bottom.Filtered() != nil {
			return nil, nil, qapi.Errorf("Node '%s' is a filter, use a non-filter node as 'bottom'", *a.Bottom)
		}
		if !chain.Contains(tx, top, bottom) {
			return nil, nil, qapi.Errorf("Node '%s' is not in a chain starting from '%s'", *a.Bottom, a.Device)
		}
	}
	return base, bottom, nil
}
