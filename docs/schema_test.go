package docs_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"blockd/qapi"
)

// lines returns the entries of a list, comments left out.
func lines(t *testing.T, path string) []string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(strings.Split(strings.TrimSpace(string(data)), "\n"), func(l string) bool {
		return l == "" || strings.HasPrefix(l, "#")
	})
}

// What the program answers to query-qmp-schema is QEMU 10.2's, with names
// unmasked, but for two exact lists: parts of types (in package qapi), and
// whole commands and events (testdata/absent.txt). Both are to shrink.
func TestSchemaOfTheProgramMatchesTheReference(t *testing.T) {
	dir := os.Getenv("BLOCKD_REFERENCE")
	if dir == "" {
		dir = filepath.Join("..", "..", "shared", "reference")
	}
	data, err := os.ReadFile(filepath.Join(dir, "qmp-schema-10.2.json"))
	if err != nil {
		t.Skip("needs the reference schema, in $BLOCKD_REFERENCE or ../shared/reference")
	}
	reference, err := qapi.ParseIntrospection(data)
	if err != nil {
		t.Fatal(err)
	}
	known := append(qapi.TypeDifferences(), lines(t, filepath.Join("testdata", "absent.txt"))...)
	for _, complaint := range qapi.CheckDifferences(qapi.CompareSchemas(registered(t), reference), known) {
		t.Error(complaint)
	}
}
