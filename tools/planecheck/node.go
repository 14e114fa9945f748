package main

import (
	"go/token"
	"go/types"
	"strings"

	"golang.org/x/tools/go/packages"
	"golang.org/x/tools/go/ssa"
)

// node is a function of the module, or a method of an interface of it.
type node struct {
	name  string
	pos   token.Pos
	class *class // nil: it runs where it is called
	// own: the class stands at the function itself.
	own   bool
	plain bool // any, but not to be counted
	// settled: the class does not come from a default.
	settled bool
	// hidden: made by the compiler, left out of what is printed.
	hidden  bool
	seen    bool // a chain has come to it
	handoff *class
	loop    bool   // where the loop itself waits for work
	wrong   string // what is wrong with its directive
	token   bool   // has a token as receiver or parameter
	fn      *ssa.Function

	acts  []act
	edges []edge
	from  []edgeFrom
	// params says how the function calls what it is given.
	params map[int][]paramUse
}

// act is something that a function does itself.
type act struct {
	what string
	pos  token.Pos
	// waits: not on the loop, and not while a short mutex is held.
	waits bool
	// in: where it may be done.
	in   places
	held string // the short mutex that is held meanwhile, or ""
}

// edge is a call.
type edge struct {
	to    *node
	pos   token.Pos
	kind  edgeKind
	held  string
	token bool // the callee is given a token
}

type edgeFrom struct {
	from *node
	kind edgeKind
}

// edgeKind says where the callee runs.
type edgeKind struct {
	spawn bool   // on a goroutine of its own
	as    *class // where a hand-off runs it
}

func (k edgeKind) arrow() string {
	switch {
	case k.as != nil:
		return " -> posts "
	case k.spawn:
		return " -> go "
	}
	return " -> "
}

// places is where the callee runs when the caller runs in p.
func (e *edge) places(p places) places {
	switch {
	case e.kind.as != nil:
		p = e.kind.as.in
	case e.kind.spawn:
		return p.started()
	}
	if e.token || e.to.token {
		p = p.taken()
	}
	return p
}

// classOf finds the class of a declared function or of an interface's method.
func (b *builder) classOf(fn *types.Func) (c *class, own, plain, settled bool) {
	if d := b.marks.funcs[fn]; d != nil && d.class != nil {
		return d.class, true, false, true
	}
	if d := b.marks.methods[fn]; d != nil && d.class != nil {
		return d.class, true, false, true
	}
	if isCalledOnAny(fn) {
		return &classAny, false, true, true
	}
	if c := b.contracts[fn]; c != nodeless {
		k := smallest(c)
		return &k, false, false, true
	}
	if b.takesToken(fn.Signature()) {
		return &classBlock, false, false, true
	}
	if recv := fn.Signature().Recv(); recv != nil {
		if n := namedOf(recv.Type()); n != nil {
			if d := b.marks.types[n.Obj()]; d != nil && d.class != nil {
				return d.class, false, false, false
			}
		}
	}
	if c = b.marks.packages[fn.Pkg().Path()]; c == nil {
		c = &classIO
	}
	return c, false, c.name == classAny.name, false
}

const nodeless places = 0

// readContracts gives methods the classes of the interface methods that they
// implement.
func (b *builder) readContracts(module []*packages.Package) {
	type contract struct {
		iface *types.Interface
		in    map[string]places
	}
	var contracts []contract
	var concrete []*types.Named
	for _, p := range module {
		scope := p.Types.Scope()
		for _, name := range scope.Names() {
			tn, ok := scope.Lookup(name).(*types.TypeName)
			if !ok || tn.IsAlias() {
				continue
			}
			n, ok := tn.Type().(*types.Named)
			if !ok {
				continue
			}
			iface, ok := n.Underlying().(*types.Interface)
			if !ok {
				concrete = append(concrete, n)
				continue
			}
			if n.TypeParams().Len() > 0 {
				continue
			}
			c := contract{iface, map[string]places{}}
			for m := range iface.Methods() {
				if in := b.marked(n, m); in != nowhere {
					c.in[m.Name()] = in
				}
			}
			if len(c.in) > 0 {
				contracts = append(contracts, c)
			}
		}
	}
	for _, n := range concrete {
		if n.TypeParams().Len() > 0 {
			continue
		}
		for _, c := range contracts {
			if !types.Implements(types.NewPointer(n), c.iface) {
				continue
			}
			for name, in := range c.in {
				obj, _, _ := types.LookupFieldOrMethod(types.NewPointer(n), false, n.Obj().Pkg(), name)
				if fn, ok := obj.(*types.Func); ok {
					b.contracts[fn] |= in
				}
			}
		}
	}
}

// marked is the class that a directive gives an interface's method.
func (b *builder) marked(of *types.Named, m *types.Func) places {
	if d := b.marks.methods[m]; d != nil && d.class != nil {
		return d.class.in
	}
	n := namedOf(m.Signature().Recv().Type())
	if n == nil || m.Pkg() == nil || !b.module[m.Pkg()] {
		n = of
	}
	if d := b.marks.types[n.Obj()]; d != nil && d.class != nil {
		return d.class.in
	}
	return nowhere
}

