package main

import (
	"fmt"
	"go/token"
	"go/types"

	"golang.org/x/tools/go/ssa"
)

// builder makes the nodes of a program and the calls between them.
type builder struct {
	*program
	marks     *marks
	contracts map[*types.Func]places
	nodes     map[*ssa.Function]*node
	methods   map[*types.Func]*node
	embedded  map[embeddedMethod]*node
	order     []*node
	problems  []string // what cannot be judged
	unscanned []*node
	loops     []*node
	todo      []pending
	values
}

func build(p *program, m *marks) *builder {
	b := &builder{
		program: p, marks: m, contracts: map[*types.Func]places{},
		nodes: map[*ssa.Function]*node{}, methods: map[*types.Func]*node{}, embedded: map[embeddedMethod]*node{},
	}
	b.readContracts(p.sorted)
	for fn := range p.all {
		if fn.TypeParams().Len() > 0 && len(fn.TypeArgs()) == 0 || !p.inModule(fn) {
			continue
		}
		if fn.Parent() != nil && topOf(fn).TypeParams().Len() > 0 && len(topOf(fn).TypeArgs()) == 0 {
			continue
		}
		b.of(fn)
	}
	b.scanNew()
	b.passUp()
	b.classReaders()
	return b
}

// scanNew scans the functions that were found since.
func (b *builder) scanNew() {
	for len(b.unscanned) > 0 {
		n := b.unscanned[0]
		b.unscanned = b.unscanned[1:]
		b.scan(n, n.fn)
	}
}

func topOf(fn *ssa.Function) *ssa.Function {
	for fn.Parent() != nil {
		fn = fn.Parent()
	}
	return fn
}

func (n *node) call(to *node, pos token.Pos, kind edgeKind, held string, token bool) {
	n.edges = append(n.edges, edge{to: to, pos: pos, kind: kind, held: held, token: token})
	to.from = append(to.from, edgeFrom{n, kind})
}

// scan finds what a function does and calls.
func (b *builder) scan(n *node, fn *ssa.Function) {
	held := b.heldIn(fn)
	for _, block := range fn.Blocks {
		for i, instr := range block.Instrs {
			h := held.at(block, i)
			switch instr := instr.(type) {
			case *ssa.Send:
				n.wait("sends to a channel", instr.Pos(), h)
			case *ssa.UnOp:
				if instr.Op == token.ARROW {
					n.wait("receives from a channel", instr.Pos(), h)
				}
			case *ssa.Select:
				if instr.Blocking {
					n.wait("selects without default", instr.Pos(), h)
				}
			case *ssa.FieldAddr:
				b.touch(n, fieldOf(instr.X.Type(), instr.Field), instr.X, instr.Pos())
			case *ssa.Field:
				b.touch(n, fieldOf(instr.X.Type(), instr.Field), instr.X, instr.Pos())
			case *ssa.Store:
				b.keep(n, instr)
			case ssa.CallInstruction:
				b.callSite(n, instr, h)
			}
		}
	}
}

func (n *node) wait(what string, pos token.Pos, held string) {
	n.acts = append(n.acts, act{what: what, pos: pos, waits: true, in: everywhere &^ onLoop, held: held})
}

// waitOnce is wait for what is found from several sides.
func (n *node) waitOnce(what string, pos token.Pos) {
	for _, a := range n.acts {
		if a.what == what {
			return
		}
	}
	n.wait(what, pos, "")
}

// fieldOf is the field that an instruction selects.
func fieldOf(t types.Type, i int) *types.Var {
	t = t.Underlying()
	if p, ok := t.(*types.Pointer); ok {
		t = p.Elem().Underlying()
	}
	s, ok := t.(*types.Struct)
	if !ok {
		return nil
	}
	return s.Field(i).Origin()
}

// touch notes the use of a field of the control plane, but for an object that
// the function has just made.
func (b *builder) touch(n *node, f *types.Var, of ssa.Value, pos token.Pos) {
	d := b.marks.fields[f]
	if d == nil || d.class == nil {
		return
	}
	if _, mine := of.(*ssa.Alloc); mine {
		return
	}
	n.acts = append(n.acts, act{what: "the field " + f.Name(), pos: pos, in: d.class.in})
}

// keep notes that a function is put into a field of another module's type: some
// function of that module calls it later. When those may wait it is on no
// loop; else it may be anywhere.
func (b *builder) keep(n *node, s *ssa.Store) {
	f, ok := s.Addr.(*ssa.FieldAddr)
	if !ok {
		return
	}
	if _, ok := s.Val.Type().Underlying().(*types.Signature); !ok {
		return
	}
	owner := namedOf(f.X.Type())
	if owner == nil || owner.Obj().Pkg() == nil || b.module[owner.Obj().Pkg()] {
		return
	}
	r := packageRows[owner.Obj().Pkg().Path()]
	as := r.calls
	switch {
	case as != nil:
	case r.waits:
		as = &classIO
	default:
		as = &classAny
	}
	b.giveTo(n, s.Val, paramUse{kind: edgeKind{as: as}, in: n, at: s.Pos()})
}

