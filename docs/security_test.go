package docs_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// testsOfTheModule are the names of all tests there are, of Go and of the
// daemon judged from outside.
func testsOfTheModule(t *testing.T) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	inGo, inPython := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`), regexp.MustCompile(`(?m)^    def (test_\w+)\(`)
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		pattern := inGo
		switch {
		case err != nil:
			return err
		case d.IsDir() && strings.HasPrefix(d.Name(), ".") && d.Name() != "..":
			return filepath.SkipDir
		case strings.HasSuffix(path, ".py"):
			pattern = inPython
		case !strings.HasSuffix(path, "_test.go"):
			return nil
		}
		text, err := os.ReadFile(path)
		for _, m := range pattern.FindAllSubmatch(text, -1) {
			names[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// TestRulesOfSecurityAreTested requires that each rule of security.md names a
// test, and that each test it names exists.
func TestRulesOfSecurityAreTested(t *testing.T) {
	there := testsOfTheModule(t)
	rules := 0
	for _, s := range readSections(t, "security.md") {
		for _, r := range s.rows {
			cell, ok := r.cells["Test"]
			if !ok {
				continue
			}
			rules++
			named := inCode.FindAllStringSubmatch(cell, -1)
			if len(named) == 0 {
				t.Errorf("%s: no test is named for %q", s.title, r.cells["Rule"]+r.cells["What"])
			}
			for _, m := range named {
				if !there[m[1]] {
					t.Errorf("%s: there is no test %s", s.title, m[1])
				}
			}
		}
	}
	if rules < 35 {
		t.Errorf("%d rules were found", rules)
	}
}
