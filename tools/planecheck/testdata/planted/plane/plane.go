// Package plane is a control plane in small: a loop, a token, a hand-off.
//
//blockd:io
package plane

import "sync"

// Loop runs functions one after the other.
type Loop struct {
	mu    sync.Mutex //blockd:short
	queue []posted
	wake  chan struct{}
}

type posted func()

// Start starts a loop.
func Start() *Loop {
	l := &Loop{wake: make(chan struct{}, 1)}
	go l.run()
	return l
}

// Post has f run on the loop.
//
//blockd:any
//blockd:handoff global loop
func (l *Loop) Post(f func()) {
	l.mu.Lock()
	l.queue = append(l.queue, f)
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Do is Post, and waits for it.
//
//blockd:handoff global loop
func (l *Loop) Do(f func()) {
	done := make(chan struct{})
	l.Post(func() { f(); close(done) })
	<-done
}

//blockd:loop
func (l *Loop) run() {
	for range l.wake {
		l.mu.Lock()
		batch := l.queue
		l.queue = nil
		l.mu.Unlock()
		for _, f := range batch {
			f()
		}
	}
}

// Graph is the state.
type Graph struct {
	loop  *Loop
	names map[string]int //blockd:global
	turns int            //blockd:global loop
}

// Tx is the right to change it.
//
//blockd:token
type Tx struct{ g *Graph }

// Update makes a change.
//
//blockd:blocking
func (g *Graph) Update(f func(tx *Tx) error) error {
	tx := &Tx{g}
	if err := f(tx); err != nil {
		return err
	}
	g.loop.Do(g.commit)
	return nil
}

//blockd:global loop
func (g *Graph) commit() { g.turns++ }

// Names is the number of names.
//
//blockd:global
func (g *Graph) Names() int { return len(g.names) }

// Open may wait, and needs the token.
func (tx *Tx) Open(name string) int { return tx.g.names[name] }

// Read is I/O.
func Read(c chan int) int { return <-c }
