package sockets

import (
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"blockd/qapi"
)

// Sockets that a service manager has opened and hands over at start
// (sd_listen_fds(3)): descriptors from 3 on, as many as LISTEN_FDS says, with the
// names of LISTEN_FDNAMES, for the process that LISTEN_PID names.

// firstActivated is the first of the descriptors.
const firstActivated = 3

// maxActivated bounds their number.
const maxActivated = 1024

// Activated are the sockets that were handed over. The nil one has none.
type Activated struct {
	mu    sync.Mutex
	names []string // +checklocks:mu
	taken []bool   // +checklocks:mu
}

// FromServiceManager returns the sockets that were handed over to one of the
// processes pids, nil without any. They are not passed on to children. The error
// is the field's, for a descriptor that is not there.
func FromServiceManager(getenv func(string) string, pids ...int) (*Activated, error) {
	pid, err := strconv.Atoi(getenv("LISTEN_PID"))
	if err != nil || !slices.Contains(pids, pid) {
		return nil, nil
	}
	n, err := strconv.Atoi(getenv("LISTEN_FDS"))
	if err != nil || n <= 0 || n > maxActivated {
		return nil, nil
	}
	a := &Activated{names: make([]string, n), taken: make([]bool, n)}
	if list := getenv("LISTEN_FDNAMES"); list != "" {
		copy(a.names, strings.Split(list, ":"))
	}
	for i := range n {
		fd := firstActivated + i
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if err == nil {
			_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFD, flags|unix.FD_CLOEXEC)
		}
		if err != nil {
			return nil, qapi.Errorf("Socket activation failed: invalid file descriptor fd = %d: %s", fd, Reason(err))
		}
	}
	return a, nil
}

// Take returns the next socket of that name, which is the caller's from now on;
// false when there is none, or none any more.
func (a *Activated) Take(name string) (fd int, ok bool) {
	if a == nil {
		return -1, false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for i, n := range a.names {
		if n == name && !a.taken[i] {
			a.taken[i] = true
			return firstActivated + i, true
		}
	}
	return -1, false
}
