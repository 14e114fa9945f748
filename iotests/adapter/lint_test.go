package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// literals returns the strings in a file that is no test, without those of tags
// and imports.
func literals(t *testing.T, path string) (found []string, imports []string) {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range f.Imports {
		name, _ := strconv.Unquote(i.Path.Value)
		imports = append(imports, name)
	}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.ImportSpec:
			return false
		case *ast.Field:
			n.Tag = nil
		case *ast.BasicLit:
			if s, err := strconv.Unquote(n.Value); err == nil && n.Kind == token.STRING {
				found = append(found, s)
			}
		}
		return true
	})
	return found, imports
}

func goFiles(t *testing.T, root string) (files []string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != root && (d.Name()[0] == '.' || d.Name() == "testdata"):
			return fs.SkipDir
		case strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go"):
			files = append(files, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// What a test of the suite checks must be done by blockd: the adapter knows no
// driver, raises no text that blockd raises, and knows no test.
func TestAdapterHasNothingOfWhatItIsToShow(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	ofBlockd := map[string]string{}
	for _, path := range goFiles(t, root) {
		rel, _ := filepath.Rel(root, path)
		top, _, _ := strings.Cut(filepath.ToSlash(rel), "/")
		switch top {
		case "iotests", "cmd", "tools":
			continue
		}
		list, _ := literals(t, path)
		for _, s := range list {
			ofBlockd[s] = rel
		}
	}
	if len(ofBlockd) < 1000 {
		t.Fatalf("only %d strings of blockd were found", len(ofBlockd))
	}
	number := regexp.MustCompile(`^[0-9]{3}$`)
	for _, path := range goFiles(t, ".") {
		list, imports := literals(t, path)
		for _, i := range imports {
			for _, driver := range []string{"blockd/formats", "blockd/protocols", "blockd/filters", "blockd/jobs"} {
				if strings.HasPrefix(i, driver) {
					t.Errorf("%s imports %s", path, i)
				}
			}
		}
		for _, s := range list {
			if strings.Contains(s, " ") && len(s) > 12 && ofBlockd[s] != "" {
				t.Errorf("%s has %q, as %s does", path, s, ofBlockd[s])
			}
			if number.MatchString(s) {
				t.Errorf("%s names test %s", path, s)
			}
		}
	}
}
