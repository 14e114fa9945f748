package main

import (
	"cmp"
	"fmt"
	"go/token"
	"maps"
	"slices"
	"strings"
)

// result is what a run found.
type result struct {
	findings []string
	best     map[string]finding // by what is to be mended
	counts   map[string]int
	any      int // outside packages of plain values
}

// finding is a forbidden chain.
type finding struct {
	text string
	cost int // of several chains over the same last call the plainest is reported
	at   string
	// passed: the chain begins where functions are run that others handed over.
	// Theirs is reported, if there is one.
	passed bool
}

// step is a node on a chain.
type step struct {
	n    *node
	in   places
	prev *step
	kind edgeKind
	pos  token.Pos // of the call, or of the one that led to what the compiler made
}

// chain is the names from the first function on.
func (s *step) chain() string {
	if s.prev == nil {
		return s.n.name
	}
	if s.n.hidden {
		return s.prev.chain()
	}
	return s.prev.chain() + s.kind.arrow() + s.n.name
}

func check(b *builder) *result {
	r := &result{counts: map[string]int{}, best: map[string]finding{}}
	r.findings = append(r.findings, b.marks.errs...)
	r.findings = append(r.findings, b.problems...)
	if len(b.loops) > 1 {
		r.add(b, b.loops[1].pos, "%s: a second loop beside %s", b.loops[1].name, b.loops[0].name)
	}
	counted := map[token.Pos]bool{}
	for _, n := range b.order {
		if n.wrong != "" {
			r.add(b, n.pos, "%s %s", n.name, n.wrong)
		}
		if n.class == nil {
			if n.fn == nil || n.fn.Parent() == nil {
				r.add(b, n.pos, "%s has no class: give it or its package one", n.name)
			}
			continue
		}
		if !counted[n.pos] && !n.hidden {
			counted[n.pos] = true
			r.counts[n.class.plane()]++
			if n.class.name == classAny.name && !n.plain {
				r.any++
			}
		}
		b.walk(r, n)
	}
	b.walkUnseen(r)
	for _, n := range b.nodes {
		b.underLocks(r, n)
	}
	plain := map[string]bool{}
	for _, f := range r.best {
		plain[f.at] = plain[f.at] || !f.passed
	}
	for _, f := range r.best {
		if !f.passed || !plain[f.at] {
			r.findings = append(r.findings, f.text)
		}
	}
	slices.Sort(r.findings)
	r.findings = slices.Compact(r.findings)
	return r
}

func (r *result) add(b *builder, pos token.Pos, format string, args ...any) {
	r.findings = append(r.findings, fmt.Sprintf("%s: %s", b.place(pos), fmt.Sprintf(format, args...)))
}

// offer adds a chain, unless a plainer one ends in the same way.
func (r *result) offer(b *builder, s *step, pos token.Pos, what, format string, args ...any) {
	first, cost := s, 0
	for first.prev != nil {
		if !first.n.hidden {
			cost++
		}
		if first.kind.as != nil {
			cost++
		}
		first = first.prev
	}
	at := fmt.Sprint(b.place(pos), s.n.name, what)
	f := finding{fmt.Sprintf("%s: %s", b.place(pos), fmt.Sprintf(format, args...)), cost, at, first.n.handoff != nil || first.n.loop}
	key := at + first.n.class.plane()
	if have, ok := r.best[key]; !ok || f.cost < have.cost || f.cost == have.cost && f.text < have.text {
		r.best[key] = f
	}
}

// walkUnseen looks at function literals that no chain has come to: the call
// graph has lost them, so they may be called from anywhere.
func (b *builder) walkUnseen(r *result) {
	for _, n := range b.sortedNodes() {
		if n.class == nil && !n.seen && !n.hidden {
			n.class = &classAny
			n.plain = true
			b.walk(r, n)
		}
	}
}

// sortedNodes are the functions with bodies, in the order of the source.
func (b *builder) sortedNodes() []*node {
	return slices.SortedFunc(maps.Values(b.nodes), func(x, y *node) int {
		return cmp.Or(cmp.Compare(x.pos, y.pos), cmp.Compare(x.name, y.name))
	})
}

