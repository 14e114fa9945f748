package nbd

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"syscall"

	"blockd/blockgraph"
	"blockd/clock"
	"blockd/nbdproto"
	"blockd/qapi"
)

// Driver is an open NBD node.
type Driver struct {
	links *links
	info  exportInfo // of the first link; the later ones agree with it
	depth bool       // the context is qemu:allocation-depth
}

var (
	_ blockgraph.Driver       = (*Driver)(nil)
	_ blockgraph.LimitsReader = (*Driver)(nil)
	_ blockgraph.Truncater    = (*Driver)(nil)
	_ blockgraph.Reopener     = (*Driver)(nil)
)

// Config is what the driver needs from the program.
type Config struct {
	// Clock is the real clock.
	Clock clock.Clock
	// TakeFD hands over the socket that an address of type fd names. nil: none.
	TakeFD func(ctx context.Context, name string) (int, error)
	// Credentials finds TLS credentials for a client by their id. nil: none.
	Credentials Credentials
	Log         *slog.Logger
}

// Type returns the driver for the graph's registry.
func Type(cfg Config) *blockgraph.DriverType {
	return &blockgraph.DriverType{
		Name:     "nbd",
		Protocol: true,
		Open: func(ctx context.Context, r *blockgraph.OpenRequest) (blockgraph.Driver, error) {
			return open(ctx, r, &cfg)
		},
		StrongOptions: strongOptions,
		PlainFilename: filename,
		ParseFilename: parseFilename,
		Modernise:     modernise,
		Required:      []blockgraph.RequiredOption{{Name: "server", Text: errNoServer.Error()}},
		NoDirectory:   "NBD",
	}
}

func open(ctx context.Context, r *blockgraph.OpenRequest, cfg *Config) (blockgraph.Driver, error) {
	o, err := readOptions(r.Options.NBD, cfg)
	if err != nil {
		return nil, err
	}
	if o.once() && r.FromHeader {
		// An image must not get at a socket that its user passed for another end.
		return nil, blockgraph.Errorf(syscall.EINVAL, "File descriptor named '%s' has not been found", o.given.Server.FD.Str)
	}
	ls, info, err := connect(ctx, o, cfg)
	if err != nil {
		return nil, err
	}
	d := &Driver{links: ls, info: info, depth: o.meta == "qemu:allocation-depth"}
	if err := d.check(r, o); err != nil {
		ls.close()
		return nil, err
	}
	return d, nil
}

// check refuses a server that cannot do what the options ask for.
func (d *Driver) check(r *blockgraph.OpenRequest, o *options) error {
	if o.meta != baseAllocation && !d.info.status {
		return blockgraph.Errorf(syscall.EINVAL, "requested x-dirty-bitmap %s not found", o.meta)
	}
	if d.info.flags&nbdproto.ReadOnly != 0 && !r.ReadOnly {
		if !r.AutoReadOnly {
			return blockgraph.Errorf(syscall.EACCES, "NBD export is read-only")
		}
		r.Node.FallBackReadOnly()
	}
	return nil
}

func (d *Driver) has(f nbdproto.TransmissionFlags) bool { return d.info.flags&f != 0 }

// alignment is that of requests, in bytes: the server's. Without one an export
// of whole sectors whose server has no block status is taken for an old one, to
// which smaller requests are not sent.
func (i *exportInfo) alignment() int64 {
	switch {
	case i.minBlock > 0:
		return i.minBlock
	case i.size%sector == 0 && !i.status:
		return sector
	}
	return 1
}

// maxTransfer is the longest read or write, in bytes.
func (i *exportInfo) maxTransfer() int64 {
	most := int64(nbdproto.MaxPayload)
	if m := i.maxBlock; m > 0 {
		most = min(most, m/i.alignment()*i.alignment())
	}
	return most
}

// Limits returns the server's block sizes.
func (d *Driver) Limits() blockgraph.Limits {
	align, most := d.info.alignment(), d.info.maxTransfer()
	l := blockgraph.Limits{
		RequestAlignment: align, MaxTransfer: most, OptTransfer: d.info.optBlock,
		MaxZero: most, MaxDiscard: math.MaxInt32 / align * align,
	}
	if d.info.framing == nbdproto.Extended {
		// Requests without data may be of any length.
		l.MaxZero, l.MaxDiscard = 0, 0
	}
	return l
}

const sector = 512

// Caps returns what the server announced.
func (d *Driver) Caps() blockgraph.Caps {
	when := func(f nbdproto.TransmissionFlags, otherwise blockgraph.Capability) blockgraph.Capability {
		if d.has(f) {
			return blockgraph.CapNative
		}
		return otherwise
	}
	zero := when(nbdproto.SendWriteZeroes, blockgraph.CapEmulate)
	c := blockgraph.Caps{
		FUA:         when(nbdproto.SendFUA, blockgraph.CapEmulate),
		WriteZeroes: zero,
		Discard:     when(nbdproto.SendTrim, blockgraph.CapNone),
	}
	if zero == blockgraph.CapNative {
		c.MayUnmap = blockgraph.CapNative
		c.ZeroFUA = c.FUA
		if d.has(nbdproto.SendFastZero) {
			c.NoFallback = blockgraph.CapNative
		}
	}
	return c
}

// inside returns how much of a range the export has: its last sector may be
// short, and then reads as if zeroes filled it up. Writes there are the server's
// to refuse.
func (d *Driver) inside(off, n int64) int64 { return max(0, min(n, d.info.size-off)) }

