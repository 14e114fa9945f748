package copyonread_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"blockd/blockgraph"
	"blockd/blockgraph/graphtest"
	"blockd/clock"
	"blockd/filters/copyonread"
	"blockd/formats/raw"
	"blockd/ioengine"
	"blockd/jobs/copy"
	"blockd/qapi"
)

const streamPerm = blockgraph.PermConsistentRead | blockgraph.PermWriteUnchanged

func fill(m *graphtest.Memory, seed byte, off, n int64) {
	m.EditRange(off, n, func(b []byte) {
		for k := range b {
			i := off + int64(k)
			b[k] = byte(i>>12)*7 ^ byte(i) ^ seed | 1
		}
	})
}

func engine() copy.Options {
	return copy.Options{Clock: clock.Real(), Scheduler: copy.NewScheduler(clock.Real(), 4, copy.DefaultShare), SpeedChunk: copy.StreamChunk}
}

func (w *world) insert(top *blockgraph.Node, name, bottom string) (n *blockgraph.Node, job *blockgraph.Root) {
	w.T.Helper()
	w.Update(func(tx *blockgraph.Tx) (err error) {
		if n, err = tx.Open(corOptions(name, top.Name(), bottom)); err != nil {
			return err
		}
		if err = tx.ReplaceNode(top, n); err != nil {
			return err
		}
		job, err = tx.NewRoot(n, blockgraph.RootOptions{Perm: streamPerm, Shared: blockgraph.PermAll, Job: "j"})
		return err
	})
	return n, job
}

func (w *world) read(r *blockgraph.Root, off, n int64) []byte {
	w.T.Helper()
	b := make([]byte, n)
	if err := r.ReadV(context.Background(), off, graphtest.Vec(b), 0); err != nil {
		w.T.Fatal(err)
	}
	return b
}

func both(t *testing.T, f func(t *testing.T, native bool)) {
	t.Run("native", func(t *testing.T) { f(t, true) })
	t.Run("fallback", func(t *testing.T) { f(t, false) })
}

func TestReadPopulatesWholeClustersOnce(t *testing.T) {
	both(t, func(t *testing.T, native bool) {
		w := newWorld(t, native)
		_, base := w.Mem("base", 1<<20)
		fill(base, 1, 0, 1<<20)
		w.Mem("file", 1<<20)
		top, d := w.Image("top", "file", "base")
		n := w.Add(corOptions("cor", "top", ""))
		guest := w.Root(n, graphtest.ReadWrite, blockgraph.PermAll)
		if b := w.read(guest, graphtest.Cluster-5000, graphtest.Cluster+9000); !bytes.Equal(b, base.Bytes()[graphtest.Cluster-5000:][:graphtest.Cluster+9000]) {
			t.Error("wrong data")
		}
		if !slices.Equal(d.Allocated()[:4], []bool{true, true, true, false}) {
			t.Errorf("allocated %v", d.Allocated())
		}
		before := base.Reads.Load()
		if b := w.read(guest, 0, 3*graphtest.Cluster); !bytes.Equal(b, base.Bytes()[:3*graphtest.Cluster]) {
			t.Error("wrong data from the top")
		}
		if base.Reads.Load() != before {
			t.Error("the backing file was read again")
		}
		_ = top
	})
}

