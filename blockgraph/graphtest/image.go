package graphtest

import (
	"context"
	"sync"
	"sync/atomic"

	"blockd/blockgraph"
	"blockd/qapi"
)

// Cluster is the size of an Image's clusters in bytes.
const Cluster = 64 << 10

// Image is what a Memory holds when a node of type `image` lies over it: a
// cluster is at its own offset in the file, and which ones there are is known
// here. It survives the node.
type Image struct {
	// Filled counts the clusters allocated by requests with WriteUnchanged.
	Filled atomic.Int64

	file *Memory

	mu              sync.Mutex //blockd:short
	allocated       []bool
	backing, format string
	onHeader        func() error
	locks           []sync.Mutex // per cluster, held while it is written
}

// Image returns the image that lies in the file; the first call makes an empty
// one.
func (m *Memory) Image() *Image {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.image == nil {
		k := (len(m.data) + Cluster - 1) / Cluster
		m.image = &Image{file: m, allocated: make([]bool, k), locks: make([]sync.Mutex, k)}
	}
	return m.image
}

// Fill allocates clusters [from, to), each byte b.
func (i *Image) Fill(from, to int, b byte) {
	end := min(int64(to)*Cluster, int64(len(i.file.data)))
	i.file.EditRange(int64(from)*Cluster, end-int64(from)*Cluster, func(p []byte) {
		for k := range p {
			p[k] = b
		}
	})
	i.mu.Lock()
	defer i.mu.Unlock()
	for c := from; c < to; c++ {
		i.allocated[c] = true
	}
}

// Allocated tells for each cluster whether it is the image's own.
//
//blockd:any
func (i *Image) Allocated() []bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return append([]bool(nil), i.allocated...)
}

// String tells the first byte of every cluster: '.' where there is none, '0'
// for zero.
func (i *Image) String() string {
	b := i.file.Bytes()
	s := make([]byte, 0, len(i.allocated))
	for c, a := range i.Allocated() {
		switch first := b[c*Cluster]; {
		case !a:
			s = append(s, '.')
		case first == 0:
			s = append(s, '0')
		default:
			s = append(s, first)
		}
	}
	return string(s)
}

// Header returns the names in the header.
func (i *Image) Header() (backing, format string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.backing, i.format
}

// SetHeader changes the names in the header.
func (i *Image) SetHeader(backing, format string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.backing, i.format = backing, format
}

// RefuseHeader makes a node's changes of the header fail with err, until nil.
func (i *Image) RefuseHeader(err error) {
	i.OnHeader(func() error { return err })
}

// OnHeader has f see each change of the header by a node before it is done: it
// may wait, and what it returns, unless nil, is the change's error. nil is none.
func (i *Image) OnHeader(f func() error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.onHeader = f
}

func (i *Image) has(c int64) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.allocated[c]
}

// ImageDriver is a node over an Image.
type ImageDriver struct {
	*Image
	node   *blockgraph.Node
	native bool // takes OnlyUnallocated itself
}

// ImageType returns the type `image`. native: the format decides by itself
// what is still unallocated (Caps.OnlyUnallocated).
func ImageType(native bool) *blockgraph.DriverType {
	return &blockgraph.DriverType{
		Name: "image",
		Children: func(o *qapi.BlockdevOptions) []blockgraph.ChildSpec {
			return []blockgraph.ChildSpec{{Name: "file", Role: blockgraph.RoleData | blockgraph.RoleMetadata | blockgraph.RolePrimary, Ref: o.Qcow2.File}}
		},
		Open: func(_ context.Context, r *blockgraph.OpenRequest) (blockgraph.Driver, error) {
			file, ok := r.Node.File().Child().SkipFilters().Driver().(*Memory)
			if !ok {
				return nil, qapi.Errorf("An image lies in a mem")
			}
			return &ImageDriver{Image: file.Image(), node: r.Node, native: native}, nil
		},
		BackingOption: func(o *qapi.BlockdevOptions) **qapi.BlockdevRefOrNull { return &o.Qcow2.Backing },
	}
}

