package qapi

import "testing"

func TestWellFormedID(t *testing.T) {
	for id, want := range map[string]bool{
		"a": true, "Z9": true, "a-b.c_d": true,
		"": false, "1a": false, "_a": false, "-a": false, "#block1": false, "a b": false, "a/b": false, "é": false, "aé": false,
	} {
		if WellFormedID(id) != want {
			t.Errorf("%q: not %v", id, want)
		}
	}
}
