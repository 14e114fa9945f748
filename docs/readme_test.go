package docs_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// fenced returns the blocks of a Markdown text between lines of three
// backquotes, those with the given word after them.
func fenced(text, word string) []string {
	var blocks []string
	parts := strings.Split("\n"+text, "\n```")
	for i := 1; i < len(parts); i += 2 {
		head, body, _ := strings.Cut(parts[i], "\n")
		if head == word {
			blocks = append(blocks, body+"\n")
		}
	}
	return blocks
}

var stamp = regexp.MustCompile(`"(seconds|microseconds)": \d+`)

// events returns the lines that are events, with timestamps that are all alike.
func events(text string) []string {
	var list []string
	for line := range strings.Lines(text) {
		if strings.Contains(line, `"event"`) {
			list = append(list, strings.TrimSpace(stamp.ReplaceAllString(line, `"$1": 0`)))
		}
	}
	return list
}

// TestExamplesOfTheReadmeWork runs the examples one after the other, as a
// reader would paste them, and requires that they print what the README says.
func TestExamplesOfTheReadmeWork(t *testing.T) {
	for _, tool := range []string{"sh", "python3", "qemu-img", "qemu-io", "nbdinfo"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("needs " + tool)
		}
	}
	text, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	scripts := fenced(string(text), "sh")
	if len(scripts) != 4 {
		t.Fatalf("the README has %d examples", len(scripts))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	bin := filepath.Dir(program(t))
	// The path of a socket must be short, which t.TempDir's is not.
	dir, err := os.MkdirTemp("", "readme")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	t.Cleanup(func() {
		pid, err := os.ReadFile(filepath.Join(dir, "blockd.pid"))
		if err != nil {
			return // it has ended, as it should
		}
		if n, err := strconv.Atoi(strings.TrimSpace(string(pid))); err == nil && n > 1 {
			_ = syscall.Kill(n, syscall.SIGKILL)
		}
	})
	script := strings.ReplaceAll("set -e\n"+strings.Join(scripts, "echo NEXT\n"), "/tmp/blockd-example", dir)
	cmd := exec.CommandContext(ctx, "sh", "-c", script)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PATH="+bin+string(os.PathListSeparator)+os.Getenv("PATH"))
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s%s", err, stdout.String(), stderr.String())
	}
	printed := strings.Split(stdout.String(), "NEXT\n")
	if len(printed) != len(scripts) {
		t.Fatalf("the examples printed %q", stdout.String())
	}
	if !strings.Contains(string(text), "It prints `"+strings.TrimSpace(printed[0])+"`.") {
		t.Errorf("the first example printed %q", printed[0])
	}
	shown := fenced(string(text), "")
	if len(shown) != 1 || !slices.Equal(events(printed[1]), events(shown[0])) {
		t.Errorf("the second example printed\n%s", printed[1])
	}
	if n := strings.Count(printed[2]+printed[3], "Images are identical."); n != 3 {
		t.Errorf("%d of 3 comparisons are well:\n%s%s", n, printed[2], printed[3])
	}
	if strings.Contains(stdout.String(), `"error"`) {
		t.Errorf("an example failed:\n%s", stdout.String())
	}
}
