package monitor

import (
	"cmp"
	"slices"

	"blockd/blockgraph"
	"blockd/qapi"
	"blockd/qmp"
)

// queryBlockGraph draws the whole graph as of one instant.
func (m *Monitor) queryBlockGraph(*qmp.Context, *struct{}) (*qapi.XDbgBlockGraph, error) {
	g := &qapi.XDbgBlockGraph{Nodes: []qapi.XDbgBlockGraphNode{}, Edges: []qapi.XDbgBlockGraphEdge{}}
	m.loop.Do(func() { drawGraph(m.graph, g) })
	return g, nil
}

// drawGraph runs on the loop.
//
//blockd:global
func drawGraph(graph *blockgraph.Graph, g *qapi.XDbgBlockGraph) {
	add := func(t qapi.XDbgBlockGraphNodeType, name string) uint64 {
		id := uint64(len(g.Nodes) + 1)
		g.Nodes = append(g.Nodes, qapi.XDbgBlockGraphNode{ID: id, Type: t, Name: name})
		return id
	}
	rootIDs := map[*blockgraph.Root]uint64{}
	jobIDs := map[string]uint64{}
	roots := graph.Roots()
	slices.SortFunc(roots, func(a, b *blockgraph.Root) int { return cmp.Compare(a.ID(), b.ID()) })
	for _, r := range roots {
		if r.Job() == "" {
			rootIDs[r] = add(qapi.XDbgBlockGraphNodeTypeBlockBackend, r.Device())
		}
	}
	for _, r := range roots {
		if id := r.Job(); id != "" {
			if jobIDs[id] == 0 {
				jobIDs[id] = add(qapi.XDbgBlockGraphNodeTypeBlockJob, id)
			}
			rootIDs[r] = jobIDs[id]
		}
	}
	nodes := graph.Nodes()
	slices.Reverse(nodes)
	nodeIDs := map[*blockgraph.Node]uint64{}
	for _, n := range nodes {
		nodeIDs[n] = add(qapi.XDbgBlockGraphNodeTypeBlockDriver, n.Name())
	}
	for _, n := range nodes {
		for _, e := range n.Parents() {
			parent := rootIDs[e.Root()]
			if e.Root() == nil {
				parent = nodeIDs[e.Parent()]
			}
			if parent == 0 {
				continue // of a node that is gone but not closed yet
			}
			perm, shared := e.Perms()
			g.Edges = append(g.Edges, qapi.XDbgBlockGraphEdge{
				Parent: parent, Child: nodeIDs[n], Name: e.Name(), Perm: permList(perm), SharedPerm: permList(shared),
			})
		}
	}
	slices.SortStableFunc(g.Edges, func(a, b qapi.XDbgBlockGraphEdge) int { return int(a.Parent) - int(b.Parent) })
}

// permNames are in the order of their bits.
var permNames = qapi.BlockPermission("").QAPIEnum()

func permList(p blockgraph.Perm) []qapi.BlockPermission {
	list := []qapi.BlockPermission{}
	for i, name := range permNames {
		if p&(1<<i) != 0 {
			list = append(list, qapi.BlockPermission(name))
		}
	}
	return list
}
