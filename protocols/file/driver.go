package file

import (
	"context"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"blockd/blockgraph"
	"blockd/ioengine"
	"blockd/qapi"
)

// driver is one open node.
type driver struct {
	*opener
	node       *blockgraph.Node
	name       string
	fromHeader bool
	kind       uint32 // S_IFREG, S_IFBLK or S_IFCHR
	file       *ioengine.File
	forceShare bool
	useLocks   bool

	// Changed on a worker with the graph's token held.
	settings
	flags        int    // access mode and O_DIRECT of file
	fromSet      opened // what is to be given back after file; the descriptor is file's
	perm, shared blockgraph.Perm
	locks        lockSet // of file
	prepared     *prepared

	requestAlign, memAlign atomic.Int64

	flusher flusher
	written atomic.Bool // since the last flush began
	extent  extentCache

	// What the file system turned out not to have.
	noZeroRange, noPunch, noAllocate, noZeroOut atomic.Bool
	discards                                    discardCounters
}

// settings are what a reopen may change.
type settings struct {
	options      *qapi.BlockdevOptions
	readOnly     bool
	autoReadOnly bool
	direct       bool
}

func newSettings(o *qapi.BlockdevOptions, readOnly, autoReadOnly bool) settings {
	return settings{options: o, readOnly: readOnly, autoReadOnly: autoReadOnly, direct: cacheDirect(o)}
}

type discardCounters struct{ ok, failed, bytes atomic.Int64 }

// unnamed refuses a node without a file name.
func unnamed(driver string) string {
	return "The '" + driver + "' block driver requires a file name"
}

// open is the DriverType's Open.
func (p *opener) open(ctx context.Context, r *blockgraph.OpenRequest) (blockgraph.Driver, error) {
	o := r.Options.File
	if o == nil || o.Filename == "" {
		return nil, blockgraph.Errorf(syscall.EINVAL, "%s", unnamed(p.driver))
	}
	if o.PRManager != nil {
		return nil, blockgraph.Errorf(syscall.EINVAL, "No persistent reservation manager with id '%s'", *o.PRManager)
	}
	d := &driver{
		opener: p, node: r.Node, name: o.Filename, fromHeader: r.FromHeader,
		settings:   newSettings(r.Options, r.ReadOnly, r.AutoReadOnly),
		forceShare: isSet(r.Options.ForceShare), shared: blockgraph.PermAll,
	}
	d.flags = d.openFlags(0)
	got, err := p.descriptor(d.name, d.flags, d.fromHeader)
	if err != nil {
		return nil, err
	}
	if err := d.adopt(got.fd); err != nil {
		got.close()
		return nil, err
	}
	d.file, d.fromSet = p.host.cfg.Calls.NewFile(got.fd), opened{fd: -1, release: got.release}
	return d, nil
}

// adopt checks a newly opened descriptor and learns what it is.
func (d *driver) adopt(fd int) error {
	if err := checkWritable(fd, d.flags); err != nil {
		return err
	}
	o := d.options.File
	if err := checkAIO(o, d.direct); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return blockgraph.Errorf(blockgraph.Errno(err), "Could not stat file: %s", blockgraph.Strerror(err))
	}
	d.kind = st.Mode & unix.S_IFMT
	if d.device && d.kind != unix.S_IFCHR && d.kind != unix.S_IFBLK || !d.device && d.kind != unix.S_IFREG {
		return d.wrongKind(d.name)
	}
	a, err := probeAlignment(fd, d.direct)
	if err != nil {
		return err
	}
	d.setAlignment(a)
	switch {
	case o.Locking == nil || *o.Locking == qapi.OnOffAutoAuto:
		d.useLocks = ofdLocks(fd)
	default:
		d.useLocks = *o.Locking == qapi.OnOffAutoOn
	}
	return nil
}

func checkAIO(o *qapi.BlockdevOptionsFile, direct bool) error {
	if o.AIO != nil && *o.AIO == qapi.BlockdevAioOptionsNative && !direct {
		return blockgraph.Errorf(syscall.EINVAL, "aio=native was specified, but it requires cache.direct=on, which was not specified.")
	}
	return nil
}

