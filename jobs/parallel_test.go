package jobs_test

import (
	"sync"
	"syscall"
	"testing"
	"time"

	"blockd/clock"
	"blockd/jobs/copy"
	"blockd/qapi"
)

// crowd is a read hook that lets nobody pass before so many wait at once. What
// jobs read one piece after the other, at their start, passes.
type crowd struct {
	mu     sync.Mutex
	inside int
	full   chan struct{}
	want   int
}

func (c *crowd) wait(off, _ int64) error {
	if off < copy.CarefulStart {
		return nil
	}
	c.mu.Lock()
	if c.inside++; c.inside == c.want {
		close(c.full)
	}
	c.mu.Unlock()
	limit := clock.Real().NewTimer(time.Minute)
	defer limit.Stop()
	select {
	case <-c.full:
		return nil
	case <-limit.C():
		return syscall.ETIMEDOUT
	}
}

// TestStreamAndCommitReadInParallel: over a source with long latency they have
// eight pieces and more in flight once they have begun well; the field has one.
func TestStreamAndCommitReadInParallel(t *testing.T) {
	const clusters = 256 // 16 MiB: 15 pieces after the careful ones
	for name, start := range map[string]func(w *world){
		"stream": func(w *world) { w.startStream(qapi.BlockStreamArg{Device: "top", JobID: ptr("j")}) },
		"commit": func(w *world) {
			w.startCommit(qapi.BlockCommitArg{Device: "top", TopNode: ptr("mid"), JobID: ptr("j")})
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorldAt(t, clock.NewVirtual()) // however slow the machine, the storage is not
			w.add(newDisk("base", clusters), "")
			mid := newDisk("mid", clusters).fill(0, clusters, 'm')
			w.add(mid, "base")
			w.add(newDisk("top", clusters), "mid")
			mid.onRead = (&crowd{want: 8, full: make(chan struct{})}).wait
			start(w)
			want := "j created, j running, j waiting, j pending, j COMPLETED " + name + " 256/256, j concluded, j null"
			w.expectEvents("j null", want)
		})
	}
}