// A raw node has no chain of its own: what the image below it leaves to its backing
// file is lacking there, and yet it is the raw node's content.
func TestReadThroughRawPopulatesTheImageBelow(t *testing.T) {
	w := &world{graphtest.New(t, graphtest.ImageType(true), copyonread.Type(), raw.DriverType(raw.Config{}))}
	_, base := w.Mem("base", 1<<20)
	fill(base, 1, 0, 1<<20)
	w.Mem("file", 1<<20)
	_, d := w.Image("top", "file", "base")
	name, below := "raw", "top"
	rawNode := w.Add(&qapi.BlockdevOptions{Driver: qapi.BlockdevDriverRaw, NodeName: &name, Raw: &qapi.BlockdevOptionsRaw{File: qapi.BlockdevRef{Reference: &below}}})
	r := w.Root(rawNode, blockgraph.PermConsistentRead, blockgraph.PermAll)
	for _, mode := range []blockgraph.StatusMode{blockgraph.StatusPrecise, blockgraph.StatusAllocation} {
		st, _, err := r.BlockStatus(t.Context(), 0, 1<<20, mode)
		if err != nil || st.Flags&blockgraph.StatusZero != 0 || st.Flags&blockgraph.StatusAllocated == 0 {
			t.Errorf("mode %v: %+v, %v", mode, st, err)
		}
	}
	guest := w.Root(w.Add(corOptions("cor", "raw", "")), graphtest.ReadWrite, blockgraph.PermAll)
	if got := w.read(guest, 0, 2*graphtest.Cluster); !bytes.Equal(got, base.Bytes()[:2*graphtest.Cluster]) {
		t.Error("wrong data")
	}
	if got := d.Allocated()[:3]; !slices.Equal(got, []bool{true, true, false}) {
		t.Errorf("allocated %v", got)
	}
}

func TestBottomKeepsWhatLiesBelowItOut(t *testing.T) {
	w := newWorld(t, true)
	_, base := w.Mem("base", 1<<20)
	fill(base, 1, 0, 1<<20)
	w.Mem("midfile", 1<<20)
	mid, _ := w.Image("mid", "midfile", "base")
	midRoot := w.Root(mid, graphtest.ReadWrite, blockgraph.PermAll)
	mine := bytes.Repeat([]byte{5}, graphtest.Cluster)
	if err := midRoot.WriteV(t.Context(), 2*graphtest.Cluster, graphtest.Vec(mine), 0); err != nil {
		t.Fatal(err)
	}
	w.Update(func(tx *blockgraph.Tx) error { return tx.CloseRoot(midRoot) })
	w.Mem("file", 1<<20)
	_, d := w.Image("top", "file", "mid")
	n := w.Add(corOptions("cor", "top", "mid"))
	guest := w.Root(n, graphtest.ReadWrite, blockgraph.PermAll)
	got := w.read(guest, 0, 5*graphtest.Cluster)
	if !bytes.Equal(got[:2*graphtest.Cluster], base.Bytes()[:2*graphtest.Cluster]) || !bytes.Equal(got[2*graphtest.Cluster:3*graphtest.Cluster], mine) {
		t.Error("wrong data")
	}
	for i, a := range d.Allocated() {
		if a != (i == 2) {
			t.Errorf("cluster %d allocated: %v", i, a)
		}
	}
	for bottom, want := range map[string]string{"nope": "Bottom node 'nope' not found", "cor": "Bottom node 'cor' is a filter"} {
		err := w.Graph.Update(t.Context(), blockgraph.Cause{}, func(tx *blockgraph.Tx) error {
			_, err := tx.Open(corOptions("cor2", "cor", bottom))
			return err
		})
		if err == nil || err.Error() != want {
			t.Errorf("%s: %v", bottom, err)
		}
	}
}

func TestPopulatingNeedsToWriteUnchanged(t *testing.T) {
	w := newWorld(t, true)
	w.Mem("file", 1<<20)
	top, _ := w.Image("top", "file", "")
	w.Root(top, blockgraph.PermConsistentRead, blockgraph.PermConsistentRead)
	err := w.Graph.Update(t.Context(), blockgraph.Cause{}, func(tx *blockgraph.Tx) error {
		n, err := tx.Open(corOptions("cor", "top", ""))
		if err == nil {
			tx.SetMonitorOwned(n, true)
		}
		return err
	})
	if err == nil || !strings.Contains(err.Error(), "permissions 'write unchanged' are both required by node 'cor'") {
		t.Error(err)
	}
}

