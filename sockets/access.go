package sockets

import (
	"context"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"blockd/clock"
	"blockd/qapi"
)

// Access says which local users may connect to a unix socket. The zero value is
// the field's: what the umask leaves, and whatever is at the path makes way.
type Access struct {
	// Private makes the file for this user alone, with mode 0600 from its first
	// moment on, whatever the umask; the members below let others in.
	Private bool
	// Group, unless nil, owns the file, whose mode is 0660 then.
	Group *int
	// Users, unless nil, are who else may connect beside this process's own user
	// and root; the kernel says who does. Without Group the file's mode is 0666
	// then, since it is not the file that keeps others out.
	Users []uint32
	// Exclusive refuses a path where somebody listens, or where something else
	// than a socket is.
	Exclusive bool
}

// mode is what the file gets in the end.
func (a *Access) mode() uint32 {
	switch {
	case a.Group != nil:
		return 0o660
	case a.Users != nil:
		return 0o666
	}
	return 0o600
}

// settle gives the file of a socket, whose mode was 0600 so far, its group and
// mode. It does not follow links: only the file with that identity is changed.
func (a *Access) settle(path string, dev, ino uint64) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Dev != dev || st.Ino != ino || st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return unix.ESTALE
	}
	if a.Group != nil {
		if err := unix.Fchownat(fd, "", -1, *a.Group, unix.AT_EMPTY_PATH); err != nil {
			return err
		}
	}
	return os.Chmod("/proc/self/fd/"+strconv.Itoa(fd), fs.FileMode(a.mode()))
}

// admits tells whether the user of a connection may have it. Who is refused is
// logged.
func (l *Listener) admits(c *Conn) bool {
	a := &l.access
	if a.Users == nil || c.Domain() != unix.AF_UNIX {
		return true
	}
	cred, ok := c.Credentials()
	if ok && a.includes(cred.Uid, uint32(os.Geteuid())) {
		return true
	}
	if before, tell := l.refused.take(clock.Real().Now()); tell {
		slog.Warn("a connection was refused: its user is not allowed", "socket", l.path, "uid", cred.Uid, "pid", cred.Pid, "untold", before)
	}
	return false
}

// includes tells whether Users let a user in, where own runs the program.
func (a *Access) includes(uid, own uint32) bool {
	return uid == 0 || uid == own || slices.Contains(a.Users, uid)
}

// refusals bound what the log says of those who are refused: they may come as
// often as they like, and the log, and the disk that it is on, is for others too.
type refusals struct {
	mu     sync.Mutex
	last   time.Time // +checklocks:mu
	untold int       // +checklocks:mu
}

// refusalPause is the least time between two lines about one socket.
const refusalPause = time.Second

// take notes a refusal; tell: it is to be logged, with how many before it were
// not.
func (r *refusals) take(now time.Time) (untold int, tell bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.last.IsZero() && now.Sub(r.last) < refusalPause {
		r.untold++
		return 0, false
	}
	untold, r.untold, r.last = r.untold, 0, now
	return untold, true
}

// startTime is how long a start waits for others that start in the same folder,
// which takes them no time: who holds the lock for longer is no start, but
// anybody who may read the folder.
const startTime = 2 * time.Second

// lockPause is the time between two attempts to get the lock.
const lockPause = 10 * time.Millisecond

// clearWay removes what an earlier run has left at the path. Until done is
// called, no other start in the same folder does, so that none takes the socket
// of one that has just begun for a left one; none is waited for longer than
// wait.
func clearWay(ctx context.Context, path string, wait time.Duration) (done func(), err error) {
	done = func() {}
	inUse := func(why string) error {
		return qapi.Errorf("Failed to bind socket to %s: %s", path, why)
	}
	if dir, err := os.Open(filepath.Dir(path)); err == nil {
		for until := clock.Real().Now().Add(wait); ; {
			// Some file systems have no locks, and say so.
			if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != unix.EWOULDBLOCK {
				break
			}
			if clock.Until(clock.Real(), until) <= 0 {
				slog.Warn("somebody holds the lock of a socket's directory", "socket", path)
				break
			}
			if err := clock.Real().Sleep(ctx, lockPause); err != nil {
				dir.Close()
				return done, err
			}
		}
		done = func() { dir.Close() }
	}
	var st unix.Stat_t
	switch err := unix.Lstat(path, &st); {
	case err != nil:
		return done, nil // bind says what is wrong with the path
	case st.Mode&unix.S_IFMT != unix.S_IFSOCK:
		return done, inUse("something else than a socket is there")
	}
	probe, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return done, inUse(Reason(err))
	}
	defer unix.Close(probe)
	raw, size, err := rawUnix(&qapi.UnixSocketAddress{Path: path})
	if err != nil {
		return done, err
	}
	if err := rawCall(unix.SYS_CONNECT, probe, &raw, size); err != unix.ECONNREFUSED {
		return done, inUse("somebody listens there") // or it cannot be found out
	}
	if err := unix.Unlink(path); err != nil && err != unix.ENOENT {
		return done, qapi.Errorf("Failed to unlink socket %s: %s", path, Reason(err))
	}
	return done, nil
}
