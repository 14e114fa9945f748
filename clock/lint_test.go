package clock

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// forbidden are the functions of package time that read the machine's clock or
// wait for it. Durations, formatting and time.Unix are free for all.
var forbidden = []string{"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker"}

// clockUses lists the forbidden uses in one file. It resolves the name under
// which the file imports time, and refuses a dot import, which would hide them.
func clockUses(fset *token.FileSet, f *ast.File) []string {
	name := ""
	for _, imp := range f.Imports {
		if path, _ := strconv.Unquote(imp.Path.Value); path == "time" {
			name = "time"
			if imp.Name != nil {
				name = imp.Name.Name
			}
		}
	}
	switch name {
	case "", "_":
		return nil
	case ".":
		return []string{fmt.Sprintf("%s: dot import of time", fset.Position(f.Pos()))}
	}
	var uses []string
	ast.Inspect(f, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if id, ok := sel.X.(*ast.Ident); ok && id.Name == name && id.Obj == nil && slices.Contains(forbidden, sel.Sel.Name) {
			uses = append(uses, fmt.Sprintf("%s: time.%s", fset.Position(sel.Pos()), sel.Sel.Name))
		}
		return true
	})
	return uses
}

func TestOnlyThisPackageReadsTheMachineClock(t *testing.T) {
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(root, "go.mod")); err != nil {
		t.Fatal(err)
	}
	self := filepath.Join(root, "clock")
	fset := token.NewFileSet()
	files := 0
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if os.IsNotExist(err) {
				return nil // removed while we walked
			}
			return err
		}
		if d.IsDir() {
			if path == self || path != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "vendor") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(fset, path, nil, 0)
		if err != nil {
			t.Logf("not checked: %v", err) // the compiler says it better
			return nil
		}
		files++
		for _, use := range clockUses(fset, f) {
			t.Errorf("%s: use package clock", use)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d files", files)
}

func TestClockLintSeesRenamedImports(t *testing.T) {
	for src, want := range map[string]int{
		"package p\nimport \"time\"\nvar a = time.Now()":                                     1,
		"package p\nimport tm \"time\"\nvar a = tm.After(1)\nvar f = tm.Sleep":               2,
		"package p\nimport . \"time\"\nvar a = Now()":                                        1,
		"package p\nimport \"time\"\nvar a = 3 * time.Second":                                0,
		"package p\ntype c struct{}\nfunc (c) Now() {}\nvar time c\nfunc f() { time.Now() }": 0,
	} {
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, "x.go", src, 0)
		if err != nil {
			t.Fatal(err)
		}
		if got := clockUses(fset, f); len(got) != want {
			t.Errorf("%q: %v, want %d", src, got, want)
		}
	}
}
