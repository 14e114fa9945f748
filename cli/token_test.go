package cli

import (
	"os"
	"path/filepath"
	"testing"
)

func TestFilesWithATokenThatAreRefused(t *testing.T) {
	for _, c := range []struct {
		text string
		mode os.FileMode
		want string
	}{
		{"the-token\n", 0o600, ""},
		{"the-token\n", 0o640, ""},
		{"the-token\n", 0o604, "others than its owner and group may use it: chmod o= it"},
		{"control the-token\n", 0o600, "one token, and nothing else, is expected"},
		{"a\nb\n", 0o600, "one token, and nothing else, is expected"},
		{"\n", 0o600, "one token, and nothing else, is expected"},
		{string(make([]byte, maxToken+1)), 0o600, "one token, and nothing else, is expected"},
	} {
		path := filepath.Join(t.TempDir(), "token")
		if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, c.mode); err != nil {
			t.Fatal(err)
		}
		token, err := readToken(path)
		switch {
		case c.want == "" && (err != nil || token != "the-token"):
			t.Errorf("%.20q, %v: %q, %v", c.text, c.mode, token, err)
		case c.want != "" && (err == nil || err.Error() != c.want):
			t.Errorf("%.20q, %v: %v, want %s", c.text, c.mode, err, c.want)
		}
	}
	if _, err := readToken(t.TempDir()); err == nil || err.Error() != "it is no regular file" {
		t.Error(err)
	}
}