// callSite notes one call, go or defer.
func (b *builder) callSite(n *node, site ssa.CallInstruction, held string) {
	c := site.Common()
	kind := edgeKind{}
	if _, ok := site.(*ssa.Go); ok {
		kind.spawn = true
		held = ""
	}
	if _, ok := c.Value.(*ssa.Builtin); ok {
		return
	}
	if c.IsInvoke() {
		b.invoke(n, site, kind, held)
		return
	}
	if fn := c.StaticCallee(); fn != nil {
		b.reach(n, fn, site, kind, held)
		return
	}
	if i, ok := parameter(n.fn, c.Value); ok {
		b.use(n, i, paramUse{kind: kind, held: held, token: b.givesToken(c), site: site, in: n})
		return
	}
	for _, fn := range b.callees(n.fn, site) {
		b.reach(n, fn, site, kind, held)
	}
}

// callees is what the call graph says that a site reaches.
func (b *builder) callees(fn *ssa.Function, site ssa.CallInstruction) []*ssa.Function {
	var list []*ssa.Function
	if g := b.calls.Nodes[fn]; g != nil {
		for _, e := range g.Out {
			if e.Site == site {
				list = append(list, e.Callee.Func)
			}
		}
	}
	return list
}

// reach notes a call of a function.
func (b *builder) reach(n *node, fn *ssa.Function, site ssa.CallInstruction, kind edgeKind, held string) {
	if b.inModule(fn) {
		n.call(b.of(fn), site.Pos(), kind, held, b.givesToken(site.Common()))
		return
	}
	b.reachExternal(n, fn, site, kind, held)
}

// reachExternal notes a call of a function of another module: what it does by
// its row, and that it calls what it is given.
func (b *builder) reachExternal(n *node, fn *ssa.Function, site ssa.CallInstruction, kind edgeKind, held string) {
	r, ok := externalFunc(fn)
	if !ok {
		b.problems = append(b.problems, fmt.Sprintf("%s: no row in tools/planecheck/external.go for %s", b.place(site.Pos()), fn.RelString(nil)))
		return
	}
	c := site.Common()
	name := fn.RelString(nil)
	switch {
	case kind.spawn:
	case r.waits:
		n.wait("may wait in "+name, site.Pos(), held)
	case r.lock:
		if m := b.mutex(c.Args[0]); !m.short {
			n.wait("takes the mutex "+m.name, site.Pos(), held)
		}
	}
	switch {
	case r.spawn:
		kind.spawn = true
		held = ""
	case r.keep:
		kind.as = &classIO
		held = ""
	}
	sig := fn.Signature
	for i, arg := range c.Args {
		b.give(n, arg, paramType(sig, i), site, kind, held)
	}
}

// paramType is the type of what goes in as the i-th argument, the receiver
// among them.
func paramType(sig *types.Signature, i int) types.Type {
	if sig.Recv() != nil {
		if i == 0 {
			return sig.Recv().Type()
		}
		i--
	}
	if i < sig.Params().Len() {
		return sig.Params().At(i).Type()
	}
	return nil
}

// give notes that a function or a value with methods goes to another module,
// which calls it.
func (b *builder) give(n *node, arg ssa.Value, as types.Type, site ssa.CallInstruction, kind edgeKind, held string) {
	if as == nil {
		return
	}
	switch t := as.Underlying().(type) {
	case *types.Signature:
		b.giveTo(n, arg, paramUse{kind: kind, held: held, site: site, in: n})
	case *types.Interface:
		for m := range t.Methods() {
			b.giveTo(n, arg, paramUse{method: m, kind: kind, held: held, site: site, in: n})
		}
	}
}

// giveTo notes that what a value holds is called as use says.
func (b *builder) giveTo(n *node, arg ssa.Value, use paramUse) {
	if i, ok := parameter(n.fn, arg); ok {
		b.use(n, i, use)
		return
	}
	if use.method != nil {
		b.giveMethod(n, arg, use)
		return
	}
	for _, fn := range b.functionsIn(arg) {
		if b.inModule(fn) {
			n.call(b.of(fn), use.pos(), use.kind, use.held, use.token)
		} else {
			b.reachExternalNoArgs(n, fn, use)
		}
	}
}

// reachExternalNoArgs is a call of an external function through a value.
func (b *builder) reachExternalNoArgs(n *node, fn *ssa.Function, use paramUse) {
	r, ok := externalFunc(fn)
	switch {
	case !ok:
		b.problems = append(b.problems, fmt.Sprintf("%s: no row in tools/planecheck/external.go for %s", b.place(use.pos()), fn.RelString(nil)))
	case (r.waits || r.lock) && !use.kind.spawn && use.kind.as == nil:
		n.wait("may wait in "+fn.RelString(nil), use.pos(), use.held)
	}
}

