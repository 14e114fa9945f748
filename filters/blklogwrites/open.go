package blklogwrites

import (
	"context"
	"encoding/binary"
	"math/bits"
	"syscall"

	"blockd/blockgraph"
	"blockd/filters/pass"
	"blockd/qapi"
)

const (
	magic       = 0x6a736677736872
	version     = 1
	superSize   = 28 // bytes
	entrySize   = 32 // bytes
	maxSector   = 1 << 24
	sectorSize  = 512  // unless the options or the log say otherwise
	superPeriod = 4096 // entries

	flagFlush   = 1 << 0
	flagFUA     = 1 << 1
	flagDiscard = 1 << 2
	flagMark    = 1 << 3
)

// Type returns the driver type for the graph's registry.
func Type() *blockgraph.DriverType {
	return &blockgraph.DriverType{
		Name:     string(qapi.BlockdevDriverBlklogwrites),
		Filter:   true,
		Required: blockgraph.RequiredChildren("file", "log"),
		Children: func(o *qapi.BlockdevOptions) []blockgraph.ChildSpec {
			return []blockgraph.ChildSpec{
				{Name: "file", Role: blockgraph.RoleFiltered | blockgraph.RolePrimary, Ref: o.Blklogwrites.File},
				{Name: "log", Role: blockgraph.RoleMetadata, Ref: o.Blklogwrites.Log},
			}
		},
		Open:          open,
		StrongOptions: strongOptions,
	}
}

func open(ctx context.Context, r *blockgraph.OpenRequest) (blockgraph.Driver, error) {
	o := r.Options.Blklogwrites
	f := &Filter{Through: pass.Through{Node: r.Node}}
	l := &f.log
	l.next = 1
	sector := int64(sectorSize)
	appending := o.LogAppend != nil && *o.LogAppend
	switch {
	case appending && o.LogSectorSize != nil:
		return nil, blockgraph.Errorf(syscall.EINVAL, "log-append and log-sector-size are mutually exclusive")
	case appending:
		var err error
		if sector, err = l.resume(ctx, r.Node.Child("log")); err != nil {
			return nil, err
		}
	case o.LogSectorSize != nil:
		sector = int64(*o.LogSectorSize)
	}
	if !validSector(sector) {
		return nil, blockgraph.Errorf(syscall.EINVAL, "Invalid log sector size %d", sector)
	}
	l.bits = uint(bits.TrailingZeros64(uint64(sector)))
	l.period = superPeriod
	if o.LogSuperUpdateInterval != nil {
		l.period = *o.LogSuperUpdateInterval
	}
	if l.period == 0 {
		return nil, blockgraph.Errorf(syscall.EINVAL, "Invalid log superblock update interval 0")
	}
	return f, nil
}

func validSector(n int64) bool { return n >= entrySize && n < maxSector && n&(n-1) == 0 }

func strongOptions(o *qapi.BlockdevOptions) *qapi.Object {
	b := o.Blklogwrites
	if b.LogAppend == nil && b.LogSectorSize == nil {
		return nil
	}
	s := qapi.NewObject()
	if b.LogAppend != nil {
		s.Set("log-append", *b.LogAppend)
	}
	if b.LogSectorSize != nil {
		s.Set("log-sector-size", int64(*b.LogSectorSize))
	}
	return s
}

// resume finds the end of an existing log, and returns its sector size. An
// empty log is a new one.
func (l *log) resume(ctx context.Context, e *blockgraph.Edge) (int64, error) {
	size := e.Child().Size()
	if size == 0 {
		return sectorSize, nil
	}
	var b [superSize]byte
	if err := e.ReadV(ctx, 0, blockgraph.MakeIOVec(b[:]), 0); err != nil {
		return 0, blockgraph.Errorf(blockgraph.Errno(err), "Could not read log superblock: %s", blockgraph.Strerror(err))
	}
	le := binary.LittleEndian
	if le.Uint64(b[:]) != magic {
		return 0, blockgraph.Errorf(syscall.EINVAL, "Invalid log superblock magic")
	}
	if v := le.Uint64(b[8:]); v != version {
		return 0, blockgraph.Errorf(syscall.EINVAL, "Unsupported log version %d", v)
	}
	entries, sector := le.Uint64(b[16:]), int64(le.Uint32(b[24:]))
	if !validSector(sector) {
		return sector, nil // the caller refuses it
	}
	for i := range entries {
		if err := l.skip(ctx, e, size, sector, i); err != nil {
			return 0, err
		}
	}
	l.begun, l.written = entries, entries
	return sector, nil
}

// skip goes past an entry. The log is not trusted: what does not lie in it ends
// the search.
func (l *log) skip(ctx context.Context, e *blockgraph.Edge, size, sector int64, i uint64) error {
	fail := func(err error) error {
		return blockgraph.Errorf(blockgraph.Errno(err), "Failed to read log entry %d: %s", i, blockgraph.Strerror(err))
	}
	if l.next*sector >= size {
		return fail(syscall.EIO)
	}
	var b [entrySize]byte
	if err := e.ReadV(ctx, l.next*sector, blockgraph.MakeIOVec(b[:]), 0); err != nil {
		return fail(err)
	}
	le := binary.LittleEndian
	flags := le.Uint64(b[16:])
	if flags&^(flagFlush|flagFUA|flagDiscard|flagMark) != 0 {
		return blockgraph.Errorf(syscall.EINVAL, "Invalid flags 0x%x in log entry %d", flags, i)
	}
	l.next++
	if flags&flagDiscard == 0 {
		n := le.Uint64(b[8:])
		if n > uint64(size/sector) {
			return fail(syscall.EIO)
		}
		l.next += int64(n)
	}
	return nil
}
