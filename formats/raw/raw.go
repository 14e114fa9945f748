// Package raw is the format driver `raw`: an image whose bytes are those of
// the node below it, all of them or, with the options offset and size, a part.
//
// An image that was found to be raw by looking at it, and not said to be, is
// protected: a guest's write to its first sector is refused when it would make
// the image look like another format, whose header could then name any file of
// the host at the next start.
//
// With the option x-bitmaps the node has persistent dirty bitmaps, in a file beside
// the image (sidecar.go).
//
// Data plane: I/O may be called from any goroutine and blocks as the child
// does. The part in use changes on a worker with the graph's token held and no
// request in flight. The package has no locks but the turn of those who write the
// bitmaps, which is held over their I/O.
//
//blockd:io
package raw

import (
	"context"
	"math"
	"sync/atomic"
	"syscall"

	"blockd/blockgraph"
	"blockd/ioengine"
	"blockd/qapi"
)

const (
	name = "raw"
	// sectorSize is what sizes are multiples of, and what is protected of a
	// probed image, in bytes.
	sectorSize = 512
)

// Config is what the driver needs from the program.
type Config struct {
	// Probe names the format that the first bytes of an image tell, with raw
	// among those asked. Any goroutine.
	Probe func(head []byte) string
	// Warn tells the user of a probed image; nil drops it.
	Warn func(text string)
}

// DriverType returns the driver for the graph's registry.
func DriverType(cfg Config) *blockgraph.DriverType {
	return &blockgraph.DriverType{
		Name: name,
		// The least score: raw is what nothing else is.
		Probe:    func([]byte) int { return 1 },
		Children: children,
		Open: func(ctx context.Context, r *blockgraph.OpenRequest) (blockgraph.Driver, error) {
			return open(ctx, r, cfg)
		},
		Required: blockgraph.RequiredChildren("file"),
		WithFile: func(file qapi.BlockdevRef) *qapi.BlockdevOptions {
			return &qapi.BlockdevOptions{Driver: qapi.BlockdevDriverRaw, Raw: &qapi.BlockdevOptionsRaw{File: file}}
		},
		StrongOptions: strongOptions,
		Reopenable:    []string{"offset", "size"},
	}
}

// children: a whole image is passed through much as by a filter, a part is
// data that the node keeps in its file.
func children(o *qapi.BlockdevOptions) []blockgraph.ChildSpec {
	role := blockgraph.RoleFiltered | blockgraph.RolePrimary
	if o.Raw.Size != nil || o.Raw.Offset != nil && *o.Raw.Offset != 0 {
		role = blockgraph.RoleData | blockgraph.RolePrimary
	}
	return []blockgraph.ChildSpec{{Name: "file", Role: role, Ref: o.Raw.File}}
}

func strongOptions(o *qapi.BlockdevOptions) *qapi.Object {
	if o.Raw.Offset == nil && o.Raw.Size == nil {
		return nil
	}
	s := qapi.NewObject()
	if o.Raw.Offset != nil {
		s.Set("offset", *o.Raw.Offset)
	}
	if o.Raw.Size != nil {
		s.Set("size", *o.Raw.Size)
	}
	return s
}

// part is which bytes of the file are the image. It is immutable.
type part struct {
	offset  int64
	size    int64 // as long as the option says; with limited only
	limited bool
}

type driver struct {
	node  *blockgraph.Node
	probe func(head []byte) string // nil: unprotected
	now   atomic.Pointer[part]
}

func open(ctx context.Context, r *blockgraph.OpenRequest, cfg Config) (blockgraph.Driver, error) {
	d := &driver{node: r.Node}
	if r.Probed {
		d.probe = cfg.Probe
		if cfg.Warn != nil && !r.ReadOnly {
			cfg.Warn("WARNING: Image format was not specified for '" + r.Node.File().Child().Filename() + "' and probing guessed raw.\n" +
				"         Automatically detecting the format is dangerous for raw images, write operations on block 0 will be restricted.\n" +
				"         Specify the 'raw' format explicitly to remove the restrictions.\n")
		}
	}
	p, err := newPart(ctx, r.Node.File(), r.Options.Raw)
	if err != nil {
		return nil, err
	}
	d.now.Store(p)
	side, err := newSidecar(ctx, d, r)
	if err != nil || side == nil {
		return d, err
	}
	return &storing{driver: d, side: side}, nil
}

