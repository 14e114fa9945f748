package main

import (
	"fmt"
	"go/ast"
	"go/token"
	"go/types"
	"strings"

	"golang.org/x/tools/go/packages"
)

const prefix = "//blockd:"

// directives is what the comments of one place say.
type directives struct {
	class   *class
	handoff *class
	token   bool
	short   bool
	loop    bool
}

// marks is every directive of the module, by what it stands at.
type marks struct {
	packages map[string]*class // by path
	funcs    map[types.Object]*directives
	methods  map[types.Object]*directives // of interfaces
	types    map[types.Object]*directives
	fields   map[types.Object]*directives // and variables of packages
	literals map[token.Pos]*class         // by the position of the func keyword

	tokens map[types.Object]bool
	errs   []string
	place  func(token.Pos) string
}

func readMarks(prog *program) *marks {
	m := &marks{
		place:    prog.place,
		packages: map[string]*class{}, funcs: map[types.Object]*directives{}, methods: map[types.Object]*directives{},
		types: map[types.Object]*directives{}, fields: map[types.Object]*directives{}, literals: map[token.Pos]*class{},
		tokens: map[types.Object]bool{},
	}
	for _, p := range prog.sorted {
		for _, f := range p.Syntax {
			m.readFile(p, f)
		}
	}
	return m
}

func (m *marks) fail(pos token.Pos, format string, args ...any) {
	m.errs = append(m.errs, fmt.Sprintf("%s: %s", m.place(pos), fmt.Sprintf(format, args...)))
}

// parse reads the directives of comments; nil: none.
func (m *marks) parse(groups ...*ast.CommentGroup) *directives {
	var d directives
	found := false
	for _, g := range groups {
		if g == nil {
			continue
		}
		for _, c := range g.List {
			text, ok := strings.CutPrefix(c.Text, prefix)
			if !ok {
				continue
			}
			found = true
			text, _, _ = strings.Cut(text, " //") // the rest of the comment at a field
			var err error
			switch verb, rest, _ := strings.Cut(strings.TrimSpace(text), " "); verb {
			case "handoff":
				d.handoff = new(class)
				*d.handoff, err = parseClass(rest)
			case "token":
				d.token = true
			case "loop":
				d.loop, d.class = true, &classLoop
			case "short":
				d.short = true
			default:
				if d.class != nil {
					m.fail(c.Pos(), "a second class")
				}
				d.class = new(class)
				*d.class, err = parseClass(text)
			}
			if err != nil {
				m.fail(c.Pos(), "%s", err)
			}
		}
	}
	if !found {
		return nil
	}
	return &d
}

func (m *marks) readFile(p *packages.Package, f *ast.File) {
	if d := m.parse(f.Doc); d != nil && d.class != nil {
		if m.packages[p.PkgPath] != nil {
			m.fail(f.Package, "a second class for the package")
		}
		m.packages[p.PkgPath] = d.class
	}
	used := map[*ast.CommentGroup]bool{f.Doc: true}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			used[n.Doc] = true
			if d := m.parse(n.Doc); d != nil {
				m.funcs[p.TypesInfo.Defs[n.Name]] = d
			}
		case *ast.GenDecl:
			for _, s := range n.Specs {
				if v, ok := s.(*ast.ValueSpec); ok {
					doc := v.Doc
					if doc == nil {
						doc = n.Doc
					}
					used[doc], used[v.Comment] = true, true
					if d := m.parse(doc, v.Comment); d != nil {
						if d.class != nil {
							m.fail(v.Pos(), "a class at a variable")
						}
						for _, name := range v.Names {
							m.fields[p.TypesInfo.Defs[name]] = d
						}
					}
				}
				t, ok := s.(*ast.TypeSpec)
				if !ok {
					continue
				}
				doc := t.Doc
				if doc == nil {
					doc = n.Doc
				}
				used[doc] = true
				if d := m.parse(doc); d != nil {
					obj := p.TypesInfo.Defs[t.Name]
					m.types[obj] = d
					m.tokens[obj] = d.token
				}
			}
		case *ast.StructType:
			for _, fl := range n.Fields.List {
				used[fl.Doc], used[fl.Comment] = true, true
				d := m.parse(fl.Doc, fl.Comment)
				if d == nil {
					continue
				}
				for _, name := range fl.Names {
					m.fields[p.TypesInfo.Defs[name]] = d
				}
				if len(fl.Names) == 0 {
					m.fail(fl.Pos(), "a directive at an embedded field")
				}
			}
		case *ast.InterfaceType:
			for _, fl := range n.Methods.List {
				used[fl.Doc], used[fl.Comment] = true, true
				if d := m.parse(fl.Doc, fl.Comment); d != nil {
					for _, name := range fl.Names {
						m.methods[p.TypesInfo.Defs[name]] = d
					}
				}
			}
		}
		return true
	})
	m.readLiterals(p, f, used)
}

// readLiterals finds directives above function literals; any that is left then
// stands at nothing.
func (m *marks) readLiterals(p *packages.Package, f *ast.File, used map[*ast.CommentGroup]bool) {
	above := map[int]*ast.CommentGroup{} // by the line below the comment
	for _, g := range f.Comments {
		if !used[g] {
			above[p.Fset.Position(g.End()).Line+1] = g
		}
	}
	ast.Inspect(f, func(n ast.Node) bool {
		lit, ok := n.(*ast.FuncLit)
		if !ok {
			return true
		}
		line := p.Fset.Position(lit.Pos()).Line
		if g := above[line]; g != nil {
			if d := m.parse(g); d != nil && d.class != nil {
				m.literals[lit.Pos()] = d.class
				delete(above, line)
			}
		}
		return true
	})
	for _, g := range above {
		if d := m.parse(g); d != nil {
			m.fail(g.Pos(), "a directive that stands at nothing")
		}
	}
}
