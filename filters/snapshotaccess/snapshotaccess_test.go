package snapshotaccess_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"

	"blockd/blockgraph"
	"blockd/blockgraph/graphtest"
	"blockd/clock"
	"blockd/filters/copybeforewrite"
	"blockd/filters/snapshotaccess"
	"blockd/qapi"
)

const (
	cluster = 64 << 10
	size    = 4<<20 + 4096
)

func TestMain(m *testing.M) {
	slog.SetDefault(slog.New(slog.DiscardHandler))
	m.Run()
}

type world struct {
	*graphtest.World
	src, dst       *graphtest.Memory
	guest, fleecer *blockgraph.Root
	before         []byte
	clusters       interface{ Remaining() int64 }
}

// newWorld has a source of random data with a filter over it that saves to a
// memory, a guest over the filter, and a fleecer over the snapshot.
func newWorld(t *testing.T, seed uint64) *world {
	t.Helper()
	w := &world{World: graphtest.New(t, copybeforewrite.Type(clock.Real()), snapshotaccess.Type())}
	_, w.src = w.Mem("src", size)
	_, w.dst = w.Mem("dst", size)
	w.src.Edit(func(b []byte) { _, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b) })
	w.before = w.src.Bytes()
	cbw := w.Add(&qapi.BlockdevOptions{Driver: "copy-before-write", NodeName: ptr("cbw"),
		CopyBeforeWrite: &qapi.BlockdevOptionsCbw{File: ref("src"), Target: ref("dst"), OnCBWError: ptr(qapi.OnCbwErrorBreakSnapshot)}})
	w.clusters = cbw.Driver().(*copybeforewrite.Filter).Clusters()
	access := w.add("access", "cbw")
	w.guest = w.Root(cbw, graphtest.ReadWrite, blockgraph.PermAll)
	w.fleecer = w.Root(access, graphtest.ReadWrite, blockgraph.PermAll)
	return w
}

func (w *world) add(name, file string) *blockgraph.Node {
	return w.Add(&qapi.BlockdevOptions{Driver: "snapshot-access", NodeName: &name, Discard: ptr(qapi.BlockdevDiscardOptionsUnmap),
		SnapshotAccess: &qapi.BlockdevOptionsGenericFormat{File: ref(file)}})
}

func ptr[T any](v T) *T { return &v }

func ref(name string) qapi.BlockdevRef { return qapi.BlockdevRef{Reference: &name} }

func read(r *blockgraph.Root, off, n int64) ([]byte, error) {
	b := make([]byte, n)
	return b, r.ReadV(context.Background(), off, graphtest.Vec(b), 0)
}

func write(r *blockgraph.Root, off, n int64, c byte) error {
	return r.WriteV(context.Background(), off, graphtest.Vec(bytes.Repeat([]byte{c}, int(n))), 0)
}

func TestSnapshotStaysWhileGuestsWrite(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	w := newWorld(t, seed)
	var wg sync.WaitGroup
	for i := range 2 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(i+1)))
			for range 100 {
				n := 1 + r.Int64N(2*cluster)
				if err := write(w.guest, r.Int64N(size-n), n, 'g'); err != nil {
					t.Error(err)
				}
			}
		})
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(i+3)))
			for range 200 {
				n := 1 + r.Int64N(3*cluster)
				off := r.Int64N(size - n)
				if b, err := read(w.fleecer, off, n); err != nil || !bytes.Equal(b, w.before[off:off+n]) {
					t.Errorf("%d bytes at %d: %v", n, off, err)
					return
				}
			}
		})
	}
	wg.Wait()
	if b, err := read(w.fleecer, 0, size); err != nil || !bytes.Equal(b, w.before) {
		t.Error("at the end:", err)
	}
}

// TestWriteWaitsForTheReaderOfItsCluster: and not for those of others.
func TestWriteWaitsForTheReaderOfItsCluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		defer w.Graph.Loop().Stop()
		hold := graphtest.NewHold(graphtest.Read)
		var first atomic.Bool
		w.src.SetHook(func(r graphtest.Request) error {
			if r.Kind == graphtest.Read && first.CompareAndSwap(false, true) {
				return hold.Wait(r)
			}
			return nil
		})
		type answer struct {
			b   []byte
			err error
		}
		got := make(chan answer, 1)
		go func() { b, err := read(w.fleecer, 0, 4096); got <- answer{b, err} }()
		<-hold.Entered
		written := make(chan error, 1)
		go func() { written <- write(w.guest, 0, 4096, 'g') }()
		if err := write(w.guest, cluster, 4096, 'h'); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if w.src.Writes.Load() != 1 || w.src.Bytes()[0] == 'g' && w.before[0] != 'g' {
			t.Error("the write passed the reader")
		}
		hold.Release()
		if a := <-got; a.err != nil || !bytes.Equal(a.b, w.before[:4096]) {
			t.Error(a.err)
		}
		if err := <-written; err != nil {
			t.Error(err)
		}
	})
}

