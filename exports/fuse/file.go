package fuse

import (
	"fmt"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"blockd/blockgraph"
	"blockd/qapi"
)

// What the kernel asks of the file. A request that is interrupted goes on to its
// end.

// String is what the library calls the file system.
func (e *Export) String() string { return "blockd" }

// status is an error's number for the kernel.
func status(err error) gofuse.Status { return gofuse.Status(blockgraph.Errno(err)) }

// Lookup: the file is no directory.
func (e *Export) Lookup(<-chan struct{}, *gofuse.InHeader, string, *gofuse.EntryOut) gofuse.Status {
	return gofuse.ENOENT
}

// StatFs tells nothing of what the images are stored on.
func (e *Export) StatFs(_ <-chan struct{}, _ *gofuse.InHeader, out *gofuse.StatfsOut) gofuse.Status {
	out.Bsize, out.NameLen = 512, 255
	return gofuse.OK
}

// wait returns when the disk may be seen. caller is the thread that asks.
func (e *Export) wait(caller uint32) gofuse.Status {
	select {
	case <-e.shown:
		return gofuse.OK
	default:
	}
	if unix.Access(fmt.Sprintf("/proc/self/task/%d", caller), unix.F_OK) == nil {
		return gofuse.EBUSY
	}
	select {
	case <-e.shown:
		return gofuse.OK
	case <-e.ctx.Done():
		return gofuse.EIO
	}
}

// Open has the kernel pass every read and write on as it is, several at a time.
func (e *Export) Open(_ <-chan struct{}, in *gofuse.OpenIn, out *gofuse.OpenOut) gofuse.Status {
	if st := e.wait(in.Pid); !st.Ok() {
		return st
	}
	e.opened.Add(1)
	out.OpenFlags = gofuse.FOPEN_DIRECT_IO | gofuse.FOPEN_PARALLEL_DIRECT_WRITES
	return gofuse.OK
}

// Release is the last close of what Open has opened.
func (e *Export) Release(<-chan struct{}, *gofuse.ReleaseIn) { e.opened.Add(-1) }

// GetAttr is stat: the disk's length, and the space that it takes.
func (e *Export) GetAttr(_ <-chan struct{}, in *gofuse.GetAttrIn, out *gofuse.AttrOut) gofuse.Status {
	if st := e.wait(in.Pid); !st.Ok() {
		return st
	}
	return e.attributes(out)
}

func (e *Export) attributes(out *gofuse.AttrOut) gofuse.Status {
	size := e.Backend.Size()
	space, ok := e.Backend.Allocated(e.ctx)
	if !ok || space <= 0 {
		space = size
	}
	e.mu.Lock()
	owner := e.owner
	e.mu.Unlock()
	out.Attr = gofuse.Attr{
		Ino: gofuse.FUSE_ROOT_ID, Mode: owner.Mode, Nlink: 1, Owner: gofuse.Owner{Uid: owner.Uid, Gid: owner.Gid},
		Size: uint64(size), Blocks: uint64(space+511) / 512, Blksize: e.Alignment,
	}
	now := e.Clock.Now()
	out.SetTimes(&now, &now, &now)
	return gofuse.OK
}

func (e *Export) resize(size int64, grow bool, prealloc qapi.PreallocMode) error {
	e.resizes.Add(1)
	defer e.resizes.Add(-1)
	return e.Resize(e.ctx, size, grow, prealloc)
}

// SetAttr changes length, mode and owner, the latter two as far as they let
// somebody do what he can.
func (e *Export) SetAttr(_ <-chan struct{}, in *gofuse.SetAttrIn, out *gofuse.AttrOut) gofuse.Status {
	if st := e.wait(in.Pid); !st.Ok() {
		return st
	}
	const own = gofuse.FATTR_UID | gofuse.FATTR_GID
	// How, not what.
	const aside = gofuse.FATTR_FH | gofuse.FATTR_LOCKOWNER | gofuse.FATTR_KILL_SUIDGID
	can := uint32(gofuse.FATTR_SIZE | gofuse.FATTR_MODE | aside)
	if e.allowOther {
		can |= own
	}
	if in.Valid&^can != 0 {
		return gofuse.ENOTSUP
	}
	mode, toMode := in.GetMode()
	if toMode {
		if !e.allowOther && mode&(unix.S_IRWXG|unix.S_IRWXO) != 0 {
			return gofuse.EPERM
		}
		if !e.Writable && mode&(unix.S_IWUSR|unix.S_IWGRP|unix.S_IWOTH) != 0 {
			return gofuse.EROFS
		}
	}
	if size, ok := in.GetSize(); ok {
		if !e.Writable {
			return gofuse.EACCES
		}
		if err := e.resize(int64(size), false, qapi.PreallocModeOff); err != nil {
			return status(err)
		}
	}
	uid, toUser := in.GetUID()
	gid, toGroup := in.GetGID()
	e.mu.Lock()
	if toMode {
		e.owner.Mode = mode&0o7777 | unix.S_IFREG
	}
	if toUser {
		e.owner.Uid = uid
	}
	if toGroup {
		e.owner.Gid = gid
	}
	e.mu.Unlock()
	return e.attributes(out)
}

