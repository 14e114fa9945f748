package main

import (
	"go/types"

	"golang.org/x/tools/go/ssa"
)

// This file finds which functions a value may be, where the call graph cannot
// be asked because the value is not called there but handed to another module:
// it goes back from the value to where it comes from.

// origins is a search for the functions that a value may be.
type origins struct {
	b    *builder
	seen map[ssa.Value]bool
	list []*ssa.Function
	// lost: the value comes from somewhere that is not seen.
	lost bool
}

// functionsIn returns the functions that a value may be. For one that cannot
// be followed it is every function of the module that is used as a value of
// that type.
func (b *builder) functionsIn(v ssa.Value) []*ssa.Function {
	o := &origins{b: b, seen: map[ssa.Value]bool{}}
	o.trace(v)
	if !o.lost {
		return o.list
	}
	b.indexValues()
	return b.byType[signatureKey(v.Type())]
}

func (o *origins) trace(v ssa.Value) {
	if v == nil || o.seen[v] || o.lost {
		return
	}
	o.seen[v] = true
	switch v := v.(type) {
	case *ssa.Function:
		o.list = append(o.list, v)
	case *ssa.MakeClosure:
		o.list = append(o.list, v.Fn.(*ssa.Function))
	case *ssa.Const:
	case *ssa.ChangeType:
		o.trace(v.X)
	case *ssa.Phi:
		for _, e := range v.Edges {
			o.trace(e)
		}
	case *ssa.UnOp:
		o.load(v.X)
	case *ssa.Field:
		o.field(fieldOf(v.X.Type(), v.Field))
	case *ssa.Parameter:
		o.parameter(v)
	case *ssa.Extract:
		if call, ok := v.Tuple.(*ssa.Call); ok {
			o.result(call, v.Index)
			return
		}
		o.lost = true
	case *ssa.Call:
		o.result(v, 0)
	default:
		o.lost = true
	}
}

// load follows what a variable holds.
func (o *origins) load(addr ssa.Value) {
	switch a := addr.(type) {
	case *ssa.FieldAddr:
		o.field(fieldOf(a.X.Type(), a.Field))
	case *ssa.Alloc, *ssa.Global:
		o.stores(a)
	case *ssa.FreeVar:
		if o.seen[a] {
			return
		}
		o.seen[a] = true
		o.stores(a)
		for _, bound := range o.bindings(a) {
			o.load(bound)
		}
	default:
		o.lost = true
	}
}

// stores follows what is written to a variable, by this function or by
// functions within it. A global's writers may be anywhere.
func (o *origins) stores(addr ssa.Value) {
	o.b.indexValues()
	for _, v := range o.b.written[addr] {
		o.trace(v)
	}
	for _, inner := range o.b.captured[addr] {
		if !o.seen[inner] {
			o.seen[inner] = true
			o.stores(inner)
		}
	}
	if o.b.escapes[addr] {
		o.lost = true
	}
}

func (o *origins) field(f *types.Var) {
	o.b.indexValues()
	if o.b.shared[f] || f == nil {
		o.lost = true
		return
	}
	for _, v := range o.b.fields[f] {
		o.trace(v)
	}
}

func (o *origins) bindings(v *ssa.FreeVar) []ssa.Value {
	o.b.indexValues()
	return o.b.bound[v]
}

// parameter follows what the callers give.
func (o *origins) parameter(p *ssa.Parameter) {
	fn := p.Parent()
	i, _ := parameter(fn, p)
	g := o.b.calls.Nodes[fn]
	if g == nil {
		return
	}
	for _, e := range g.In {
		if e.Site == nil || !o.b.inModule(e.Caller.Func) {
			o.lost = true
			return
		}
		c := e.Site.Common()
		k := i
		if c.IsInvoke() {
			k--
		}
		if k < 0 || k >= len(c.Args) {
			o.lost = true
			return
		}
		o.trace(c.Args[k])
	}
}

// result follows what a call returns. What another module returns is that
// module's own function.
func (o *origins) result(call *ssa.Call, i int) {
	var callees []*ssa.Function
	if fn := call.Call.StaticCallee(); fn != nil {
		callees = []*ssa.Function{fn}
	} else {
		callees = o.b.callees(call.Parent(), call)
		if len(callees) == 0 {
			o.lost = true
		}
	}
	for _, fn := range callees {
		if !o.b.inModule(fn) {
			o.list = append(o.list, fn)
			for _, a := range call.Call.Args { // sync.OnceFunc
				if _, ok := a.Type().Underlying().(*types.Signature); ok {
					o.trace(a)
				}
			}
			continue
		}
		for _, block := range fn.Blocks {
			if r, ok := block.Instrs[len(block.Instrs)-1].(*ssa.Return); ok && i < len(r.Results) {
				o.trace(r.Results[i])
			}
		}
	}
}

