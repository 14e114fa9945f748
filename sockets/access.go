package sockets

import (
	"context"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
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
func (a *Access) admits(c *Conn, path string) bool {
	if a.Users == nil || c.Domain() != unix.AF_UNIX {
		return true
	}
	cred, ok := c.Credentials()
	if ok && (cred.Uid == 0 || cred.Uid == uint32(os.Geteuid()) || slices.Contains(a.Users, cred.Uid)) {
		return true
	}
	slog.Warn("a connection was refused: its user is not allowed", "socket", path, "uid", cred.Uid, "pid", cred.Pid)
	return false
}

// startTime is how long a start waits for others that start in the same folder.
const startTime = 5 * time.Second

// clearWay removes what an earlier run has left at the path. Until done is
// called, no other start in the same folder does, so that none takes the socket
// of one that has just begun for a left one.
func clearWay(ctx context.Context, path string) (done func(), err error) {
	done = func() {}
	inUse := func(why string) error {
		return qapi.Errorf("Failed to bind socket to %s: %s", path, why)
	}
	if dir, err := os.Open(filepath.Dir(path)); err == nil {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		timer := clock.Real().AfterFunc(startTime, cancel)
		defer timer.Stop()
		for {
			err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
			if err == nil {
				break
			}
			if err != unix.EWOULDBLOCK {
				break // a file system without locks
			}
			if clock.Real().Sleep(ctx, startTime/500) != nil {
				dir.Close()
				return done, inUse("another start holds the directory")
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
