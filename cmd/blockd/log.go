package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"blockd/blockgraph"
	"blockd/chardev"
	"blockd/daemon"
	"blockd/logs"
	"blockd/qapi"
)

// This file is --log and --trace.

// logTime is how long the end of the program waits for the log to be written.
const logTime = time.Second

// daemonLog is the log of the daemon with its settings.
type daemonLog struct {
	*logs.Log
	format qapi.LogFormat
	file   string // "": stderr
}

// placeError is an error whose text stands right behind the program's name,
// where others have a colon.
type placeError string

func (e placeError) Error() string { return string(e) }

// openLog makes the log, as the options say, and slog's default; of format and
// file the last one counts.
func openLog(opts []daemon.Option) (*daemonLog, error) {
	l := &daemonLog{Log: logs.New(logs.DefaultLines), format: qapi.LogFormatText}
	for _, o := range opts {
		var err error
		switch o.Name {
		case "log":
			err = l.option(o)
		case "trace":
			err = l.trace(o)
		}
		if err != nil {
			return nil, err
		}
	}
	to := os.Stderr
	if l.file != "" {
		var err error
		if to, err = openLogFile(l.file, 0); err != nil {
			return nil, err
		}
		if abs, err := filepath.Abs(l.file); err == nil {
			l.file = abs // the daemon may change its directory meanwhile
		}
	}
	l.Output(to, l.format)
	slog.SetDefault(slog.New(l.Handler()))
	return l, nil
}

func openLogFile(path string, flags int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|flags, 0o600)
	if err != nil {
		return nil, qapi.Errorf("Could not open '%s': %s", path, blockgraph.Strerror(err))
	}
	return f, nil
}

// reopen opens the log's file anew, which somebody has moved away. When that
// fails, or what was logged cannot be written, the log keeps the one that it has.
func (l *daemonLog) reopen() {
	if l.file == "" {
		return
	}
	// Nobody may read a FIFO any more, and the daemon would wait for that.
	f, err := openLogFile(l.file, syscall.O_NONBLOCK)
	if err != nil {
		slog.Error("the log keeps its file", "error", err)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), logTime)
	defer cancel()
	if !l.Redirect(ctx, f) {
		f.Close()
		slog.Error("the log keeps its file, which takes no more", "path", l.file)
		return
	}
	slog.Info("the log's file was opened anew", "path", l.file)
}

// flush and close have written what was logged, if that is possible in short.
func (l *daemonLog) flush() {
	ctx, cancel := context.WithTimeout(context.Background(), logTime)
	defer cancel()
	l.Flush(ctx)
}

func (l *daemonLog) close() {
	ctx, cancel := context.WithTimeout(context.Background(), logTime)
	defer cancel()
	l.Close(ctx)
}

func (l *daemonLog) option(o daemon.Option) error {
	var a qapi.LogOptions
	if err := qapi.DecodeOption(o.Value, "level", &a); err != nil {
		return o.Wrong(err)
	}
	if a.Level != nil {
		l.SetLevel(*a.Level, a.Subsystem, a.Sink)
	} else if a.Subsystem != nil || a.Sink != nil {
		return o.Wrong(qapi.Errorf("Parameter 'level' is missing"))
	}
	if a.Format != nil {
		l.format = *a.Format
	}
	if a.File != nil {
		l.file = *a.File
	}
	return nil
}

// traceOptions are those of --trace.
type traceOptions struct{ enable, events, file string }

// parseTrace reads them in the syntax that --chardev has, too: the first may be
// the value of enable alone.
func parseTrace(value string) (traceOptions, error) {
	var a traceOptions
	for rest, first := value, true; rest != ""; first = false {
		var name, text string
		var flag bool
		if name, text, flag, rest = chardev.NextPair(rest); flag && first {
			name, text = "enable", name
		}
		switch name {
		case "enable":
			a.enable = text
		case "events":
			a.events = text
		case "file":
			a.file = text
		default:
			return a, qapi.Errorf("Invalid parameter '%s'", name)
		}
	}
	return a, nil
}

// asksForEvents tells whether --trace asks for the list of events.
func asksForEvents(o daemon.Option) bool {
	a, err := parseTrace(o.Value)
	return err == nil && (a.enable == "help" || a.enable == "?")
}

// eventList is the answer.
func eventList() string {
	var sb strings.Builder
	for _, e := range logs.Events {
		sb.WriteString(e.Name + "\n")
	}
	return sb.String()
}

func (l *daemonLog) trace(o daemon.Option) error {
	a, err := parseTrace(o.Value)
	if err != nil {
		return o.Wrong(err)
	}
	if a.enable != "" {
		if err := l.enable(": "+o.Given, a.enable); err != nil {
			return err
		}
	}
	if a.events != "" {
		if err := l.eventsFile(a.events); err != nil {
			return err
		}
	}
	if a.file != "" {
		l.file = a.file
	}
	return nil
}

// enable takes one pattern. As in the field, a name that no event has is a
// warning, a pattern that matches nothing is not. place is where it stands, for
// messages.
func (l *daemonLog) enable(place, pattern string) error {
	names, exact, err := l.Trace(pattern, nil)
	switch {
	case err != nil:
		return placeError(place + ": " + err.Error())
	case exact && len(names) == 0:
		complainAt(place + ": warning: trace event '" + strings.TrimPrefix(pattern, "-") + "' does not exist")
	}
	return nil
}

// maxPattern is the longest line of a file of patterns, in bytes.
const maxPattern = 1024

// eventsFile takes the patterns of a file, one a line; what begins with # is a
// comment.
func (l *daemonLog) eventsFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return placeError(":" + path + ": " + blockgraph.Strerror(err))
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, maxPattern)
	for n := 1; lines.Scan(); n++ {
		text := strings.TrimSpace(lines.Text())
		if text == "" || text[0] == '#' {
			continue
		}
		if err := l.enable(fmt.Sprintf(":%s:%d", path, n), text); err != nil {
			return err
		}
	}
	switch err := lines.Err(); {
	case errors.Is(err, bufio.ErrTooLong):
		return placeError(fmt.Sprintf(":%s: a line is longer than %d bytes", path, maxPattern))
	case err != nil:
		return placeError(":" + path + ": " + blockgraph.Strerror(err))
	}
	return nil
}
