package cli

import (
	"bufio"
	"os"
	"path/filepath"
	"strings"
)

// historyLines is how many lines of a shell are remembered.
const historyLines = 1000

// history is the lines of earlier shells and of this one, in a file that only
// the user can read: lines may hold secrets. It implements term.History. What
// cannot be stored is forgotten, which is no reason to end a shell.
type history struct {
	path  string
	lines []string // the oldest first
}

// openHistory reads what is remembered; folder "" remembers nothing.
func openHistory(folder string) *history {
	h := &history{}
	if folder == "" {
		return h
	}
	h.path = filepath.Join(folder, "history")
	f, err := os.Open(h.path)
	if err != nil {
		return h
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		h.Add(lines.Text())
	}
	return h
}

// Add implements term.History.
func (h *history) Add(line string) {
	// The file has a line each; secrets are not for files at all.
	if strings.ContainsAny(line, "\r\n") || strings.Contains(line, "secret") || len(h.lines) > 0 && h.lines[len(h.lines)-1] == line {
		return
	}
	h.lines = append(h.lines, line)
	if len(h.lines) > historyLines {
		h.lines = h.lines[1:]
	}
}

// Len implements term.History.
func (h *history) Len() int { return len(h.lines) }

// At implements term.History: 0 is the newest line.
func (h *history) At(i int) string { return h.lines[len(h.lines)-1-i] }

// close stores the lines.
func (h *history) close() {
	if h.path == "" {
		return
	}
	if os.MkdirAll(filepath.Dir(h.path), 0o700) != nil {
		return
	}
	f, err := os.CreateTemp(filepath.Dir(h.path), "history*")
	if err != nil {
		return
	}
	defer os.Remove(f.Name())
	_, err = f.WriteString(strings.Join(h.lines, "\n") + "\n")
	if f.Close() == nil && err == nil {
		_ = os.Rename(f.Name(), h.path)
	}
}
