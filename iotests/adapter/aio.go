package main

import "sync"

// requests are those that go on while the monitor does.
type requests struct {
	mu sync.Mutex //blockd:short
	n  int
	// idle is closed when none is left; nil: nobody waits.
	idle chan struct{}
}

// begin counts a request until its end, done.
func (q *requests) begin() (done func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.n++
	return q.end
}

func (q *requests) end() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.n--; q.n == 0 && q.idle != nil {
		close(q.idle)
		q.idle = nil
	}
}

// wait returns when none is left.
func (q *requests) wait() {
	q.mu.Lock()
	if q.n == 0 {
		q.mu.Unlock()
		return
	}
	if q.idle == nil {
		q.idle = make(chan struct{})
	}
	idle := q.idle
	q.mu.Unlock()
	<-idle
}