// takesToken tells whether a receiver or parameter is a token.
func (b *builder) takesToken(sig *types.Signature) bool {
	if r := sig.Recv(); r != nil && b.isToken(r.Type()) {
		return true
	}
	for v := range sig.Params().Variables() {
		if b.isToken(v.Type()) {
			return true
		}
	}
	return false
}

func (b *builder) isToken(t types.Type) bool {
	n := namedOf(t)
	return n != nil && b.marks.tokens[n.Obj()]
}

// of returns the node of a function with a body in the module.
func (b *builder) of(fn *ssa.Function) *node {
	if n := b.nodes[fn]; n != nil {
		return n
	}
	n := &node{fn: fn, pos: fn.Pos(), name: functionName(fn), params: map[int][]paramUse{}}
	b.nodes[fn] = n
	b.unscanned = append(b.unscanned, n)
	n.token = b.takesToken(fn.Signature)
	if isWrapper(fn) {
		n.hidden = true
		if v := fn.FreeVars; len(v) > 0 && b.isToken(v[0].Type()) {
			n.token = true
		}
		return n
	}
	origin := fn
	if o := fn.Origin(); o != nil {
		origin = o
	}
	switch {
	case fn.Parent() != nil:
		if c := b.marks.literals[fn.Pos()]; c != nil {
			n.class, n.own = c, true
		}
	case fn.Synthetic == "package initializer" || origin.Object() == nil:
		n.class = &classBlock // one goroutine, before main
		if fn.Synthetic == "package initializer" {
			n.hidden = true
		}
	default:
		obj := origin.Object().(*types.Func)
		if isCalledOnAny(obj) {
			if d := b.marks.funcs[obj]; d != nil && d.class != nil && d.class.name != classAny.name {
				n.wrong = "is called on values of any type, so it is any, not " + d.class.name
			}
		}
		n.class, n.own, n.plain, n.settled = b.classOf(obj)
		if d := b.marks.funcs[obj]; d != nil {
			n.handoff, n.loop = d.handoff, d.loop
			if d.loop {
				b.loops = append(b.loops, n)
			}
		}
	}
	n.narrow()
	b.order = append(b.order, n)
	return n
}

// ofMethod returns the node of an interface's method.
func (b *builder) ofMethod(m *types.Func) *node {
	if n := b.methods[m]; n != nil {
		return n
	}
	n := &node{pos: m.Pos(), name: receiverName(m) + "." + m.Name() + "()"}
	b.methods[m] = n
	n.class, n.own, n.plain, n.settled = b.classOf(m)
	if d := b.marks.methods[m]; d != nil {
		n.handoff = d.handoff
	}
	n.token = b.takesToken(m.Signature())
	n.narrow()
	b.order = append(b.order, n)
	return n
}

// ofEmbedded returns the node of a method that an interface of the module has
// from one of another module; nil for others.
func (b *builder) ofEmbedded(t types.Type, m *types.Func) *node {
	owner := namedOf(t)
	if owner == nil || owner.Obj().Pkg() == nil || !b.module[owner.Obj().Pkg()] || !types.IsInterface(owner) || m.Pkg() != nil && b.module[m.Pkg()] {
		return nil
	}
	key := embeddedMethod{owner.Obj(), m.Name()}
	if n := b.embedded[key]; n != nil {
		return n
	}
	n := &node{pos: owner.Obj().Pos(), name: owner.Obj().Name() + "." + m.Name() + "()", class: &classIO}
	b.embedded[key] = n
	switch {
	case isCalledOnAny(m):
		n.class, n.plain = &classAny, true
	case b.marks.types[owner.Obj()] != nil && b.marks.types[owner.Obj()].class != nil:
		n.class = b.marks.types[owner.Obj()].class
	case b.marks.packages[owner.Obj().Pkg().Path()] != nil:
		n.class = b.marks.packages[owner.Obj().Pkg().Path()]
		n.plain = n.class.name == classAny.name
	}
	b.order = append(b.order, n)
	return n
}

type embeddedMethod struct {
	owner types.Object
	name  string
}

// narrow makes a blocking function with a token one that holds it.
func (n *node) narrow() {
	if n.class != nil && n.token && n.class.in == classBlock.in {
		n.class = &classToken
	}
}

// functionName is how findings name a function: Graph.Update(), copy.NewJob().
func functionName(fn *ssa.Function) string {
	if fn.Parent() != nil {
		return strings.TrimSuffix(functionName(fn.Parent()), "()") + strings.TrimPrefix(fn.Name(), fn.Parent().Name()) + "()"
	}
	if o := fn.Origin(); o != nil {
		fn = o
	}
	name := fn.Name()
	if obj, ok := fn.Object().(*types.Func); ok {
		if r := receiverName(obj); r != "" {
			return r + "." + name + "()"
		}
	}
	return name + "()"
}
