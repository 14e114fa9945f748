package ioengine

import (
	"runtime"
	"sync"
)

// This file gives Go more processors (Ps) than cores where that keeps the control
// loop and guests' connections from waiting for one.
//
// A call of the kernel that waits for storage keeps its P until the runtime's
// monitor takes it away, 20 us later at the soonest. With one P a core and one more
// that was the limit of reads past the page cache: three of them waited, and nobody
// was left to read the next requests from the socket. Those that wait cost no core.
//
// Who copies from sockets keeps a P busy, and a P that has something to run does
// not look for new requests of other sockets. So copying goroutines are few, and
// there are Ps for them besides those of the jobs' steps.

const (
	// waitingProcessors is how many Go has besides while a file is open that
	// bypasses the page cache. At depth 32 on two cores, 4 KiB reads took 19 us with
	// none, 13 with 4, and 12 with 10 (docs/performance.md).
	waitingProcessors = 8
	// receiveShare is how many cores there are for each goroutine of Receiving.
	receiveShare = 2
)

// Receiving has a place for each goroutine that may copy much data from a socket of
// a network disk at a time, in the whole process. It is held for a system call that
// does not wait. With as many as had something to read, 100 jobs over NBD delayed a
// query by 50 ms on two cores, and now by 18 (docs/performance.md).
var Receiving = make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/receiveShare))

var more struct {
	mu sync.Mutex
	// Open files past the page cache, and open network disks.
	direct, network int // +checklocks:mu
	// few is how many processors there were before the first came.
	few int // +checklocks:mu
}

// countDirect counts open files that bypass the page cache.
func countDirect(change int) { countProcessors(change, 0) }

// CountNetwork counts open network disks, whose connections take places of
// Receiving.
func CountNetwork(change int) { countProcessors(0, change) }

// countProcessors counts what wants processors. The world stops for a moment when
// the first of a kind comes and when the last goes.
func countProcessors(direct, network int) {
	more.mu.Lock()
	defer more.mu.Unlock()
	before := moreProcessors()
	more.direct += direct
	more.network += network
	after := moreProcessors()
	if before == after {
		return
	}
	if before == 0 {
		more.few = runtime.GOMAXPROCS(0)
	}
	runtime.GOMAXPROCS(more.few + after)
}

// moreProcessors is called with mu held.
//
// +checklocks:more.mu
func moreProcessors() int {
	n := 0
	if more.direct > 0 {
		n += waitingProcessors
	}
	if more.network > 0 {
		n += cap(Receiving) + 1
	}
	return n
}