// ReadV reads from the server.
func (d *Driver) ReadV(ctx context.Context, off int64, v *blockgraph.IOVec, _ blockgraph.Flags) error {
	if n := d.inside(off, v.Len()); n < v.Len() {
		v.Zero(n, v.Len()-n)
		if n == 0 {
			return nil
		}
		v = v.Slice(0, n)
	}
	return d.links.do(ctx, nbdproto.Request{Type: nbdproto.CmdRead, Offset: uint64(off), Length: uint64(v.Len())}, nil, v, nil)
}

// WriteV writes to the server.
func (d *Driver) WriteV(ctx context.Context, off int64, v *blockgraph.IOVec, flags blockgraph.Flags) error {
	r := nbdproto.Request{Type: nbdproto.CmdWrite, Offset: uint64(off), Length: uint64(v.Len())}
	if flags&blockgraph.FUA != 0 {
		r.Flags |= nbdproto.FlagFUA
	}
	return d.links.do(ctx, r, v, nil, nil)
}

// WriteZeroes has the server write zeroes.
func (d *Driver) WriteZeroes(ctx context.Context, off, n int64, flags blockgraph.Flags) error {
	if !d.has(nbdproto.SendWriteZeroes) {
		return blockgraph.ErrNotSupported
	}
	if n = d.inside(off, n); n == 0 {
		return nil
	}
	r := nbdproto.Request{Type: nbdproto.CmdWriteZeroes, Offset: uint64(off), Length: uint64(n)}
	if flags&blockgraph.FUA != 0 {
		r.Flags |= nbdproto.FlagFUA
	}
	if flags&blockgraph.MayUnmap == 0 {
		r.Flags |= nbdproto.FlagNoHole
	}
	if flags&blockgraph.NoFallback != 0 {
		r.Flags |= nbdproto.FlagFastZero
	}
	return d.links.do(ctx, r, nil, nil, nil)
}

// Discard gives a range up; without effect on a server that does not trim.
func (d *Driver) Discard(ctx context.Context, off, n int64) error {
	if !d.has(nbdproto.SendTrim) {
		return nil
	}
	if n = d.inside(off, n); n == 0 {
		return nil
	}
	return d.links.do(ctx, nbdproto.Request{Type: nbdproto.CmdTrim, Offset: uint64(off), Length: uint64(n)}, nil, nil, nil)
}

// Flush has the server make completed writes durable.
func (d *Driver) Flush(ctx context.Context) error {
	if !d.has(nbdproto.SendFlush) {
		return nil
	}
	return d.links.do(ctx, nbdproto.Request{Type: nbdproto.CmdFlush}, nil, nil, nil)
}

// BlockStatus asks the server, in the context of the options.
func (d *Driver) BlockStatus(ctx context.Context, off, n int64, _ blockgraph.StatusMode) (blockgraph.Status, error) {
	s := blockgraph.Status{Flags: blockgraph.StatusData | blockgraph.StatusOffsetValid | blockgraph.StatusAllocated, N: n, Offset: off}
	if !d.info.status {
		return s, nil
	}
	align := d.info.alignment()
	rest := n
	n = d.inside(off, n)
	if d.info.framing != nbdproto.Extended {
		n = min(n, math.MaxInt32/align*align)
	}
	if n == 0 {
		return blockgraph.Status{Flags: blockgraph.StatusZero | blockgraph.StatusAllocated, N: rest}, nil
	}
	r := nbdproto.Request{Type: nbdproto.CmdBlockStatus, Flags: nbdproto.FlagReqOne, Offset: uint64(off), Length: uint64(n)}
	var e extent
	if err := d.links.do(ctx, r, nil, nil, &e); err != nil {
		return s, err
	}
	flags := e.flags
	// Some servers' extents are not aligned: what is whole counts, and else
	// the first block is data whatever they said.
	if e.n%align != 0 && e.n < n {
		if e.n > align {
			e.n = e.n / align * align
		} else {
			e.n, flags = align, 0
		}
	}
	if d.depth {
		flags = min(flags, 2)
	}
	s.N = min(e.n, n)
	if flags&nbdproto.StateHole != 0 {
		s.Flags &^= blockgraph.StatusData
	}
	if flags&nbdproto.StateZero != 0 {
		s.Flags |= blockgraph.StatusZero
	}
	return s, nil
}

// Size is the export's size in bytes.
func (d *Driver) Size(context.Context) (int64, error) { return d.info.size, nil }

// Truncate refuses: the protocol cannot resize.
func (d *Driver) Truncate(_ context.Context, size int64, exact bool, _ qapi.PreallocMode, _ bool) error {
	switch {
	case size != d.info.size && exact:
		return blockgraph.Errorf(syscall.ENOTSUP, "Cannot resize NBD nodes")
	case size > d.info.size:
		return blockgraph.Errorf(syscall.EINVAL, "Cannot grow NBD nodes")
	}
	return nil
}

// PrepareReopen takes a new value of read-only, if the server allows it.
func (d *Driver) PrepareReopen(_ context.Context, r *blockgraph.ReopenRequest) (*blockgraph.Reopening, error) {
	if !r.ReadOnly && d.has(nbdproto.ReadOnly) {
		return nil, blockgraph.Errorf(syscall.EACCES, "Can't reopen read-only NBD mount as read/write")
	}
	return &blockgraph.Reopening{}, nil
}

// Close says good-bye to the server.
func (d *Driver) Close(context.Context) error {
	d.links.close()
	return nil
}

// failed turns what ended a request into an error with an errno.
func failed(err error) error {
	if errors.Is(err, errLost) {
		return syscall.EIO
	}
	return err
}
