package metrics

import (
	"cmp"
	"slices"
	"strconv"
	"time"

	"blockd/blockgraph"
	"blockd/clock"
	"blockd/exports"
	"blockd/qapi"
)

// snapshot is the daemon at one moment, copied on the loop: pointers and
// numbers, no more than Limits allow.
type snapshot struct {
	latency time.Duration // that the loop took to begin
	nodes   []node
	users   []user
	jobs    []qapi.JobInfo // the oldest first
	exports []export

	graphNodes, graphUsers, orphans int
	steps                           uint64
	// What does not fit.
	leftNodes, leftUsers, leftJobs, leftExports int
}

type node struct {
	name, driver  string
	readOnly      bool
	size, highest int64
	specific      *qapi.BlockStatsSpecific
}

type user struct {
	root           *blockgraph.Root
	kind, id, node string
}

type export struct {
	exports.Use
	node string
}

// take takes a snapshot; false when the loop has stopped.
func (c *collector) take() (*snapshot, bool) {
	s := &snapshot{}
	asked := c.Clock.Now()
	ok := c.Graph.Loop().Do(func() {
		s.latency = clock.Since(c.Clock, asked)
		c.look(s)
	})
	return s, ok
}

// look fills a snapshot.
//
//blockd:global loop
func (c *collector) look(s *snapshot) {
	s.steps, s.orphans = c.Graph.History().Last(), c.Graph.Orphans()
	nodes := c.Graph.Nodes()
	slices.Reverse(nodes)
	s.graphNodes = len(nodes)
	nodes, s.leftNodes = bound(nodes, c.Limits.Nodes)
	s.nodes = make([]node, len(nodes))
	for i, n := range nodes {
		s.nodes[i] = node{name: n.Name(), driver: n.Type().Name, readOnly: n.ReadOnly(), size: n.Size(), highest: n.WriteHighest()}
		if d, counts := n.Driver().(blockgraph.StatsCounter); counts {
			s.nodes[i].specific = d.DriverStats(n.Type().Name)
		}
	}

	uses := c.Exports.Uses()
	ids := make(map[*blockgraph.Root]string, len(uses))
	for _, u := range uses {
		ids[u.Root] = u.ID
	}
	uses, s.leftExports = bound(uses, c.Limits.Exports)
	s.exports = make([]export, len(uses))
	for i, u := range uses {
		s.exports[i] = export{u, nodeOf(u.Root)}
	}

	roots := c.Graph.Roots()
	s.graphUsers = len(roots)
	slices.SortFunc(roots, func(a, b *blockgraph.Root) int { return cmp.Compare(a.ID(), b.ID()) })
	roots, s.leftUsers = bound(roots, c.Limits.Users)
	s.users = make([]user, len(roots))
	for i, r := range roots {
		u := user{root: r, kind: "other", node: nodeOf(r)}
		if id, ok := ids[r]; ok {
			u.kind, u.id = "export", id
		} else if r.Job() != "" {
			u.kind, u.id = "job", r.Job()
		}
		s.users[i] = u
	}

	s.jobs = slices.DeleteFunc(c.Jobs.Infos(), func(j qapi.JobInfo) bool { return j.ID == "" })
	slices.Reverse(s.jobs)
	s.jobs, s.leftJobs = bound(s.jobs, c.Limits.Jobs)
}

// nodeOf returns the name of a root's node, or "".
func nodeOf(r *blockgraph.Root) string {
	if n := r.Node(); n != nil {
		return n.Name()
	}
	return ""
}

// bound returns the first most elements, and how many the others are.
func bound[T any](list []T, most int) ([]T, int) {
	if len(list) <= most {
		return list, 0
	}
	return list[:most], len(list) - most
}

// labels are those of the user's families.
func (u *user) labels() []string {
	return []string{strconv.FormatUint(u.root.ID(), 10), u.kind, u.id, u.node}
}