// TestStreamUnderWritersKeepsEachNewerWrite streams a chain of three while
// guests write; then the backing file goes, and the top must be what the
// guests' model says.
func TestStreamUnderWritersKeepsEachNewerWrite(t *testing.T) {
	both(t, func(t *testing.T, native bool) {
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		w := newWorld(t, native)
		const size = 16<<20 + 12288
		_, base := w.Mem("base", size)
		fill(base, 1, 0, size)
		base.Punch(2<<20, 2<<20)
		w.Mem("midfile", size)
		mid, _ := w.Image("mid", "midfile", "base")
		midRoot := w.Root(mid, graphtest.ReadWrite, blockgraph.PermAll)
		if err := midRoot.WriteV(t.Context(), 1<<20, graphtest.Vec(bytes.Repeat([]byte{3}, 1<<20)), 0); err != nil {
			t.Fatal(err)
		}
		w.Update(func(tx *blockgraph.Tx) error { return tx.CloseRoot(midRoot) })
		w.Mem("file", size)
		top, d := w.Image("top", "file", "mid")
		guest := w.Root(top, graphtest.ReadWrite, blockgraph.PermAll)
		model := w.read(guest, 0, size)

		// Each writer has sectors of its own, so the model needs no order.
		var stop atomic.Bool
		var writes atomic.Int64
		var writers sync.WaitGroup
		const k = 4
		for i := range k {
			writers.Go(func() {
				r := rand.New(rand.NewPCG(seed, uint64(i)))
				b := make([]byte, 4096)
				for !stop.Load() {
					off := (r.Int64N(size/4096/k)*k + int64(i)) * 4096
					for x := range b {
						b[x] = byte(off) + byte(x)
					}
					b[0] = byte(r.Uint32())
					copyAt(model[off:], b)
					if err := guest.WriteV(t.Context(), off, graphtest.Vec(b), 0); err != nil {
						t.Error(err)
						return
					}
					if r.IntN(4) == 0 {
						at := (r.Int64N(size/4096/k)*k + int64(i)) * 4096
						got := make([]byte, 4096)
						if err := guest.ReadV(t.Context(), at, graphtest.Vec(got), 0); err != nil || !bytes.Equal(got, model[at:at+4096]) {
							t.Error("a read is not the latest write", err)
							return
						}
					}
					writes.Add(1)
				}
			})
		}
		n, job := w.insert(top, "cor", "")
		var done, remaining atomic.Int64
		work := copy.NewPopulate(copy.PopulateOptions{Root: job, Bottom: child(mid), Length: size,
			Progress: func(d, r int64) { done.Add(d); remaining.Add(r) }})
		if err := copy.NewJob(work, engine()).Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.Update(func(tx *blockgraph.Tx) error {
			if err := tx.CloseRoot(job); err != nil {
				return err
			}
			if err := tx.ReplaceNode(n, top); err != nil {
				return err
			}
			return tx.SetChild(top, "backing", blockgraph.RoleCOW, nil)
		})
		stop.Store(true)
		writers.Wait()
		if got := w.read(guest, 0, size); !bytes.Equal(got, model) {
			for i := range got {
				if got[i] != model[i] {
					t.Fatalf("differs at %d (cluster %d)", i, i/graphtest.Cluster)
				}
			}
		}
		if done.Load() != size || remaining.Load() != -size || slices.Contains(d.Allocated(), false) {
			t.Errorf("progress %d %d", done.Load(), remaining.Load())
		}
		t.Logf("%d writes, %d clusters populated", writes.Load(), d.Filled.Load())
	})
}

func child(n *blockgraph.Node) *blockgraph.Node { return n.FilterOrCOW().Child() }

func copyAt(dst, src []byte) { _ = append(dst[:0], src...) }

