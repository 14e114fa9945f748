package blockgraph

import (
	"context"
	"sync"
	"sync/atomic"

	"blockd/clock"
	"blockd/qapi"
)

// memDriver is a protocol in memory.
type memDriver struct {
	mu     sync.RWMutex
	b      []byte
	closed atomic.Bool
	block  chan struct{} // reads and writes wait for it, if not nil
	locks  [2]Perm
	fail   error // of PreparePerms
}

func (d *memDriver) wait() {
	if d.block != nil {
		<-d.block
	}
}
func (d *memDriver) ReadV(_ context.Context, off int64, v *IOVec, _ Flags) error {
	d.wait()
	d.mu.RLock()
	defer d.mu.RUnlock()
	v.CopyIn(0, d.b[off:off+v.Len()])
	return nil
}
func (d *memDriver) WriteV(_ context.Context, off int64, v *IOVec, _ Flags) error {
	d.wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	if end := off + v.Len(); end > int64(len(d.b)) {
		d.b = append(d.b, make([]byte, end-int64(len(d.b)))...)
	}
	v.CopyOut(0, d.b[off:off+v.Len()])
	return nil
}
func (d *memDriver) WriteZeroes(context.Context, int64, int64, Flags) error { return ErrNotSupported }
func (d *memDriver) Discard(context.Context, int64, int64) error            { return ErrNotSupported }
func (d *memDriver) Flush(context.Context) error                            { return nil }
func (d *memDriver) BlockStatus(_ context.Context, off, n int64, _ StatusMode) (Status, error) {
	return Status{Flags: StatusData, N: n}, nil
}
func (d *memDriver) Size(context.Context) (int64, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return int64(len(d.b)), nil
}
func (d *memDriver) Close(context.Context) error { d.closed.Store(true); return nil }
func (d *memDriver) Limits() Limits              { return Limits{RequestAlignment: memAlign} }
func (d *memDriver) Caps() Caps                  { return Caps{Grow: true} }
func (d *memDriver) PreparePerms(_ context.Context, perm, shared Perm) error {
	return d.fail
}
func (d *memDriver) CommitPerms(perm, shared Perm) { d.locks = [2]Perm{perm, shared} }
func (d *memDriver) AbortPerms()                   {}

// memAlign is the alignment of mem nodes opened from now on.
var memAlign int64 = 1

// passDriver is a filter, or with backing a toy format that never has data of
// its own.
type passDriver struct{ n *Node }

func (d *passDriver) below() *Edge {
	if f := d.n.Filtered(); f != nil {
		return f
	}
	return d.n.File()
}
func (d *passDriver) ReadV(ctx context.Context, off int64, v *IOVec, f Flags) error {
	return d.below().ReadV(ctx, off, v, f)
}
func (d *passDriver) WriteV(ctx context.Context, off int64, v *IOVec, f Flags) error {
	return d.below().WriteV(ctx, off, v, f)
}
func (d *passDriver) WriteZeroes(ctx context.Context, off, n int64, f Flags) error {
	return d.below().WriteZeroes(ctx, off, n, f)
}
func (d *passDriver) Discard(ctx context.Context, off, n int64) error {
	return d.below().Discard(ctx, off, n)
}
func (d *passDriver) Flush(ctx context.Context) error { return d.below().Flush(ctx) }
func (d *passDriver) BlockStatus(_ context.Context, off, n int64, _ StatusMode) (Status, error) {
	return Status{Flags: StatusRecurse | StatusOffsetValid, N: n, Offset: off, File: d.below().Child()}, nil
}
func (d *passDriver) Size(context.Context) (int64, error) { return d.below().Child().Size(), nil }
func (d *passDriver) Close(context.Context) error         { return nil }

func (d *passDriver) BackingFile() (string, string)                           { return "", "" }
func (d *passDriver) ChangeBackingFile(context.Context, string, string) error { return nil }

func fileChild(role Role) func(o *qapi.BlockdevOptions) []ChildSpec {
	return func(o *qapi.BlockdevOptions) []ChildSpec {
		return []ChildSpec{{Name: "file", Role: role, Ref: o.Raw.File}}
	}
}

func openPass(_ context.Context, r *OpenRequest) (Driver, error) { return &passDriver{r.Node}, nil }

func newTestGraph() *Graph {
	return NewGraph(NewLoop(), clock.Real(),
		&DriverType{Name: "mem", Protocol: true,
			Open: func(_ context.Context, r *OpenRequest) (Driver, error) {
				return &memDriver{b: make([]byte, *r.Options.Null.Size)}, nil
			}},
		&DriverType{Name: "pass", Filter: true, Children: fileChild(RoleFiltered | RolePrimary), Open: openPass},
		&DriverType{Name: "fmt", Children: fileChild(RoleData | RoleMetadata | RolePrimary), Open: openPass,
			BackingOption: func(o *qapi.BlockdevOptions) **qapi.BlockdevRefOrNull { return &o.Qcow2.Backing }},
	)
}

func memOptions(name string, size int64) *qapi.BlockdevOptions {
	return &qapi.BlockdevOptions{Driver: "mem", NodeName: &name, Null: &qapi.BlockdevOptionsNull{Size: &size}}
}

func overOptions(driver, name, file, backing string) *qapi.BlockdevOptions {
	o := &qapi.BlockdevOptions{Driver: qapi.BlockdevDriver(driver), NodeName: &name,
		Raw:   &qapi.BlockdevOptionsRaw{File: qapi.BlockdevRef{Reference: &file}},
		Qcow2: &qapi.BlockdevOptionsQcow2{}}
	if backing != "" {
		o.Qcow2.Backing = &qapi.BlockdevRefOrNull{Reference: &backing}
	}
	return o
}
