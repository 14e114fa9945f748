package logs

import (
	"log/slog"
	"maps"

	"blockd/qapi"
)

// levels say what a sink takes. They are immutable: a change makes new ones.
type levels struct {
	of     map[qapi.LogSubsystem]slog.Level // every subsystem has one
	traced map[string]struct{}              // events, beside what of lets through
}

func newLevels(level slog.Level) *levels {
	return (&levels{of: map[qapi.LogSubsystem]slog.Level{}}).with(nil, level)
}

// takes tells whether a record goes to the sink.
func (l *levels) takes(s qapi.LogSubsystem, level slog.Level, message string) bool {
	if level >= l.of[s] {
		return true
	}
	_, traced := l.traced[message]
	return traced && isEvent(level, message)
}

// least is the lowest level of which anything may be taken.
func (l *levels) least() slog.Level {
	least := slog.LevelError
	for _, x := range l.of {
		least = min(least, x)
	}
	if len(l.traced) > 0 {
		least = min(least, slog.LevelDebug)
	}
	return least
}

// with returns levels with another one for these subsystems; nil: all.
func (l *levels) with(of []qapi.LogSubsystem, level slog.Level) *levels {
	n := &levels{of: maps.Clone(l.of), traced: l.traced}
	if of == nil {
		for _, s := range qapi.LogSubsystem("").QAPIEnum() {
			of = append(of, qapi.LogSubsystem(s))
		}
	}
	for _, s := range of {
		n.of[s] = level
	}
	return n
}

// trace returns levels that let events through that a pattern matches, or that
// do so no longer.
func (l *levels) trace(p pattern) *levels {
	n := &levels{of: l.of, traced: maps.Clone(l.traced)}
	if n.traced == nil {
		n.traced = map[string]struct{}{}
	}
	for _, name := range p.matching() {
		if p.off {
			delete(n.traced, name)
		} else {
			n.traced[name] = struct{}{}
		}
	}
	return n
}

// slogLevels are the levels by the names that they have in QMP.
var slogLevels = map[qapi.LogLevel]slog.Level{
	qapi.LogLevelDebug: slog.LevelDebug, qapi.LogLevelInfo: slog.LevelInfo,
	qapi.LogLevelWarning: slog.LevelWarn, qapi.LogLevelError: slog.LevelError,
}

// levelName returns the name of a level, or of the next lower one that has one.
func levelName(l slog.Level) qapi.LogLevel {
	switch {
	case l >= slog.LevelError:
		return qapi.LogLevelError
	case l >= slog.LevelWarn:
		return qapi.LogLevelWarning
	case l >= slog.LevelInfo:
		return qapi.LogLevelInfo
	}
	return qapi.LogLevelDebug
}

// Name returns the line's level.
func (l *Line) Name() qapi.LogLevel { return levelName(l.Level) }

// AtLeast tells whether the line is as grave as that.
func (l *Line) AtLeast(level qapi.LogLevel) bool { return l.Level >= slogLevels[level] }

// SetLevel sets the level of a subsystem in a sink; nil: of all. Any goroutine.
func (l *Log) SetLevel(level qapi.LogLevel, of *qapi.LogSubsystem, sink *qapi.LogSink) {
	var list []qapi.LogSubsystem
	if of != nil {
		list = []qapi.LogSubsystem{*of}
	}
	l.change(sink, func(old *levels) *levels { return old.with(list, slogLevels[level]) })
}

// Trace lets the events through to a sink (nil: to both) that a pattern matches;
// with a minus before it, no longer. It returns their names: none is no error.
// Any goroutine.
func (l *Log) Trace(text string, sink *qapi.LogSink) (names []string, exact bool, err error) {
	p, err := parsePattern(text)
	if err != nil {
		return nil, false, err
	}
	l.change(sink, func(old *levels) *levels { return old.trace(p) })
	return p.matching(), p.exact(), nil
}

// change replaces the levels of a sink, or of both.
func (l *Log) change(sink *qapi.LogSink, f func(old *levels) *levels) {
	l.changing.Lock()
	defer l.changing.Unlock()
	now := *l.levels.Load()
	for i, s := range sinks {
		if sink == nil || *sink == s {
			now.of[i] = f(now.of[i])
		}
	}
	now.least = min(now.of[memory].least(), now.of[output].least())
	l.levels.Store(&now)
}

// sinks are the sinks by their index.
var sinks = [...]qapi.LogSink{memory: qapi.LogSinkMemory, output: qapi.LogSinkOutput}

const (
	memory = iota
	output
)

// both are the levels of both sinks.
type both struct {
	of    [len(sinks)]*levels
	least slog.Level
}

// Levels tells what the sinks take, of events by name.
func (l *Log) Levels() (subsystems []qapi.LogSubsystemLevels, events []qapi.LogEvent) {
	now := l.levels.Load()
	for _, s := range qapi.LogSubsystem("").QAPIEnum() {
		name := qapi.LogSubsystem(s)
		subsystems = append(subsystems, qapi.LogSubsystemLevels{
			Subsystem: name, Memory: levelName(now.of[memory].of[name]), Output: levelName(now.of[output].of[name])})
	}
	for _, e := range Events {
		events = append(events, qapi.LogEvent{Name: e.Name, Subsystem: e.Subsystem,
			Memory: now.of[memory].takes(e.Subsystem, slog.LevelDebug, e.Name),
			Output: now.of[output].takes(e.Subsystem, slog.LevelDebug, e.Name)})
	}
	return subsystems, events
}