func TestStreamCopiesOnlyDownToItsBottom(t *testing.T) {
	w := newWorld(t, true)
	_, base := w.Mem("base", 4<<20)
	fill(base, 1, 0, 4<<20)
	w.Mem("midfile", 2<<20) // shorter than base and top
	mid, _ := w.Image("mid", "midfile", "base")
	midRoot := w.Root(mid, graphtest.ReadWrite, blockgraph.PermAll)
	if err := midRoot.WriteV(t.Context(), 0, graphtest.Vec(bytes.Repeat([]byte{3}, 3*graphtest.Cluster)), 0); err != nil {
		t.Fatal(err)
	}
	w.Update(func(tx *blockgraph.Tx) error { return tx.CloseRoot(midRoot) })
	w.Mem("file", 4<<20)
	top, d := w.Image("top", "file", "mid")
	guest := w.Root(top, graphtest.ReadWrite, blockgraph.PermAll)
	before := w.read(guest, 0, 4<<20)
	n, job := w.insert(top, "cor", "mid")
	work := copy.NewPopulate(copy.PopulateOptions{Root: job, Bottom: mid, Length: 4 << 20})
	if err := copy.NewJob(work, engine()).Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i, a := range d.Allocated() {
		if want := i < 3 || i >= 32; a != want {
			t.Errorf("cluster %d allocated: %v", i, a)
		}
	}
	w.Update(func(tx *blockgraph.Tx) error {
		if err := tx.CloseRoot(job); err != nil {
			return err
		}
		tx.ThawBelow(n)
		if err := tx.ReplaceNode(n, top); err != nil {
			return err
		}
		return tx.SetChild(top, "backing", blockgraph.RoleCOW, tx.Find("base"))
	})
	if !bytes.Equal(before, w.read(guest, 0, 4<<20)) {
		t.Error("the guest's view changed")
	}
}

func TestStreamErrorsGoThroughThePolicy(t *testing.T) {
	for action, wantAsked := range map[copy.Action]int{copy.Abort: 1, copy.Retry: 3, copy.Give: 1} {
		w := newWorld(t, true)
		_, base := w.Mem("base", 4<<20)
		fill(base, 1, 0, 4<<20)
		w.Mem("file", 4<<20)
		top, d := w.Image("top", "file", "base")
		_, job := w.insert(top, "cor", "")
		var failures atomic.Int64
		base.SetHook(func(r graphtest.Request) error {
			if r.Off <= 2<<20 && 2<<20 < r.Off+r.N && (action != copy.Retry || failures.Add(1) <= 3) {
				return syscall.EIO
			}
			return nil
		})
		asked := 0
		o := engine()
		o.MaxChunk = 512 << 10
		o.OnError = func(_ context.Context, f *copy.Fault) copy.Action {
			asked++
			if f.Op != copy.Read || !errors.Is(f, syscall.EIO) {
				t.Error(f.Op, f.Err)
			}
			return action
		}
		var done atomic.Int64
		work := copy.NewPopulate(copy.PopulateOptions{Root: job, Bottom: child(top), Length: 4 << 20, Progress: func(d, _ int64) { done.Add(d) }})
		err := copy.NewJob(work, o).Run(t.Context())
		if (err != nil) != (action == copy.Abort) || asked != wantAsked {
			t.Errorf("action %d: %v, asked %d times", action, err, asked)
		}
		if all := !slices.Contains(d.Allocated(), false); all != (action == copy.Retry) || action != copy.Abort && done.Load() != 4<<20 {
			t.Errorf("action %d: all %v, progress %d", action, all, done.Load())
		}
	}
}

func TestConcurrentPrefetchesOfAClusterReadItOnce(t *testing.T) {
	both(t, func(t *testing.T, native bool) {
		w := newWorld(t, native)
		_, base := w.Mem("base", 1<<20)
		fill(base, 1, 0, 1<<20)
		w.Mem("file", 1<<20)
		top, d := w.Image("top", "file", "base")
		_, job := w.insert(top, "cor", "")
		hold := graphtest.NewHold()
		base.SetHook(hold.Wait)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				b := ioengine.Bounce(graphtest.Cluster)
				defer b.Release()
				if err := job.ReadV(t.Context(), 0, graphtest.Vec(b.Bytes()), blockgraph.Prefetch|blockgraph.CopyOnRead); err != nil {
					t.Error(err)
				}
			})
		}
		<-hold.Entered
		hold.Release()
		wg.Wait()
		if base.Reads.Load() != 1 || native && d.Filled.Load() != 1 {
			t.Errorf("%d reads, %d populates", base.Reads.Load(), d.Filled.Load())
		}
	})
}
