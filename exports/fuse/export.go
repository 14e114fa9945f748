package fuse

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"blockd/blockgraph"
	"blockd/clock"
	"blockd/qapi"
)

// Backend is what an export reads and writes: a root of the block graph. All
// methods are data plane, called from many goroutines at once.
//
//blockd:io
type Backend interface {
	ReadV(ctx context.Context, off int64, v *blockgraph.IOVec, flags blockgraph.Flags) error
	WriteV(ctx context.Context, off int64, v *blockgraph.IOVec, flags blockgraph.Flags) error
	WriteZeroes(ctx context.Context, off, n int64, flags blockgraph.Flags) error
	Discard(ctx context.Context, off, n int64) error
	Flush(ctx context.Context) error
	// BlockStatus describes the range at off through the whole chain.
	BlockStatus(ctx context.Context, off, n int64, mode blockgraph.StatusMode) (st blockgraph.Status, depth int, err error)
	// Size is the present length in bytes.
	Size() int64
	// Allocated is how many bytes the disk takes on its storage, if known.
	Allocated(ctx context.Context) (n int64, ok bool)
}

// Config describes an export. It does not change afterwards.
type Config struct {
	// Mountpoint is the name of a regular file.
	Mountpoint string
	Backend    Backend
	Writable   bool
	// Writethrough: every write is durable before its answer.
	Writethrough bool
	// Growable: a write past the end makes the disk longer.
	Growable bool
	// AllowOther: whether other users of the host may open the file, as far as
	// its mode lets them. Auto: if the host lets the daemon allow it.
	AllowOther qapi.FuseExportAllowOther
	// Alignment is the backend's request alignment in bytes, which the file shows
	// as its block size.
	Alignment uint32
	// Clock is the real clock, for the file's times.
	Clock clock.Clock
	// Taken tells whether that device is one of our mounts; nil: none is.
	Taken func(device uint64) bool
	// Allow refuses a mountpoint by its name without symbolic links; nil: none.
	Allow func(name string) error
	// Resize changes the disk's length in bytes. What is new reads as zeroes. If
	// grow is set, it leaves a disk that is as long already as it is. It must not
	// be called with requests of one's own under way.
	Resize func(ctx context.Context, size int64, grow bool, prealloc qapi.PreallocMode) error
	// InFlight is how many requests the backend has.
	InFlight func() int64
}

// Export is a file that shows a disk.
type Export struct {
	gofuse.RawFileSystem
	Config

	place  *place
	server *gofuse.Server
	ctx    context.Context // of its requests
	cancel context.CancelFunc

	opened  atomic.Int64
	resizes atomic.Int64  // asked for and not answered
	served  chan struct{} // closed when the kernel sends no more requests, and all have ended
	shown   chan struct{} // closed when others may see the disk
	show    sync.Once
	closed  sync.Once
	done    chan struct{}

	allowOther bool

	mu sync.Mutex //blockd:short
	// The owner and mode of the file, which its users may change.
	//
	// +checklocks:mu
	owner unix.Stat_t
}

// Mount makes the file show the disk. Who opens it waits until Show, but for this
// process itself, which gets EBUSY: Show may wait for it. Close has to be called
// in any case.
func Mount(c Config) (*Export, error) {
	p, err := find(c.Mountpoint, c.Taken)
	if err != nil {
		return nil, err
	}
	if c.Allow != nil {
		if err := c.Allow(p.name); err != nil {
			p.close()
			return nil, qapi.Errorf("Failed to stat '%s': %s", c.Mountpoint, blockgraph.Strerror(err))
		}
	}
	owner := unix.Stat_t{Mode: unix.S_IFREG | unix.S_IRUSR, Uid: uint32(unix.Getuid()), Gid: uint32(unix.Getgid())}
	if c.Writable {
		owner.Mode |= unix.S_IWUSR
	}
	e := &Export{
		RawFileSystem: gofuse.NewDefaultRawFileSystem(), Config: c, place: p,
		served: make(chan struct{}), shown: make(chan struct{}), done: make(chan struct{}),
		allowOther: c.AllowOther != qapi.FuseExportAllowOtherOff, owner: owner,
	}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	e.server, err = p.mount(e, e.allowOther)
	if err != nil && c.AllowOther == qapi.FuseExportAllowOtherAuto {
		e.allowOther = false
		e.server, err = p.mount(e, false)
	}
	p.close()
	if err != nil {
		e.cancel()
		return nil, err
	}
	//blockd:blocking
	go func() { // ends with the mount, and the last request
		e.server.Serve()
		if e.ctx.Err() == nil {
			slog.Warn("somebody has unmounted an export", "file", e.place.name)
		}
		close(e.served)
	}()
	return e, nil
}

// Device is the number of the mount's device, 0 if it is not known.
func (e *Export) Device() uint64 { return e.place.device }

// Show lets requests in. It does not wait.
//
//blockd:io
func (e *Export) Show() { e.show.Do(func() { close(e.shown) }) }

// Clients returns how often the file is open.
//
//blockd:io
func (e *Export) Clients() int { return int(e.opened.Load()) }

// Close takes the mount away, so that the file shows what it had before, and
// fails the requests of who still has it open. It does not wait for those that
// the backend has; see Done.
//
//blockd:io
func (e *Export) Close() {
	e.closed.Do(func() {
		e.cancel()
		unmounted := true
		select {
		case <-e.served: // somebody has unmounted it
		default:
			unmounted = e.place.unmount()
		}
		if !unmounted {
			// Who still reaches the file is told that it has no disk.
			close(e.done)
			return
		}
		go func() { // ends with the last request
			<-e.served
			close(e.done)
		}()
	})
}

// CloseIfUnused returns false if requests are under way. That the file is open
// does not count.
//
//blockd:io
func (e *Export) CloseIfUnused() bool { return e.InFlight() == 0 && e.resizes.Load() == 0 }

// Done is closed when the export is closed and no request will reach its backend
// any more, or when the mount stays for good, whatever comes: the backend is to
// refuse it then.
//
//blockd:io
func (e *Export) Done() <-chan struct{} { return e.done }
