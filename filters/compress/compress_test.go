package compress_test

import (
	"bytes"
	"context"
	"testing"

	"blockd/blockgraph"
	"blockd/blockgraph/graphtest"
	"blockd/filters/compress"
	"blockd/qapi"
)

func options(file string) *qapi.BlockdevOptions {
	name := "c"
	return &qapi.BlockdevOptions{Driver: "compress", NodeName: &name, Compress: &qapi.BlockdevOptionsGenericFormat{File: qapi.BlockdevRef{Reference: &file}}}
}

func TestWritesAreCompressed(t *testing.T) {
	w := graphtest.New(t, compress.Type())
	_, m := w.Mem("f", 1<<20)
	n := w.Add(options("f"))
	r := w.Root(n, graphtest.ReadWrite, blockgraph.PermAll)
	if err := r.WriteV(t.Context(), 0, graphtest.Vec(bytes.Repeat([]byte{1}, 4096)), 0); err != nil {
		t.Fatal(err)
	}
	if err := r.WriteZeroes(t.Context(), 0, 4096, 0); err != nil {
		t.Fatal(err)
	}
	if c, z := m.Compressed.Load(), m.Zeroes.Load(); c != 1 || z != 1 {
		t.Error(c, "compressed,", z, "zero writes")
	}
}

// TestSmallWritesAreWidened: to clusters, and at the end to what is left of
// the last one.
func TestSmallWritesAreWidened(t *testing.T) {
	w := graphtest.New(t, compress.Type(), compressing())
	const size = 2*graphtest.Cluster + 4096
	_, m := w.Mem("f", size)
	w.Add(&qapi.BlockdevOptions{Driver: "packed", NodeName: ptr("i"), Qcow2: &qapi.BlockdevOptionsQcow2{File: qapi.BlockdevRef{Reference: ptr("f")}}})
	m.Image().Fill(0, 3, 7)
	n := w.Add(options("i"))
	if a := n.Limits().RequestAlignment; a != graphtest.Cluster {
		t.Fatal("alignment", a)
	}
	r := w.Root(n, graphtest.ReadWrite, blockgraph.PermAll)
	var lengths []int64
	m.SetHook(func(q graphtest.Request) error {
		if q.Kind == graphtest.Write {
			lengths = append(lengths, q.N)
		}
		return nil
	})
	for _, off := range []int64{100, graphtest.Cluster - 50, 2*graphtest.Cluster + 100} {
		if err := r.WriteV(t.Context(), off, graphtest.Vec(bytes.Repeat([]byte{1}, 100)), 0); err != nil {
			t.Fatal(err)
		}
	}
	want := bytes.Repeat([]byte{7}, size)
	for _, off := range []int64{100, graphtest.Cluster - 50, 2*graphtest.Cluster + 100} {
		copy(want[off:off+100], bytes.Repeat([]byte{1}, 100))
	}
	if !bytes.Equal(m.Bytes(), want) {
		t.Error("content differs")
	}
	if n.Size() != size {
		t.Error("the node has become", n.Size(), "bytes long")
	}
	if len(lengths) != 4 || lengths[0] != graphtest.Cluster || lengths[3] != 4096 {
		t.Error(lengths)
	}
}

// compressing is an image that takes compressed writes.
func compressing() *blockgraph.DriverType {
	t := graphtest.ImageType(true)
	t.Name = "packed"
	open := t.Open
	t.Open = func(ctx context.Context, r *blockgraph.OpenRequest) (blockgraph.Driver, error) {
		d, err := open(ctx, r)
		if err != nil {
			return nil, err
		}
		return packed{d.(*graphtest.ImageDriver)}, nil
	}
	return t
}

type packed struct{ *graphtest.ImageDriver }

func (p packed) Caps() blockgraph.Caps {
	c := p.ImageDriver.Caps()
	c.Compressed = blockgraph.CapNative
	return c
}

func TestFormatThatCannotCompressIsRefused(t *testing.T) {
	w := graphtest.New(t, compress.Type())
	w.Setup = func(m *graphtest.Memory) { m.Cap.Compressed = blockgraph.CapNone }
	w.Mem("f", 1<<20)
	before := w.Dump()
	if _, err := w.TryAdd(options("f")); err == nil || err.Error() != "Compression is not supported for underlying format: mem" {
		t.Error(err)
	}
	if w.Dump() != before {
		t.Error("the graph changed")
	}
}

func ptr[T any](v T) *T { return &v }
