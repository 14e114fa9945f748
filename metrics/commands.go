package metrics

import (
	"sync/atomic"
	"time"
)

// Commands counts the QMP commands that have run. Any goroutine.
type Commands struct {
	names  []string            // in the order of NewCommands
	byName map[string]*command // never changes
}

type command struct {
	ok, failed, ns atomic.Int64
}

// NewCommands counts commands of these names; others are left out, so that no
// client can make names up.
func NewCommands(names []string) *Commands {
	c := &Commands{names: names, byName: make(map[string]*command, len(names))}
	for _, n := range names {
		c.byName[n] = &command{}
	}
	return c
}

// Ran counts a command that has ended, with its error.
func (c *Commands) Ran(name string, took time.Duration, err error) {
	k := c.byName[name]
	if k == nil {
		return
	}
	if err != nil {
		k.failed.Add(1)
	} else {
		k.ok.Add(1)
	}
	k.ns.Add(int64(took))
}

func (c *Commands) collect(s *samples) {
	for _, name := range c.names {
		k := c.byName[name]
		s.with(s.qmpCommands, float64(k.ok.Load()), name, "ok")
		s.with(s.qmpCommands, float64(k.failed.Load()), name, "failed")
		s.with(s.qmpSeconds, time.Duration(k.ns.Load()).Seconds(), name)
	}
}
