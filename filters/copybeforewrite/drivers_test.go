package copybeforewrite_test

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"blockd/blockgraph"
	"blockd/clock"
	"blockd/filters/copybeforewrite"
	"blockd/qapi"
)

func TestMain(m *testing.M) {
	slog.SetDefault(slog.New(slog.DiscardHandler))
	goleak.VerifyTestMain(m)
}

// memDriver is a protocol in memory that knows data from holes.
type memDriver struct {
	mu         sync.RWMutex
	b          []byte
	written    []bool // per 4 KiB
	reads      atomic.Int64
	writes     atomic.Int64
	zeroed     atomic.Int64 // bytes
	compressed atomic.Int64 // requests of one cluster
	hook       atomic.Pointer[func(write bool, off, n int64) error]
}

func (d *memDriver) onRequest(write bool, off, n int64) error {
	if h := d.hook.Load(); h != nil {
		return (*h)(write, off, n)
	}
	return nil
}

func (d *memDriver) set(h func(write bool, off, n int64) error) {
	if h == nil {
		d.hook.Store(nil)
		return
	}
	d.hook.Store(&h)
}

func (d *memDriver) ReadV(_ context.Context, off int64, v *blockgraph.IOVec, _ blockgraph.Flags) error {
	d.reads.Add(1)
	if err := d.onRequest(false, off, v.Len()); err != nil {
		return err
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	v.CopyIn(0, d.b[off:off+v.Len()])
	return nil
}

func (d *memDriver) mark(off, n int64, written bool) {
	for i := off / 4096; i*4096 < off+n; i++ {
		d.written[i] = d.written[i] || written
		if !written && i*4096 >= off && (i+1)*4096 <= off+n {
			d.written[i] = false
		}
	}
}

func (d *memDriver) WriteV(_ context.Context, off int64, v *blockgraph.IOVec, flags blockgraph.Flags) error {
	d.writes.Add(1)
	if flags&blockgraph.Compressed != 0 && v.Len() == cluster {
		d.compressed.Add(1)
	}
	if err := d.onRequest(true, off, v.Len()); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	v.CopyOut(0, d.b[off:off+v.Len()])
	d.mark(off, v.Len(), true)
	return nil
}

func (d *memDriver) WriteZeroes(_ context.Context, off, n int64, _ blockgraph.Flags) error {
	if err := d.onRequest(true, off, n); err != nil {
		return err
	}
	d.zeroed.Add(n)
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.b[off : off+n])
	d.mark(off, n, false)
	return nil
}

// Discard leaves something else than what was there.
func (d *memDriver) Discard(_ context.Context, off, n int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range n {
		d.b[off+i] = 0xdd
	}
	d.mark(off, n, true)
	return nil
}

func (d *memDriver) Flush(context.Context) error { return nil }

func (d *memDriver) BlockStatus(_ context.Context, off, n int64, _ blockgraph.StatusMode) (blockgraph.Status, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	w := d.written[off/4096]
	end := off
	for end < off+n && d.written[end/4096] == w {
		end = end&^4095 + 4096
	}
	f := blockgraph.StatusZero
	if w {
		f = blockgraph.StatusData
	}
	return blockgraph.Status{Flags: f, N: min(n, end-off)}, nil
}

func (d *memDriver) Size(context.Context) (int64, error) { return int64(len(d.b)), nil }
func (d *memDriver) Close(context.Context) error         { return nil }
func (d *memDriver) Limits() blockgraph.Limits           { return blockgraph.Limits{} }
func (d *memDriver) Caps() blockgraph.Caps {
	return blockgraph.Caps{WriteZeroes: blockgraph.CapNative, MayUnmap: blockgraph.CapNative, Discard: blockgraph.CapNative, Compressed: blockgraph.CapNative}
}

// cowDriver is a format with clusters of 64 KiB in a file of its own size;
// what it lacks is the backing file's.
type cowDriver struct {
	n     *blockgraph.Node
	size  int64
	mu    sync.RWMutex
	alloc []bool
}

const cowCluster = 64 << 10

