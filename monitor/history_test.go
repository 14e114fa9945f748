package monitor

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"blockd/blockgraph"
	"blockd/blockgraph/graphtest"
	"blockd/clock"
	"blockd/exports"
	"blockd/qapi"
)

// picture is what x-debug-query-block-graph shows, without what it does not
// tell apart: how many there are of each node, user and edge. (Two roots of one
// job are one there, so a job counts its edges.)
type picture map[string]int

func (p picture) count(what string, by int) {
	p[what] += by
	if p[what] == 0 {
		delete(p, what)
	}
}

func draw(g *blockgraph.Graph) picture {
	drawn := &qapi.XDbgBlockGraph{}
	drawGraph(g, drawn)
	p := picture{}
	names := map[uint64]string{}
	for _, n := range drawn.Nodes {
		names[n.ID] = string(n.Type) + " " + n.Name
		if n.Type != qapi.XDbgBlockGraphNodeTypeBlockJob {
			p.count(names[n.ID], 1)
		}
	}
	for _, e := range drawn.Edges {
		if strings.HasPrefix(names[e.Parent], "block-job ") {
			p.count(names[e.Parent], 1)
		}
		p.count(edgeText(names[e.Parent], e.Name, strings.TrimPrefix(names[e.Child], "block-driver "), e.Perm, e.SharedPerm), 1)
	}
	return p
}

// viewed is the same from x-query-graph.
func viewed(m *Monitor) picture {
	v := &qapi.GraphView{}
	m.viewGraph(v, nil)
	p := picture{}
	users := map[uint64]string{}
	for _, n := range v.Nodes {
		p.count("block-driver "+n.NodeName, 1)
	}
	for _, r := range v.Roots {
		users[r.Root] = rootText(r.Job)
		p.count(users[r.Root], 1)
	}
	for _, e := range v.Edges {
		var parent string
		if e.ParentNode != nil {
			parent = "block-driver " + *e.ParentNode
		} else {
			parent = users[*e.ParentRoot]
		}
		p.count(edgeText(parent, e.Name, e.Child, e.Perm, e.SharedPerm), 1)
	}
	return p
}

func edgeText(parent, name, child string, perm, shared []qapi.BlockPermission) string {
	return fmt.Sprint(parent, " -", name, "-> ", child, " ", perm, " ", shared)
}

func rootText(job *string) string {
	if job == nil {
		return "block-backend "
	}
	return "block-job " + *job
}

// apply makes (by 1) or takes back (by -1) what a step says.
func (p picture) apply(s *qapi.GraphStep, by int) {
	for i := range s.Changes {
		c := &s.Changes[i]
		parent := func(e *qapi.GraphChangeEdge) string {
			if e.ParentNode != nil {
				return "block-driver " + *e.ParentNode
			}
			return rootText(e.Job)
		}
		is := func(e *qapi.GraphChangeEdge, n qapi.GraphChangePermissions) {
			p.count(edgeText(parent(e), e.Name, e.Child, n.Perm, n.SharedPerm), by)
		}
		was := func(e *qapi.GraphChangeEdge, child string, o qapi.GraphChangeOldPermissions) {
			p.count(edgeText(parent(e), e.Name, child, o.OldPerm, o.OldSharedPerm), -by)
		}
		switch c.Type {
		case qapi.GraphChangeTypeNodeAdded:
			p.count("block-driver "+c.Node.NodeName, by)
		case qapi.GraphChangeTypeNodeRemoved:
			p.count("block-driver "+c.Node.NodeName, -by)
		case qapi.GraphChangeTypeRootAdded:
			p.count(rootText(c.Root.Job), by)
		case qapi.GraphChangeTypeRootRemoved:
			p.count(rootText(c.Root.Job), -by)
		case qapi.GraphChangeTypeLinked:
			is(&c.Linked.GraphChangeEdge, c.Linked.GraphChangePermissions)
		case qapi.GraphChangeTypeUnlinked:
			was(&c.Unlinked.GraphChangeEdge, c.Unlinked.Child, c.Unlinked.GraphChangeOldPermissions)
		case qapi.GraphChangeTypeRelinked:
			was(&c.Relinked.GraphChangeEdge, c.Relinked.OldChild, c.Relinked.GraphChangeOldPermissions)
			is(&c.Relinked.GraphChangeEdge, c.Relinked.GraphChangePermissions)
		case qapi.GraphChangeTypePermissions:
			was(&c.Permissions.GraphChangeEdge, c.Permissions.Child, c.Permissions.GraphChangeOldPermissions)
			is(&c.Permissions.GraphChangeEdge, c.Permissions.GraphChangePermissions)
		}
	}
}