// checkWritable fails for a device that the administrator made read-only:
// opening it for writing succeeds nevertheless.
func checkWritable(fd, flags int) error {
	if flags&unix.O_ACCMODE != unix.O_RDWR {
		return nil
	}
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	if err == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK {
		var ro int
		if ro, err = unix.IoctlGetInt(fd, unix.BLKROGET); err == nil && ro != 0 {
			err = syscall.EACCES
		}
	}
	if err != nil {
		return blockgraph.Errorf(blockgraph.Errno(err), "The device is not writable: %s", blockgraph.Strerror(err))
	}
	return nil
}

// openFlags returns how the file is to be open while users have perm. Under
// auto-read-only it is writable only while somebody needs that.
func (s settings) openFlags(perm blockgraph.Perm) int {
	flags := unix.O_RDONLY
	if s.autoReadOnly && perm&writers != 0 || !s.autoReadOnly && !s.readOnly {
		flags = unix.O_RDWR
	}
	if s.direct {
		flags |= unix.O_DIRECT
	}
	return flags
}

// writers are the permissions that need the file to be open for writing.
const writers = blockgraph.PermWrite | blockgraph.PermWriteUnchanged | blockgraph.PermResize

func isSet(b *bool) bool { return b != nil && *b }

func cacheDirect(o *qapi.BlockdevOptions) bool { return o.Cache != nil && isSet(o.Cache.Direct) }

func noFlush(o *qapi.BlockdevOptions) bool { return o.Cache != nil && isSet(o.Cache.NoFlush) }

func (d *driver) setAlignment(a alignment) {
	d.requestAlign.Store(a.request)
	d.memAlign.Store(a.memory)
}

// Limits returns the alignment that O_DIRECT demands.
func (d *driver) Limits() blockgraph.Limits {
	return blockgraph.Limits{RequestAlignment: d.requestAlign.Load(), MemAlignment: d.memAlign.Load()}
}

// Caps: a regular file grows by writes; zeroes and discards are native where
// the file system has them.
func (d *driver) Caps() blockgraph.Caps {
	return blockgraph.Caps{
		WriteZeroes: blockgraph.CapNative,
		MayUnmap:    blockgraph.CapNative,
		NoFallback:  blockgraph.CapNative,
		Discard:     blockgraph.CapNative,
		Grow:        d.kind == unix.S_IFREG,
		FreshZero:   d.kind == unix.S_IFREG,
	}
}

// ReadV fills v; what lies past the end of the file is zeroed.
func (d *driver) ReadV(ctx context.Context, off int64, v *blockgraph.IOVec, _ blockgraph.Flags) error {
	segs := v.Segments()
	var n int64
	var err error
	if d.aligned(segs) {
		n, err = d.file.ReadV(ctx, off, segs)
	} else {
		n, err = d.readBounced(ctx, off, v)
	}
	if err != nil {
		return err
	}
	if n < v.Len() {
		v.Zero(n, v.Len()-n)
	}
	return nil
}

// WriteV writes v, past the end of a regular file, too.
func (d *driver) WriteV(ctx context.Context, off int64, v *blockgraph.IOVec, _ blockgraph.Flags) error {
	defer d.noteWrite()
	segs := v.Segments()
	if !d.aligned(segs) {
		return d.writeBounced(ctx, off, v)
	}
	_, err := d.file.WriteV(ctx, off, segs)
	return err
}

// noteWrite records that there is something to flush. It comes after the
// write: a flush that begins meanwhile may miss it, and would take back a note
// made before.
func (d *driver) noteWrite() {
	if !d.written.Load() {
		d.written.Store(true)
	}
}

// Close makes durable what was written, gives up the locks and closes the
// file.
func (d *driver) Close(ctx context.Context) error {
	var err error
	if d.written.Load() && !noFlush(d.options) {
		err = d.Flush(ctx)
	}
	d.keepLocks(lockSet{}) // closing does not end them while another has the open file
	if cerr := d.file.Close(); err == nil && cerr != nil {
		err = cerr
	}
	d.fromSet.giveBack()
	d.fromSet = none
	return err
}
