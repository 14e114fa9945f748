package ioengine

import (
	"context"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// This file moves bytes between files and lists of segments. Measured on
// cached 4 KiB reads, what preadv2 with RWF_NOWAIT costs over a plain pread is
// within the noise; it buys that a read which needs no storage neither takes
// a slot nor waits behind those that do. Short ones are made without telling
// Go's scheduler, which a call that does not wait has no use for. tmpfs does
// not know the flag, and there no read waits for storage anyway.

const (
	// maxIOV is the most segments of one system call (IOV_MAX).
	maxIOV = 1024
	// rawMax is the longest read in bytes that keeps a processor to itself.
	rawMax = 64 << 10
)

// ReadV fills the segments, none of them empty, from byte off on. It returns
// how many bytes it read: fewer than the segments hold only at the end of the
// file or on an error. The context is honoured while waiting for a slot.
func (f *File) ReadV(ctx context.Context, off int64, segs [][]byte) (int64, error) {
	mode := f.mode.Load()
	if len(segs) != 1 || mode&(modeNowait|modeMemory) == 0 {
		return f.readSlow(ctx, off, segs, mode)
	}
	b := segs[0]
	var n uintptr
	var errno syscall.Errno
	switch {
	case mode&modeMemory != 0:
		n, _, errno = unix.Syscall6(unix.SYS_PREAD64, uintptr(f.fd.Load()), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), uintptr(off), 0, 0)
	case len(b) <= rawMax:
		iov := unix.Iovec{Base: unsafe.SliceData(b)}
		iov.SetLen(len(b))
		n, _, errno = unix.RawSyscall6(unix.SYS_PREADV2, uintptr(f.fd.Load()), uintptr(unsafe.Pointer(&iov)), 1, uintptr(off), 0, unix.RWF_NOWAIT)
	default:
		iov := unix.Iovec{Base: unsafe.SliceData(b)}
		iov.SetLen(len(b))
		n, _, errno = unix.Syscall6(unix.SYS_PREADV2, uintptr(f.fd.Load()), uintptr(unsafe.Pointer(&iov)), 1, uintptr(off), 0, unix.RWF_NOWAIT)
	}
	f.stats.reads.Add(1)
	if errno == 0 && int(n) == len(b) {
		f.stats.readBytes.Add(int64(n))
		return int64(n), nil
	}
	return f.readRest(ctx, off, segs, mode, int64(n), errno)
}

// readRest goes on after an inline read that did not get everything.
func (f *File) readRest(ctx context.Context, off int64, segs [][]byte, mode uint32, n int64, errno syscall.Errno) (int64, error) {
	f.stats.inlineMisses.Add(1)
	switch errno {
	case 0:
		f.stats.readBytes.Add(n)
		rest, err := f.readSlow(ctx, off+n, [][]byte{segs[0][n:]}, mode)
		return n + rest, err
	case unix.EOPNOTSUPP, unix.ENOSYS, unix.EINVAL:
		f.mode.CompareAndSwap(mode, mode&^modeNowait)
	case unix.EAGAIN, unix.EINTR:
	default:
		return 0, errno
	}
	return f.readSlow(ctx, off, segs, mode)
}

// readSlow reads within a slot.
func (f *File) readSlow(ctx context.Context, off int64, segs [][]byte, mode uint32) (int64, error) {
	if mode&modeNowait != 0 && len(segs) > 1 {
		if n, ok := f.readInline(off, segs); ok {
			return n, nil
		}
	}
	if err := f.calls.acquire(ctx, &f.share); err != nil {
		return 0, err
	}
	l := takeList(segs)
	var done, calls int64
	var err error
	for l.more() {
		n, errno := l.call(unix.SYS_PREADV, f.fd.Load(), off+done, 0)
		calls++
		if errno == unix.EINTR {
			continue
		}
		if errno == unix.EINVAL && done > 0 && mode&modeDirect != 0 {
			break // O_DIRECT: the read before ended at the end of the file, unaligned
		}
		if errno != 0 {
			err = errno
			break
		}
		if n == 0 {
			break
		}
		done += n
		l.advance(n)
	}
	l.put()
	f.calls.release(&f.share)
	f.stats.reads.Add(calls)
	f.stats.readBytes.Add(done)
	if calls > 1 {
		f.stats.shorts.Add(1)
	}
	return done, err
}

