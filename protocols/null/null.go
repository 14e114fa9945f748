// Package null is the protocol drivers `null-co` and `null-aio`: a device
// without storage, for measuring and for tests. Writes go nowhere.
//
// The field leaves a reader's buffer as it is unless read-zeroes is set. Here
// it is cleared in any case: buffers are reused, and a client must not find
// another's data in them. Only block status tells the two apart.
//
// Data plane: every method may be called from any goroutine; with a latency
// requests sleep on the clock and end early with their context. The package
// has no locks.
//
//blockd:io
package null

import (
	"context"
	"math"
	"syscall"
	"time"

	"blockd/blockgraph"
	"blockd/clock"
	"blockd/qapi"
)

// defaultSize is the length in bytes without a size option.
const defaultSize = 1 << 30

// DriverTypes returns the drivers for the graph's registry. Latencies pass on
// clk, the real clock.
func DriverTypes(clk clock.Clock) []*blockgraph.DriverType {
	return []*blockgraph.DriverType{driverType("null-co", clk), driverType("null-aio", clk)}
}

func driverType(name string, clk clock.Clock) *blockgraph.DriverType {
	return &blockgraph.DriverType{
		Name:     name,
		Protocol: true,
		Open: func(_ context.Context, r *blockgraph.OpenRequest) (blockgraph.Driver, error) {
			return open(r, clk)
		},
		StrongOptions: strongOptions,
		PlainFilename: func(o *qapi.BlockdevOptions) (string, bool) {
			return name + "://", strongOptions(o) == nil
		},
		ParseFilename: func(given string, _ func(string) (qapi.BlockdevRef, error)) (*qapi.BlockdevOptions, error) {
			if given != name+"://" {
				return nil, qapi.Errorf("The only allowed filename for this driver is '%s://'", name)
			}
			return &qapi.BlockdevOptions{Driver: qapi.BlockdevDriver(name), Null: &qapi.BlockdevOptionsNull{}}, nil
		},
	}
}

func strongOptions(o *qapi.BlockdevOptions) *qapi.Object {
	n := o.Null
	if n == nil || n.Size == nil && n.ReadZeroes == nil {
		return nil
	}
	s := qapi.NewObject()
	if n.Size != nil {
		s.Set("size", *n.Size)
	}
	if n.ReadZeroes != nil {
		s.Set("read-zeroes", *n.ReadZeroes)
	}
	return s
}

type driver struct {
	node    *blockgraph.Node
	clock   clock.Clock
	size    int64 // bytes
	latency time.Duration
	zeroes  bool
}

func open(r *blockgraph.OpenRequest, clk clock.Clock) (blockgraph.Driver, error) {
	d := &driver{node: r.Node, clock: clk, size: defaultSize}
	o := r.Options.Null
	if o == nil {
		return d, nil
	}
	if o.Size != nil {
		if *o.Size < 0 {
			return nil, blockgraph.Errorf(syscall.EINVAL, "Parameter 'size' expects a non-negative number below 2^64")
		}
		d.size = *o.Size
	}
	if o.LatencyNs != nil {
		if *o.LatencyNs > math.MaxInt64 {
			return nil, blockgraph.Errorf(syscall.EINVAL, "latency-ns is invalid")
		}
		d.latency = time.Duration(*o.LatencyNs)
	}
	d.zeroes = o.ReadZeroes != nil && *o.ReadZeroes
	return d, nil
}

func (d *driver) wait(ctx context.Context) error {
	if d.latency == 0 {
		return nil
	}
	return d.clock.Sleep(ctx, d.latency)
}

// ReadV gives zeroes.
func (d *driver) ReadV(ctx context.Context, _ int64, v *blockgraph.IOVec, _ blockgraph.Flags) error {
	v.Zero(0, v.Len())
	return d.wait(ctx)
}

// WriteV forgets what it is given.
func (d *driver) WriteV(ctx context.Context, _ int64, _ *blockgraph.IOVec, _ blockgraph.Flags) error {
	return d.wait(ctx)
}

// WriteZeroes is not there, as in the field: zeroes are written as data.
func (d *driver) WriteZeroes(context.Context, int64, int64, blockgraph.Flags) error {
	return blockgraph.ErrNotSupported
}

// Discard is not there.
func (d *driver) Discard(context.Context, int64, int64) error { return blockgraph.ErrNotSupported }

// Flush takes as long as any request.
func (d *driver) Flush(ctx context.Context) error { return d.wait(ctx) }

// BlockStatus: everything is here, and zero with read-zeroes.
func (d *driver) BlockStatus(_ context.Context, off, n int64, _ blockgraph.StatusMode) (blockgraph.Status, error) {
	st := blockgraph.Status{Flags: blockgraph.StatusOffsetValid, N: n, Offset: off, File: d.node}
	if d.zeroes {
		st.Flags |= blockgraph.StatusZero
	}
	return st, nil
}

// Size returns the length in bytes.
func (d *driver) Size(context.Context) (int64, error) { return d.size, nil }

// AllocatedSize is 0: there is no storage.
func (d *driver) AllocatedSize(context.Context) (int64, error) { return 0, nil }

// Close has nothing to give up.
func (d *driver) Close(context.Context) error { return nil }

// Limits has none.
func (d *driver) Limits() blockgraph.Limits { return blockgraph.Limits{} }

// Caps: what is written is as durable as it will ever be.
func (d *driver) Caps() blockgraph.Caps { return blockgraph.Caps{FUA: blockgraph.CapNative} }

// PrepareReopen has nothing to do: none of the driver's own options may change.
func (d *driver) PrepareReopen(context.Context, *blockgraph.ReopenRequest) (*blockgraph.Reopening, error) {
	return &blockgraph.Reopening{}, nil
}