// pieces calls f for each cluster's part of bytes [off, off+n).
func pieces(off, n int64, f func(c, off, n int64) error) error {
	for n > 0 {
		k := min(n, Cluster-off%Cluster)
		if err := f(off/Cluster, off, k); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

func (d *ImageDriver) Caps() blockgraph.Caps {
	c := blockgraph.Caps{Backing: true}
	if d.native {
		c.WriteUnchanged, c.OnlyUnallocated = blockgraph.CapNative, blockgraph.CapNative
	}
	return c
}

func (d *ImageDriver) Limits() blockgraph.Limits { return blockgraph.Limits{} }

func (d *ImageDriver) ReadV(ctx context.Context, start int64, v *blockgraph.IOVec, _ blockgraph.Flags) error {
	return pieces(start, v.Len(), func(c, off, n int64) error {
		e := d.node.File()
		if !d.has(c) {
			e = d.node.Backing()
		}
		if e == nil {
			v.Zero(off-start, n)
			return nil
		}
		return e.ReadV(ctx, off, v.Slice(off-start, n), 0)
	})
}

func (d *ImageDriver) WriteV(ctx context.Context, start int64, v *blockgraph.IOVec, flags blockgraph.Flags) error {
	return pieces(start, v.Len(), func(c, off, n int64) error {
		return d.writeCluster(ctx, c, off, v.Slice(off-start, n), flags)
	})
}

func (d *ImageDriver) writeCluster(ctx context.Context, c, off int64, v *blockgraph.IOVec, flags blockgraph.Flags) error {
	d.locks[c].Lock()
	defer d.locks[c].Unlock()
	has := d.has(c)
	if has && flags&blockgraph.OnlyUnallocated != 0 {
		return nil
	}
	start := c * Cluster
	if size := min(Cluster, d.node.File().Child().Size()-start); !has && v.Len() < size {
		whole := make([]byte, size)
		if b := d.node.Backing(); b != nil {
			if err := b.ReadV(ctx, start, blockgraph.MakeIOVec(whole), 0); err != nil {
				return err
			}
		}
		v.CopyOut(0, whole[off-start:][:v.Len()])
		off, v = start, blockgraph.MakeIOVec(whole)
	}
	if err := d.node.File().WriteV(ctx, off, v, 0); err != nil {
		return err
	}
	if !has && flags&blockgraph.WriteUnchanged != 0 {
		d.Filled.Add(1)
	}
	d.mu.Lock()
	d.allocated[c] = true
	d.mu.Unlock()
	return nil
}

func (d *ImageDriver) WriteZeroes(context.Context, int64, int64, blockgraph.Flags) error {
	return blockgraph.ErrNotSupported
}
func (d *ImageDriver) Discard(context.Context, int64, int64) error { return blockgraph.ErrNotSupported }
func (d *ImageDriver) Flush(ctx context.Context) error             { return d.node.File().Flush(ctx) }
func (d *ImageDriver) Close(context.Context) error                 { return nil }

func (d *ImageDriver) Size(context.Context) (int64, error) {
	return d.node.File().Child().Size(), nil
}

func (d *ImageDriver) BlockStatus(_ context.Context, off, n int64, _ blockgraph.StatusMode) (blockgraph.Status, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := off / Cluster
	end := c + 1
	for end < int64(len(d.allocated)) && d.allocated[end] == d.allocated[c] {
		end++
	}
	st := blockgraph.Status{N: min(n, end*Cluster-off)}
	if d.allocated[c] {
		st.Flags = blockgraph.StatusData
	}
	return st, nil
}

func (d *ImageDriver) BackingFile() (name, format string) { return d.Header() }

func (d *ImageDriver) ChangeBackingFile(_ context.Context, name, format string) error {
	d.mu.Lock()
	f := d.onHeader
	d.mu.Unlock()
	if f != nil {
		if err := f(); err != nil {
			return err
		}
	}
	d.SetHeader(name, format)
	return nil
}

// ImageInfo tells the size of the clusters.
func (d *ImageDriver) ImageInfo(_ context.Context, info *qapi.ImageInfo) error {
	c := int64(Cluster)
	info.ClusterSize = &c
	return nil
}

// PrepareReopen has nothing to do.
func (d *ImageDriver) PrepareReopen(context.Context, *blockgraph.ReopenRequest) (*blockgraph.Reopening, error) {
	return &blockgraph.Reopening{}, nil
}
