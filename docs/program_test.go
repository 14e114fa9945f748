package docs_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"blockd/qapi"
)

// The documents are held to the program itself, built for these tests: what it
// has registered is what it answers to query-qmp-schema.

// workDir is where the program is built, and removed at the end.
var workDir string

func TestMain(m *testing.M) {
	var err error
	if workDir, err = os.MkdirTemp("", "docs"); err != nil {
		panic(err)
	}
	code := m.Run()
	os.RemoveAll(workDir)
	os.Exit(code)
}

// build makes the program, once, and returns its path.
var build = sync.OnceValues(func() (string, error) {
	path := filepath.Join(workDir, "blockd")
	out, err := exec.Command("go", "build", "-buildvcs=false", "-o", path, "blockd/cmd/blockd").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return path, nil
})

// program returns the path of the program.
func program(t *testing.T) string {
	t.Helper()
	path, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// introspect asks a storage daemon for its schema.
func introspect(path string) ([]qapi.SchemaInfo, error) {
	cmd := exec.Command(path, "--chardev", "stdio,id=s", "--monitor", "s")
	cmd.Stdin = strings.NewReader(`{"execute":"qmp_capabilities"}{"execute":"query-qmp-schema"}{"execute":"quit"}`)
	out, err := cmd.Output()
	if err != nil {
		return nil, err
	}
	lines := strings.Split(string(out), "\r\n")
	if len(lines) < 3 {
		return nil, fmt.Errorf("too few answers: %q", out)
	}
	answer, err := qapi.ParseJSON([]byte(lines[2]))
	if err != nil {
		return nil, err
	}
	if object, ok := answer.(*qapi.Object); ok {
		if list, ok := object.Get("return"); ok {
			return qapi.ParseIntrospection(qapi.AppendJSON(nil, list))
		}
	}
	return nil, errors.New("no schema: " + lines[2])
}

// registered returns all commands, events and types that the program has.
func registered(t *testing.T) []qapi.SchemaInfo {
	t.Helper()
	infos, err := introspect(program(t))
	if err != nil {
		t.Fatal(err)
	}
	if len(infos) == 0 {
		t.Fatal("nothing is registered")
	}
	return infos
}
