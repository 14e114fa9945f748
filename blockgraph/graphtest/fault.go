package graphtest

import (
	"slices"
	"sync"

	"blockd/blockgraph"
)

// Kind is what a request to a Memory does.
type Kind int

// The kinds. Zero is a WriteZeroes.
const (
	Read Kind = iota
	Write
	Zero
	Discard
	Flush
)

// Request is one request to a Memory, in bytes.
type Request struct {
	Kind   Kind
	Off, N int64
	Flags  blockgraph.Flags
}

// Hook sees each request before it is done: it may wait, and what it returns,
// unless nil, is the request's error. Any goroutine, several at once.
type Hook func(r Request) error

// SetHook replaces the hook; nil is none.
func (m *Memory) SetHook(h Hook) {
	if h == nil {
		m.hook.Store(nil)
		return
	}
	m.hook.Store(&h)
}

func concerns(kinds []Kind, r Request) bool {
	return len(kinds) == 0 || slices.Contains(kinds, r.Kind)
}

// Failing fails the first n requests of the kinds (none given: all) with err;
// n < 0: every one.
func Failing(n int, err error, kinds ...Kind) Hook {
	var mu sync.Mutex
	//blockd:io
	return func(r Request) error {
		if !concerns(kinds, r) {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		if n == 0 {
			return nil
		}
		n--
		return err
	}
}

// Hold makes requests wait until it is released. Its method Wait is a Hook.
type Hold struct {
	// Entered is closed when the first request waits.
	Entered  chan struct{}
	kinds    []Kind
	entered  sync.Once
	released chan struct{}
	release  sync.Once
}

// NewHold returns a hold of the kinds; none given: all.
func NewHold(kinds ...Kind) *Hold {
	return &Hold{Entered: make(chan struct{}), kinds: kinds, released: make(chan struct{})}
}

// Wait waits for the release.
func (h *Hold) Wait(r Request) error {
	if concerns(h.kinds, r) {
		h.entered.Do(func() { close(h.Entered) })
		<-h.released
	}
	return nil
}

// Release lets all requests pass, those to come, too. It may be called again.
func (h *Hold) Release() { h.release.Do(func() { close(h.released) }) }
