package blockgraph

import "context"

// SidecarHost is a protocol driver whose images are files of the host: a format
// that has no room for something in the image can keep a file beside it.
//
//blockd:io
type SidecarHost interface {
	// OpenSidecar opens the file name or, when that is empty, the one that is
	// called like the image with suffix behind it. Without write it is only read;
	// with it the file is locked against other writers, and made if it is not
	// there and create is set. It fails with ENOENT when there is none.
	OpenSidecar(ctx context.Context, name, suffix string, write, create bool) (Sidecar, error)
	// Identity tells which file the image is, and its state.
	Identity(ctx context.Context) (FileIdentity, error)
}

// Sidecar is an open sidecar file. Its methods are called by one goroutine at a
// time. Offsets and lengths are bytes.
//
//blockd:io
type Sidecar interface {
	Size(ctx context.Context) (int64, error)
	// ReadAt fills p; what lies past the end is zeroes.
	ReadAt(ctx context.Context, p []byte, off int64) error
	WriteAt(ctx context.Context, p []byte, off int64) error
	Truncate(ctx context.Context, size int64) error
	// Flush makes what was written durable, and the file itself. After one has
	// failed all later ones do.
	Flush(ctx context.Context) error
	// Close gives up the file and its lock. It does not flush.
	Close() error
}

// FileIdentity is which file an image is, and the state of the file.
type FileIdentity struct {
	// Device: a block device. Dev is then its number, and Ino 0; the times
	// are 0, since they say nothing about the content.
	Device   bool
	Dev, Ino uint64
	// ID is what a block device is known by whatever number it gets, or empty.
	ID string
	// Size in bytes.
	Size int64
	// Modified and Changed are the file's times of the last change of the content
	// and of the inode, in ns since 1970.
	Modified, Changed int64
}
