package file

import (
	"context"
	"math"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"blockd/blockgraph"
	"blockd/qapi"
)

// defaultExtentSizeHint is set on new files where XFS takes it, in bytes.
const defaultExtentSizeHint = 1 << 20

// Create makes a file, or empties an existing one, and gives it the size and
// allocation asked for. Another program's locks are respected: it counts as a
// writer and resizer, and nobody else may resize meanwhile. When it fails, a
// file that it made is gone again; one that was there is left alone up to the
// point where the field would have emptied it. On a worker; blocks. Errors
// have the field's texts.
func (h *Host) Create(ctx context.Context, o *qapi.BlockdevCreateOptionsFile) (err error) {
	hint := valueOr(o.ExtentSizeHint, defaultExtentSizeHint)
	if hint > math.MaxUint32 {
		return blockgraph.Errorf(syscall.EINVAL, "Extent size hint is too large")
	}
	prealloc := valueOr(o.Preallocation, qapi.PreallocModeOff)
	if prealloc == qapi.PreallocModeMetadata {
		return blockgraph.Errorf(syscall.ENOTSUP, "Unsupported preallocation mode: %s", prealloc)
	}
	if o.Size > math.MaxInt64 {
		return blockgraph.Errorf(syscall.EINVAL, "Could not resize file: %s", blockgraph.Strerror(syscall.EINVAL))
	}
	got, made, err := h.create(o.Filename)
	if err != nil {
		return err
	}
	defer got.giveBack()
	fd := got.fd
	f := h.cfg.Calls.NewFile(fd)
	var held lockSet
	defer func() {
		if err != nil && made {
			removeIfSame(o.Filename, fd)
		}
		// A descriptor of a set outlives f, and its locks would, too.
		_, _ = unlockRest(fd, held, lockSet{})
		cerr := f.Close()
		if err == nil && cerr != nil {
			err = failed(cerr, "Could not close the new file")
		}
	}()
	locks := lockSet{perm: blockgraph.PermWrite | blockgraph.PermResize, unshared: blockgraph.PermResize}
	if held, err = lockMore(fd, held, locks); err == nil {
		err = checkLocks(fd, locks)
	}
	if err != nil {
		made = false // whoever has it locked uses it
		return err
	}
	if err := resize(ctx, f, o.Filename, 0, qapi.PreallocModeOff); err != nil {
		return err
	}
	h.setAttributes(fd, o, hint)
	return resize(ctx, f, o.Filename, int64(o.Size), prealloc)
}

// setAttributes sets what not every file system has. Failure is no error.
func (h *Host) setAttributes(fd int, o *qapi.BlockdevCreateOptionsFile, hint uint64) {
	if isSet(o.Nocow) {
		if flags, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS); err == nil {
			_ = unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, flags|fsNocowFlag)
		}
	}
	var a fsxattr
	err := a.get(fd)
	if err == nil {
		a.xflags |= fsXflagExtsize
		a.extsize = uint32(hint)
		err = a.set(fd)
	}
	if err != nil && o.ExtentSizeHint != nil && hint != 0 {
		h.cfg.Warn("Failed to set extent size hint: " + blockgraph.Strerror(err))
	}
}

// createMode is the mode of new files, before the umask.
const createMode = 0o644

// create opens a file for reading and writing and makes it if need be.
func (h *Host) create(name string) (o opened, made bool, err error) {
	if strings.HasPrefix(name, fdsetPrefix) {
		o, err = h.fdset(name, unix.O_RDWR|unix.O_CREAT)
		return o, false, err
	}
	fd, made, err := h.createPath(name)
	return opened{fd: fd}, made, err
}

func (h *Host) createPath(name string) (fd int, made bool, err error) {
	for {
		fd, err = h.createNew(name)
		if err == nil {
			return fd, true, nil
		}
		if blockgraph.Errno(err) != syscall.EEXIST {
			return -1, false, err
		}
		fd, err = h.createOver(name)
		if err == nil || blockgraph.Errno(err) != syscall.ENOENT {
			return fd, false, err
		}
		if isDangling(name) {
			return h.createTarget(name)
		}
		// It vanished in between.
	}
}

// createNew makes a file that must not be there yet. The policy is asked about
// the folder that the name really is in.
func (h *Host) createNew(name string) (int, error) {
	dir := unix.AT_FDCWD
	at := name
	if h.cfg.Policy != nil && name != "" {
		parent, err := openAt(unix.AT_FDCWD, filepath.Dir(name), unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return -1, openError("create", name, err)
		}
		defer unix.Close(parent)
		dir, at = parent, filepath.Base(name)
		if strings.HasSuffix(name, "/") {
			at += "/"
		}
		if err := h.allowChild(parent, at, name); err != nil {
			return -1, err
		}
	}
	fd, err := openAt(dir, at, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOCTTY, createMode)
	if err != nil {
		return -1, openError("create", name, err)
	}
	return fd, nil
}

// allowChild asks the policy about a file that is to be made in a folder. One
// that is there already may be a link to elsewhere: it is judged when opened.
func (h *Host) allowChild(dir int, base, name string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW); err == nil {
		return openError("create", name, syscall.EEXIST)
	}
	path, err := filepath.EvalSymlinks(procPath(dir))
	if err != nil {
		return openError("create", name, err)
	}
	if err := h.cfg.Policy.AllowOpen(filepath.Join(path, base), false); err != nil {
		return blockgraph.Errorf(syscall.EPERM, "Could not create '%s': %v", name, err)
	}
	return nil
}

// createOver opens a file that is there.
func (h *Host) createOver(name string) (int, error) {
	path, err := openAt(unix.AT_FDCWD, name, unix.O_PATH, 0)
	if err != nil {
		return -1, openError("create", name, err)
	}
	defer unix.Close(path)
	var st unix.Stat_t
	if err := unix.Fstat(path, &st); err != nil {
		return -1, openError("create", name, err)
	}
	if err := h.allow(path, name, "create", false); err != nil {
		return -1, err
	}
	flags := unix.O_RDWR | unix.O_NOCTTY
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		flags |= unix.O_NONBLOCK
	}
	fd, err := openAt(unix.AT_FDCWD, procPath(path), flags, 0)
	if err != nil {
		return -1, openError("create", name, err)
	}
	return fd, nil
}

// createTarget makes the file that a link to nothing stands for. Where that is
// cannot be told beforehand, so a policy allows none.
func (h *Host) createTarget(name string) (int, bool, error) {
	if h.cfg.Policy != nil {
		return -1, false, openError("create", name, syscall.EPERM)
	}
	fd, err := openAt(unix.AT_FDCWD, name, unix.O_RDWR|unix.O_CREAT|unix.O_NOCTTY|unix.O_NONBLOCK, createMode)
	if err != nil {
		return -1, false, openError("create", name, err)
	}
	return fd, false, nil
}

// isDangling tells whether the name is a link to nothing.
func isDangling(name string) bool {
	var st unix.Stat_t
	return unix.Lstat(name, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK
}

// removeIfSame deletes the name if it still means the open file.
func removeIfSame(name string, fd int) {
	var a, b unix.Stat_t
	if unix.Fstat(fd, &a) == nil && unix.Lstat(name, &b) == nil && a.Dev == b.Dev && a.Ino == b.Ino {
		_ = unix.Unlink(name)
	}
}
