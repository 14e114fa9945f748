package clock

import (
	"time"

	"golang.org/x/sys/unix"
)

// ProcessTime returns how much time of processors this process has used, all
// threads together: in a second of wall time at most as many seconds as there
// are processors.
//
//blockd:io
func ProcessTime() time.Duration {
	var ts unix.Timespec
	// It cannot fail: the clock is a constant and the memory ours.
	_ = unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &ts)
	return time.Duration(ts.Nano())
}