func (d *cowDriver) ReadV(ctx context.Context, off int64, v *blockgraph.IOVec, _ blockgraph.Flags) error {
	d.mu.RLock()
	defer d.mu.RUnlock()
	for done := int64(0); done < v.Len(); {
		at := off + done
		k := min(v.Len()-done, cowCluster-at%cowCluster)
		e := d.n.File()
		if !d.alloc[at/cowCluster] {
			if e = d.n.Backing(); e == nil {
				v.Zero(done, k)
				done += k
				continue
			}
		}
		if err := e.ReadV(ctx, at, v.Slice(done, k), 0); err != nil {
			return err
		}
		done += k
	}
	return nil
}

func (d *cowDriver) WriteV(ctx context.Context, off int64, v *blockgraph.IOVec, _ blockgraph.Flags) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for done := int64(0); done < v.Len(); {
		at := off + done
		k := min(v.Len()-done, cowCluster-at%cowCluster)
		c := at / cowCluster
		if !d.alloc[c] && (k < cowCluster) {
			if e := d.n.Backing(); e != nil {
				b := make([]byte, min(cowCluster, d.size-c*cowCluster))
				if err := e.ReadV(ctx, c*cowCluster, blockgraph.MakeIOVec(b), 0); err != nil {
					return err
				}
				if err := d.n.File().WriteV(ctx, c*cowCluster, blockgraph.MakeIOVec(b), 0); err != nil {
					return err
				}
			}
		}
		if err := d.n.File().WriteV(ctx, at, v.Slice(done, k), 0); err != nil {
			return err
		}
		d.alloc[c] = true
		done += k
	}
	return nil
}

func (d *cowDriver) WriteZeroes(context.Context, int64, int64, blockgraph.Flags) error {
	return blockgraph.ErrNotSupported
}
func (d *cowDriver) Discard(context.Context, int64, int64) error { return nil }
func (d *cowDriver) Flush(context.Context) error                 { return nil }
func (d *cowDriver) BlockStatus(_ context.Context, off, n int64, _ blockgraph.StatusMode) (blockgraph.Status, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	a := d.alloc[off/cowCluster]
	end := off
	for end < off+n && d.alloc[end/cowCluster] == a {
		end = (end/cowCluster + 1) * cowCluster
	}
	st := blockgraph.Status{N: min(n, end-off)}
	if a {
		st.Flags = blockgraph.StatusData
	}
	return st, nil
}
func (d *cowDriver) Size(context.Context) (int64, error)                     { return d.size, nil }
func (d *cowDriver) Close(context.Context) error                             { return nil }
func (d *cowDriver) Limits() blockgraph.Limits                               { return blockgraph.Limits{} }
func (d *cowDriver) Caps() blockgraph.Caps                                   { return blockgraph.Caps{Backing: true} }
func (d *cowDriver) BackingFile() (string, string)                           { return "", "" }
func (d *cowDriver) ChangeBackingFile(context.Context, string, string) error { return nil }
func (d *cowDriver) ImageInfo(_ context.Context, info *qapi.ImageInfo) error {
	c := int64(128 << 10)
	info.ClusterSize = &c
	return nil
}

type world struct {
	t *testing.T
	g *blockgraph.Graph
}

func newWorld(t *testing.T) *world {
	g := blockgraph.NewGraph(blockgraph.NewLoop(), clock.Real(),
		&blockgraph.DriverType{Name: "mem", Protocol: true,
			Open: func(_ context.Context, r *blockgraph.OpenRequest) (blockgraph.Driver, error) {
				n := *r.Options.Null.Size
				return &memDriver{b: make([]byte, n), written: make([]bool, (n+4095)/4096)}, nil
			}},
		&blockgraph.DriverType{Name: "cow",
			Children: func(o *qapi.BlockdevOptions) []blockgraph.ChildSpec {
				return []blockgraph.ChildSpec{{Name: "file", Role: blockgraph.RoleData | blockgraph.RoleMetadata | blockgraph.RolePrimary, Ref: o.Raw.File}}
			},
			Open: func(_ context.Context, r *blockgraph.OpenRequest) (blockgraph.Driver, error) {
				size := r.Node.File().Child().Size()
				return &cowDriver{n: r.Node, size: size, alloc: make([]bool, (size+cowCluster-1)/cowCluster)}, nil
			},
			BackingOption: func(o *qapi.BlockdevOptions) **qapi.BlockdevRefOrNull { return &o.Qcow2.Backing }},
		copybeforewrite.Type(clock.Real()),
	)
	t.Cleanup(g.Loop().Stop)
	return &world{t, g}
}