// values is an index of where functions are kept.
type values struct {
	byType   map[string][]*ssa.Function // those used other than by calling them
	written  map[ssa.Value][]ssa.Value  // by variable
	captured map[ssa.Value][]*ssa.FreeVar
	bound    map[*ssa.FreeVar][]ssa.Value
	fields   map[*types.Var][]ssa.Value
	escapes  map[ssa.Value]bool  // variables whose address goes elsewhere
	shared   map[*types.Var]bool // fields of which this is so
}

func (b *builder) indexValues() {
	if b.byType != nil {
		return
	}
	b.values = values{
		byType: map[string][]*ssa.Function{}, written: map[ssa.Value][]ssa.Value{}, captured: map[ssa.Value][]*ssa.FreeVar{},
		bound: map[*ssa.FreeVar][]ssa.Value{}, fields: map[*types.Var][]ssa.Value{},
		escapes: map[ssa.Value]bool{}, shared: map[*types.Var]bool{},
	}
	taken := map[*ssa.Function]bool{}
	for fn := range b.nodes {
		for _, block := range fn.Blocks {
			for _, instr := range block.Instrs {
				b.indexInstr(instr, taken)
			}
		}
	}
}

func (b *builder) indexInstr(instr ssa.Instruction, taken map[*ssa.Function]bool) {
	take := func(fn *ssa.Function) {
		if !taken[fn] && b.inModule(fn) {
			taken[fn] = true
			k := signatureKey(fn.Signature)
			b.byType[k] = append(b.byType[k], fn)
		}
	}
	var callee ssa.Value
	switch instr := instr.(type) {
	case *ssa.MakeClosure:
		fn := instr.Fn.(*ssa.Function)
		take(fn)
		for i, v := range instr.Bindings {
			b.captured[v] = append(b.captured[v], fn.FreeVars[i])
			b.bound[fn.FreeVars[i]] = append(b.bound[fn.FreeVars[i]], v)
		}
	case *ssa.Store:
		if f, ok := instr.Addr.(*ssa.FieldAddr); ok {
			v := fieldOf(f.X.Type(), f.Field)
			b.fields[v] = append(b.fields[v], instr.Val)
		} else {
			b.written[instr.Addr] = append(b.written[instr.Addr], instr.Val)
		}
	case ssa.CallInstruction:
		callee = instr.Common().Value
	}
	for _, op := range instr.Operands(nil) {
		v := *op
		if v == nil {
			continue
		}
		if fn, ok := v.(*ssa.Function); ok && v != callee {
			take(fn)
		}
		b.indexAddress(instr, v)
	}
}

// indexAddress notes the address of a variable that is used for more than
// loading and storing.
func (b *builder) indexAddress(instr ssa.Instruction, v ssa.Value) {
	p, ok := v.Type().Underlying().(*types.Pointer)
	if !ok {
		return
	}
	if _, ok := p.Elem().Underlying().(*types.Signature); !ok {
		return
	}
	switch instr := instr.(type) {
	case *ssa.UnOp, *ssa.MakeClosure, *ssa.DebugRef:
		return
	case *ssa.Store:
		if instr.Addr == v {
			return
		}
	}
	switch a := v.(type) {
	case *ssa.FieldAddr:
		b.shared[fieldOf(a.X.Type(), a.Field)] = true
	default:
		b.escapes[v] = true
	}
}

func signatureKey(t types.Type) string {
	sig, ok := t.Underlying().(*types.Signature)
	if !ok {
		return ""
	}
	return types.TypeString(types.NewSignatureType(nil, nil, nil, unnamed(sig.Params()), unnamed(sig.Results()), sig.Variadic()), nil)
}

// unnamed is a list of parameters without their names.
func unnamed(t *types.Tuple) *types.Tuple {
	var list []*types.Var
	for v := range t.Variables() {
		list = append(list, types.NewParam(0, nil, "", v.Type()))
	}
	return types.NewTuple(list...)
}
