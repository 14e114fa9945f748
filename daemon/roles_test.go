package daemon

import (
	"flag"
	"os"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write testdata/roles.txt")

// TestEachCommandHasARole compares the roles that commands declare with the list
// of what somebody has decided, in which each command is: what is read-only by
// mistake, or new, is not as listed.
func TestEachCommandHasARole(t *testing.T) {
	d := New(Config{})
	defer d.Close()
	var lines []string
	for _, c := range d.Registry.Commands() {
		lines = append(lines, c.Name+" "+string(d.Registry.Role(c.Name)))
	}
	slices.Sort(lines)
	if *update {
		if err := os.WriteFile("testdata/roles.txt", []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile("testdata/roles.txt")
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
	for _, line := range lines {
		if !slices.Contains(want, line) {
			t.Errorf("testdata/roles.txt has no line %q: decide on it (qmp.CommandOptions.ReadOnly) and add it", line)
		}
	}
	for _, line := range want {
		if !slices.Contains(lines, line) {
			t.Errorf("testdata/roles.txt has %q, which is no more", line)
		}
	}
}
