package qcow2

import (
	"context"
	"sync"
)

// background counts goroutines that outlive the request that began them: a
// write-back whose caller gave up, the writing of the corrupt bit. Unlike a
// sync.WaitGroup it may be waited for while new ones begin.
type background struct {
	mu sync.Mutex
	n  int // +checklocks:mu
	// +checklocks:mu
	idle chan struct{} // closed when n falls to 0; nil: nobody waits
}

// start runs f on a goroutine of its own.
func (b *background) start(f func()) {
	b.mu.Lock()
	b.n++
	b.mu.Unlock()
	go func() {
		defer b.end()
		f()
	}()
}

func (b *background) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.n--
	if b.n == 0 && b.idle != nil {
		close(b.idle)
		b.idle = nil
	}
}

// wait waits until none runs, or for the end of ctx.
func (b *background) wait(ctx context.Context) {
	b.mu.Lock()
	if b.n == 0 {
		b.mu.Unlock()
		return
	}
	if b.idle == nil {
		b.idle = make(chan struct{})
	}
	idle := b.idle
	b.mu.Unlock()
	select {
	case <-idle:
	case <-ctx.Done():
	}
}
