// Package locks takes mutexes on the loop.
//
//blockd:io
package locks

import "sync"

type box struct {
	mu   sync.Mutex //blockd:short
	long sync.Mutex
	rw   sync.RWMutex //blockd:short
	n    int
}

var (
	short sync.Mutex //blockd:short
	long  sync.Mutex
)

//blockd:global loop
func (b *box) onLoop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rw.RLock()
	b.rw.RUnlock()
	short.Lock()
	short.Unlock()
	b.n++
}

//blockd:global loop
func (b *box) takesLong() {
	b.long.Lock() // want "box.takesLong() is global, but takes the mutex box.long: box.takesLong()"
	b.long.Unlock()
	long.Lock() // want "box.takesLong() is global, but takes the mutex long: box.takesLong()"
	long.Unlock()
	if b.long.TryLock() {
		b.long.Unlock()
	}
}

func (b *box) waitsUnderLock(c chan int) {
	b.mu.Lock()
	<-c // want "box.waitsUnderLock() holds box.mu, which is short, but receives from a channel"
	b.mu.Unlock()
	<-c
}

func (b *box) waitsDeferred(c chan int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	<-c // want "box.waitsDeferred() holds box.mu, which is short, but receives from a channel"
}

func (b *box) waitsOnOnePath(c chan int, x bool) {
	b.mu.Lock()
	if x {
		b.mu.Unlock()
		<-c
		b.mu.Lock()
	}
	b.n++
	b.mu.Unlock()
}

func (b *box) waitsBelow(c chan int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	helper(c) // want "box.waitsBelow() holds box.mu, which is short, but receives from a channel: box.waitsBelow() -> helper() -> deep()"
}

func helper(c chan int) { deep(c) }

func deep(c chan int) { <-c }

func (b *box) starts(c chan int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	go deep(c)
}

// calledWithLock is called with mu held.
//
// +checklocks:b.mu
func (b *box) calledWithLock(c chan int) {
	<-c // want "box.calledWithLock() holds box.mu, which is short, but receives from a channel"
}

func (b *box) takesLongUnderShort() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.long.Lock() // want "box.takesLongUnderShort() holds box.mu, which is short, but takes the mutex box.long"
	b.long.Unlock()
}