// walk follows what a function with a class does and calls, through functions
// that have none.
func (b *builder) walk(r *result, root *node) {
	type visit struct {
		n  *node
		in places
	}
	seen := map[visit]bool{}
	todo := []*step{{n: root, in: root.class.in}}
	for len(todo) > 0 {
		s := todo[0]
		todo = todo[1:]
		s.n.seen = true
		for _, a := range s.n.acts {
			if s.in&^a.in == 0 || a.waits && s.n.loop {
				continue
			}
			verb := a.what
			if !a.waits {
				verb = "uses " + a.what
			}
			h := b.head(s)
			r.offer(b, s, a.pos, verb, "%s is %s, but %s: %s", h.n.name, h.n.class.plane(), verb, b.whole(s))
		}
		for i := range s.n.edges {
			e := &s.n.edges[i]
			in := e.places(s.in)
			if e.kind.spawn && e.to.own && e.to.class.in&onWorker != 0 {
				in = onWorker // it says itself that this starts a worker
			}
			next := &step{n: e.to, in: in, prev: s, kind: e.kind, pos: e.pos}
			if s.n.hidden && s.prev != nil || !e.pos.IsValid() {
				next.pos = s.pos
			}
			if !next.pos.IsValid() {
				next.pos = s.n.pos
			}
			if e.to.class == nil {
				if v := (visit{e.to, in}); !seen[v] {
					seen[v] = true
					todo = append(todo, next)
				}
				continue
			}
			if in&^e.to.class.in != 0 && !(e.to.loop && e.kind.spawn) {
				h := b.head(next)
				r.offer(b, next, next.pos, "", "%s is %s, but %s: %s", h.n.name, h.n.class.plane(), b.goal(e), b.whole(next))
			}
		}
	}
}

// goal says what is wrong with a call.
func (b *builder) goal(e *edge) string {
	if e.kind.as != nil {
		return "posts " + e.to.class.plane() + " code as " + e.kind.as.plane()
	}
	return "calls " + e.to.class.name + " code"
}

// head is the first function of the whole chain.
func (b *builder) head(s *step) *step {
	for s.prev != nil {
		s = s.prev
	}
	return b.callers(s)
}

// callers goes back from a function that has its class from its package or type,
// to one of the same class that says itself what it is: there the chain begins
// that a reader knows.
func (b *builder) callers(s *step) *step {
	root := s.n
	if root.own {
		return s
	}
	seen := map[*node]bool{root: true}
	todo := []*step{{n: root}}
	for len(todo) > 0 {
		at := todo[0]
		todo = todo[1:]
		for _, f := range at.n.from {
			if f.kind.as != nil || f.kind.spawn || seen[f.from] || f.from.class != nil && f.from.class.name != root.class.name {
				continue
			}
			seen[f.from] = true
			up := &step{n: f.from, prev: at, kind: edgeKind{}}
			if f.from.own {
				return up
			}
			todo = append(todo, up)
		}
	}
	return s
}

// whole is the chain from its head to its end.
func (b *builder) whole(s *step) string {
	first := s
	for first.prev != nil {
		first = first.prev
	}
	h := b.callers(first)
	var before strings.Builder
	for ; h.prev != nil; h = h.prev {
		if !h.n.hidden {
			before.WriteString(h.n.name + " -> ")
		}
	}
	return before.String() + s.chain()
}

// underLocks looks for what may wait while a short mutex is held.
func (b *builder) underLocks(r *result, n *node) {
	for _, a := range n.acts {
		if a.waits && a.held != "" {
			r.add(b, a.pos, "%s holds %s, which is short, but %s", n.name, a.held, a.what)
		}
	}
	for i := range n.edges {
		e := &n.edges[i]
		if e.held == "" || e.kind.spawn || e.kind.as != nil {
			continue
		}
		if s, a := waitsBelow(&step{n: e.to, prev: &step{n: n}, kind: e.kind}); s != nil {
			r.add(b, e.pos, "%s holds %s, which is short, but %s: %s", n.name, e.held, a.what, s.chain())
		}
	}
}

// waitsBelow finds the nearest thing that waits. Functions that may run on the
// loop are known not to.
func waitsBelow(first *step) (*step, *act) {
	seen := map[*node]bool{}
	todo := []*step{first}
	for len(todo) > 0 {
		s := todo[0]
		todo = todo[1:]
		if seen[s.n] || s.n.class != nil && s.n.class.in&onLoop != 0 {
			continue
		}
		seen[s.n] = true
		for i := range s.n.acts {
			if s.n.acts[i].waits {
				return s, &s.n.acts[i]
			}
		}
		for i := range s.n.edges {
			e := &s.n.edges[i]
			if !e.kind.spawn && e.kind.as == nil {
				todo = append(todo, &step{n: e.to, prev: s, kind: e.kind})
			}
		}
	}
	return nil, nil
}
