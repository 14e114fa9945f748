package main

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var wantPattern = regexp.MustCompile(`// (want|want-next) ("(?:[^"\\]|\\.)*")`)

// wanted reads the findings that comments below dir announce, as file:line: text.
func wanted(t *testing.T, dir string) []string {
	var list []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		lines := bufio.NewScanner(f)
		for n := 1; lines.Scan(); n++ {
			m := wantPattern.FindStringSubmatch(lines.Text())
			if m == nil {
				continue
			}
			text, err := strconv.Unquote(m[2])
			if err != nil {
				return fmt.Errorf("%s:%d: %w", rel, n, err)
			}
			line := n
			if m[1] == "want-next" {
				line += 2
			}
			list = append(list, fmt.Sprintf("%s:%d: %s", rel, line, text))
		}
		return lines.Err()
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(list)
	return list
}

// TestPlantedViolations: every violation that the test module announces is
// found, on its line and with its whole chain, and nothing else is.
func TestPlantedViolations(t *testing.T) {
	dir := filepath.Join("testdata", "planted")
	want := wanted(t, dir)
	if len(want) < 50 {
		t.Fatalf("only %d violations are planted", len(want))
	}
	r, err := run(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range r.findings {
		if !slices.Contains(want, f) {
			t.Errorf("not wanted: %s", f)
		}
	}
	for _, w := range want {
		if !slices.Contains(r.findings, w) {
			t.Errorf("not found:  %s", w)
		}
	}
}

// TestNumberOfAny: more functions that may be any than recorded is an error,
// fewer is not.
func TestNumberOfAny(t *testing.T) {
	file := filepath.Join(t.TempDir(), "any.txt")
	if err := os.WriteFile(file, []byte("3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for n, ok := range map[int]bool{2: true, 3: true, 4: false} {
		if err := compare(file, n); (err == nil) != ok {
			t.Errorf("%d: %v", n, err)
		}
	}
}

// TestAnyIsCounted: a directive counts, by itself or at a type; what a rule
// finds to be any does not.
func TestAnyIsCounted(t *testing.T) {
	r, err := run(filepath.Join("testdata", "counted"), "")
	if err != nil {
		t.Fatal(err)
	}
	if r.any != 3 || len(r.findings) != 0 {
		t.Errorf("%d any, findings %q", r.any, r.findings)
	}
	tagged, err := run(filepath.Join("testdata", "counted"), "more")
	if err != nil {
		t.Fatal(err)
	}
	if tagged.any != 4 || len(tagged.findings) != 1 {
		t.Errorf("with the tag: %d any, findings %q", tagged.any, tagged.findings)
	}
}
