package img

import (
	"context"

	"blockd/blockgraph"
	"blockd/filters/pass"
	"blockd/qapi"
)

// Nodes that no options name: what only a conversion needs.

// openPrivate opens a node of a type that no options name.
func (s *session) openPrivate(typ *blockgraph.DriverType, readOnly *bool) (*blockgraph.Node, error) {
	name := s.newName()
	var n *blockgraph.Node
	err := s.d.Graph.Update(s.ctx, cause, func(tx *blockgraph.Tx) error {
		var err error
		if n, err = tx.OpenType(typ, &qapi.BlockdevOptions{Driver: qapi.BlockdevDriver(typ.Name), NodeName: &name, ReadOnly: readOnly}); err == nil {
			tx.SetMonitorOwned(n, true)
		}
		return err
	})
	return n, err
}

// openFilter opens a filter over a node, of a type that no options name: open
// makes its driver of what passes everything through. It is read-only as
// readOnly says, or else by what it is over.
func (s *session) openFilter(driver string, over *blockgraph.Node, readOnly *bool, open func(pass.Through) blockgraph.Driver) (*blockgraph.Node, error) {
	name := over.Name()
	return s.openPrivate(&blockgraph.DriverType{
		Name: driver, Filter: true, NamedByChild: true,
		Children: func(*qapi.BlockdevOptions) []blockgraph.ChildSpec {
			return []blockgraph.ChildSpec{{Name: "file", Role: blockgraph.RoleFiltered | blockgraph.RolePrimary, Ref: qapi.BlockdevRef{Reference: &name}}}
		},
		Open: func(_ context.Context, r *blockgraph.OpenRequest) (blockgraph.Driver, error) {
			return open(pass.Through{Node: r.Node}), nil
		},
	}, readOnly)
}
