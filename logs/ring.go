package logs

import (
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"blockd/qapi"
)

// This file is the memory: a ring of lines by number. Goroutines follow it with
// cursors of their own (follow.go); one that is overtaken has lost lines, and
// knows how many.

// Line is one record. It is immutable once it is in the ring.
type Line struct {
	// Number counts from 1, without gaps, per instance.
	Number    uint64
	At        time.Time
	Level     slog.Level
	Subsystem qapi.LogSubsystem
	Message   string
	// Request is the command's that the line is about, 0 if that is not known.
	Request uint64
	// Attrs have plain values.
	Attrs []slog.Attr

	memory, output bool // the sinks that it is for
	weight         int
}

const (
	// DefaultLines is how many lines are kept.
	DefaultLines = 4096
	// ringBytes is what they may take by estimate: past that, old ones go.
	ringBytes = 4 << 20
)

// Log holds the recent lines and says which are taken.
type Log struct {
	instance string

	changing sync.Mutex // serialises changes of levels
	levels   atomic.Pointer[both]

	mu sync.Mutex //blockd:short
	// +checklocks:mu
	ring []*Line // by number modulo its length
	// +checklocks:mu
	first uint64 // number of the oldest line that is kept
	// +checklocks:mu
	last uint64 // number of the newest one, 0: there is none
	// +checklocks:mu
	weights int // of the lines that are kept
	// +checklocks:mu
	news chan struct{} // closed at the next line

	out *writer // nil: there is no output yet
}

// New returns a log of at most so many lines that takes what is at level info or
// above, without an output.
func New(lines int) *Log {
	l := &Log{instance: uuid.NewString(), ring: make([]*Line, lines), first: 1, news: make(chan struct{})}
	info := newLevels(slog.LevelInfo)
	l.levels.Store(&both{of: [len(sinks)]*levels{info, info}, least: info.least()})
	return l
}

// add puts a line into the ring.
func (l *Log) add(line Line) {
	line.weight = weigh(&line)
	l.mu.Lock()
	defer l.mu.Unlock()
	size := uint64(len(l.ring))
	line.Number = l.last + 1
	l.weights += line.weight
	for l.first < line.Number && (line.Number-l.first >= size || l.weights > ringBytes) {
		l.weights -= l.ring[l.first%size].weight
		l.ring[l.first%size] = nil
		l.first++
	}
	l.ring[line.Number%size] = &line
	l.last = line.Number
	close(l.news)
	l.news = make(chan struct{})
}

// weigh estimates the memory of a line in bytes.
func weigh(l *Line) int {
	w := 256 + len(l.Message)
	for i := range l.Attrs {
		w += 64 + len(l.Attrs[i].Key)
		if v := l.Attrs[i].Value; v.Kind() == slog.KindString {
			w += len(v.String())
		}
	}
	return w
}

// Instance is an identifier of this daemon's run: numbers of lines mean nothing
// in another.
func (l *Log) Instance() string { return l.instance }

// Past is a part of the log.
type Past struct {
	First, Last uint64 // of the lines that are kept; First > Last: none is
	Lines       []*Line
	Complete    bool // no line that was asked for has been forgotten
}

// Since returns the lines of the memory after the given number that want takes,
// the newest if they are more than most.
func (l *Log) Since(number uint64, most int, want func(*Line) bool) Past {
	l.mu.Lock()
	p := Past{First: l.first, Last: l.last, Complete: number >= l.first-1}
	all := l.after(number)
	l.mu.Unlock()
	for _, line := range all {
		if line.memory && want(line) {
			p.Lines = append(p.Lines, line)
		}
	}
	if left := len(p.Lines) - most; left > 0 {
		p.Lines, p.Complete = p.Lines[left:], false
	}
	return p
}

// after returns the lines that are kept and have greater numbers; mu is held.
//
// +checklocks:l.mu
func (l *Log) after(number uint64) []*Line {
	if number >= l.last {
		return nil
	}
	from := max(number+1, l.first)
	lines := make([]*Line, 0, l.last-from+1)
	for n := from; n <= l.last; n++ {
		lines = append(lines, l.ring[n%uint64(len(l.ring))])
	}
	return lines
}
