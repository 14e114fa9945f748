package monitor

import (
	"cmp"
	"maps"
	"slices"

	"blockd/blockgraph"
	"blockd/exports"
	"blockd/qapi"
	"blockd/qmp"
)

// What a console shows of the graph besides its history: one picture of all,
// and what goes through it. Both take one look on the loop.

func (m *Monitor) registerGraphView(r *qmp.Registry) {
	read := qmp.CommandOptions{Unstable: true, ReadOnly: true}
	qmp.Register(r, "x-query-graph", read, func(*qmp.Context, *struct{}) (*qapi.GraphView, error) {
		v := &qapi.GraphView{}
		var uses []exports.Use
		m.loop.Do(func() { uses = m.exports.Uses(); m.viewGraph(v, uses) })
		clients := clientsOf(uses)
		for i := range v.Roots {
			if e := v.Roots[i].Export; e != nil {
				e.Clients = clients[v.Roots[i].Root]
			}
		}
		return v, nil
	})
	qmp.Register(r, "x-query-graph-traffic", read, func(*qmp.Context, *struct{}) (*qapi.GraphTraffic, error) {
		t := &qapi.GraphTraffic{}
		var uses []exports.Use
		m.loop.Do(func() { m.viewTraffic(t); uses = m.exports.Uses() })
		clients := clientsOf(uses)
		for i := range t.Roots {
			if n, ok := clients[t.Roots[i].Root]; ok {
				t.Roots[i].Clients = &n
			}
		}
		return t, nil
	})
}

// clientsOf returns how many clients exports have, by the numbers of their
// roots.
func clientsOf(uses []exports.Use) map[uint64]int64 {
	clients := make(map[uint64]int64, len(uses))
	for _, u := range uses {
		clients[u.Root.ID()] = int64(u.Clients())
	}
	return clients
}

// sortedRoots returns the graph's users, the oldest first.
//
//blockd:global
func (m *Monitor) sortedRoots() []*blockgraph.Root {
	roots := m.graph.Roots()
	slices.SortFunc(roots, func(a, b *blockgraph.Root) int { return cmp.Compare(a.ID(), b.ID()) })
	return roots
}

// viewGraph runs on the loop.
//
//blockd:global loop
func (m *Monitor) viewGraph(v *qapi.GraphView, exported []exports.Use) {
	v.Instance, v.Last = m.graph.History().Instance(), m.graph.History().Last()
	uses := map[*blockgraph.Root]exports.Use{}
	for _, u := range exported {
		uses[u.Root] = u
	}
	roots := m.sortedRoots()
	v.Roots = make([]qapi.GraphViewRoot, len(roots))
	for i, r := range roots {
		g := qapi.GraphViewRoot{Root: r.ID(), Label: optional(r.Label())}
		if u, ok := uses[r]; ok {
			g.Export = &qapi.GraphViewExport{ID: u.ID, Type: u.Type, ShuttingDown: u.ShuttingDown}
		}
		g.Job = optional(r.Job())
		v.Roots[i] = g
	}
	nodes := m.graph.Nodes()
	slices.Reverse(nodes)
	v.Nodes = make([]qapi.GraphViewNode, len(nodes))
	v.Edges = []qapi.GraphViewEdge{}
	for i, n := range nodes {
		s := n.State()
		v.Nodes[i] = qapi.GraphViewNode{
			NodeName: n.Name(), Driver: n.Type().Name, ReadOnly: s.ReadOnly, Active: !s.Inactive,
			Implicit: n.Implicit(), Owned: n.MonitorOwned(), Size: n.Size(), Blockers: blockersOf(n),
		}
	}
	m.eachEdge(nodes, func(e *blockgraph.Edge, parentNode *string, parentRoot *uint64) {
		perm, shared := e.Perms()
		v.Edges = append(v.Edges, qapi.GraphViewEdge{
			ParentNode: parentNode, ParentRoot: parentRoot, Name: e.Name(), Child: e.Child().Name(),
			Perm: permList(perm), SharedPerm: permList(shared), Frozen: e.Frozen(),
		})
	})
}

// eachEdge calls f for the edges that the graph's history knows.
//
//blockd:global
func (m *Monitor) eachEdge(nodes []*blockgraph.Node, f func(e *blockgraph.Edge, parentNode *string, parentRoot *uint64)) {
	published := make(map[*blockgraph.Node]bool, len(nodes))
	for _, n := range nodes {
		published[n] = true
	}
	for _, n := range nodes {
		for _, e := range n.Parents() {
			if r := e.Root(); r != nil {
				id := r.ID()
				f(e, nil, &id)
			} else if published[e.Parent()] { // else of a node that is gone but not closed yet
				name := e.Parent().Name()
				f(e, &name, nil)
			}
		}
	}
}

//blockd:global
func blockersOf(n *blockgraph.Node) []qapi.GraphViewBlocker {
	list := []qapi.GraphViewBlocker{}
	for _, b := range n.Blockers() {
		g := qapi.GraphViewBlocker{Reason: b.Reason, Except: []string{}}
		for _, op := range slices.Sorted(maps.Keys(b.Except)) {
			g.Except = append(g.Except, string(op))
		}
		list = append(list, g)
	}
	return list
}

// optional returns nil for "".
func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// viewTraffic runs on the loop.
//
//blockd:global loop
func (m *Monitor) viewTraffic(t *qapi.GraphTraffic) {
	t.Instance, t.Last = m.graph.History().Instance(), m.graph.History().Last()
	t.Edges = []qapi.GraphTrafficEdge{}
	m.eachEdge(m.graph.Nodes(), func(e *blockgraph.Edge, parentNode *string, parentRoot *uint64) {
		c := e.Traffic()
		t.Edges = append(t.Edges, qapi.GraphTrafficEdge{
			ParentNode: parentNode, ParentRoot: parentRoot, Name: e.Name(), Child: e.Child().Name(),
			ReadBytes: c.Read, WriteBytes: c.Written, Operations: c.Operations,
		})
	})
	roots := m.sortedRoots()
	t.Roots = make([]qapi.GraphTrafficRoot, len(roots))
	for i, r := range roots {
		t.Roots[i] = qapi.GraphTrafficRoot{Root: r.ID(), InFlight: r.InFlight(), Held: r.Waits()}
	}
}