// changer makes random changes of a graph.
type changer struct {
	t     *rapid.T
	w     *graphtest.World
	made  int
	roots []*blockgraph.Root
}

func (c *changer) nodes() (nodes []*blockgraph.Node) {
	c.w.Graph.Loop().Do(func() { nodes = c.w.Graph.Nodes() })
	return nodes
}

func (c *changer) node() *blockgraph.Node {
	if all := c.nodes(); len(all) > 0 {
		return all[rapid.IntRange(0, len(all)-1).Draw(c.t, "node")]
	}
	return nil
}

func (c *changer) name() string { c.made++; return fmt.Sprintf("n%d", c.made) }

func perms(t *rapid.T, label string) blockgraph.Perm {
	return blockgraph.Perm(rapid.IntRange(0, int(blockgraph.PermAll)).Draw(t, label))
}

// operation draws something to do within a change.
func (c *changer) operation() func(tx *blockgraph.Tx) error {
	n, other := c.node(), c.node()
	kind := rapid.IntRange(0, 10).Draw(c.t, "operation")
	own := rapid.Bool().Draw(c.t, "owned")
	open := func(tx *blockgraph.Tx, o *qapi.BlockdevOptions) (*blockgraph.Node, error) {
		made, err := tx.Open(o)
		if err == nil && own {
			tx.SetMonitorOwned(made, true)
		}
		return made, err
	}
	mem := graphtest.MemOptions(c.name(), 4096)
	if n == nil || kind == 0 {
		return func(tx *blockgraph.Tx) error { _, err := open(tx, mem); return err }
	}
	switch kind {
	case 1: // an image over the node, with or without a backing file
		o := graphtest.ImageOptions(c.name(), n.Name(), "")
		if rapid.Bool().Draw(c.t, "backing") {
			o.Qcow2.Backing = &qapi.BlockdevRefOrNull{Reference: ptrTo(other.Name())}
		}
		if n.Type().Name != "mem" {
			o.Qcow2.File = qapi.BlockdevRef{Definition: graphtest.MemOptions(c.name(), 4096)}
		}
		return func(tx *blockgraph.Tx) error { _, err := open(tx, o); return err }
	case 2: // a filter in place of the node
		o := graphtest.PassOptions(c.name(), n.Name())
		return func(tx *blockgraph.Tx) error {
			f, err := open(tx, o)
			if err != nil {
				return err
			}
			return tx.ReplaceNode(n, f)
		}
	case 3: // a snapshot
		o := graphtest.ImageOptions(c.name(), *mem.NodeName, "")
		return func(tx *blockgraph.Tx) error {
			if _, err := tx.Open(mem); err != nil {
				return err
			}
			top, err := open(tx, o)
			if err != nil {
				return err
			}
			return tx.Append(top, n)
		}
	case 4:
		return func(tx *blockgraph.Tx) error { tx.SetMonitorOwned(n, own); return nil }
	case 5, 6:
		o := blockgraph.RootOptions{Perm: perms(c.t, "perm"), Shared: perms(c.t, "shared")}
		if rapid.Bool().Draw(c.t, "generous") {
			o.Shared = blockgraph.PermAll
		}
		if rapid.Bool().Draw(c.t, "job") {
			o.Job, o.Name = fmt.Sprint("job", rapid.IntRange(0, 2).Draw(c.t, "id")), "main node"
		}
		return func(tx *blockgraph.Tx) error {
			r, err := tx.NewRoot(n, o)
			if err == nil {
				tx.OnCommit(func() { c.roots = append(c.roots, r) })
			}
			return err
		}
	case 7:
		return func(tx *blockgraph.Tx) error { return tx.ReplaceNode(n, other) }
	case 8:
		return func(tx *blockgraph.Tx) error {
			if tx.State(n).Backing() == nil {
				return errors.New("no backing file")
			}
			if own {
				return tx.SetChild(n, "backing", blockgraph.RoleCOW, other)
			}
			return tx.SetChild(n, "backing", blockgraph.RoleCOW, nil)
		}
	case 9: // anticipates permissions within the change
		return func(tx *blockgraph.Tx) error { return tx.SetReadOnly(n, !tx.State(n).ReadOnly) }
	}
	if len(c.roots) == 0 {
		return func(*blockgraph.Tx) error { return nil }
	}
	i := rapid.IntRange(0, len(c.roots)-1).Draw(c.t, "root")
	r := c.roots[i]
	if own {
		perm := perms(c.t, "perm")
		return func(tx *blockgraph.Tx) error { return tx.SetRootPerms(r, perm, blockgraph.PermAll) }
	}
	c.roots = append(c.roots[:i:i], c.roots[i+1:]...)
	return func(tx *blockgraph.Tx) error {
		tx.OnAbort(func() { c.roots = append(c.roots, r) })
		return tx.CloseRoot(r)
	}
}

