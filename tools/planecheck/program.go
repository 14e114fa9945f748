package main

import (
	"fmt"
	"go/token"
	"go/types"
	"os"
	"slices"
	"strings"

	"golang.org/x/tools/go/callgraph"
	"golang.org/x/tools/go/callgraph/vta"
	"golang.org/x/tools/go/packages"
	"golang.org/x/tools/go/ssa"
	"golang.org/x/tools/go/ssa/ssautil"
)

// program is a loaded module with all that it imports.
type program struct {
	fset   *token.FileSet
	module map[*types.Package]bool
	sorted []*packages.Package // of the module
	all    map[*ssa.Function]bool
	calls  *callgraph.Graph
	dir    string
}

// load reads the module around dir, as built with the tags.
func load(dir, tags string) (*program, error) {
	cfg := &packages.Config{
		Dir:        dir,
		Mode:       packages.LoadAllSyntax | packages.NeedModule,
		BuildFlags: []string{"-tags=" + tags},
		Env:        append(os.Environ(), "CGO_ENABLED=0"), // as the program is built
	}
	loaded, err := packages.Load(cfg, "./...")
	if err != nil {
		return nil, err
	}
	p := &program{fset: cfg.Fset, dir: dir, module: map[*types.Package]bool{}}
	var bad []string
	packages.Visit(loaded, nil, func(pkg *packages.Package) {
		for _, e := range pkg.Errors {
			bad = append(bad, e.Error())
		}
	})
	if len(bad) > 0 {
		return nil, fmt.Errorf("%s", strings.Join(bad, "\n"))
	}
	// Tools are programs of their own.
	loaded = slices.DeleteFunc(loaded, func(pkg *packages.Package) bool {
		return pkg.Module != nil && strings.HasPrefix(pkg.PkgPath, pkg.Module.Path+"/tools/")
	})
	for _, pkg := range loaded {
		p.fset = pkg.Fset
		if pkg.Types != nil {
			p.module[pkg.Types] = true
			p.sorted = append(p.sorted, pkg)
		}
	}
	prog, _ := ssautil.AllPackages(loaded, ssa.InstantiateGenerics)
	prog.Build()
	p.all = ssautil.AllFunctions(prog)
	p.addMethods(prog)
	p.calls = vta.CallGraph(p.all, nil)
	return p, nil
}

// addMethods adds what the linker would leave out: methods that nothing calls
// yet.
func (p *program) addMethods(prog *ssa.Program) {
	for _, pkg := range p.sorted {
		scope := pkg.Types.Scope()
		for _, name := range scope.Names() {
			n, ok := types.Unalias(scope.Lookup(name).Type()).(*types.Named)
			if _, isType := scope.Lookup(name).(*types.TypeName); !ok || !isType || n.TypeParams().Len() > 0 {
				continue
			}
			for m := range n.Methods() {
				if fn := prog.FuncValue(m); fn != nil {
					p.add(fn)
				}
			}
		}
	}
}

// add adds a function and those within it.
func (p *program) add(fn *ssa.Function) {
	if p.all[fn] {
		return
	}
	p.all[fn] = true
	for _, inner := range fn.AnonFuncs {
		p.add(inner)
	}
	for _, block := range fn.Blocks {
		for _, instr := range block.Instrs {
			for _, op := range instr.Operands(nil) {
				if f, ok := (*op).(*ssa.Function); ok {
					p.add(f)
				}
			}
		}
	}
}

// place is a position as findings have it: a file of the module and a line.
func (p *program) place(pos token.Pos) string {
	at := p.fset.Position(pos)
	return fmt.Sprintf("%s:%d", strings.TrimPrefix(at.Filename, p.dir+"/"), at.Line)
}

// packageOf is the package that a function was written in; nil for what the
// compiler makes for all.
func packageOf(fn *ssa.Function) *types.Package {
	for fn.Parent() != nil {
		fn = fn.Parent()
	}
	if o := fn.Origin(); o != nil {
		fn = o
	}
	if obj := fn.Object(); obj != nil {
		return obj.Pkg()
	}
	if fn.Pkg != nil {
		return fn.Pkg.Pkg
	}
	return nil
}

// inModule tells whether a function's body is to be looked at: it was written
// in the module, or the compiler made it, for a method value or an embedded
// method.
func (p *program) inModule(fn *ssa.Function) bool {
	pkg := packageOf(fn)
	if pkg == nil {
		return fn.Synthetic != ""
	}
	return p.module[pkg]
}

// isWrapper tells whether the compiler made the function around another one.
func isWrapper(fn *ssa.Function) bool {
	return fn.Synthetic != "" && fn.Syntax() == nil && fn.Origin() == nil && fn.Synthetic != "package initializer"
}
