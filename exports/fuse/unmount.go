package fuse

import (
	"bufio"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

// A mount is known by its device number, which no other has as long as it lives.
// Its name may lead elsewhere by the end: folders are renamed, and others mount
// over it.

// deviceOf returns the device of what a name leads to, or 0. It asks the kernel,
// never us.
//
//blockd:io
func deviceOf(dir int, name string, flags int) uint64 {
	var st unix.Statx_t
	if unix.Statx(dir, name, flags|unix.AT_STATX_DONT_SYNC|unix.AT_SYMLINK_NOFOLLOW, unix.STATX_INO, &st) != nil {
		return 0
	}
	return unix.Mkdev(st.Dev_major, st.Dev_minor)
}

var errCovered = errors.New("something else is mounted over it")

// unmount takes the mount away at once, from under those who use it: their
// requests fail. It returns false where that cannot be done.
//
//blockd:io
func (p *place) unmount() bool {
	name, err := p.present()
	if err == nil {
		err = unix.Unmount(name, unix.MNT_FORCE|unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	}
	if errors.Is(err, unix.EPERM) {
		err = p.unmountAsUser(name)
	}
	if err != nil {
		slog.Warn("cannot unmount an export", "file", p.name, "cause", err)
	}
	return err == nil
}

// present returns the name by which the mount can be reached now.
//
//blockd:io
func (p *place) present() (string, error) {
	if p.device == 0 || deviceOf(unix.AT_FDCWD, p.name, 0) == p.device {
		return p.name, nil
	}
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	defer mounts.Close()
	device := fmt.Sprintf("%d:%d", unix.Major(p.device), unix.Minor(p.device))
	// proc_pid_mountinfo(5)
	spelled := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	err = unix.ENOENT
	for lines := bufio.NewScanner(mounts); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 5 || fields[2] != device {
			continue
		}
		if name := spelled.Replace(fields[4]); deviceOf(unix.AT_FDCWD, name, 0) == p.device {
			return name, nil
		}
		err = errCovered
	}
	return "", err
}

// unmountAsUser is unmount for who may not: the kernel lets the owner of a mount
// end its requests, where the host has /sys/fs/fuse/connections, and fusermount3
// take it away. Where the host has not, who has the file open keeps the export
// until he closes it.
//
//blockd:io
func (p *place) unmountAsUser(name string) error {
	abort := os.WriteFile(fmt.Sprintf("/sys/fs/fuse/connections/%d/abort", unix.Minor(p.device)), []byte("1"), 0)
	if err := exec.Command("fusermount3", "-u", "-z", "--", name).Run(); err != nil {
		return errors.Join(abort, err)
	}
	return nil
}
