package null

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"blockd/blockgraph"
	"blockd/clock"
	"blockd/qapi"
)

func ptr[T any](v T) *T { return &v }

func newGraph(t *testing.T, clk clock.Clock) *blockgraph.Graph {
	loop := blockgraph.NewLoop()
	t.Cleanup(loop.Stop)
	return blockgraph.NewGraph(loop, clock.Real(), DriverTypes(clk)...)
}

func openNode(t *testing.T, g *blockgraph.Graph, o *qapi.BlockdevOptionsNull) (n *blockgraph.Node, err error) {
	err = g.Update(t.Context(), blockgraph.Cause{}, func(tx *blockgraph.Tx) error {
		if n, err = tx.Open(&qapi.BlockdevOptions{Driver: "null-co", Null: o}); err == nil {
			tx.SetMonitorOwned(n, true)
		}
		return err
	})
	return n, err
}

func mustOpen(t *testing.T, g *blockgraph.Graph, o *qapi.BlockdevOptionsNull) *blockgraph.Node {
	t.Helper()
	n, err := openNode(t, g, o)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestOptionsOutOfRangeAreRefused(t *testing.T) {
	g := newGraph(t, clock.Real())
	for text, o := range map[string]*qapi.BlockdevOptionsNull{
		"Parameter 'size' expects a non-negative number below 2^64": {Size: ptr(int64(-1))},
		"latency-ns is invalid": {LatencyNs: ptr(uint64(1 << 63))},
	} {
		if _, err := openNode(t, g, o); err == nil || err.Error() != text {
			t.Errorf("got %v, want %s", err, text)
		}
	}
}

func TestNamesAreTheFieldsOnes(t *testing.T) {
	g := newGraph(t, clock.Real())
	for _, c := range []struct {
		o    *qapi.BlockdevOptionsNull
		name string
	}{
		{&qapi.BlockdevOptionsNull{}, "null-co://"},
		{&qapi.BlockdevOptionsNull{LatencyNs: ptr(uint64(5))}, "null-co://"},
		{&qapi.BlockdevOptionsNull{Size: ptr(int64(100))}, `json:{"driver": "null-co", "size": 100}`},
		{&qapi.BlockdevOptionsNull{ReadZeroes: ptr(false)}, `json:{"read-zeroes": false, "driver": "null-co"}`},
	} {
		if got := mustOpen(t, g, c.o).Filename(); got != c.name {
			t.Errorf("got %s, want %s", got, c.name)
		}
	}
}

func TestFilenameIsUnderstood(t *testing.T) {
	g := newGraph(t, clock.Real())
	ref, _, err := g.ParseFilename("null-aio://")
	if err != nil || ref.Definition.Driver != "null-aio" {
		t.Error(ref.Definition, err)
	}
	const text = "The only allowed filename for this driver is 'null-co://'"
	if _, _, err := g.ParseFilename("null-co://x"); err == nil || err.Error() != text {
		t.Error(err)
	}
}

func TestReadsNeverShowOldMemoryAndOnlyReadZeroesCountsAsZero(t *testing.T) {
	g := newGraph(t, clock.Real())
	for _, zeroes := range []bool{false, true} {
		n := mustOpen(t, g, &qapi.BlockdevOptionsNull{ReadZeroes: &zeroes})
		if n.Size() != 1<<30 {
			t.Errorf("%d bytes", n.Size())
		}
		b := bytes.Repeat([]byte{0xee}, 100)
		v := blockgraph.MakeIOVec(b)
		d := n.Driver()
		if err := errors.Join(d.WriteV(t.Context(), 0, v, 0), d.ReadV(t.Context(), 0, v, 0)); err != nil || !bytes.Equal(b, make([]byte, 100)) {
			t.Errorf("read %x, %v", b, err)
		}
		st, err := d.BlockStatus(t.Context(), 4096, 512, blockgraph.StatusPrecise)
		if err != nil || (st.Flags&blockgraph.StatusZero != 0) != zeroes || st.Offset != 4096 || st.N != 512 || st.File != n {
			t.Errorf("%+v, %v", st, err)
		}
	}
}

func TestLatencyPassesOnTheClock(t *testing.T) {
	clk := clock.NewVirtual()
	n := mustOpen(t, newGraph(t, clk), &qapi.BlockdevOptionsNull{LatencyNs: ptr(uint64(1000))})
	done := make(chan error)
	flush := func(ctx context.Context) { done <- n.Driver().Flush(ctx) }
	go flush(t.Context())
	for { // until its timer is there
		if _, waiting := clk.Next(); waiting {
			break
		}
	}
	clk.Step(999)
	select {
	case <-done:
		t.Fatal("too early")
	default:
	}
	clk.Step(1)
	if err := <-done; err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	go flush(ctx)
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
