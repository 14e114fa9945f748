package monitor

import (
	"blockd/blockgraph"
	"blockd/qapi"
	"blockd/qmp"
)

// queryBlockstats lists nodes with query-nodes, else devices, of which a storage
// daemon has none.
func (m *Monitor) queryBlockstats(_ *qmp.Context, a *qapi.QueryBlockstatsArg) ([]qapi.BlockStats, error) {
	list := []qapi.BlockStats{}
	if !isTrue(a.QueryNodes) {
		if m.Devices != nil {
			list = m.Devices.QueryBlockstats()
		}
		return list, nil
	}
	m.loop.Do(func() {
		nodes := m.graph.Nodes()
		for i := range nodes {
			list = append(list, nodeStats(nodes[len(nodes)-1-i])) // the oldest first
		}
	})
	return list, nil
}

// NodeStats tells of a node and its chain as query-blockstats does of what is
// inserted. Control plane.
//
//blockd:global
func NodeStats(n *blockgraph.Node) qapi.BlockStats {
	s := nodeStats(n)
	if e := n.FilterOrCOW(); e != nil {
		b := NodeStats(e.Child().SkipImplicit())
		s.Backing = &b
	}
	return s
}

// nodeStats only looks at counters. Control plane.
//
//blockd:global
func nodeStats(n *blockgraph.Node) qapi.BlockStats {
	name := n.Name()
	s := qapi.BlockStats{NodeName: &name, Stats: qapi.BlockDeviceStats{WrHighestOffset: n.WriteHighest(), TimedStats: []qapi.BlockDeviceTimedStats{}}}
	if d, counts := n.Driver().(blockgraph.StatsCounter); counts {
		s.DriverSpecific = d.DriverStats(n.Type().Name)
	}
	if e := storage(n); e != nil {
		p := nodeStats(e.Child())
		s.Parent = &p
	}
	return s
}

// storage returns the one child that stores the node's data, or nil.
func storage(n *blockgraph.Node) *blockgraph.Edge {
	var found *blockgraph.Edge
	for _, e := range n.State().Edges {
		if e.Role()&blockgraph.RolePrimary != 0 && e.Role()&(blockgraph.RoleData|blockgraph.RoleFiltered) != 0 {
			return e
		}
		if e.Role()&blockgraph.RoleData != 0 {
			if found != nil {
				return nil
			}
			found = e
		}
	}
	return found
}
