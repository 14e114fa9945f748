package file

import (
	"context"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"blockd/blockgraph"
	"blockd/ioengine"
)

// alignment is what a file demands of requests, in bytes.
type alignment struct {
	request int64 // of offset and length
	memory  int64 // of each segment's address
}

// largestBlock is the largest alignment that is looked for, in bytes.
const largestBlock = 4096

var blockSizes = []int64{1, 512, 1024, 2048, largestBlock}

// probeAlignment finds out the alignment of an open file. Only O_DIRECT has
// any. What the kernel tells comes first, then the device's block size, then
// trial reads; where no trial fails, because the file is empty or a hole, the
// largest is safe. NFS takes any request.
func probeAlignment(fd int, direct bool) (alignment, error) {
	if !direct {
		return alignment{1, 1}, nil
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err == nil && fs.Type == unix.NFS_SUPER_MAGIC {
		return alignment{1, 1}, nil
	}
	var a alignment
	var sx unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &sx); err == nil && sx.Mask&unix.STATX_DIOALIGN != 0 {
		a = alignment{int64(sx.Dio_offset_align), int64(sx.Dio_mem_align)}
	}
	if a.request == 0 {
		if n, err := unix.IoctlGetInt(fd, unix.BLKSSZGET); err == nil {
			a.request = int64(n)
		}
	}
	b := ioengine.Bounce(2 * largestBlock)
	defer b.Release()
	if a.request == 0 {
		a.request = probeBy(func(n int64) bool { return mayRead(fd, b.Bytes()[:n]) }, largestBlock)
	}
	if a.memory == 0 {
		a.memory = probeBy(func(n int64) bool { return mayRead(fd, b.Bytes()[n:n+largestBlock]) }, a.request)
	}
	if !powerOf2(a.request) || !powerOf2(a.memory) || a.request > 1<<20 || a.memory > ioengine.Alignment {
		return a, blockgraph.Errorf(syscall.EINVAL, "Could not find working O_DIRECT alignment")
	}
	return a, nil
}

// probeBy returns the least block size that works, safe when even one byte
// does, and 0 when none.
func probeBy(works func(n int64) bool, safe int64) int64 {
	for _, n := range blockSizes {
		if works(n) {
			if n == 1 {
				return safe
			}
			return n
		}
	}
	return 0
}

// mayRead tells whether the kernel takes a read into b. Errors other than
// EINVAL are not about alignment.
func mayRead(fd int, b []byte) bool {
	for {
		_, err := unix.Pread(fd, b, 0)
		if err != unix.EINTR {
			return err != unix.EINVAL
		}
	}
}

func powerOf2(n int64) bool { return n > 0 && n&(n-1) == 0 }

// aligned tells whether the kernel takes the segments as they are.
func (d *driver) aligned(segs [][]byte) bool {
	mem := uintptr(d.memAlign.Load())
	if mem <= 1 {
		return true
	}
	request := uintptr(d.requestAlign.Load())
	for _, s := range segs {
		if uintptr(unsafe.Pointer(unsafe.SliceData(s)))&(mem-1) != 0 || uintptr(len(s))&(request-1) != 0 {
			return false
		}
	}
	return true
}

// bouncePiece is how much of an unaligned request is copied at a time.
const bouncePiece = 1 << 20

// readBounced reads into segments that O_DIRECT does not take.
func (d *driver) readBounced(ctx context.Context, off int64, v *blockgraph.IOVec) (int64, error) {
	b := ioengine.Bounce(int(min(v.Len(), bouncePiece)))
	defer b.Release()
	var done int64
	for done < v.Len() {
		p := b.Bytes()[:min(v.Len()-done, int64(len(b.Bytes())))]
		n, err := d.file.ReadV(ctx, off+done, [][]byte{p})
		if err != nil {
			return done, err
		}
		v.CopyIn(done, p[:n])
		done += n
		if n < int64(len(p)) {
			break
		}
	}
	return done, nil
}

// writeBounced writes from segments that O_DIRECT does not take.
func (d *driver) writeBounced(ctx context.Context, off int64, v *blockgraph.IOVec) error {
	b := ioengine.Bounce(int(min(v.Len(), bouncePiece)))
	defer b.Release()
	for done := int64(0); done < v.Len(); {
		p := b.Bytes()[:min(v.Len()-done, int64(len(b.Bytes())))]
		v.CopyOut(done, p)
		if _, err := d.file.WriteV(ctx, off+done, [][]byte{p}); err != nil {
			return err
		}
		done += int64(len(p))
	}
	return nil
}
