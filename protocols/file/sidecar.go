package file

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"blockd/blockgraph"
	"blockd/ioengine"
)

// Files beside an image, for a format that has no room in the image itself.
// They are opened as images are: the policy judges the inode.

// sidecar is an open file beside an image.
type sidecar struct {
	f      *ioengine.File
	name   string
	made   bool // not durable in its folder yet
	failed bool // a flush has: see flush.go
}

var _ blockgraph.SidecarHost = (*driver)(nil)

// OpenSidecar opens a file beside the image, or one of another name.
func (d *driver) OpenSidecar(ctx context.Context, name, suffix string, write, create bool) (blockgraph.Sidecar, error) {
	if name == "" {
		if isFdset(d.name) {
			return nil, blockgraph.Errorf(syscall.EINVAL, "'%s' has no files beside it", d.name)
		}
		name = d.name + suffix
	}
	if isFdset(name) {
		return nil, blockgraph.Errorf(syscall.EINVAL, "'%s' is a descriptor set", name)
	}
	flags := unix.O_RDONLY
	if write {
		flags = unix.O_RDWR
	}
	s := &sidecar{name: name}
	got, err := (&opener{host: d.host, driver: "file"}).descriptor(name, flags, false)
	if err != nil && blockgraph.Errno(err) == syscall.ENOENT && write && create {
		got = none
		got.fd, err = d.host.createNew(name)
		s.made = err == nil
	}
	if err != nil {
		return nil, err
	}
	err = d.check(s, got.fd, write)
	if err == nil && s.made {
		err = d.narrow(s, got.fd)
	}
	if err != nil {
		if s.made {
			removeIfSame(name, got.fd)
		}
		got.close()
		return nil, err
	}
	s.f = d.host.cfg.Calls.NewFile(got.fd)
	return s, nil
}

// check refuses what is no regular file or is the image itself and, for writing,
// what another has locked.
func (d *driver) check(s *sidecar, fd int, write bool) error {
	var st, image unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return openError("open", s.name, err)
	}
	if err := d.stat(&image); err != nil {
		return openError("open", d.name, err)
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return blockgraph.Errorf(syscall.EINVAL, "'file' driver requires '%s' to be a regular file", s.name)
	case st.Dev == image.Dev && st.Ino == image.Ino:
		return blockgraph.Errorf(syscall.EINVAL, "'%s' is the image itself", s.name)
	}
	if !write {
		return nil
	}
	err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
	if err == unix.EAGAIN || err == unix.EACCES {
		return blockgraph.WithHint(blockgraph.Errorf(syscall.EAGAIN, `Failed to get "write" lock`), "Is another process using the file ["+s.name+"]?")
	}
	return nil // without locks in the file system, those of the image must do
}

// narrow keeps a new file from those who have no access to the image.
func (d *driver) narrow(s *sidecar, fd int) error {
	var st, image unix.Stat_t
	err := unix.Fstat(fd, &st)
	if err == nil {
		err = d.stat(&image)
	}
	if mode := st.Mode & image.Mode & 0o777; err == nil && mode != st.Mode&0o777 {
		err = unix.Fchmod(fd, mode)
	}
	if err != nil {
		return openError("create", s.name, err)
	}
	return nil
}

// stat asks about the image.
func (d *driver) stat(st *unix.Stat_t) error {
	return d.file.Do(context.Background(), func(fd int) error { return unix.Fstat(fd, st) })
}

// Size returns the file's length.
func (s *sidecar) Size(ctx context.Context) (n int64, err error) {
	err = s.f.Do(ctx, func(fd int) error {
		var err error
		n, err = fileSize(fd)
		return err
	})
	return n, err
}

// ReadAt reads.
func (s *sidecar) ReadAt(ctx context.Context, p []byte, off int64) error {
	n, err := s.f.ReadV(ctx, off, [][]byte{p})
	if err == nil {
		clear(p[n:])
	}
	return err
}

// WriteAt writes.
func (s *sidecar) WriteAt(ctx context.Context, p []byte, off int64) error {
	_, err := s.f.WriteV(ctx, off, [][]byte{p})
	return err
}

// Truncate changes the length.
func (s *sidecar) Truncate(ctx context.Context, size int64) error {
	return s.f.Do(ctx, func(fd int) error { return unix.Ftruncate(fd, size) })
}

// Flush makes the content durable, and the name of a new file.
func (s *sidecar) Flush(ctx context.Context) error {
	if s.failed {
		return syscall.EIO
	}
	called := false
	err := s.f.Do(ctx, func(fd int) error {
		called = true
		return unix.Fdatasync(fd)
	})
	if err == nil && s.made {
		called = false // a folder that cannot be flushed is asked again
		err = s.f.Do(ctx, func(int) error { return syncFolder(s.name) })
		s.made = err != nil
	}
	s.failed = err != nil && called
	return err
}

func syncFolder(name string) error {
	fd, err := openAt(unix.AT_FDCWD, filepath.Dir(name), unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Fsync(fd); err != nil && err != unix.EINVAL {
		return err // EINVAL: this file system has no such thing
	}
	return nil
}

// Close closes the file; its lock goes with it.
func (s *sidecar) Close() error { return s.f.Close() }

// Identity tells which file is open.
func (d *driver) Identity(ctx context.Context) (id blockgraph.FileIdentity, err error) {
	err = d.file.Do(ctx, func(fd int) error {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return err
		}
		size, err := fileSize(fd)
		if err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT == unix.S_IFREG {
			id = blockgraph.FileIdentity{Dev: st.Dev, Ino: st.Ino, Size: size, Modified: st.Mtim.Nano(), Changed: st.Ctim.Nano()}
			return nil
		}
		id = blockgraph.FileIdentity{Device: true, Dev: st.Rdev, Size: size, ID: deviceID(st.Rdev)}
		return nil
	})
	return id, err
}

// deviceID returns what the kernel knows a block device by that does not depend
// on the order in which devices were found, or "".
func deviceID(rdev uint64) string {
	dir := fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(rdev), unix.Minor(rdev))
	part := ""
	if b, err := os.ReadFile(dir + "/partition"); err == nil {
		part = " partition " + strings.TrimSpace(string(b))
		dir += "/.."
	}
	for _, name := range []string{"dm/uuid", "wwid", "device/wwid"} {
		if b, err := os.ReadFile(dir + "/" + name); err == nil {
			if id := strings.TrimSpace(string(b)); id != "" {
				return id + part
			}
		}
	}
	return ""
}
