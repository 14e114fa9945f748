package jobs

import "sync"

// Progress counts a job's work, in bytes for all that copy. The total is what
// is done plus what is known to remain; it may grow and shrink. Any goroutine.
//
//blockd:any
type Progress struct {
	mu sync.Mutex //blockd:short
	// +checklocks:mu
	current int64
	// +checklocks:mu
	total int64
}

// Add counts n as done.
func (p *Progress) Add(n int64) {
	p.mu.Lock()
	p.current += n
	p.mu.Unlock()
}

// SetRemaining says how much is left to do.
func (p *Progress) SetRemaining(n int64) {
	p.mu.Lock()
	p.total = p.current + n
	p.mu.Unlock()
}

// Report counts done as done, and changes how much is left to do by remaining:
// a copy of n bytes is (n, -n).
func (p *Progress) Report(done, remaining int64) {
	p.mu.Lock()
	p.current += done
	p.total += done + remaining
	p.mu.Unlock()
}

// Snapshot returns what is done and the total, as of one moment.
func (p *Progress) Snapshot() (current, total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.current, p.total
}
