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

// printed runs the examples of a document one after the other in one shell, as
// a reader would paste them, and returns what each printed. The directory that
// they use is replaced by one that is gone afterwards.
func printed(t *testing.T, document, directory string, tools ...string) (text string, outputs []string) {
	t.Helper()
	for _, tool := range append([]string{"sh", "qemu-img", "qemu-io", "nbdinfo"}, tools...) {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("needs " + tool)
		}
	}
	content, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	scripts := fenced(string(content), "sh")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	bin := filepath.Dir(program(t))
	// The path of a socket must be short, which t.TempDir's is not.
	dir, err := os.MkdirTemp("", "docs")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	t.Cleanup(func() {
		files, _ := filepath.Glob(filepath.Join(dir, "*pid"))
		for _, file := range files { // its daemon has not ended, as it should
			pid, _ := os.ReadFile(file)
			if n, err := strconv.Atoi(strings.TrimSpace(string(pid))); err == nil && n > 1 {
				_ = syscall.Kill(n, syscall.SIGKILL)
			}
		}
	})
	script := strings.ReplaceAll("set -e\n"+strings.Join(scripts, "echo NEXT\n"), directory, dir)
	cmd := exec.CommandContext(ctx, "sh", "-c", script)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PATH="+bin+string(os.PathListSeparator)+os.Getenv("PATH"))
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s%s", err, stdout.String(), stderr.String())
	}
	outputs = strings.Split(stdout.String(), "NEXT\n")
	if len(outputs) != len(scripts) {
		t.Fatalf("the examples printed %q", stdout.String())
	}
	if files, _ := filepath.Glob(filepath.Join(dir, "*pid")); len(files) > 0 {
		t.Errorf("a daemon is left: %v", files)
	}
	return string(content), outputs
}

func TestExamplesOfTheReadmeWork(t *testing.T) {
	text, outputs := printed(t, "../README.md", "/tmp/blockd-example", "python3")
	if len(outputs) != 4 {
		t.Fatalf("the README has %d examples", len(outputs))
	}
	if !strings.Contains(text, "It prints `"+strings.TrimSpace(outputs[0])+"`.") {
		t.Errorf("the first example printed %q", outputs[0])
	}
	shown := fenced(text, "")
	if len(shown) != 1 || !slices.Equal(events(outputs[1]), events(shown[0])) {
		t.Errorf("the second example printed\n%s", outputs[1])
	}
	if n := strings.Count(outputs[2]+outputs[3], "Images are identical."); n != 3 {
		t.Errorf("%d of 3 comparisons are well:\n%s%s", n, outputs[2], outputs[3])
	}
	if all := strings.Join(outputs, ""); strings.Contains(all, `"error"`) {
		t.Errorf("an example failed:\n%s", all)
	}
}

func TestTheGuideWorks(t *testing.T) {
	text, outputs := printed(t, "guide.md", "/tmp/blockd-guide")
	size, _, _ := strings.Cut(outputs[2], "\n")
	if !strings.Contains(text, "It prints `"+size+"`.") {
		t.Errorf("the guest's example printed %q", outputs[2])
	}
	for step, want := range map[int]string{1: "format: qcow2", 4: "export0", 5: "the guest has gone on", 6: "top"} {
		if step > 0 && !strings.Contains(strings.Join(outputs[:step+1], ""), want) {
			t.Errorf("by example %d nothing has printed %q:\n%s", step, want, strings.Join(outputs, "NEXT\n"))
		}
	}
}

func TestBothDaemonsAnswerAlikeInTheGuideForTheirUsers(t *testing.T) {
	_, outputs := printed(t, "coming-from.md", "/tmp/blockd-coming", "qemu-storage-daemon")
	lines := strings.Split(strings.TrimSpace(outputs[0]), "\n")
	half := len(lines) / 2
	if half < 2 || !slices.Equal(lines[:half], lines[half:]) {
		t.Errorf("they printed\n%s", outputs[0])
	}
}

func TestTheRecipesForOperatorsWork(t *testing.T) {
	text, outputs := printed(t, "operations.md", "/tmp/blockd-operations")
	all := strings.Join(outputs, "")
	if !strings.Contains(text, "one dirty MiB at 8388608") || !regexp.MustCompile(`(?m)^ *8388608 +1048576 +1 +dirty$`).MatchString(all) {
		t.Errorf("the map of the pull backup is not what the text says:\n%s", all)
	}
	if !strings.Contains(all, "Images are identical.") {
		t.Errorf("the incremental backup is not the disk:\n%s", all)
	}
}