// newPart checks the options against the file's present size.
func newPart(ctx context.Context, file *blockgraph.Edge, o *qapi.BlockdevOptionsRaw) (*part, error) {
	size, err := file.Child().Driver().Size(ctx)
	if err != nil {
		return nil, blockgraph.Errorf(blockgraph.Errno(err), "Could not get image size: %s", blockgraph.Strerror(err))
	}
	p := &part{}
	if o.Offset != nil {
		p.offset = *o.Offset
	}
	if o.Size != nil {
		p.size, p.limited = *o.Size, true
	}
	switch {
	case p.offset < 0:
		return nil, blockgraph.Errorf(syscall.EINVAL, "Parameter 'offset' expects a non-negative number below 2^64")
	case p.size < 0:
		return nil, blockgraph.Errorf(syscall.EINVAL, "Parameter 'size' expects a non-negative number below 2^64")
	case p.offset > size:
		return nil, blockgraph.Errorf(syscall.EINVAL, "Offset (%d) cannot be greater than size of the containing file (%d)", p.offset, size)
	case p.limited && size-p.offset < p.size:
		return nil, blockgraph.Errorf(syscall.EINVAL, "The sum of offset (%d) and size (%d) has to be smaller or equal to the  actual size of the containing file (%d)", p.offset, p.size, size)
	case p.limited && p.size%sectorSize != 0:
		return nil, blockgraph.Errorf(syscall.EINVAL, "Specified size is not multiple of %d", sectorSize)
	}
	return p, nil
}

// fileSize asks the file below for its length.
func (d *driver) fileSize(ctx context.Context) (int64, error) {
	return d.node.File().Child().Driver().Size(ctx)
}

// place returns where in the file a request goes. outside is what a request
// past the end of a limited part fails with.
func (d *driver) place(off, n int64, outside syscall.Errno) (int64, error) {
	p := d.now.Load()
	if p.limited && (off > p.size || n > p.size-off) {
		return 0, outside
	}
	if off > math.MaxInt64-p.offset {
		return 0, syscall.EINVAL
	}
	return off + p.offset, nil
}

// ReadV reads from the file.
func (d *driver) ReadV(ctx context.Context, off int64, v *blockgraph.IOVec, flags blockgraph.Flags) error {
	at, err := d.place(off, v.Len(), syscall.EINVAL)
	if err != nil {
		return err
	}
	e := d.node.File()
	e.DebugEvent("read_aio")
	return e.ReadV(ctx, at, v, flags)
}

// WriteV writes to the file. It fails with EPERM for a first sector that would
// make a probed image another format.
func (d *driver) WriteV(ctx context.Context, off int64, v *blockgraph.IOVec, flags blockgraph.Flags) error {
	at, err := d.place(off, v.Len(), syscall.ENOSPC)
	if err != nil {
		return err
	}
	if d.probe != nil && off < sectorSize {
		return d.writeFirstSector(ctx, at, v, flags)
	}
	e := d.node.File()
	e.DebugEvent("write_aio")
	return e.WriteV(ctx, at, v, flags)
}

// writeFirstSector writes from a copy what it has checked: the guest may change
// its buffer meanwhile. The limits see to it that off is 0 and the sector
// complete.
func (d *driver) writeFirstSector(ctx context.Context, at int64, v *blockgraph.IOVec, flags blockgraph.Flags) error {
	b := ioengine.Bounce(sectorSize)
	defer b.Release()
	v.CopyOut(0, b.Bytes())
	if d.probe(b.Bytes()) != name {
		return syscall.EPERM
	}
	checked := &blockgraph.IOVec{}
	checked.Append(b.Bytes())
	checked.AppendRange(v, sectorSize, v.Len()-sectorSize)
	e := d.node.File()
	e.DebugEvent("write_aio")
	return e.WriteV(ctx, at, checked, flags)
}

// WriteZeroes passes through. No format begins with zeroes.
func (d *driver) WriteZeroes(ctx context.Context, off, n int64, flags blockgraph.Flags) error {
	at, err := d.place(off, n, syscall.ENOSPC)
	if err != nil {
		return err
	}
	return d.node.File().WriteZeroes(ctx, at, n, flags)
}

// Discard passes through.
func (d *driver) Discard(ctx context.Context, off, n int64) error {
	at, err := d.place(off, n, syscall.ENOSPC)
	if err != nil {
		return err
	}
	return d.node.File().Discard(ctx, at, n)
}

// Flush passes through.
func (d *driver) Flush(ctx context.Context) error {
	e := d.node.File()
	e.DebugEvent("flush_to_disk")
	return e.Flush(ctx)
}

