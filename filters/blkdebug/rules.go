package blkdebug

import (
	"slices"
	"sync"
	"syscall"

	"blockd/qapi"
)

// ioMask is a set of kinds of requests.
type ioMask uint8

const (
	ioRead ioMask = 1 << iota
	ioWrite
	ioWriteZeroes
	ioDiscard
	ioFlush
	ioBlockStatus

	ioDefault = ioRead | ioWrite | ioWriteZeroes | ioDiscard | ioFlush
)

var ioTypes = map[qapi.BlkdebugIOType]ioMask{
	qapi.BlkdebugIOTypeRead:        ioRead,
	qapi.BlkdebugIOTypeWrite:       ioWrite,
	qapi.BlkdebugIOTypeWriteZeroes: ioWriteZeroes,
	qapi.BlkdebugIOTypeDiscard:     ioDiscard,
	qapi.BlkdebugIOTypeFlush:       ioFlush,
	qapi.BlkdebugIOTypeBlockStatus: ioBlockStatus,
}

// rule is what an event does; one of inject, setState and suspend is set.
type rule struct {
	event qapi.BlkdebugEvent
	state int32 // in which it holds; 0: all

	inject   *injection
	setState *int32
	suspend  string // the breakpoint's tag, with isBreak
	isBreak  bool
}

type injection struct {
	types ioMask
	errno int32
	off   int64 // bytes; negative: any
	once  bool
}

// hits tells whether a request of that kind fails.
func (i *injection) hits(kind ioMask, off, n int64) bool {
	return i.types&kind != 0 && (i.off < 0 || n > 0 && i.off >= off && i.off-off < n)
}

// rules is the state of one filter. Any goroutine.
type rules struct {
	mu        sync.Mutex
	state     int32                          // +checklocks:mu
	byEvent   map[qapi.BlkdebugEvent][]*rule // newest first
	active    []*rule                        // oldest first; the first that hits counts
	suspended []*suspended                   // newest first
	changed   chan struct{}                  // closed when suspended grew; nil: nobody waits
}

func newRules() *rules {
	return &rules{state: 1, byEvent: map[qapi.BlkdebugEvent][]*rule{}}
}

func (s *rules) add(r *rule) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.byEvent[r.event] = slices.Insert(s.byEvent[r.event], 0, r)
}

// remove takes a rule out. With s.mu.
func (s *rules) remove(r *rule) {
	is := func(x *rule) bool { return x == r }
	s.byEvent[r.event] = slices.DeleteFunc(s.byEvent[r.event], is)
	s.active = slices.DeleteFunc(s.active, is)
}

// fire does what the rules say about an event. The caller waits for what it
// returns.
func (s *rules) fire(event qapi.BlkdebugEvent) []*suspended {
	s.mu.Lock()
	defer s.mu.Unlock()
	var stopped []*suspended
	var errors []*rule
	next := s.state
	for _, r := range slices.Clone(s.byEvent[event]) {
		switch {
		case r.state != 0 && r.state != s.state:
		case r.inject != nil:
			errors = append(errors, r)
		case r.setState != nil:
			next = *r.setState
		case r.isBreak:
			stopped = append(stopped, s.suspend(r))
		}
	}
	if len(errors) > 0 {
		slices.Reverse(errors)
		s.active = errors
	}
	s.state = next
	return stopped
}

// check returns the error that a request is to fail with, or nil.
func (s *rules) check(kind ioMask, off, n int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.active {
		if !r.inject.hits(kind, off, n) {
			continue
		}
		if r.inject.errno <= 0 {
			return nil
		}
		if r.inject.once {
			s.remove(r)
		}
		return syscall.Errno(r.inject.errno)
	}
	return nil
}
