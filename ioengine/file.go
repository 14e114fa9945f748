package ioengine

import (
	"context"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// File is an open file that owns its descriptor. The descriptor's number stays
// the same for the life of the File: Replace puts another open file behind it,
// so that requests need no reference count. A call that is under way while
// Replace runs ends on the file that it began with, which the kernel keeps
// until then.
//
// The owner calls Close once, when no call is in flight and none will come.
type File struct {
	calls *Calls
	share share
	stats *counters
	fd    atomic.Int32
	mode  atomic.Uint32
}

// Ways of reading a file; found by NewFile and Replace.
const (
	modeNowait = 1 << iota // a cached read can be told from one that would wait
	modeMemory             // the file lives in memory: no read waits for storage
	modeDirect             // O_DIRECT
)

// NewFile takes ownership of an open descriptor. Blocking calls on it are
// bounded by c.
func (c *Calls) NewFile(fd int) *File {
	f := &File{calls: c, stats: &c.stats[uint(fd)%statStripes]}
	f.fd.Store(int32(fd))
	f.mode.Store(modeOf(fd))
	if f.Direct() {
		countDirect(1)
	}
	return f
}

func modeOf(fd int) uint32 {
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil || flags&unix.O_DIRECT != 0 {
		return modeDirect // nothing of it is cached: trying without waiting is in vain
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err == nil && fs.Type == unix.TMPFS_MAGIC {
		return modeMemory
	}
	return modeNowait // until the kernel says that it cannot
}

// Direct tells whether the file bypasses the page cache.
func (f *File) Direct() bool { return f.mode.Load()&modeDirect != 0 }

// Fd returns the descriptor, for calls that do not block. It is the File's.
func (f *File) Fd() int { return int(f.fd.Load()) }

// Replace puts the open file fd behind the File's descriptor, in place of the
// one that is there, which is closed once its last call has ended. fd itself
// is closed. On an error nothing has changed and fd is still the caller's.
func (f *File) Replace(fd int) error {
	mode := modeOf(fd)
	for {
		err := unix.Dup3(fd, f.Fd(), unix.O_CLOEXEC)
		if err == nil {
			break
		}
		if err != unix.EINTR && err != unix.EBUSY {
			return err
		}
	}
	was := f.Direct()
	f.mode.Store(mode)
	switch now := f.Direct(); {
	case now && !was:
		countDirect(1)
	case was && !now:
		countDirect(-1)
	}
	unix.Close(fd)
	return nil
}

// Close gives the descriptor up. A second Close returns EBADF.
func (f *File) Close() error {
	fd := f.fd.Swap(-1)
	if fd < 0 {
		return syscall.EBADF
	}
	if f.Direct() {
		countDirect(-1)
	}
	return unix.Close(int(fd))
}

// Do makes a blocking call of the caller's, within a slot, again after EINTR.
// It fails with what call returns or, before call was made, with the context's
// error.
func (f *File) Do(ctx context.Context, call func(fd int) error) error {
	if err := f.calls.acquire(ctx, &f.share); err != nil {
		return err
	}
	err := call(f.Fd())
	f.stats.others.Add(1)
	for err == unix.EINTR {
		err = call(f.Fd())
		f.stats.others.Add(1)
	}
	f.calls.release(&f.share)
	return err
}
