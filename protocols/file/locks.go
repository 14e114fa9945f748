package file

import (
	"fmt"
	"io"
	"math/bits"
	"syscall"

	"golang.org/x/sys/unix"

	"blockd/blockgraph"
)

// This file keeps the field's lock bytes, by which programs that use one image
// keep out of each other's way. Each permission has two bytes in the file
// (they need not exist): one is locked by who uses the permission, the other
// by who does not share it. All locks are shared ones, taken first and tested
// afterwards: whoever finds that another holds the opposite byte withdraws.
// They are OFD locks: they belong to the open file and end with its last
// descriptor.

const (
	lockPermBase   = 100 // locked by users of a permission
	lockSharedBase = 200 // locked by those who do not share it
)

// lockSet is the bytes that an open file has locked, as permission bits.
type lockSet struct {
	perm     blockgraph.Perm // at lockPermBase
	unshared blockgraph.Perm // at lockSharedBase
}

// union returns the bytes of both sets.
func (l lockSet) union(o lockSet) lockSet {
	return lockSet{l.perm | o.perm, l.unshared | o.unshared}
}

// lockMore locks what want has and held has not, and returns what is locked
// then, also on an error.
func lockMore(fd int, held, want lockSet) (lockSet, error) {
	err := eachBit(want.perm&^held.perm, func(bit blockgraph.Perm, i int) error {
		if err := setLock(fd, unix.F_RDLCK, lockPermBase+i); err != nil {
			return lockError(err, "Failed to lock byte %d", lockPermBase+i)
		}
		held.perm |= bit
		return nil
	})
	if err == nil {
		err = eachBit(want.unshared&^held.unshared, func(bit blockgraph.Perm, i int) error {
			if err := setLock(fd, unix.F_RDLCK, lockSharedBase+i); err != nil {
				return lockError(err, "Failed to lock byte %d", lockSharedBase+i)
			}
			held.unshared |= bit
			return nil
		})
	}
	return held, err
}

// unlockRest unlocks what held has and keep has not, and returns what is
// locked then. A byte that cannot be unlocked stays in the set, so that a
// later change tries it again.
func unlockRest(fd int, held, keep lockSet) (lockSet, error) {
	var first error
	release := func(base int, set *blockgraph.Perm) func(blockgraph.Perm, int) error {
		return func(bit blockgraph.Perm, i int) error {
			if err := setLock(fd, unix.F_UNLCK, base+i); err != nil {
				if first == nil {
					first = blockgraph.Errorf(blockgraph.Errno(err), "Failed to unlock byte %d: %s", base+i, blockgraph.Strerror(err))
				}
				return nil
			}
			*set &^= bit
			return nil
		}
	}
	eachBit(held.perm&^keep.perm, release(lockPermBase, &held.perm))
	eachBit(held.unshared&^keep.unshared, release(lockSharedBase, &held.unshared))
	return held, first
}

// checkLocks fails when another open file has locked a byte that speaks
// against what want stands for.
func checkLocks(fd int, want lockSet) error {
	err := eachBit(want.perm, func(bit blockgraph.Perm, i int) error {
		if err := testLock(fd, lockSharedBase+i); err != nil {
			return lockError(err, "Failed to get \"%s\" lock", bit)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return eachBit(want.unshared, func(bit blockgraph.Perm, i int) error {
		if err := testLock(fd, lockPermBase+i); err != nil {
			return lockError(err, "Failed to get shared \"%s\" lock", bit)
		}
		return nil
	})
}

func eachBit(p blockgraph.Perm, f func(bit blockgraph.Perm, i int) error) error {
	for p != 0 {
		i := bits.TrailingZeros8(uint8(p))
		bit := blockgraph.Perm(1) << i
		p &^= bit
		if err := f(bit, i); err != nil {
			return err
		}
	}
	return nil
}

// lockError leaves out the reason when it is just that another has a lock.
func lockError(err error, format string, args ...any) error {
	text := fmt.Sprintf(format, args...)
	errno := blockgraph.Errno(err)
	if errno != syscall.EAGAIN && errno != syscall.EACCES {
		text += ": " + blockgraph.Strerror(err)
	}
	return blockgraph.Errorf(errno, "%s", text)
}

func setLock(fd int, typ int16, off int) error {
	l := unix.Flock_t{Type: typ, Whence: io.SeekStart, Start: int64(off), Len: 1}
	return fcntlLock(fd, unix.F_OFD_SETLK, &l)
}

// testLock fails with EAGAIN when another open file has the byte locked in any
// way.
func testLock(fd, off int) error {
	l := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: int64(off), Len: 1}
	if err := fcntlLock(fd, unix.F_OFD_GETLK, &l); err != nil {
		return err
	}
	if l.Type != unix.F_UNLCK {
		return syscall.EAGAIN
	}
	return nil
}

func fcntlLock(fd, cmd int, l *unix.Flock_t) error {
	for {
		if err := unix.FcntlFlock(uintptr(fd), cmd, l); err != unix.EINTR {
			return err
		}
	}
}

// ofdLocks tells whether the kernel has OFD locks.
func ofdLocks(fd int) bool {
	l := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: 0, Len: 1}
	return fcntlLock(fd, unix.F_OFD_GETLK, &l) != syscall.EINVAL
}
