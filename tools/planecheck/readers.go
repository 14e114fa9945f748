package main

import (
	"go/token"
	"go/types"
	"slices"
	"strings"

	"golang.org/x/tools/go/ssa"
)

// This file finds readers: functions that only look and compute. They wait for
// nothing, touch no state of the control plane, start nothing and change
// nothing but their own variables, and all that they call is so, too. There is
// nothing to say about where such a function may run, so unless it says it
// itself it is any.

func (b *builder) classReaders() {
	out := map[*node]bool{} // no reader
	var todo []*node
	drop := func(n *node) {
		if !out[n] {
			out[n] = true
			todo = append(todo, n)
		}
	}
	for _, n := range b.nodes {
		if n.class != nil && n.class.name == classAny.name {
			continue // may be relied upon
		}
		if n.fn.Blocks == nil || n.own || n.settled || n.handoff != nil || len(n.acts) > 0 || n.hidden && n.fn.Synthetic == "package initializer" || changes(n.fn) {
			drop(n)
		}
	}
	for _, n := range b.order {
		if n.fn != nil {
			continue
		}
		if n.class == nil || n.class.name != classAny.name {
			drop(n)
		}
	}
	for len(todo) > 0 {
		n := todo[0]
		todo = todo[1:]
		for _, f := range n.from {
			if f.from.class == nil || f.from.class.name != classAny.name {
				drop(f.from)
			}
		}
	}
	for _, n := range b.nodes {
		switch {
		case n.class == nil:
		case n.class.name != classAny.name:
			if !out[n] {
				n.class, n.plain = &classAny, true
			}
		case !n.own && len(n.acts) == 0 && !changes(n.fn) && !slices.ContainsFunc(n.edges, func(e edge) bool { return out[e.to] }):
			n.plain = true // a reader of a type that is any
		}
	}
}

// changes tells whether a function changes what is not its own, or starts
// something.
func changes(fn *ssa.Function) bool {
	for _, block := range fn.Blocks {
		for _, instr := range block.Instrs {
			switch instr := instr.(type) {
			case *ssa.Store:
				if !ownMemory(instr.Addr) {
					return true
				}
			case *ssa.MapUpdate:
				if !ownMemory(instr.Map) {
					return true
				}
			case *ssa.Send, *ssa.Go, *ssa.Select:
				return true
			case *ssa.UnOp:
				if instr.Op == token.ARROW {
					return true
				}
			case ssa.CallInstruction:
				c := instr.Common()
				if bi, ok := c.Value.(*ssa.Builtin); ok {
					switch bi.Name() {
					case "close":
						return true
					case "copy", "delete", "clear":
						if !ownMemory(c.Args[0]) {
							return true
						}
					}
				}
				if callee := c.StaticCallee(); callee != nil && changesArgument(callee) {
					return true
				}
			}
		}
	}
	return false
}

// changesArgument tells whether a function of another module changes state
// that others share: locks and atomic variables.
func changesArgument(fn *ssa.Function) bool {
	pkg := packageOf(fn)
	if pkg == nil {
		return false
	}
	switch pkg.Path() {
	case "sync":
		return true
	case "sync/atomic":
		return !strings.HasPrefix(fn.Name(), "Load")
	}
	return false
}

// ownMemory tells whether an address is within what the function has made, or
// within the variables of the function around it.
func ownMemory(v ssa.Value) bool {
	for {
		switch x := v.(type) {
		case *ssa.Alloc, *ssa.MakeSlice, *ssa.MakeMap:
			return true
		case *ssa.FreeVar:
			return true
		case *ssa.FieldAddr:
			v = x.X
		case *ssa.IndexAddr:
			v = x.X
		case *ssa.Slice:
			v = x.X
		case *ssa.UnOp: // a variable that holds a slice or a map that was made here
			switch x.Type().Underlying().(type) {
			case *types.Slice, *types.Map:
				a, ok := x.X.(*ssa.Alloc)
				if !ok {
					return false
				}
				v = a
			default:
				return false
			}
		default:
			return false
		}
	}
}
