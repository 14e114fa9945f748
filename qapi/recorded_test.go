package qapi

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// Recorded conversations of libvirt with QEMU 7.2: what libvirt sent must
// decode, and what it got must print to the byte from our types.

func recordedLines(t *testing.T) []string {
	t.Helper()
	files, _ := filepath.Glob(filepath.Join(referenceDir(), "libvirt", "*.txt"))
	if len(files) == 0 {
		t.Skip("needs the recorded conversations, in $BLOCKD_REFERENCE or ../shared/reference")
	}
	var lines []string
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, strings.Split(string(data), "\n")...)
	}
	return lines
}

func TestRecordedCommandsDecode(t *testing.T) {
	commands := testSchema().Commands()
	// What later parts of blockd bring; refused today with these texts.
	later := []string{
		"Parameter 'type' does not accept value 'block-dirty-bitmap-add'",
		"Parameter 'type' does not accept value 'block-dirty-bitmap-merge'",
		"Parameter 'type' does not accept value 'block-dirty-bitmap-remove'",
		"Parameter 'type' does not accept value 'block-dirty-bitmap-disable'",
		"Parameter 'type' does not accept value 'block-dirty-bitmap-enable'",
	}
	decoded := 0
	for _, line := range recordedLines(t) {
		text, ok := strings.CutPrefix(line, "-> ")
		if !ok {
			continue
		}
		v, err := ParseJSON([]byte(text))
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		name, _ := v.(*Object).Get("execute")
		i := slices.IndexFunc(commands, func(c CommandInfoSchema) bool { return c.Name == name })
		if i < 0 || commands[i].Args == nil {
			continue
		}
		args, ok := v.(*Object).Get("arguments")
		if !ok {
			args = &Object{}
		}
		if err := Decode(args, reflect.New(commands[i].Args).Interface()); err != nil {
			if !slices.Contains(later, err.Error()) {
				t.Errorf("%s: %v", line, err)
			}
			continue
		}
		decoded++
	}
	if decoded < 50 {
		t.Errorf("only %d commands were decoded", decoded)
	}
}

func TestRecordedRepliesPrintToTheByte(t *testing.T) {
	same := 0
	reprint := func(text string, v any) {
		parsed, err := ParseJSON([]byte(text))
		if err == nil {
			err = Decode(parsed, v)
		}
		if err != nil {
			// The recordings are older than this member.
			if text := err.Error(); text != "Parameter '[0].actively-synced' is missing" {
				t.Errorf("%s: %v", text, err)
			}
			return
		}
		if got := string(AppendJSON(nil, v)); got != text {
			t.Errorf("printed  %s\nrecorded %s", got, text)
		}
		same++
	}
	asked := ""
	for _, line := range recordedLines(t) {
		if text, ok := strings.CutPrefix(line, "   event "); ok {
			if data, ok := strings.CutPrefix(text, `{"event": "JOB_STATUS_CHANGE", "data": `); ok {
				reprint(strings.TrimSuffix(data, "}"), new(JobStatusChange))
			}
			continue
		}
		if text, ok := strings.CutPrefix(line, "-> "); ok {
			asked = text
		}
		if text, ok := strings.CutPrefix(line, "   <- "); ok {
			switch asked {
			case `{"execute": "query-jobs"}`:
				reprint(text, new([]JobInfo))
			case `{"execute": "query-block-jobs"}`:
				reprint(text, new([]BlockJobInfo))
			}
		}
	}
	if same < 50 {
		t.Errorf("only %d replies were printed", same)
	}
}
