package logs

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"blockd/qapi"
)

// eventsInCode returns the events that the program has, with their subsystems:
// what is logged by slog.Debug or slog.DebugContext with a word as its message.
func eventsInCode(t *testing.T) map[string]qapi.LogSubsystem {
	found := map[string]qapi.LogSubsystem{}
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir():
			if name := d.Name(); path != ".." && (name[0] == '.' || name == "testdata" || name == "tools" || name == "iotests") {
				return fs.SkipDir
			}
			return nil
		case !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			return err
		}
		dir, _ := filepath.Rel("..", filepath.Dir(path))
		ast.Inspect(f, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			fun, ok := call.Fun.(*ast.SelectorExpr)
			if !ok || fun.Sel.Name != "Debug" && fun.Sel.Name != "DebugContext" {
				return true
			}
			for _, arg := range call.Args[:min(2, len(call.Args))] {
				if lit, ok := arg.(*ast.BasicLit); ok && lit.Kind == token.STRING {
					if text, _ := strconv.Unquote(lit.Value); isEvent(slog.LevelDebug, text) {
						found[text] = subsystemOfFunction(module + dir + ".f")
					}
					break
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestEventsAreThoseOfTheCode(t *testing.T) {
	found := eventsInCode(t)
	for _, e := range Events {
		switch of, ok := found[e.Name]; {
		case !ok:
			t.Errorf("nothing logs %s", e.Name)
		case of != e.Subsystem:
			t.Errorf("%s is of %s, the list says %s", e.Name, of, e.Subsystem)
		}
		if e.Meaning == "" || !isEvent(slog.LevelDebug, e.Name) {
			t.Errorf("%+v", e)
		}
		delete(found, e.Name)
	}
	for name := range found {
		t.Errorf("%s is not in the list", name)
	}
	if !slices.IsSortedFunc(Events, func(a, b Event) int { return strings.Compare(a.Name, b.Name) }) {
		t.Error("the list is not sorted")
	}
}
