package blockgraph

import "sync"

// Loop is the control plane's one goroutine. What it owns (names, parents,
// permissions, job states, the order of events) is changed by functions that
// it runs, one after the other. None of them may wait.
type Loop struct {
	mu      sync.Mutex    //blockd:short
	queue   []posted      // +checklocks:mu
	wake    chan struct{} // capacity 1
	stopped chan struct{}
	stop    bool   // +checklocks:mu
	id      uint64 // of the goroutine, under blockddebug
}

// posted is a function in the queue.
type posted func()

// NewLoop starts a loop.
func NewLoop() *Loop {
	l := &Loop{wake: make(chan struct{}, 1), stopped: make(chan struct{})}
	go l.run()
	return l
}

// Post has the loop run f later, after everything posted before. Any
// goroutine; never waits. After Stop it does nothing and returns false.
//
//blockd:any
//blockd:handoff global loop
func (l *Loop) Post(f func()) bool {
	l.mu.Lock()
	if l.stop {
		l.mu.Unlock()
		return false
	}
	l.queue = append(l.queue, f)
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
	return true
}

// Do has the loop run f and waits for it. Never from the loop itself. After
// Stop it returns false without having run f.
//
//blockd:handoff global loop
func (l *Loop) Do(f func()) bool {
	done := make(chan struct{})
	if !l.Post(func() { f(); close(done) }) {
		return false
	}
	<-done
	return true
}

// Stop runs what was posted and ends the loop.
//
//blockd:blocking
func (l *Loop) Stop() {
	l.mu.Lock()
	l.stop = true
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
	<-l.stopped
}

// run takes what was posted, all of it at a time.
//
//blockd:loop
func (l *Loop) run() {
	defer close(l.stopped)
	l.id = goroutineID()
	var batch []posted
	for {
		l.mu.Lock()
		batch, l.queue = l.queue, batch[:0]
		stop := l.stop
		l.mu.Unlock()
		if len(batch) == 0 {
			if stop {
				return
			}
			<-l.wake
			continue
		}
		for i, f := range batch {
			f()
			batch[i] = nil
		}
	}
}