// giveMethod notes that a method of a value is called.
func (b *builder) giveMethod(n *node, arg ssa.Value, use paramUse) {
	switch v := arg.(type) {
	case *ssa.MakeInterface:
		sel := types.NewMethodSet(v.X.Type()).Lookup(use.method.Pkg(), use.method.Name())
		if sel == nil {
			return
		}
		fn := n.fn.Prog.MethodValue(sel)
		if fn == nil {
			return
		}
		if b.inModule(fn) {
			n.call(b.of(fn), use.pos(), use.kind, use.held, use.token)
		} else {
			b.reachExternalNoArgs(n, fn, use)
		}
	case *ssa.ChangeInterface:
		b.giveMethod(n, v.X, use)
	case *ssa.Const:
	case *ssa.Phi:
		for _, e := range v.Edges {
			if _, loop := e.(*ssa.Phi); loop {
				b.invokeMethod(n, e.Type(), use)
				continue
			}
			b.giveTo(n, e, use)
		}
	default:
		b.invokeMethod(n, v.Type(), use)
	}
}

// invokeMethod notes a call of a method of an interface that may hold
// anything.
func (b *builder) invokeMethod(n *node, t types.Type, use paramUse) {
	m := use.method
	if obj, _, _ := types.LookupFieldOrMethod(t, false, m.Pkg(), m.Name()); obj != nil {
		if fn, ok := obj.(*types.Func); ok {
			m = fn
		}
	}
	if in := b.ofEmbedded(t, m); in != nil {
		n.call(in, use.pos(), use.kind, use.held, use.token)
		return
	}
	if m.Pkg() != nil && b.module[m.Pkg()] {
		n.call(b.ofMethod(m), use.pos(), use.kind, use.held, use.token)
		return
	}
	if interfaceWaits(t, m) && !use.kind.spawn && use.kind.as == nil {
		n.wait("may wait in "+m.FullName(), use.pos(), use.held)
	}
}

// invoke notes a call through an interface.
func (b *builder) invoke(n *node, site ssa.CallInstruction, kind edgeKind, held string) {
	c := site.Common()
	m := c.Method.Origin()
	if m.Pkg() != nil && b.module[m.Pkg()] && namedOf(m.Signature().Recv().Type()) != nil {
		in := b.ofMethod(m)
		n.call(in, site.Pos(), kind, held, b.givesToken(c))
		if in.handoff != nil {
			for _, a := range c.Args {
				if _, ok := a.Type().Underlying().(*types.Signature); ok {
					b.giveTo(n, a, paramUse{kind: edgeKind{as: in.handoff}, in: n, site: site})
				}
			}
		}
		for _, fn := range b.callees(n.fn, site) {
			in.implemented(b, fn)
		}
		return
	}
	if in := b.ofEmbedded(c.Value.Type(), m); in != nil {
		n.call(in, site.Pos(), kind, held, b.givesToken(c))
		for _, fn := range b.callees(n.fn, site) {
			in.implemented(b, fn)
		}
		return
	}
	if m.Pkg() == nil || !b.module[m.Pkg()] { // what it is given, it calls
		for i, arg := range c.Args {
			b.give(n, arg, paramType(m.Signature(), i+1), site, kind, held)
		}
	}
	if i, ok := parameter(n.fn, c.Value); ok {
		b.use(n, i, paramUse{method: m, kind: kind, held: held, token: b.givesToken(c), site: site, in: n})
		return
	}
	if m.Pkg() != nil && b.module[m.Pkg()] { // an interface without a name: whatever the call graph says
		for _, fn := range b.callees(n.fn, site) {
			b.reach(n, fn, site, kind, held)
		}
		return
	}
	b.invokeMethod(n, c.Value.Type(), paramUse{method: m, kind: kind, held: held, site: site, in: n})
	for _, fn := range b.callees(n.fn, site) {
		if b.inModule(fn) && !interfaceWaits(c.Value.Type(), m) {
			b.reach(n, fn, site, kind, held) // it must be as quick as the table says
		}
	}
}

// implemented notes that an interface's method may be this function.
func (n *node) implemented(b *builder, fn *ssa.Function) {
	if !b.inModule(fn) {
		if r, ok := externalFunc(fn); ok && r.waits {
			n.waitOnce("may wait in "+fn.RelString(nil), n.pos)
		}
		return
	}
	to := b.of(fn)
	for _, e := range n.edges {
		if e.to == to {
			return
		}
	}
	pos := fn.Pos()
	if to.hidden {
		pos = n.pos
	}
	n.call(to, pos, edgeKind{}, "", false)
}

// givesToken tells whether a call hands over a token.
func (b *builder) givesToken(c *ssa.CallCommon) bool {
	for _, a := range c.Args {
		if b.isToken(a.Type()) {
			return true
		}
	}
	return c.IsInvoke() && b.isToken(c.Value.Type())
}
