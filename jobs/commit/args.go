package commit

import (
	"blockd/blockgraph"
	"blockd/jobs/chain"
	"blockd/qapi"
)

// Range is what a commit moves, and where to.
type Range struct {
	// Device is the node whose chain it is about.
	Device *blockgraph.Node
	// Top is the highest node that is merged, Base what it is merged into.
	Top, Base *blockgraph.Node
	// Active: the top may change meanwhile, because it is the device's image or
	// somebody writes to it. Such a commit is a mirror.
	Active bool
}

// Find works out what the arguments mean, with the field's checks in the
// field's order. device is what a.Device names. The token is held.
func Find(tx *blockgraph.Tx, device *blockgraph.Node, a *qapi.BlockCommitArg) (Range, error) {
	r := Range{Device: device}
	if err := tx.CheckBlocked(device, blockgraph.OpCommitSource); err != nil {
		return r, err
	}
	var err error
	if r.Top, err = findTop(tx, device, a); err != nil {
		return r, err
	}
	if r.Base, err = findBase(tx, r.Top, a); err != nil {
		return r, err
	}
	for n := r.Top; n != nil; n = chain.Below(tx, n) {
		if err := tx.CheckBlocked(n, blockgraph.OpCommitTarget); err != nil {
			return r, err
		}
		if n == r.Base {
			break
		}
	}
	if r.Top == r.Base {
		return r, qapi.Errorf("cannot commit an image into itself")
	}
	atTop := chain.SkipFilters(tx, r.Top) == chain.SkipFilters(tx, device)
	r.Active = atTop || tx.Used(r.Top)&blockgraph.PermWrite != 0
	switch {
	case r.Active && a.BackingFile != nil && atTop:
		return r, qapi.Errorf("'backing-file' specified, but 'top' is the active layer")
	case r.Active && a.BackingFile != nil:
		return r, qapi.Errorf("'backing-file' specified, but 'top' has a writer on it")
	case !r.Active:
		return r, tx.CheckBlocked(chain.Overlay(tx, device, r.Top), blockgraph.OpCommitTarget)
	}
	return r, nil
}

func findTop(tx *blockgraph.Tx, device *blockgraph.Node, a *qapi.BlockCommitArg) (*blockgraph.Node, error) {
	switch {
	case a.TopNode != nil && a.Top != nil:
		return nil, qapi.Errorf("'top-node' and 'top' are mutually exclusive")
	case a.TopNode != nil:
		return inChain(tx, device, *a.TopNode)
	case a.Top == nil || *a.Top == tx.Filename(device):
		return device, nil
	}
	if n := chain.FindBacking(tx, device, *a.Top); n != nil {
		return n, nil
	}
	return nil, qapi.Errorf("Top image file %s not found", *a.Top)
}

func findBase(tx *blockgraph.Tx, top *blockgraph.Node, a *qapi.BlockCommitArg) (*blockgraph.Node, error) {
	switch {
	case a.BaseNode != nil && a.Base != nil:
		return nil, qapi.Errorf("'base-node' and 'base' are mutually exclusive")
	case a.BaseNode != nil:
		return inChain(tx, top, *a.BaseNode)
	case a.Base == nil:
		return chain.Overlay(tx, top, nil), nil
	}
	if n := chain.FindBacking(tx, top, *a.Base); n != nil {
		return n, nil
	}
	return nil, qapi.Errorf("Can't find '%s' in the backing chain", *a.Base)
}

// inChain finds the node of that name at or below top.
func inChain(tx *blockgraph.Tx, top *blockgraph.Node, name string) (*blockgraph.Node, error) {
	n, err := chain.Lookup(tx, name)
	if err != nil {
		return nil, err
	}
	if !chain.Contains(tx, top, n) {
		return nil, qapi.Errorf("'%s' is not in this backing file chain", name)
	}
	return n, nil
}