// readInline reads several segments without waiting, and tells whether it got
// everything.
func (f *File) readInline(off int64, segs [][]byte) (int64, bool) {
	l := takeList(segs)
	total := l.left
	n, errno := l.call(unix.SYS_PREADV2, f.fd.Load(), off, unix.RWF_NOWAIT)
	l.put()
	f.stats.reads.Add(1)
	if errno == 0 && n == total {
		f.stats.readBytes.Add(n)
		return n, true
	}
	f.stats.inlineMisses.Add(1)
	return 0, false
}

// WriteV writes the segments, none of them empty, from byte off on, all of
// them unless it fails; then it returns how many bytes were written for
// certain. The context is honoured while waiting for a slot.
func (f *File) WriteV(ctx context.Context, off int64, segs [][]byte) (int64, error) {
	if err := f.calls.acquire(ctx, &f.share); err != nil {
		return 0, err
	}
	if len(segs) == 1 {
		b := segs[0]
		n, _, errno := unix.Syscall6(unix.SYS_PWRITE64, uintptr(f.fd.Load()), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), uintptr(off), 0, 0)
		if errno == 0 && int(n) == len(b) {
			f.calls.release(&f.share)
			f.stats.writes.Add(1)
			f.stats.writtenBytes.Add(int64(n))
			return int64(n), nil
		}
		if errno != 0 && errno != unix.EINTR {
			f.calls.release(&f.share)
			f.stats.writes.Add(1)
			return 0, errno
		}
		if errno != 0 {
			n = 0
		}
		return f.writeRest(off, segs, int64(n), 1)
	}
	return f.writeRest(off, segs, 0, 0)
}

// writeRest writes what follows the first done bytes, and releases the slot.
func (f *File) writeRest(off int64, segs [][]byte, done, calls int64) (int64, error) {
	l := takeList(segs)
	l.advance(done)
	var err error
	for l.more() {
		n, errno := l.call(unix.SYS_PWRITEV, f.fd.Load(), off+done, 0)
		calls++
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			err = errno
			break
		}
		if n == 0 {
			err = syscall.EIO // no progress and no reason: do not try for ever
			break
		}
		done += n
		l.advance(n)
	}
	l.put()
	f.calls.release(&f.share)
	f.stats.writes.Add(calls)
	f.stats.writtenBytes.Add(done)
	if calls > 1 {
		f.stats.shorts.Add(1)
	}
	return done, err
}

// iovList is what is left of a vector, in the kernel's form.
type iovList struct {
	iov  []unix.Iovec
	pos  int   // first one with bytes left
	left int64 // bytes
}

var iovLists = sync.Pool{New: func() any { return &iovList{iov: make([]unix.Iovec, 0, 16)} }}

func takeList(segs [][]byte) *iovList {
	l := iovLists.Get().(*iovList)
	for _, s := range segs {
		v := unix.Iovec{Base: unsafe.SliceData(s)}
		v.SetLen(len(s))
		l.iov = append(l.iov, v)
		l.left += int64(len(s))
	}
	return l
}

// put forgets the segments and keeps the list for reuse.
func (l *iovList) put() {
	clear(l.iov)
	l.iov, l.pos, l.left = l.iov[:0], 0, 0
	iovLists.Put(l)
}

func (l *iovList) more() bool { return l.left > 0 }

// call transfers from or to as many segments as one system call takes.
func (l *iovList) call(trap uintptr, fd int32, off int64, flags uintptr) (int64, syscall.Errno) {
	v := l.iov[l.pos:]
	n, _, errno := unix.Syscall6(trap, uintptr(fd), uintptr(unsafe.Pointer(&v[0])), uintptr(min(len(v), maxIOV)), uintptr(off), 0, flags)
	if errno != 0 {
		return 0, errno
	}
	return int64(n), 0
}

// advance passes over n bytes.
func (l *iovList) advance(n int64) {
	l.left -= n
	for n > 0 {
		v := &l.iov[l.pos]
		if n < int64(v.Len) {
			v.Base = (*byte)(unsafe.Add(unsafe.Pointer(v.Base), n))
			v.Len -= uint64(n)
			return
		}
		n -= int64(v.Len)
		l.pos++
	}
}
