package blockgraph

import "slices"

// This file holds what jobs that move data between nodes need of a change.

// OpenBacking attaches the backing file that the header of an image names, for
// an image that was opened without it.
func (tx *Tx) OpenBacking(n *Node) error {
	s := tx.Stage(n)
	if s.backing != nil || s.BackingName == "" {
		return nil
	}
	base, err := tx.openHeaderBacking(n, s, opening{parent: s.Options, role: RoleCOW, depth: 1, files: map[string]struct{}{}})
	if err != nil {
		return prefix("Could not open backing file: ", err)
	}
	s.AutoBacking, s.ExplicitBacking = tx.Filename(base), false
	return tx.SetChild(n, "backing", RoleCOW, base)
}

// RefreshPerms computes the permissions of the node's children again, after
// what its driver answers in ChildPerms has changed. It fails on a conflict.
func (tx *Tx) RefreshPerms(n *Node) error {
	if err := tx.refresh([]*Node{n}); err != nil {
		return err
	}
	tx.touch(n)
	return nil
}

// CheckPerms fails when users of what this change has touched since the last
// call do not get along, which its commit would find later.
func (tx *Tx) CheckPerms() error {
	from := tx.unchecked
	tx.unchecked = nil
	if len(from) == 0 {
		return nil
	}
	tx.dying = tx.collect()
	return tx.refresh(slices.DeleteFunc(from, func(n *Node) bool { return slices.Contains(tx.dying, n) }))
}

// InsertFilter puts a filter of a job over a node: the node's users become the
// filter's. It fails when they do not get along with what the filter needs, before
// there is a job.
func (tx *Tx) InsertFilter(filter, n *Node) error {
	err := tx.ReplaceNode(n, filter)
	if err == nil {
		err = tx.RefreshPerms(filter)
	}
	if err != nil {
		return prefix("Could not replace node: ", err)
	}
	return nil
}

// DrainedEdge returns the edge of a root that this change has drained, for
// requests within the change, or nil.
func (tx *Tx) DrainedEdge(r *Root) *Edge {
	if _, ok := tx.drained[r]; !ok {
		return nil
	}
	return r.edge.Load()
}

// AddMarker has m told of the node's changes from the commit on.
func (tx *Tx) AddMarker(n *Node, m Marker) {
	s := tx.Stage(n)
	s.markers = append(slices.Clip(s.markers), m)
}

// RemoveMarker ends AddMarker with the commit.
func (tx *Tx) RemoveMarker(n *Node, m Marker) {
	s := tx.Stage(n)
	s.markers = slices.DeleteFunc(slices.Clone(s.markers), func(x Marker) bool { return x == m })
}