func (w *world) update(f func(tx *blockgraph.Tx) error) {
	w.t.Helper()
	if err := w.g.Update(context.Background(), blockgraph.Cause{Command: "test"}, f); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) add(o *qapi.BlockdevOptions) (n *blockgraph.Node) {
	w.t.Helper()
	w.update(func(tx *blockgraph.Tx) (err error) {
		if n, err = tx.Open(o); err == nil {
			tx.SetMonitorOwned(n, true)
		}
		return err
	})
	return n
}

func (w *world) mem(name string, size int64) (*blockgraph.Node, *memDriver) {
	w.t.Helper()
	d := qapi.BlockdevDiscardOptionsUnmap
	n := w.add(&qapi.BlockdevOptions{Driver: "mem", NodeName: &name, Null: &qapi.BlockdevOptionsNull{Size: &size}, Discard: &d})
	return n, n.Driver().(*memDriver)
}

func (w *world) cow(name, file, backing string) (*blockgraph.Node, *cowDriver) {
	w.t.Helper()
	o := &qapi.BlockdevOptions{Driver: "cow", NodeName: &name,
		Raw: &qapi.BlockdevOptionsRaw{File: qapi.BlockdevRef{Reference: &file}}, Qcow2: &qapi.BlockdevOptionsQcow2{}}
	if backing != "" {
		o.Qcow2.Backing = &qapi.BlockdevRefOrNull{Reference: &backing}
	}
	n := w.add(o)
	return n, n.Driver().(*cowDriver)
}

const rw = blockgraph.PermConsistentRead | blockgraph.PermWrite

func (w *world) root(n *blockgraph.Node, perm, shared blockgraph.Perm) (r *blockgraph.Root) {
	w.t.Helper()
	w.update(func(tx *blockgraph.Tx) (err error) {
		r, err = tx.NewRoot(n, blockgraph.RootOptions{Perm: perm, Shared: shared})
		return err
	})
	return r
}

func cbwOptions(file, target string, edit func(o *qapi.BlockdevOptionsCbw)) *qapi.BlockdevOptions {
	d := qapi.BlockdevDiscardOptionsUnmap
	c := &qapi.BlockdevOptionsCbw{File: qapi.BlockdevRef{Reference: &file}, Target: qapi.BlockdevRef{Reference: &target}}
	if edit != nil {
		edit(c)
	}
	return &qapi.BlockdevOptions{Driver: "copy-before-write", CopyBeforeWrite: c, Discard: &d}
}

// insert puts a filter over the source as a job does, and calls at within the
// drained section.
func (w *world) insert(source, target *blockgraph.Node, edit func(o *qapi.BlockdevOptionsCbw), at func(f *copybeforewrite.Filter)) (f *copybeforewrite.Filter, n *blockgraph.Node, job *blockgraph.Root) {
	w.t.Helper()
	w.update(func(tx *blockgraph.Tx) (err error) {
		if err = tx.Drain(source); err != nil {
			return err
		}
		if n, err = tx.Open(cbwOptions(source.Name(), target.Name(), edit)); err != nil {
			return err
		}
		if err = tx.ReplaceNode(source, n); err != nil {
			return err
		}
		f = n.Driver().(*copybeforewrite.Filter)
		if at != nil {
			at(f)
		}
		job, err = tx.NewRoot(n, blockgraph.RootOptions{Perm: blockgraph.PermConsistentRead, Shared: blockgraph.PermAll, Job: "j", StayAtNode: true})
		return err
	})
	return f, n, job
}

// remove takes the filter out again.
func (w *world) remove(source, n *blockgraph.Node, job *blockgraph.Root) {
	w.t.Helper()
	w.update(func(tx *blockgraph.Tx) error {
		if err := tx.CloseRoot(job); err != nil {
			return err
		}
		return tx.ReplaceNode(n, source)
	})
}

func vec(b []byte) *blockgraph.IOVec { return blockgraph.MakeIOVec(b) }