// BlockStatus refers to the file, whoever asks.
func (d *driver) BlockStatus(_ context.Context, off, n int64, _ blockgraph.StatusMode) (blockgraph.Status, error) {
	return blockgraph.Status{
		Flags:  blockgraph.StatusRecurse | blockgraph.StatusOffsetValid,
		N:      n,
		Offset: off + d.now.Load().offset,
		File:   d.node.File().Child(),
	}, nil
}

// Size is that of the file, or of its part. A file that was made shorter by
// somebody else shortens the part.
func (d *driver) Size(ctx context.Context) (int64, error) {
	size, err := d.fileSize(ctx)
	if err != nil {
		return 0, err
	}
	p := d.now.Load()
	rest := max(0, size-p.offset)
	if p.limited {
		return min(p.size, rest), nil
	}
	return rest, nil
}

// AllocatedSize is what the file takes, all of it.
func (d *driver) AllocatedSize(ctx context.Context) (int64, error) {
	a, ok := d.node.File().Child().Driver().(blockgraph.AllocatedSizer)
	if !ok {
		return 0, blockgraph.ErrNotSupported
	}
	return a.AllocatedSize(ctx)
}

// ImageInfo tells what holds for the format below, its own part left out.
func (d *driver) ImageInfo(ctx context.Context, info *qapi.ImageInfo) error {
	i, ok := d.node.File().Child().SkipFilters().Driver().(blockgraph.ImageInformer)
	if !ok {
		return nil
	}
	var below qapi.ImageInfo
	if err := i.ImageInfo(ctx, &below); err != nil {
		return err
	}
	info.ClusterSize, info.DirtyFlag = below.ClusterSize, below.DirtyFlag
	return nil
}

// Truncate resizes the file, unless the part's size is fixed.
func (d *driver) Truncate(ctx context.Context, size int64, exact bool, prealloc qapi.PreallocMode, zeroed bool) error {
	p := d.now.Load()
	if p.limited {
		return blockgraph.Errorf(syscall.ENOTSUP, "Cannot resize fixed-size raw disks")
	}
	if size > math.MaxInt64-p.offset {
		return blockgraph.Errorf(syscall.EINVAL, "Disk size too large for the chosen offset")
	}
	return d.node.File().Truncate(ctx, size+p.offset, exact, prealloc, zeroed)
}

// Limits: the child's apply to what reaches it. The first sector of a probed
// image is only ever written as a whole.
func (d *driver) Limits() blockgraph.Limits {
	var l blockgraph.Limits
	if d.probe != nil {
		l.RequestAlignment = sectorSize
	}
	l.MemAlignment = d.node.File().Child().Limits().MemAlignment
	return l
}

// Caps are the child's where they can be passed through.
func (d *driver) Caps() blockgraph.Caps {
	c := d.node.File().Child().Caps()
	return blockgraph.Caps{
		FUA:            c.FUA,
		ZeroFUA:        c.ZeroFUA,
		WriteZeroes:    blockgraph.CapNative,
		MayUnmap:       blockgraph.CapNative,
		NoFallback:     blockgraph.CapNative,
		Discard:        blockgraph.CapNative,
		WriteUnchanged: blockgraph.CapNative,
		Grow:           c.Grow,
		FreshZero:      c.FreshZero,
	}
}

// ChildPerms asks for write and resize only while a user of the node does: the
// default rules would, as for formats with metadata, for any writable node.
func (d *driver) ChildPerms(e *blockgraph.Edge, writable bool, perm, shared blockgraph.Perm) (blockgraph.Perm, blockgraph.Perm) {
	const own = blockgraph.PermWrite | blockgraph.PermResize
	np, ns := blockgraph.DefaultChildPerms(e.Role(), writable, perm, shared)
	return np&^own | perm&own, ns
}

// PrepareReopen takes new values of offset and size, which must fit the file as
// it is to be.
func (d *driver) PrepareReopen(ctx context.Context, r *blockgraph.ReopenRequest) (*blockgraph.Reopening, error) {
	p, err := newPart(ctx, r.State.File(), r.Options.Raw)
	if err != nil {
		return nil, err
	}
	was := d.now.Load()
	return &blockgraph.Reopening{
		Apply: func() { d.now.Store(p) },
		Undo:  func(context.Context) { d.now.Store(was) },
	}, nil
}

// Close has nothing of its own.
func (d *driver) Close(context.Context) error { return nil }
