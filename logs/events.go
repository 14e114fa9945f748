package logs

import (
	"errors"
	"log/slog"
	"path"
	"strings"

	"blockd/qapi"
)

// Event is a kind of trace event.
type Event struct {
	Name      string
	Subsystem qapi.LogSubsystem
	Meaning   string
}

// Events are all that there are, by name. A test compares them with the code.
var Events = []Event{
	{"export_added", qapi.LogSubsystemExports, "an export is there"},
	{"export_closed", qapi.LogSubsystemExports, "an export has gone"},
	{"fuse_mount_failed", qapi.LogSubsystemExports, "a file could not be mounted over: why"},
	{"graph_drain", qapi.LogSubsystemGraph, "a graph change has waited for requests in flight: how long"},
	{"graph_step", qapi.LogSubsystemGraph, "a change of the graph was published: its number in the history, its cause"},
	{"graph_undone", qapi.LogSubsystemGraph, "a change of the graph failed and was undone: its cause, the error"},
	{"job_state", qapi.LogSubsystemJobs, "a job goes from a state to another, `undefined` before its first"},
	{"nbd_client", qapi.LogSubsystemExports, "a client has connected to the NBD server: its number, who it is"},
	{"nbd_client_gone", qapi.LogSubsystemExports, "a client of the NBD server has left or was disconnected: why"},
	{"nbd_negotiated", qapi.LogSubsystemExports, "a client of the NBD server has chosen an export: what was agreed on"},
	{"nbd_request_failed", qapi.LogSubsystemExports, "a request of a client is answered with an error"},
	{"node_closed", qapi.LogSubsystemGraph, "a node was closed"},
	{"node_opened", qapi.LogSubsystemGraph, "a node was opened: its driver"},
	{"qmp_client", qapi.LogSubsystemQMP, "a client has come to a monitor"},
	{"qmp_client_gone", qapi.LogSubsystemQMP, "a client has left"},
	{"qmp_command", qapi.LogSubsystemQMP, "a command begins: its name, the client's id; arguments are not shown"},
	{"qmp_done", qapi.LogSubsystemQMP, "a command has ended: how long it took, the error's class"},
}

// isEvent tells whether a record is a trace event: at level debug, its message
// one word of small letters, digits and underscores.
func isEvent(level slog.Level, message string) bool {
	if level != slog.LevelDebug || message == "" {
		return false
	}
	for i := range len(message) {
		if c := message[i]; c != '_' && (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}

// pattern is what -T takes: a name of an event, or one with * and ?; after a
// minus it turns events off.
type pattern struct {
	glob string
	off  bool
}

// errNoPattern is for what no name of an event can match.
var errNoPattern = errors.New("an event's name is expected, in which * stands for any characters")

func parsePattern(text string) (pattern, error) {
	p := pattern{glob: text}
	p.glob, p.off = strings.CutPrefix(text, "-")
	if p.glob == "" || strings.ContainsAny(p.glob, `[\/`) {
		return pattern{}, errNoPattern
	}
	return p, nil
}

func (p pattern) matches(event string) bool {
	ok, _ := path.Match(p.glob, event)
	return ok
}

// exact tells whether p can stand for one event only.
func (p pattern) exact() bool { return !strings.ContainsAny(p.glob, "*?") }

// matching returns the names of the events that p matches.
func (p pattern) matching() []string {
	var names []string
	for _, e := range Events {
		if p.matches(e.Name) {
			names = append(names, e.Name)
		}
	}
	return names
}
