package file

import (
	"os"
	"path/filepath"
	"testing"
)

// TestResidentSeesPagesInTheCache holds what x-check-cache-dropped is about, with
// a page that is certainly cached because it is mapped and was touched.
func TestResidentSeesPagesInTheCache(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// The hole has no pages; what was just written and not synced is cached.
	const hole = 1 << 20
	if err := f.Truncate(hole); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		write bool
		want  bool
	}{{false, false}, {true, true}} {
		if c.write {
			if _, err := f.WriteAt([]byte{1}, 4096); err != nil {
				t.Fatal(err)
			}
		}
		got, err := resident(int(f.Fd()), 0, hole)
		if err != nil || got != c.want {
			t.Errorf("written: %v: resident %v, %v", c.write, got, err)
		}
	}
	if got, err := resident(int(f.Fd()), 8192, 4096); err != nil || got {
		t.Errorf("another page: %v, %v", got, err)
	}
}
