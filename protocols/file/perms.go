package file

import (
	"context"
	"syscall"

	"golang.org/x/sys/unix"

	"blockd/blockgraph"
)

// This file follows the permissions of the node's users: it takes the lock
// bytes that stand for them, and under auto-read-only opens the file for
// writing when the first writer comes and for reading only when the last one
// has gone.

// prepared is a change between PreparePerms and its end.
type prepared struct {
	opened // to take file's place, or none
	flags  int
	align  alignment
	locks  lockSet // of fd
}

// wanted returns the lock bytes that stand for the permissions.
func (d *driver) wanted(perm, shared blockgraph.Perm) lockSet {
	if d.forceShare {
		shared = blockgraph.PermAll
	}
	return lockSet{perm, blockgraph.PermAll &^ shared}
}

// PreparePerms locks what the old and the new permissions need together, and
// fails when another program's locks stand against the new ones.
func (d *driver) PreparePerms(ctx context.Context, perm, shared blockgraph.Perm) error {
	p := &prepared{opened: none, flags: d.openFlags(perm)}
	if p.flags != d.flags {
		var err error
		if p.opened, p.align, err = d.again(p.flags); err != nil {
			return err
		}
	}
	if err := d.prepareLocks(p, perm, shared); err != nil {
		d.discard(p)
		return err
	}
	d.settle(ctx, p)
	d.prepared = p
	return nil
}

func (d *driver) prepareLocks(p *prepared, perm, shared blockgraph.Perm) error {
	if !d.useLocks {
		return nil
	}
	want := d.wanted(perm, shared)
	old := d.wanted(d.perm, d.shared)
	if grown := want.union(old); grown != old {
		var err error
		if d.locks, err = lockMore(d.file.Fd(), d.locks, grown); err == nil {
			err = d.checkLocks(d.file.Fd(), want)
		}
		if err != nil {
			d.keepLocks(old)
			return err
		}
	}
	if p.fd < 0 {
		return nil
	}
	// The new file needs locks of its own; those of the old one keep others
	// out meanwhile.
	var err error
	if p.locks, err = lockMore(p.fd, lockSet{}, want); err != nil {
		d.keepLocks(old)
	}
	return err
}

// keepLocks unlocks all but the given bytes. That can hardly fail, and nobody
// could do anything about it.
func (d *driver) keepLocks(keep lockSet) {
	if !d.useLocks {
		return
	}
	var err error
	if d.locks, err = unlockRest(d.file.Fd(), d.locks, keep); err != nil {
		d.host.cfg.Warn(err.Error())
	}
}

// CommitPerms ends a prepared change.
func (d *driver) CommitPerms(perm, shared blockgraph.Perm) {
	p := d.prepared
	d.prepared = nil
	if p == nil {
		return
	}
	d.perm, d.shared = perm, shared
	if p.fd >= 0 {
		d.swap(p)
	}
	d.keepLocks(d.wanted(perm, shared))
}

// swap puts the prepared file in the place of the open one. The old file's
// locks are given up first: they would last as long as a request on it. Should
// the kernel refuse, the old file stays, and swap returns false.
func (d *driver) swap(p *prepared) bool {
	old := d.locks
	d.keepLocks(lockSet{})
	if err := d.file.Replace(p.fd); err != nil {
		d.discard(p)
		d.locks, _ = lockMore(d.file.Fd(), d.locks, old)
		d.host.cfg.Warn("Could not replace the file of '" + d.name + "': " + blockgraph.Strerror(err))
		return false
	}
	d.fromSet.giveBack()
	d.fromSet = opened{fd: -1, release: p.release}
	d.flags, d.locks = p.flags, p.locks
	d.relock(p.locks)
	d.setAlignment(p.align)
	return true
}

// AbortPerms undoes a prepared change.
func (d *driver) AbortPerms() {
	p := d.prepared
	d.prepared = nil
	if p == nil {
		return
	}
	d.discard(p)
	d.keepLocks(d.wanted(d.perm, d.shared))
}

// discard closes a prepared file that is not wanted any more. Its locks are
// given up before: an open file may live on in a descriptor set, or for a
// moment in a child process that is being started.
func (d *driver) discard(p *prepared) {
	if p.fd < 0 {
		return
	}
	_, _ = unlockRest(p.fd, p.locks, lockSet{})
	p.close()
	d.relock(d.locks)
}

// relock takes locks again that may have gone with those of another descriptor:
// in a set, both may be of one open file.
func (d *driver) relock(locks lockSet) {
	if isFdset(d.name) && d.useLocks {
		d.locks, _ = lockMore(d.file.Fd(), lockSet{}, locks)
	}
}

// again opens the node's file once more, with other flags. It is the same
// file even if its name has come to mean another one; descriptor sets are
// asked for a descriptor that fits.
func (d *driver) again(flags int) (o opened, a alignment, err error) {
	if isFdset(d.name) {
		o, err = d.host.fdset(d.name, flags)
	} else {
		o.fd, err = reopen(d.file.Fd(), d.name, flags, d.kind)
	}
	if err != nil {
		return none, a, err
	}
	if err = d.sameFile(o.fd); err == nil {
		err = checkWritable(o.fd, flags)
	}
	if err == nil {
		a, err = probeAlignment(o.fd, flags&unix.O_DIRECT != 0)
	}
	if err != nil {
		o.close()
		return none, a, err
	}
	return o, a, nil
}

// sameFile fails when fd is another file than the one that is open.
func (d *driver) sameFile(fd int) error {
	var was, is unix.Stat_t
	err := unix.Fstat(d.file.Fd(), &was)
	if err == nil {
		err = unix.Fstat(fd, &is)
	}
	if err == nil && (was.Dev != is.Dev || was.Ino != is.Ino) {
		err = syscall.ESTALE
	}
	if err != nil {
		return openError("open", d.name, err)
	}
	return nil
}

// settle flushes the open file before another takes its place: the kernel
// reports an error of writing back only on files that were open when it
// happened, and the next flush must not miss it.
func (d *driver) settle(ctx context.Context, p *prepared) {
	if p.fd >= 0 && d.written.Load() && !noFlush(d.options) {
		// A failure is remembered by the flusher.
		_ = d.Flush(context.WithoutCancel(ctx))
	}
}

// checkLocks adds the file's name for people.
func (d *driver) checkLocks(fd int, want lockSet) error {
	err := checkLocks(fd, want)
	if err != nil {
		return blockgraph.WithHint(err, "Is another process using the image ["+d.name+"]?")
	}
	return nil
}
