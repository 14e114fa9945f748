package copybeforewrite_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"blockd/blockgraph"
	"blockd/blockgraph/graphtest"
	"blockd/clock"
	"blockd/filters/copybeforewrite"
	"blockd/ioengine"
	"blockd/jobs/copy"
	"blockd/jobs/scratch"
)

// writer does random writes, zero writes and discards through the guest's root
// until stop.
func writer(t *testing.T, guest *blockgraph.Root, budget *ioengine.Budget, seed uint64, stop *atomic.Bool, count *atomic.Int64) {
	r := rand.New(rand.NewPCG(seed, 1))
	size := guest.Size()
	for !stop.Load() {
		b, err := budget.Acquire(context.Background(), 4096*(1+r.IntN(1+r.IntN(32))))
		if err != nil {
			t.Error(err)
			return
		}
		n := int64(len(b.Bytes()))
		off := r.Int64N(size - n)
		switch r.IntN(8) {
		case 0:
			err = guest.WriteZeroes(context.Background(), off, n, 0)
		case 1:
			err = guest.Discard(context.Background(), off, n)
		default:
			_ = append(b.Bytes()[:0], noise[r.IntN(4096):][:n]...)
			err = guest.WriteV(context.Background(), off, graphtest.Vec(b.Bytes()), 0)
		}
		b.Release()
		if err != nil {
			t.Error(err)
			return
		}
		count.Add(1)
	}
}

// pointInTime lets writers run over a source, inserts a filter in their midst and
// backs up; the target must be what the source was at the insertion. With room, what is overwritten is kept in a scratch; with failures, the target
// refuses every eighth write, which the job then tries again.
func pointInTime(t *testing.T, budget *ioengine.Budget, speed int64, room *scratch.Pool, failures bool) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	w := newWorld(t)
	const size = 8<<20 + 20480
	source, src := w.Mem("src", size)
	target, dst := w.Mem("dst", size)
	fill(src, rand.New(rand.NewPCG(seed, 0)))
	src.Punch(1<<20, 2<<20)
	guest := w.Root(source, graphtest.ReadWrite, blockgraph.PermAll)
	if failures {
		var n atomic.Int64
		dst.SetHook(func(r graphtest.Request) error {
			if (r.Kind == graphtest.Write || r.Kind == graphtest.Zero) && n.Add(1)%8 == 0 {
				return syscall.ENOSPC
			}
			return nil
		})
	}
	var stop atomic.Bool
	var writes atomic.Int64
	var writers sync.WaitGroup
	for i := range 4 {
		writers.Go(func() { writer(t, guest, budget, seed+uint64(i), &stop, &writes) })
	}
	for round := range 4 {
		var snapshot []byte
		var done, remaining atomic.Int64
		var total int64
		f, n, job := w.insert(source, target, nil, func(f *copybeforewrite.Filter) {
			if room != nil {
				f.SetScratch(room.New(size, cluster, 0), false)
			}
			snapshot = src.Bytes()
			f.Clusters().SetProgress(func(d, r int64) { done.Add(d); remaining.Add(r) })
			total = f.Clusters().Remaining()
		})
		o := engine(budget)
		o.Speed = speed
		o.OnError = func(context.Context, *copy.Fault) copy.Action { return copy.Retry }
		j := copy.NewJob(f.Work(job), o)
		before := writes.Load()
		if err := j.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		if speed == 0 && round == 0 {
			for writes.Load() < before+2000 && !t.Failed() {
				_ = clock.Real().Sleep(t.Context(), time.Millisecond)
			}
		}
		w.remove(source, n, job)
		if copied := dst.Bytes(); !bytes.Equal(snapshot, copied) {
			for i := range snapshot {
				if snapshot[i] != copied[i] {
					t.Fatalf("round %d: the target differs at %d", round, i)
				}
			}
		}
		if done.Load() != total || remaining.Load() != -total || f.Clusters().Remaining() != 0 {
			t.Errorf("progress %d %d of %d, remaining %d", done.Load(), remaining.Load(), total, f.Clusters().Remaining())
		}
	}
	stop.Store(true)
	writers.Wait()
	t.Logf("%d writes", writes.Load())
}

func TestTargetIsTheSourceAtTheMomentOfInsertion(t *testing.T) {
	pointInTime(t, ioengine.NewBudget(64<<20), 0, nil, false)
}

func TestTargetIsTheSourceAtInsertionUnderASpeedLimit(t *testing.T) {
	pointInTime(t, ioengine.NewBudget(64<<20), 32<<20, nil, false)
}

func TestExhaustedBudgetDelaysAndDoesNotDeadlock(t *testing.T) {
	pointInTime(t, ioengine.NewBudget(128<<10), 0, nil, false)
}

func TestTargetIsTheSourceAtInsertionByWayOfAScratch(t *testing.T) {
	for _, c := range []struct {
		name     string
		room     scratch.Config
		failures bool
	}{
		{"in memory", scratch.Config{}, false},
		{"little memory and a file", scratch.Config{Directory: t.TempDir(), Memory: 10 * cluster}, false},
		{"not for all", scratch.Config{Memory: 10 * cluster}, false},
		{"of a target that fails", scratch.Config{}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			room, err := scratch.NewPool(c.room)
			if err != nil {
				t.Fatal(err)
			}
			pointInTime(t, ioengine.NewBudget(64<<20), 96<<20, room, c.failures)
			if m, f := room.Usage(); m != 0 || f != 0 {
				t.Errorf("%d bytes of memory and %d of files are still taken", m, f)
			}
		})
	}
}
