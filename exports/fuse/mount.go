package fuse

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"blockd/blockgraph"
	"blockd/qapi"
)

// maxTransfer is the most that one request of the kernel moves, in bytes: 256
// pages.
const maxTransfer = 1 << 20

// background is how many requests the kernel keeps with the server for readers
// and writers who do not wait for them.
const background = 64

// maxHeld bounds the memory for requests that have been taken from the kernel, in
// bytes; each takes as much as the longest. What comes beyond waits in the kernel.
const maxHeld = 64 << 20

// place is the file that an export is mounted over.
type place struct {
	fd     int    // O_PATH
	name   string // free of symbolic links
	device uint64 // of the mount, once it is there
}

// find opens the file of that name, to mount over just this one. What shows one
// of our disks already is refused unasked: nobody may answer for it yet.
func find(name string, taken func(device uint64) bool) (*place, error) {
	fd, err := unix.Open(name, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, qapi.Errorf("Failed to stat '%s': %s", name, blockgraph.Strerror(err))
	}
	p := &place{fd: fd}
	if taken != nil && taken(deviceOf(fd, "", unix.AT_EMPTY_PATH)) {
		p.close()
		return nil, Taken(name)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		p.close()
		return nil, qapi.Errorf("Failed to stat '%s': %s", name, blockgraph.Strerror(err))
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		p.close()
		return nil, qapi.Errorf("'%s' is not a regular file", name)
	}
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlink(p.self(), buf)
	if err != nil {
		p.close()
		return nil, qapi.Errorf("Failed to stat '%s': %s", name, blockgraph.Strerror(err))
	}
	p.name = string(buf[:n])
	return p, nil
}

// Taken is the error for a mountpoint that shows one of our disks already.
func Taken(name string) error { return qapi.Errorf("There already is a FUSE export on '%s'", name) }

// self names the very file that was found, whatever its name leads to by now.
func (p *place) self() string { return fmt.Sprintf("/proc/self/fd/%d", p.fd) }

func (p *place) close() { _ = unix.Close(p.fd) }

// errMount is the field's text for a mount that does not come about.
var errMount = qapi.Errorf("Failed to mount FUSE session to export")

// mount mounts fs over the file, and has it answer the kernel's greeting. Who is
// not root needs the program fusermount3, which lets others in only where the
// host's /etc/fuse.conf does.
func (p *place) mount(fs gofuse.RawFileSystem, allowOther bool) (*gofuse.Server, error) {
	o := gofuse.MountOptions{
		AllowOther: allowOther, Options: []string{"default_permissions"}, FsName: "/dev/fuse", Name: "blockd",
		MaxWrite: maxTransfer, MaxBackground: background, MaxInflightRequestBytes: maxHeld, DisableXAttrs: true, DisableSplice: true,
		Logger: slog.NewLogLogger(slog.Default().Handler(), slog.LevelDebug),
		// As on any other way to the disk: nobody could say what is held.
		PanicHandler: func(cause any) gofuse.Status { panic(cause) },
	}
	device, err := p.mountDirectly(&o)
	if errors.Is(err, unix.EPERM) {
		server, err := gofuse.NewServer(fs, p.name, &o)
		p.device = deviceOf(unix.AT_FDCWD, p.name, 0)
		return server, refused(err)
	}
	if err != nil {
		return nil, refused(err)
	}
	p.device = deviceOf(unix.AT_FDCWD, p.name, 0)
	// This form has the library take the descriptor over as it is.
	server, err := gofuse.NewServer(fs, fmt.Sprintf("/dev/fd/%d", device), &o)
	if err != nil {
		p.unmount()
		return nil, refused(err)
	}
	return server, nil
}

func refused(err error) error {
	if err == nil {
		return nil
	}
	slog.Debug("fuse_mount_failed", "cause", err)
	return errMount
}

// mountDirectly is mount(2), for root. It returns the descriptor that requests
// come through.
func (p *place) mountDirectly(o *gofuse.MountOptions) (int, error) {
	device, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	options := append([]string{
		fmt.Sprintf("fd=%d", device), fmt.Sprintf("rootmode=%o", unix.S_IFREG),
		fmt.Sprintf("user_id=%d", unix.Geteuid()), fmt.Sprintf("group_id=%d", unix.Getegid()),
		fmt.Sprintf("max_read=%d", o.MaxWrite),
	}, o.Options...)
	if o.AllowOther {
		options = append(options, "allow_other")
	}
	if err := unix.Mount(o.FsName, p.self(), "fuse", unix.MS_NOSUID|unix.MS_NODEV, strings.Join(options, ",")); err != nil {
		_ = unix.Close(device)
		return -1, err
	}
	return device, nil
}
