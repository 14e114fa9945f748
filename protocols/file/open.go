package file

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"blockd/blockgraph"
)

// This file turns names into descriptors. A name is first resolved to an inode
// without opening it (O_PATH); what kind of file that is and whether the
// policy allows it is decided on the inode, and that very inode is then
// opened. So a FIFO never blocks, a device that nobody asked for is never
// touched, and no link or rename in between changes what was decided upon.

// fdsetPrefix begins the names of files in descriptor sets.
const fdsetPrefix = "/dev/fdset/"

// opener opens nodes of one driver.
type opener struct {
	host   *Host
	driver string
	device bool
}

// opened is an open descriptor with what is to be given back after it.
type opened struct {
	fd      int    // or -1
	release func() // of the descriptor set that it came from; or nil
}

// close ends both. Safe on what is not open.
func (o opened) close() {
	if o.fd >= 0 {
		unix.Close(o.fd)
		o.giveBack()
	}
}

// giveBack tells the set that the descriptor is not used any more.
func (o opened) giveBack() {
	if o.release != nil {
		o.release()
	}
}

var none = opened{fd: -1}

// descriptor opens a name with the given access mode and O_DIRECT. On an error
// nothing is left open.
func (p *opener) descriptor(name string, flags int, fromHeader bool) (opened, error) {
	if strings.HasPrefix(name, fdsetPrefix) {
		if fromHeader {
			return none, blockgraph.Errorf(syscall.EPERM, "'%s' is a descriptor set, which an image header may not name", name)
		}
		return p.host.fdset(name, flags)
	}
	path, err := openAt(unix.AT_FDCWD, name, unix.O_PATH, 0)
	if err != nil {
		return none, openError("open", name, err)
	}
	defer unix.Close(path)
	var st unix.Stat_t
	if err := unix.Fstat(path, &st); err != nil {
		return none, openError("open", name, err)
	}
	if err := p.checkKind(name, st.Mode, fromHeader); err != nil {
		return none, err
	}
	if err := p.host.allow(path, name, "open", fromHeader); err != nil {
		return none, err
	}
	fd, err := reopen(path, name, flags, st.Mode)
	return opened{fd: fd}, err
}

// checkKind refuses what must not even be opened.
func (p *opener) checkKind(name string, mode uint32, fromHeader bool) error {
	kind := mode & unix.S_IFMT
	switch {
	case kind == unix.S_IFIFO:
		return p.wrongKind(name)
	case fromHeader && kind != unix.S_IFREG && kind != unix.S_IFBLK:
		if !p.device || kind != unix.S_IFCHR {
			return p.wrongKind(name)
		}
		return blockgraph.Errorf(syscall.EPERM, "'%s' is a character device, which an image header may not name", name)
	}
	return nil
}

// wrongKind is the field's error for a file that the driver does not serve.
func (p *opener) wrongKind(name string) error {
	if p.device {
		return blockgraph.Errorf(syscall.EINVAL, "'%s' driver requires '%s' to be either a character or block device", p.driver, name)
	}
	return blockgraph.Errorf(syscall.EINVAL, "'%s' driver requires '%s' to be a regular file", p.driver, name)
}

// allow asks the policy about the inode behind a descriptor.
func (h *Host) allow(fd int, name, action string, fromHeader bool) error {
	if h.cfg.Policy == nil {
		return nil
	}
	path, err := os.Readlink(procPath(fd))
	if err != nil {
		return blockgraph.Errorf(syscall.EPERM, "Could not %s '%s': %s", action, name, blockgraph.Strerror(err))
	}
	if err := h.cfg.Policy.AllowOpen(path, fromHeader); err != nil {
		return blockgraph.Errorf(syscall.EPERM, "Could not %s '%s': %v", action, name, err)
	}
	return nil
}

func procPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// reopen opens the inode behind fd once more, with other flags; name is for
// error texts.
func reopen(fd int, name string, flags int, mode uint32) (int, error) {
	if mode&unix.S_IFMT == unix.S_IFCHR {
		flags |= unix.O_NONBLOCK // opening a terminal would wait for a carrier
	}
	nfd, err := openAt(unix.AT_FDCWD, procPath(fd), flags|unix.O_NOCTTY, 0)
	if err == unix.EINVAL && flags&unix.O_DIRECT != 0 {
		if probe, e := openAt(unix.AT_FDCWD, procPath(fd), flags&^unix.O_DIRECT|unix.O_NOCTTY, 0); e == nil {
			unix.Close(probe)
			return -1, blockgraph.Errorf(syscall.EINVAL, "Could not open '%s': filesystem does not support O_DIRECT", name)
		}
	}
	if err != nil {
		return -1, openError("open", name, err)
	}
	if flags&unix.O_NONBLOCK != 0 {
		if err := unix.SetNonblock(nfd, false); err != nil {
			unix.Close(nfd)
			return -1, openError("open", name, err)
		}
	}
	return nfd, nil
}

func openAt(dir int, name string, flags int, perm uint32) (int, error) {
	for {
		fd, err := unix.Openat(dir, name, flags|unix.O_CLOEXEC, perm)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

func openError(action, name string, err error) error {
	errno := blockgraph.Errno(err)
	text := fmt.Sprintf("Could not %s '%s': %s", action, name, blockgraph.Strerror(err))
	if errno == syscall.EROFS {
		errno = syscall.EACCES
	}
	return blockgraph.Errorf(errno, "%s", text)
}

// fdset opens a name in a descriptor set.
func (h *Host) fdset(name string, flags int) (opened, error) {
	if n, err := strconv.ParseInt(name[len(fdsetPrefix):], 10, 32); err != nil || n < 0 {
		return none, blockgraph.Errorf(syscall.EINVAL, "Could not parse fdset %s", name)
	}
	fail := func(err error) (opened, error) {
		return none, blockgraph.Errorf(blockgraph.Errno(err), "Could not dup FD for %s flags %x: %s", name, flags, blockgraph.Strerror(err))
	}
	if h.cfg.Opener == nil {
		return fail(syscall.ENOSYS)
	}
	f, release, err := h.cfg.Opener(name, flags)
	if err != nil {
		return fail(err)
	}
	defer f.Close()
	o := opened{fd: -1, release: release}
	c, err := f.SyscallConn()
	if err != nil {
		o.giveBack()
		return fail(err)
	}
	// The duplicate shares the open file, and with it the locks.
	var dupErr error
	err = c.Control(func(s uintptr) { o.fd, dupErr = unix.FcntlInt(s, unix.F_DUPFD_CLOEXEC, 0) })
	if err == nil {
		err = dupErr
	}
	if err != nil {
		o.giveBack()
		return fail(err)
	}
	return o, nil
}
