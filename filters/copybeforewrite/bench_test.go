package copybeforewrite_test

import (
	"context"
	"testing"

	"blockd/blockgraph"
	"blockd/blockgraph/graphtest"
	"blockd/clock"
	"blockd/filters/copybeforewrite"
	"blockd/jobs/copy"
	"blockd/qapi"
)

// flatDriver is a protocol without locks around its memory, for measuring what
// the engine adds.
type flatDriver struct {
	*graphtest.Memory
	b []byte
}

func (d *flatDriver) ReadV(_ context.Context, off int64, v *blockgraph.IOVec, _ blockgraph.Flags) error {
	v.CopyIn(0, d.b[off:off+v.Len()])
	return nil
}

func (d *flatDriver) WriteV(_ context.Context, off int64, v *blockgraph.IOVec, _ blockgraph.Flags) error {
	v.CopyOut(0, d.b[off:off+v.Len()])
	return nil
}

func (d *flatDriver) BlockStatus(_ context.Context, _, n int64, _ blockgraph.StatusMode) (blockgraph.Status, error) {
	return blockgraph.Status{Flags: blockgraph.StatusData, N: n}, nil
}

func flatGraph(b *testing.B, size int64) (g *blockgraph.Graph, f *copybeforewrite.Filter, guest, job *blockgraph.Root) {
	g = blockgraph.NewGraph(blockgraph.NewLoop(), clock.Real(),
		&blockgraph.DriverType{Name: "flat", Protocol: true,
			Open: func(_ context.Context, r *blockgraph.OpenRequest) (blockgraph.Driver, error) {
				d := &flatDriver{graphtest.NewMemory(*r.Options.Null.Size), make([]byte, *r.Options.Null.Size)}
				for i := 0; i < len(d.b); i += 4096 {
					d.b[i] = 1
				}
				return d, nil
			}},
		copybeforewrite.Type(clock.Real()))
	b.Cleanup(g.Loop().Stop)
	err := g.Update(context.Background(), blockgraph.Cause{}, func(tx *blockgraph.Tx) error {
		for _, name := range []string{"src", "dst"} {
			if _, err := tx.Open(&qapi.BlockdevOptions{Driver: "flat", NodeName: &name, Null: &qapi.BlockdevOptionsNull{Size: &size}}); err != nil {
				return err
			}
		}
		n, err := tx.Open(cbwOptions("src", "dst", nil))
		if err != nil {
			return err
		}
		f = n.Driver().(*copybeforewrite.Filter)
		if guest, err = tx.NewRoot(n, blockgraph.RootOptions{Perm: graphtest.ReadWrite, Shared: blockgraph.PermAll}); err != nil {
			return err
		}
		job, err = tx.NewRoot(n, blockgraph.RootOptions{Perm: blockgraph.PermConsistentRead, Shared: blockgraph.PermAll, Job: "j"})
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	return g, f, guest, job
}

// BenchmarkBackup copies 1 GiB between nodes in memory.
func BenchmarkBackup(b *testing.B) {
	const size = 1 << 30
	_, f, _, job := flatGraph(b, size)
	b.SetBytes(size)
	b.ReportAllocs()
	for b.Loop() {
		if err := copy.NewJob(f.Work(job), copy.Options{Clock: clock.Real()}).Run(b.Context()); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		f.Clusters().Mark(0, size)
		b.StartTimer()
	}
}

// BenchmarkBackupSteps copies 64 MiB in steps of one cluster: the cost of a
// step besides moving its bytes. Divide by 1024 for one step.
func BenchmarkBackupSteps(b *testing.B) {
	const size = 64 << 20
	_, f, _, job := flatGraph(b, size)
	b.ReportAllocs()
	for b.Loop() {
		if err := copy.NewJob(f.Work(job), copy.Options{Clock: clock.Real(), MaxChunk: 64 << 10}).Run(b.Context()); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		f.Clusters().Mark(0, size)
		b.StartTimer()
	}
}

// BenchmarkGuestWrite is a 4 KiB write: through a filter where everything was
// copied, and one that saves a cluster each.
func BenchmarkGuestWrite(b *testing.B) {
	const size = 1 << 30
	_, f, guest, job := flatGraph(b, size)
	v := graphtest.Vec(make([]byte, 4096))
	b.Run("saving", func(b *testing.B) {
		b.ReportAllocs()
		off := int64(0)
		for b.Loop() {
			if err := guest.WriteV(b.Context(), off, v, 0); err != nil {
				b.Fatal(err)
			}
			off = (off + 64<<10) % size
			if off == 0 {
				f.Clusters().Mark(0, size)
			}
		}
	})
	if err := copy.NewJob(f.Work(job), copy.Options{Clock: clock.Real()}).Run(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.Run("saved", func(b *testing.B) {
		b.ReportAllocs()
		off := int64(0)
		for b.Loop() {
			if err := guest.WriteV(b.Context(), off, v, 0); err != nil {
				b.Fatal(err)
			}
			off = (off + 64<<10) % size
		}
	})
}

// BenchmarkMemcpy is the limit: the same bytes moved twice on one core.
func BenchmarkMemcpy(b *testing.B) {
	src, dst, buf := make([]byte, 256<<20), make([]byte, 256<<20), make([]byte, 1<<20)
	for i := 0; i < len(src); i += 4096 {
		src[i], dst[i] = 1, 1
	}
	b.SetBytes(int64(len(src)))
	for b.Loop() {
		for off := 0; off < len(src); off += len(buf) {
			copyAt(buf, src[off:off+len(buf)])
			copyAt(dst[off:], buf)
		}
	}
}
