package blkdebug

import (
	"context"
	"slices"
	"syscall"

	"blockd/qapi"
)

// suspended is somebody who stopped at a breakpoint.
type suspended struct {
	tag string
	on  chan struct{} // closed by a resume
}

// suspend stops somebody at a breakpoint, which is used up by it. With s.mu.
func (s *rules) suspend(r *rule) *suspended {
	s.remove(r)
	w := &suspended{tag: r.suspend, on: make(chan struct{})}
	s.suspended = slices.Insert(s.suspended, 0, w)
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
	return w
}

// resume lets the newest one with that tag go on. With s.mu.
func (s *rules) resume(tag string) bool {
	i := s.find(tag)
	if i < 0 {
		return false
	}
	close(s.suspended[i].on)
	s.suspended = slices.Delete(s.suspended, i, i+1)
	return true
}

// find returns the index of the newest one with that tag, or -1. With s.mu.
func (s *rules) find(tag string) int {
	return slices.IndexFunc(s.suspended, func(w *suspended) bool { return w.tag == tag })
}

// DebugEvent implements blockgraph.DebugEventer. It waits at breakpoints.
func (f *Filter) DebugEvent(event string) {
	for _, w := range f.rules.fire(qapi.BlkdebugEvent(event)) {
		<-w.on
	}
}

// Breakpoint implements blockgraph.Breakpointer.
func (f *Filter) Breakpoint(event, tag string) error {
	e := qapi.BlkdebugEvent(event)
	if !slices.Contains(e.QAPIEnum(), event) {
		return syscall.ENOENT
	}
	f.rules.add(&rule{event: e, suspend: tag, isBreak: true})
	return nil
}

// RemoveBreakpoint implements blockgraph.Breakpointer.
func (f *Filter) RemoveBreakpoint(tag string) error {
	s := f.rules
	s.mu.Lock()
	defer s.mu.Unlock()
	found := false
	for _, list := range s.byEvent {
		for _, r := range slices.Clone(list) {
			if r.isBreak && r.suspend == tag {
				s.remove(r)
				found = true
			}
		}
	}
	for s.resume(tag) {
		found = true
	}
	if !found {
		return syscall.ENOENT
	}
	return nil
}

// Resume implements blockgraph.Breakpointer.
func (f *Filter) Resume(tag string) error {
	f.rules.mu.Lock()
	defer f.rules.mu.Unlock()
	if !f.rules.resume(tag) {
		return syscall.ENOENT
	}
	return nil
}

// Suspended implements blockgraph.Breakpointer.
func (f *Filter) Suspended(tag string) bool {
	f.rules.mu.Lock()
	defer f.rules.mu.Unlock()
	return f.rules.find(tag) >= 0
}

// AwaitSuspended implements blockgraph.Breakpointer.
func (f *Filter) AwaitSuspended(ctx context.Context, tag string) error {
	s := f.rules
	for {
		s.mu.Lock()
		if s.find(tag) >= 0 {
			s.mu.Unlock()
			return nil
		}
		if s.changed == nil {
			s.changed = make(chan struct{})
		}
		c := s.changed
		s.mu.Unlock()
		select {
		case <-c:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