func TestDiscardGivesUpWholeClusters(t *testing.T) {
	w := newWorld(t, 1)
	if err := write(w.guest, cluster, 1, 'g'); err != nil { // saved before
		t.Fatal(err)
	}
	// From the middle of cluster 0 to the middle of cluster 3.
	if err := w.fleecer.Discard(t.Context(), cluster/2, 3*cluster); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		off, n int64
		want   error
	}{
		{0, cluster, nil}, {3 * cluster, cluster, nil},
		{cluster, 1, syscall.EACCES}, {3*cluster - 1, 1, syscall.EACCES}, {0, size, syscall.EACCES},
	} {
		b, err := read(w.fleecer, c.off, c.n)
		if !errors.Is(err, c.want) || err == nil && !bytes.Equal(b, w.before[c.off:c.off+c.n]) {
			t.Errorf("%d bytes at %d: %v", c.n, c.off, err)
		}
	}
	if _, _, err := w.fleecer.BlockStatus(t.Context(), cluster, 1, blockgraph.StatusPrecise); !errors.Is(err, syscall.EACCES) {
		t.Error("status:", err)
	}
	writes := w.dst.Writes.Load()
	if err := write(w.guest, 2*cluster, cluster, 'g'); err != nil || w.dst.Writes.Load() != writes {
		t.Error("saved what was given up", err)
	}
	if w.dst.Discards.Load() != 1 {
		t.Error("the target keeps its space")
	}
	// The short cluster at the end is whole.
	if err := w.fleecer.Discard(t.Context(), size-4096, 4096); err != nil {
		t.Fatal(err)
	}
	if _, err := read(w.fleecer, size-1, 1); !errors.Is(err, syscall.EACCES) {
		t.Error(err)
	}
	if want := int64(4<<20 - 2*cluster); w.clusters.Remaining() != want {
		t.Error(w.clusters.Remaining(), want)
	}
}

func TestBrokenSnapshotIsNotRead(t *testing.T) {
	w := newWorld(t, 1)
	w.dst.SetHook(graphtest.Failing(1, syscall.EIO, graphtest.Write))
	if err := write(w.guest, 0, 512, 'g'); err != nil {
		t.Fatal(err)
	}
	if _, err := read(w.fleecer, cluster, 512); !errors.Is(err, syscall.EACCES) {
		t.Error(err)
	}
}

func TestStatusFollowsWhereTheDataIs(t *testing.T) {
	w := newWorld(t, 1)
	w.src.Punch(2*cluster, cluster)
	status := func(off int64) blockgraph.Status {
		st, _, err := w.fleecer.BlockStatus(t.Context(), off, 3*cluster, blockgraph.StatusPrecise)
		if err != nil {
			t.Error(err)
		}
		return st
	}
	if st := status(0); st.Flags&blockgraph.StatusData == 0 || st.N != 2*cluster {
		t.Errorf("%+v", st)
	}
	if st := status(2 * cluster); st.Flags&blockgraph.StatusZero == 0 || st.N != cluster {
		t.Errorf("%+v", st)
	}
	if err := write(w.guest, 2*cluster, 512, 'g'); err != nil {
		t.Fatal(err)
	}
	if st := status(2 * cluster); st.Flags&blockgraph.StatusZero == 0 || st.N != cluster {
		t.Errorf("after the guest's write: %+v", st)
	}
}

func TestWritesAreRefused(t *testing.T) {
	w := newWorld(t, 1)
	if err := write(w.fleecer, 0, 512, 'x'); blockgraph.Errno(err) != syscall.ENOTSUP {
		t.Error(err)
	}
	if err := w.fleecer.WriteZeroes(t.Context(), 0, 512, 0); blockgraph.Errno(err) != syscall.ENOTSUP {
		t.Error(err)
	}
}

func TestOverANodeWithoutSnapshot(t *testing.T) {
	w := newWorld(t, 1)
	r := w.Root(w.add("other", "dst"), blockgraph.PermConsistentRead, blockgraph.PermAll)
	if _, err := read(r, 0, 512); blockgraph.Errno(err) != syscall.ENOTSUP {
		t.Error(err)
	}
}

func TestNothingIsNeededOfTheNodeBelow(t *testing.T) {
	w := newWorld(t, 1)
	var access, cbw *blockgraph.Node
	w.Graph.Loop().Do(func() { access, cbw = w.Graph.Node("access"), w.Graph.Node("cbw") })
	for _, e := range access.State().Edges {
		if p, s := e.Perms(); p != 0 || s != blockgraph.PermAll {
			t.Error(p, "shared", s)
		}
	}
	if got, want := access.Filename(), cbw.Filename(); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
