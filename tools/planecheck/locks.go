package main

import (
	"go/ast"
	"go/types"
	"slices"
	"strings"

	"golang.org/x/tools/go/ssa"
)

// This file finds where a function holds a short mutex. The rest about locks,
// which fields each one guards, is checklocks' part; its annotations say here
// which functions are called with a mutex held.

// mutex is what an operation on a lock is about.
type mutex struct {
	name  string // Type.field
	short bool
}

func (b *builder) mutex(v ssa.Value) mutex {
	switch v := v.(type) {
	case *ssa.FieldAddr:
		f := fieldOf(v.X.Type(), v.Field)
		if f == nil {
			break
		}
		m := mutex{name: f.Name()}
		if n := namedOf(v.X.Type()); n != nil {
			m.name = n.Obj().Name() + "." + f.Name()
		}
		if d := b.marks.fields[f]; d != nil {
			m.short = d.short
		}
		return m
	case *ssa.Global:
		d := b.marks.fields[v.Object()]
		return mutex{name: v.Name(), short: d != nil && d.short}
	case *ssa.UnOp:
		return b.mutex(v.X)
	}
	return mutex{name: v.Name()}
}

// holding is which short mutexes a function holds before each of its blocks.
type holding struct {
	b     *builder
	fn    *ssa.Function
	entry map[*ssa.BasicBlock][]string
}

func (b *builder) heldIn(fn *ssa.Function) *holding {
	h := &holding{b: b, fn: fn, entry: map[*ssa.BasicBlock][]string{}}
	if len(fn.Blocks) == 0 {
		return h
	}
	start := b.heldAtCall(fn)
	uses := len(start) > 0
	for _, block := range fn.Blocks {
		for _, instr := range block.Instrs {
			if name, _ := h.step(instr); name != "" {
				uses = true
			}
		}
	}
	if !uses {
		return h
	}
	h.entry[fn.Blocks[0]] = start
	todo := []*ssa.BasicBlock{fn.Blocks[0]}
	seen := map[*ssa.BasicBlock]bool{fn.Blocks[0]: true}
	for len(todo) > 0 {
		block := todo[0]
		todo = todo[1:]
		out := slices.Clone(h.entry[block])
		for _, instr := range block.Instrs {
			out = h.apply(out, instr)
		}
		for _, next := range block.Succs {
			merged := slices.Clone(h.entry[next])
			for _, m := range out {
				if !slices.Contains(merged, m) {
					merged = append(merged, m)
				}
			}
			if !seen[next] || len(merged) != len(h.entry[next]) {
				seen[next] = true
				h.entry[next] = merged
				todo = append(todo, next)
			}
		}
	}
	return h
}

// step returns the short mutex that an instruction takes or gives back.
func (h *holding) step(instr ssa.Instruction) (name string, taken bool) {
	call, ok := instr.(*ssa.Call)
	if !ok {
		return "", false
	}
	fn := call.Call.StaticCallee()
	if fn == nil || len(call.Call.Args) == 0 || packageOf(fn) == nil || packageOf(fn).Path() != "sync" {
		return "", false
	}
	switch fn.Name() {
	case "Lock", "RLock", "TryLock", "TryRLock":
		taken = true
	case "Unlock", "RUnlock":
	default:
		return "", false
	}
	m := h.b.mutex(call.Call.Args[0])
	if !m.short {
		return "", false
	}
	return m.name, taken
}

func (h *holding) apply(held []string, instr ssa.Instruction) []string {
	name, taken := h.step(instr)
	switch {
	case name == "":
	case taken && !slices.Contains(held, name):
		held = append(held, name)
	case !taken:
		held = slices.DeleteFunc(held, func(x string) bool { return x == name })
	}
	return held
}

// at is what is held at an instruction.
func (h *holding) at(block *ssa.BasicBlock, i int) string {
	entry, ok := h.entry[block]
	if !ok {
		return ""
	}
	held := slices.Clone(entry)
	for _, instr := range block.Instrs[:i] {
		held = h.apply(held, instr)
	}
	return strings.Join(held, ", ")
}

const checklocks = "// +checklocks:"

// heldAtCall is which short mutexes the callers of a function hold, by the
// annotations of checklocks.
func (b *builder) heldAtCall(fn *ssa.Function) []string {
	if o := fn.Origin(); o != nil {
		fn = o
	}
	decl, ok := fn.Syntax().(*ast.FuncDecl)
	if !ok || decl.Doc == nil {
		return nil
	}
	var held []string
	for _, c := range decl.Doc.List {
		path, ok := strings.CutPrefix(c.Text, checklocks)
		if !ok {
			continue
		}
		parts := strings.Split(path, ".")
		for _, p := range fn.Params {
			if p.Name() == parts[0] {
				if f, owner := follow(p.Type(), parts[1:]); f != nil && b.marks.fields[f] != nil && b.marks.fields[f].short {
					held = append(held, owner+"."+f.Name())
				}
			}
		}
	}
	return held
}

// follow finds the field at the end of a path of names, and the type it is in.
func follow(t types.Type, path []string) (f *types.Var, owner string) {
	for _, name := range path {
		obj, _, _ := types.LookupFieldOrMethod(t, true, packageOfType(t), name)
		v, ok := obj.(*types.Var)
		if !ok {
			return nil, ""
		}
		if n := namedOf(t); n != nil {
			owner = n.Obj().Name()
		}
		f, t = v.Origin(), v.Type()
	}
	return f, owner
}

func packageOfType(t types.Type) *types.Package {
	if n := namedOf(t); n != nil {
		return n.Obj().Pkg()
	}
	return nil
}
