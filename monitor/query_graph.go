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

// drawGraph runs on the loop. As in the field users come before nodes, the oldest
// first, but the lists are filled from their end; and numbers are given as things
// are first named, by themselves or by an edge.
//
//blockd:global
func drawGraph(graph *blockgraph.Graph, g *qapi.XDbgBlockGraph) {
	ids := map[any]uint64{}
	number := func(x any) uint64 {
		if ids[x] == 0 {
			ids[x] = uint64(len(ids) + 1)
		}
		return ids[x]
	}
	box := func(x any, t qapi.XDbgBlockGraphNodeType, name string) {
		g.Nodes = append(g.Nodes, qapi.XDbgBlockGraphNode{ID: number(x), Type: t, Name: name})
	}
	arrow := func(parent any, e *blockgraph.Edge) {
		perm, shared := e.Perms()
		g.Edges = append(g.Edges, qapi.XDbgBlockGraphEdge{
			Parent: number(parent), Child: number(e.Child()), Name: e.Name(), Perm: permList(perm), SharedPerm: permList(shared),
		})
	}
	nodes := graph.Nodes()
	slices.Reverse(nodes)
	edges := map[*blockgraph.Root]*blockgraph.Edge{}
	for _, n := range nodes {
		for _, e := range n.Parents() {
			edges[e.Root()] = e
		}
	}
	roots := graph.Roots()
	slices.SortFunc(roots, func(a, b *blockgraph.Root) int { return cmp.Compare(a.ID(), b.ID()) })
	for _, r := range roots {
		if r.Job() != "" {
			continue
		}
		box(r, qapi.XDbgBlockGraphNodeTypeBlockBackend, r.Device())
		if e := edges[r]; e != nil {
			arrow(r, e)
		}
	}
	slices.Reverse(roots) // jobs and their nodes: the newest first
	for i, r := range roots {
		if r.Job() == "" || ids[r.Job()] != 0 {
			continue
		}
		box(r.Job(), qapi.XDbgBlockGraphNodeTypeBlockJob, r.Job())
		for _, r := range roots[i:] {
			if e := edges[r]; e != nil && r.Job() == roots[i].Job() {
				arrow(r.Job(), e)
			}
		}
	}
	for _, n := range nodes {
		box(n, qapi.XDbgBlockGraphNodeTypeBlockDriver, n.Name())
		for _, e := range slices.Backward(n.State().Edges) {
			arrow(n, e)
		}
	}
	slices.Reverse(g.Nodes)
	slices.Reverse(g.Edges)
}

// permNames are in the order of their bits, lists of them in the opposite one.
var permNames = qapi.BlockPermission("").QAPIEnum()

func permList(p blockgraph.Perm) []qapi.BlockPermission {
	list := []qapi.BlockPermission{}
	for i, name := range slices.Backward(permNames) {
		if p&(1<<i) != 0 {
			list = append(list, qapi.BlockPermission(name))
		}
	}
	return list
}