// Read ends where the disk does.
func (e *Export) Read(_ <-chan struct{}, in *gofuse.ReadIn, buf []byte) (gofuse.ReadResult, gofuse.Status) {
	off, n := int64(in.Offset), min(int64(in.Size), int64(len(buf)))
	n = min(n, e.Backend.Size()-off)
	if n <= 0 {
		return gofuse.ReadResultData(nil), gofuse.OK
	}
	var v blockgraph.IOVec
	v.SetBytes(buf[:n])
	if err := e.Backend.ReadV(e.ctx, off, &v, 0); err != nil {
		return nil, status(err)
	}
	return gofuse.ReadResultData(buf[:n]), gofuse.OK
}

// Write ends where the disk does, unless that may grow.
func (e *Export) Write(_ <-chan struct{}, in *gofuse.WriteIn, data []byte) (uint32, gofuse.Status) {
	if !e.Writable {
		return 0, gofuse.EACCES
	}
	off, n := int64(in.Offset), int64(len(data))
	if size := e.Backend.Size(); off+n > size {
		if e.Growable {
			if err := e.resize(off+n, true, qapi.PreallocModeOff); err != nil {
				return 0, status(err)
			}
		} else if n = size - off; n <= 0 {
			return 0, gofuse.EIO
		}
	}
	var v blockgraph.IOVec
	v.SetBytes(data[:n])
	if err := e.Backend.WriteV(e.ctx, off, &v, e.writeFlags()); err != nil {
		return 0, status(err)
	}
	return uint32(n), gofuse.OK
}

func (e *Export) writeFlags() blockgraph.Flags {
	if e.Writethrough {
		return blockgraph.FUA
	}
	return 0
}

// Fallocate makes room at the end of the disk, drops data, or zeroes it.
func (e *Export) Fallocate(_ <-chan struct{}, in *gofuse.FallocateIn) gofuse.Status {
	if !e.Writable {
		return gofuse.EACCES
	}
	off, n, size := int64(in.Offset), int64(in.Length), e.Backend.Size()
	if off < 0 || n < 0 || off > blockgraph.MaxSize-n {
		return gofuse.Status(unix.EFBIG)
	}
	keep := in.Mode&unix.FALLOC_FL_KEEP_SIZE != 0
	if keep {
		n = max(min(n, size-off), 0)
	}
	switch in.Mode &^ unix.FALLOC_FL_KEEP_SIZE {
	case 0:
		if off < size || keep {
			return gofuse.Status(unix.EOPNOTSUPP)
		}
		if off > size {
			if err := e.resize(off, true, qapi.PreallocModeOff); err != nil {
				return status(err)
			}
		}
		return status(e.resize(off+n, true, qapi.PreallocModeFalloc))
	case unix.FALLOC_FL_PUNCH_HOLE:
		if !keep {
			return gofuse.EINVAL
		}
		return status(blockgraph.InPieces(e.ctx, off, n, func(off, n int64) error { return e.Backend.Discard(e.ctx, off, n) }))
	case unix.FALLOC_FL_ZERO_RANGE:
		if off+n > size {
			if err := e.resize(off+n, true, qapi.PreallocModeOff); err != nil {
				return status(err)
			}
		}
		return status(blockgraph.InPieces(e.ctx, off, n, func(off, n int64) error { return e.Backend.WriteZeroes(e.ctx, off, n, e.writeFlags()) }))
	default:
		return gofuse.Status(unix.EOPNOTSUPP)
	}
}

// Fsync makes what was written durable.
func (e *Export) Fsync(<-chan struct{}, *gofuse.FsyncIn) gofuse.Status {
	return status(e.Backend.Flush(e.ctx))
}

// Flush is any close of the file: the last chance to tell of an error.
func (e *Export) Flush(<-chan struct{}, *gofuse.FlushIn) gofuse.Status {
	return status(e.Backend.Flush(e.ctx))
}

// Lseek finds the next data or the next hole, the latter at the end at least.
func (e *Export) Lseek(_ <-chan struct{}, in *gofuse.LseekIn, out *gofuse.LseekOut) gofuse.Status {
	if in.Whence != unix.SEEK_DATA && in.Whence != unix.SEEK_HOLE {
		return gofuse.EINVAL
	}
	size := e.Backend.Size()
	for off := int64(in.Offset); off < size; {
		st, _, err := e.Backend.BlockStatus(e.ctx, off, size-off, blockgraph.StatusPrecise)
		if err != nil {
			return status(err)
		}
		if data := st.Flags&blockgraph.StatusData != 0; data == (in.Whence == unix.SEEK_DATA) {
			out.Offset = uint64(off)
			return gofuse.OK
		}
		if st.N <= 0 {
			break // the disk has become shorter
		}
		off += st.N
	}
	if in.Whence == unix.SEEK_DATA || int64(in.Offset) > size {
		return gofuse.Status(unix.ENXIO)
	}
	out.Offset = uint64(size)
	return gofuse.OK
}
