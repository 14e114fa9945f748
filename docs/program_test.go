package docs_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
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
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", path, "blockd/cmd/blockd")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // as make builds it, which has compiled it
	out, err := cmd.CombinedOutput()
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

// introspect asks a storage daemon for its schema. It is told to quit when the
// answer has been read: the rival drops at its end what a full pipe has not
// taken.
func introspect(path string) ([]qapi.SchemaInfo, error) {
	cmd := exec.Command(path, "--chardev", "stdio,id=s", "--monitor", "s")
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	line, err := schemaLine(in, bufio.NewReader(out))
	if err != nil {
		return nil, errors.Join(err, cmd.Process.Kill(), cmd.Wait())
	}
	if err := cmd.Wait(); err != nil {
		return nil, err
	}
	answer, err := qapi.ParseJSON(line)
	if err != nil {
		return nil, err
	}
	if object, ok := answer.(*qapi.Object); ok {
		if list, ok := object.Get("return"); ok {
			return qapi.ParseIntrospection(qapi.AppendJSON(nil, list))
		}
	}
	return nil, fmt.Errorf("no schema: %s", line)
}

// schemaLine has a conversation with a monitor to its end; the answer to
// query-qmp-schema is returned.
func schemaLine(in io.Writer, out *bufio.Reader) (answer []byte, err error) {
	if _, err := io.WriteString(in, `{"execute":"qmp_capabilities"}{"execute":"query-qmp-schema"}`); err != nil {
		return nil, err
	}
	for range 3 { // the greeting, and two answers
		if answer, err = out.ReadBytes('\n'); err != nil {
			return nil, err
		}
	}
	if _, err := io.WriteString(in, `{"execute":"quit"}`); err != nil {
		return nil, err
	}
	_, err = io.Copy(io.Discard, out)
	return answer, err
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
