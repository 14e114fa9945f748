package blockgraph

import "sync"

// Loop is the control plane's one goroutine. What it owns (names, parents,
// permissions, job states, the order of events) is changed by functions that
// it runs, one after the other. None of them may wait.
type Loop struct {
	mu      sync.Mutex
	queue   []func()
	wake    chan struct{} // capacity 1
	stopped chan struct{}
	stop    bool
	id      uint64 // of the goroutine, under blockddebug
}

// NewLoop starts a loop.
func NewLoop() *Loop {
	l := &Loop{wake: make(chan struct{}, 1), stopped: make(chan struct{})}
	go l.run()
	return l
}

// Post has the loop run f later, after everything posted before. Any
// goroutine; never waits. After Stop it does nothing and returns false.
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
func (l *Loop) Do(f func()) bool {
	done := make(chan struct{})
	if !l.Post(func() { f(); close(done) }) {
		return false
	}
	<-done
	return true
}

// Stop runs what was posted and ends the loop.
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

func (l *Loop) run() {
	defer close(l.stopped)
	l.id = goroutineID()
	var batch []func()
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
