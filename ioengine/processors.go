package ioengine

import (
	"runtime"
	"sync"
)

// This file keeps calls that wait for storage from holding up everything else.
//
// A call of the kernel keeps Go's processor (a P) until the runtime's monitor
// takes it away, 20 us later at the soonest. With one P a core and one more that
// was the limit of reads past the page cache: three of them waited, and nobody
// was left to read the next requests from the socket. So while such a file is
// open, Go has more processors than cores; those that wait cost no core.

// waitingProcessors is how many Go has besides while a file is open that bypasses
// the page cache. At depth 32 on two cores, 4 KiB reads took 19 us with none, 13
// with 4, and 12 with 10 (docs/performance.md).
const waitingProcessors = 8

var direct struct {
	mu    sync.Mutex
	files int // +checklocks:mu
	// few is how many processors there were before the first came.
	few int // +checklocks:mu
}

// countDirect counts open files that bypass the page cache. The world stops for
// a moment when the first comes and when the last goes.
func countDirect(change int) {
	direct.mu.Lock()
	defer direct.mu.Unlock()
	before := direct.files
	direct.files += change
	switch {
	case before == 0 && direct.files > 0:
		direct.few = runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + waitingProcessors)
	case before > 0 && direct.files == 0:
		runtime.GOMAXPROCS(direct.few)
	}
}