// TestHistoryLeadsFromAnyStateToAnyOther makes random changes, some of which
// fail, and keeps a picture of the graph as of each step; then the steps, as a
// client gets them, must lead from each picture to all others.
func TestHistoryLeadsFromAnyStateToAnyOther(t *testing.T) {
	failed, committed := 0, 0
	rapid.Check(t, func(rt *rapid.T) {
		w := graphtest.New(t)
		defer w.Graph.Loop().Stop()
		m := New(Config{Graph: w.Graph, Exports: exports.New(exports.Options{Graph: w.Graph})})
		pictures := []picture{{}}
		w.Graph.KeepHistory(1000, clock.Real(), func(s *blockgraph.Step) {
			if s.Number != uint64(len(pictures)) {
				rt.Errorf("step %d after %d", s.Number, len(pictures)-1)
			}
			pictures = append(pictures, draw(w.Graph))
		})
		c := &changer{t: rt, w: w}
		for range rapid.IntRange(1, 25).Draw(rt, "changes") {
			var todo []func(tx *blockgraph.Tx) error
			for range rapid.IntRange(1, 3).Draw(rt, "operations") {
				todo = append(todo, c.operation())
			}
			before := len(pictures)
			err := w.Graph.Update(context.Background(), blockgraph.Cause{Command: "test"}, func(tx *blockgraph.Tx) error {
				for _, f := range todo {
					if err := f(tx); err != nil {
						return err
					}
				}
				return nil
			})
			var now, view picture
			w.Graph.Loop().Do(func() { now, view = draw(w.Graph), viewed(m) })
			if !maps.Equal(now, view) {
				rt.Fatalf("x-query-graph shows another graph:\n%v\n%v", view, now)
			}
			if last := pictures[len(pictures)-1]; !maps.Equal(now, last) {
				rt.Fatalf("the graph is not what the last step left:\n%v\n%v", now, last)
			}
			if err == nil {
				committed++
				continue
			}
			failed++
			if len(pictures) != before {
				rt.Fatalf("a change that failed (%v) has %d steps", err, len(pictures)-before)
			}
		}
		replay(rt, m, pictures)
	})
	if failed == 0 || committed == 0 {
		t.Errorf("%d changes failed, %d did not", failed, committed)
	}
}

func replay(t *rapid.T, m *Monitor, pictures []picture) {
	h, err := m.queryGraphHistory(nil, &qapi.XQueryGraphHistoryArg{})
	if err != nil || !h.Complete || len(h.Steps) != len(pictures)-1 {
		t.Fatal(err, h.Complete, len(h.Steps), len(pictures))
	}
	v, err := qapi.ParseJSON(qapi.AppendJSON(nil, h))
	if err != nil {
		t.Fatal(err)
	}
	var steps qapi.GraphHistory
	if err := qapi.Decode(v, &steps); err != nil {
		t.Fatal(err)
	}
	for from := range pictures {
		p := maps.Clone(pictures[from])
		for k := from; k < len(steps.Steps); k++ {
			p.apply(&steps.Steps[k], 1)
			if !maps.Equal(p, pictures[k+1]) {
				t.Fatalf("forward from %d to %d:\n%v\nwant\n%v", from, k+1, p, pictures[k+1])
			}
		}
		p = maps.Clone(pictures[from])
		for k := from - 1; k >= 0; k-- {
			p.apply(&steps.Steps[k], -1)
			if !maps.Equal(p, pictures[k]) {
				t.Fatalf("backward from %d to %d:\n%v\nwant\n%v", from, k, p, pictures[k])
			}
		}
	}
}

func ptrTo[T any](v T) *T { return &v }
