package main

import (
	"fmt"
	"go/token"
	"go/types"

	"golang.org/x/tools/go/callgraph"
	"golang.org/x/tools/go/ssa"
)

// This file is about functions that call what they are given: such a call is
// counted where the function is called itself.

// paramUse is a call of what a parameter holds: of the function itself, or of
// a method of it.
type paramUse struct {
	method *types.Func // nil: the parameter is the function
	kind   edgeKind
	held   string
	token  bool
	// site and in are where; for callers that nobody sees.
	site ssa.CallInstruction
	in   *node
	at   token.Pos // without a site
}

func (u *paramUse) pos() token.Pos {
	if u.site == nil {
		return u.at
	}
	return u.site.Pos()
}

type pending struct {
	n     *node
	param int
	use   paramUse
}

// parameter tells whether v is a parameter of fn.
func parameter(fn *ssa.Function, v ssa.Value) (int, bool) {
	switch x := v.(type) {
	case *ssa.ChangeType:
		return parameter(fn, x.X)
	case *ssa.ChangeInterface:
		return parameter(fn, x.X)
	case *ssa.Parameter:
		for i, p := range fn.Params {
			if p == x {
				return i, true
			}
		}
	}
	return 0, false
}

// use notes that a function calls what it is given as a parameter, for its
// callers.
func (b *builder) use(n *node, param int, u paramUse) {
	for _, have := range n.params[param] {
		if have.method == u.method && have.kind == u.kind && have.held == u.held {
			return
		}
	}
	n.params[param] = append(n.params[param], u)
	b.todo = append(b.todo, pending{n, param, u})
}

// passUp counts calls of parameters where these come from.
func (b *builder) passUp() {
	// Hand-offs say themselves where their functions run.
	for _, n := range b.order {
		if n.handoff != nil {
			b.handOver(n)
		}
	}
	for b.scanNew(); len(b.todo) > 0; b.scanNew() {
		p := b.todo[0]
		b.todo = b.todo[1:]
		if p.n.handoff != nil && p.use.kind.as == nil {
			b.checkHandoff(p.n, p.use)
			continue
		}
		g := b.calls.Nodes[p.n.fn]
		if g == nil {
			continue
		}
		unseen := false
		for _, e := range g.In {
			if !b.inModule(e.Caller.Func) || e.Site == nil {
				unseen = true
				continue
			}
			b.passTo(p, e)
		}
		if unseen {
			b.here(p.n, p.use)
		}
	}
}

// handOver has the functions that a hand-off is given run as its class says.
func (b *builder) handOver(n *node) {
	if n.fn == nil {
		return
	}
	for i, p := range n.fn.Params {
		if _, ok := p.Type().Underlying().(*types.Signature); ok {
			b.todo = append(b.todo, pending{n, i, paramUse{kind: edgeKind{as: n.handoff}, in: n}})
		}
	}
}

// checkHandoff holds that what a hand-off does itself with its functions is
// within what it says.
func (b *builder) checkHandoff(n *node, u paramUse) {
	in := everywhere
	if n.class != nil {
		in = n.class.in
	}
	if u.kind.spawn {
		in = in.started()
	}
	if in&^n.handoff.in != 0 {
		b.problems = append(b.problems, fmt.Sprintf("%s: %s hands over as %s, but calls the function itself, as %s", b.place(u.pos()), n.name, n.handoff.name, n.class.name))
	}
}

// passTo counts a call of a parameter at one caller.
func (b *builder) passTo(p pending, e *callgraph.Edge) {
	c := e.Site.Common()
	i := p.param
	if c.IsInvoke() {
		i--
	}
	if i < 0 || i >= len(c.Args) {
		// The receiver of an invoked method, or a bound one.
		b.here(p.n, p.use)
		return
	}
	caller := b.of(e.Caller.Func)
	use := p.use
	use.in = p.in(use)
	if _, spawned := e.Site.(*ssa.Go); spawned {
		use.kind.spawn = use.kind.as == nil
	}
	if use.site == nil || use.kind.as != nil {
		use.site = e.Site
	}
	arg := c.Args[i]
	if j, ok := parameter(caller.fn, arg); ok {
		b.use(caller, j, use)
		return
	}
	use.site = e.Site
	b.giveTo(caller, arg, use)
}

func (p pending) in(u paramUse) *node {
	if u.in != nil {
		return u.in
	}
	return p.n
}

// here counts a call of a parameter where it is made, with whatever the call
// graph says: for callers that are not of the module.
func (b *builder) here(n *node, u paramUse) {
	if u.site == nil || u.in == nil || u.in.fn == nil {
		return
	}
	if u.method != nil {
		b.invokeMethod(n, u.method.Signature().Recv().Type(), u)
	}
	for _, fn := range b.callees(u.in.fn, u.site) {
		if b.inModule(fn) {
			n.call(b.of(fn), u.pos(), u.kind, u.held, u.token)
		}
	}
}
