package copybeforewrite_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"blockd/blockgraph"
	"blockd/blockgraph/graphtest"
	"blockd/clock"
	"blockd/filters/copybeforewrite"
	"blockd/ioengine"
	"blockd/jobs/copy"
	"blockd/qapi"
)

const cluster = 64 << 10

func fill(m *graphtest.Memory, r *rand.Rand) {
	m.Edit(func(b []byte) {
		for i := 0; i < len(b); i += 4096 {
			_ = append(b[i:i], noise[r.IntN(4096):][:min(4096, len(b)-i)]...)
		}
	})
}

func engine(budget *ioengine.Budget) copy.Options {
	return copy.Options{Clock: clock.Real(), Scheduler: copy.NewScheduler(clock.Real(), 4, copy.DefaultShare), Budget: budget}
}

var noise = func() []byte {
	b := make([]byte, 1<<20)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return b
}()

func TestWriteWaitsForOverlappingCopyOnly(t *testing.T) {
	w := newWorld(t)
	source, _ := w.Mem("src", 8<<20)
	target, dst := w.Mem("dst", 8<<20)
	guest := w.Root(source, graphtest.ReadWrite, blockgraph.PermAll)
	if err := guest.WriteV(t.Context(), 0, graphtest.Vec(bytes.Repeat([]byte{7}, 1<<20)), 0); err != nil {
		t.Fatal(err)
	}
	_, n, job := w.insert(source, target, nil, nil)
	stuck, entered := make(chan struct{}), make(chan struct{}, 8)
	dst.SetHook(func(r graphtest.Request) error {
		if r.Kind == graphtest.Write && r.Off < cluster {
			entered <- struct{}{}
			<-stuck
		}
		return nil
	})
	first := make(chan error, 2)
	for range 2 {
		go func() { first <- guest.WriteV(context.Background(), 4096, graphtest.Vec(make([]byte, 4096)), 0) }()
	}
	<-entered
	for _, off := range []int64{cluster, 3 * cluster, 2 << 20} {
		if err := guest.WriteV(t.Context(), off, graphtest.Vec(make([]byte, 4096)), 0); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case err := <-first:
		t.Fatal("a write passed the copy of its cluster", err)
	default:
	}
	close(stuck)
	for range 2 {
		if err := <-first; err != nil {
			t.Error(err)
		}
	}
	if len(entered) != 0 {
		t.Error("the cluster was copied twice")
	}
	if !bytes.Equal(dst.Bytes()[:2*cluster], bytes.Repeat([]byte{7}, 2*cluster)) {
		t.Error("the target does not have the old content")
	}
	w.remove(source, n, job)
}

func TestBreakGuestWriteFailsTheWriteAndKeepsTheSnapshot(t *testing.T) {
	w := newWorld(t)
	source, src := w.Mem("src", 1<<20)
	target, dst := w.Mem("dst", 1<<20)
	fill(src, rand.New(rand.NewPCG(1, 1)))
	old := src.Bytes()
	guest := w.Root(source, graphtest.ReadWrite, blockgraph.PermAll)
	f, n, job := w.insert(source, target, nil, nil)
	dst.SetHook(graphtest.Failing(-1, syscall.ENOSPC, graphtest.Write, graphtest.Zero))
	if err := guest.WriteV(t.Context(), 0, graphtest.Vec(make([]byte, 4096)), 0); !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	if !bytes.Equal(src.Bytes(), old) {
		t.Error("the failed write reached the source")
	}
	dst.SetHook(nil)
	if err := guest.WriteV(t.Context(), 0, graphtest.Vec(make([]byte, 4096)), 0); err != nil {
		t.Fatal(err)
	}
	if err := copy.NewJob(f.Work(job), engine(ioengine.Process)).Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(dst.Bytes(), old) || f.SnapshotError() != nil {
		t.Error("the target is not the source's old content", f.SnapshotError())
	}
	w.remove(source, n, job)
}

func TestBreakSnapshotLetsTheWriteThroughAndEndsTheJob(t *testing.T) {
	w := newWorld(t)
	source, src := w.Mem("src", 4<<20)
	target, dst := w.Mem("dst", 4<<20)
	fill(src, rand.New(rand.NewPCG(1, 1)))
	guest := w.Root(source, graphtest.ReadWrite, blockgraph.PermAll)
	mode := qapi.OnCbwErrorBreakSnapshot
	f, n, job := w.insert(source, target, func(o *qapi.BlockdevOptionsCbw) { o.OnCBWError = &mode }, nil)
	dst.SetHook(graphtest.Failing(-1, syscall.EIO, graphtest.Write, graphtest.Zero))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := guest.WriteV(ctx, 0, graphtest.Vec(make([]byte, 4096)), 0); err == nil || f.SnapshotError() != nil && ctx.Err() == nil {
		t.Error("a vanished guest broke the snapshot", err)
	}
	if err := guest.WriteV(t.Context(), 0, graphtest.Vec(bytes.Repeat([]byte{9}, 4096)), 0); err != nil {
		t.Fatal(err)
	}
	<-f.Broken()
	if !errors.Is(f.SnapshotError(), syscall.EIO) || src.Bytes()[0] != 9 {
		t.Error(f.SnapshotError(), src.Bytes()[0])
	}
	dst.SetHook(nil)
	writes := dst.Writes.Load()
	if err := guest.WriteV(t.Context(), 1<<20, graphtest.Vec(make([]byte, 4096)), 0); err != nil || dst.Writes.Load() != writes {
		t.Error("a broken snapshot is still written", err)
	}
	o := engine(ioengine.Process)
	o.OnError = func(context.Context, *copy.Fault) copy.Action { t.Error("the policy was asked"); return copy.Abort }
	if err := copy.NewJob(f.Work(job), o).Run(t.Context()); !errors.Is(err, syscall.EIO) {
		t.Error(err)
	}
	w.remove(source, n, job)
}

func TestTimeoutEndsTheWaitForAStuckTarget(t *testing.T) {
	for _, mode := range []qapi.OnCbwError{qapi.OnCbwErrorBreakGuestWrite, qapi.OnCbwErrorBreakSnapshot} {
		t.Run(string(mode), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				defer w.Graph.Loop().Stop()
				source, src := w.Mem("src", 1<<20)
				target, dst := w.Mem("dst", 1<<20)
				fill(src, rand.New(rand.NewPCG(1, 1)))
				guest := w.Root(source, graphtest.ReadWrite, blockgraph.PermAll)
				seconds := uint32(3)
				f, n, job := w.insert(source, target, func(o *qapi.BlockdevOptionsCbw) { o.OnCBWError, o.CBWTimeout = &mode, &seconds }, nil)
				stuck := graphtest.NewHold(graphtest.Write, graphtest.Zero)
				dst.SetHook(stuck.Wait)
				start := time.Now()
				err := guest.WriteV(t.Context(), 0, graphtest.Vec(make([]byte, 4096)), 0)
				if took := time.Since(start); took != 3*time.Second {
					t.Errorf("took %v", took)
				}
				if mode == qapi.OnCbwErrorBreakGuestWrite && (!errors.Is(err, syscall.ETIMEDOUT) || f.SnapshotError() != nil) {
					t.Error(err, f.SnapshotError())
				}
				if mode == qapi.OnCbwErrorBreakSnapshot && (err != nil || !errors.Is(f.SnapshotError(), syscall.ETIMEDOUT)) {
					t.Error(err, f.SnapshotError())
				}
				// The node rests only when the stuck request has returned.
				rested := make(chan struct{})
				go func() { w.remove(source, n, job); close(rested) }()
				synctest.Wait()
				select {
				case <-rested:
					t.Error("the filter was closed under a copy")
				default:
				}
				stuck.Release()
				<-rested
			})
		})
	}
}

func TestWriteBesideTheFilterIsRefused(t *testing.T) {
	w := newWorld(t)
	source, _ := w.Mem("src", 1<<20)
	target, _ := w.Mem("dst", 1<<20)
	_, n, job := w.insert(source, target, nil, nil)
	try := func(n *blockgraph.Node, perm blockgraph.Perm) error {
		return w.Graph.Update(t.Context(), blockgraph.Cause{}, func(tx *blockgraph.Tx) error {
			_, err := tx.NewRoot(n, blockgraph.RootOptions{Perm: perm, Shared: blockgraph.PermAll})
			return err
		})
	}
	err := try(source, graphtest.ReadWrite)
	if err == nil || !strings.Contains(err.Error(), "Permission conflict on node 'src': permissions 'write' are both required by an unnamed block device (uses node 'src' as 'root' child) and unshared by node '") {
		t.Errorf("got %v", err)
	}
	if err := try(source, blockgraph.PermConsistentRead); err != nil {
		t.Error(err)
	}
	if err := try(n, graphtest.ReadWrite); err != nil {
		t.Error("a guest above the filter:", err)
	}
	if err := try(target, blockgraph.PermResize); err == nil {
		t.Error("the target may be resized")
	}
	w.remove(source, n, job)
}

func TestFilterWithoutUsersLeavesTheSourceToOthers(t *testing.T) {
	w := newWorld(t)
	source, _ := w.Mem("src", 1<<20)
	w.Mem("dst", 1<<20)
	w.Root(source, graphtest.ReadWrite, blockgraph.PermAll)
	w.Add(cbwOptions("src", "dst", nil))
}

func TestClusterSizeFollowsTheTarget(t *testing.T) {
	w := newWorld(t)
	w.Mem("src", 1<<20)
	w.Mem("plain", 1<<20)
	w.Mem("file", 1<<20)
	wide := graphtest.ImageOptions("wide", "file", "")
	wide.Driver = "wide"
	w.Add(wide)
	for _, c := range []struct {
		target string
		least  uint64
		want   int64
		err    string
	}{
		{"plain", 0, 64 << 10, ""},
		{"plain", 4096, 64 << 10, ""},
		{"plain", 1 << 20, 1 << 20, ""},
		{"wide", 0, 128 << 10, ""},
		{"plain", 12345, 0, "Cannot create block-copy-state: min-cluster-size needs to be a power of 2"},
		{"plain", 1 << 63, 0, "min-cluster-size too large: 9223372036854775808 > 9223372036854775807"},
		{"plain", 1 << 40, 0, "Cannot create block-copy-state: min-cluster-size too large: 1099511627776 > 67108864"},
	} {
		err := w.Graph.Update(t.Context(), blockgraph.Cause{}, func(tx *blockgraph.Tx) error {
			n, err := tx.Open(cbwOptions("src", c.target, func(o *qapi.BlockdevOptionsCbw) { o.MinClusterSize = &c.least }))
			if err != nil {
				return err
			}
			if got := n.Driver().(*copybeforewrite.Filter).Clusters().Size(); got != c.want {
				t.Errorf("%s %d: %d", c.target, c.least, got)
			}
			return errors.New("")
		})
		if err.Error() != c.err {
			t.Errorf("%s %d: %q", c.target, c.least, err)
		}
	}
}

func TestTopLeavesOutWhatTheOverlayLacks(t *testing.T) {
	w := newWorld(t)
	_, base := w.Mem("base", 4<<20)
	fill(base, rand.New(rand.NewPCG(1, 1)))
	w.Mem("file", 4<<20)
	source, _ := w.Image("top", "file", "base")
	target, dst := w.Mem("dst", 4<<20)
	guest := w.Root(source, graphtest.ReadWrite, blockgraph.PermAll)
	mine := bytes.Repeat([]byte{5}, 2*cluster)
	if err := guest.WriteV(t.Context(), 10*cluster, graphtest.Vec(mine), 0); err != nil {
		t.Fatal(err)
	}
	var done, remaining atomic.Int64
	f, n, job := w.insert(source, target, nil, func(f *copybeforewrite.Filter) {
		f.SetTop()
		f.Clusters().SetProgress(func(d, r int64) { done.Add(d); remaining.Add(r) })
	})
	if err := guest.WriteV(t.Context(), 20*cluster, graphtest.Vec(mine[:4096]), 0); err != nil {
		t.Fatal(err)
	}
	if done.Load() != 0 || remaining.Load() != -cluster {
		t.Errorf("a write where the overlay has nothing: %d %d", done.Load(), remaining.Load())
	}
	if err := copy.NewJob(f.Work(job), engine(ioengine.Process)).Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 4<<20)
	copyAt(want[10*cluster:], mine)
	if !bytes.Equal(dst.Bytes(), want) || done.Load() != 2*cluster || remaining.Load() != -4<<20 {
		t.Errorf("equal %v, progress %d %d", bytes.Equal(dst.Bytes(), want), done.Load(), remaining.Load())
	}
	w.remove(source, n, job)
}

func copyAt(dst, src []byte) { _ = append(dst[:0], src...) }

func TestHolesAreNeitherReadNorWrittenAsData(t *testing.T) {
	w := newWorld(t)
	source, src := w.Mem("src", 64<<20)
	target, dst := w.Mem("dst", 64<<20)
	fill1 := bytes.Repeat([]byte{3}, cluster)
	guest := w.Root(source, graphtest.ReadWrite, blockgraph.PermAll)
	if err := guest.WriteV(t.Context(), 32<<20, graphtest.Vec(fill1), 0); err != nil {
		t.Fatal(err)
	}
	src.Reads.Store(0)
	f, n, job := w.insert(source, target, nil, nil)
	if err := copy.NewJob(f.Work(job), engine(ioengine.Process)).Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if src.Reads.Load() != 1 || dst.Writes.Load() != 1 || dst.Zeroed.Load() != 64<<20-cluster {
		t.Errorf("%d reads, %d writes, %d zeroed", src.Reads.Load(), dst.Writes.Load(), dst.Zeroed.Load())
	}
	if !bytes.Equal(src.Bytes(), dst.Bytes()) {
		t.Error("the copy differs")
	}
	w.remove(source, n, job)
}

func TestBitmapIsRefusedWithItsName(t *testing.T) {
	w := newWorld(t)
	w.Mem("src", 1<<20)
	w.Mem("dst", 1<<20)
	err := w.Graph.Update(t.Context(), blockgraph.Cause{}, func(tx *blockgraph.Tx) error {
		_, err := tx.Open(cbwOptions("src", "dst", func(o *qapi.BlockdevOptionsCbw) {
			o.Bitmap = &qapi.BlockDirtyBitmap{Node: "src", Name: "b0"}
		}))
		return err
	})
	if err == nil || err.Error() != "Dirty bitmap 'b0' not found" {
		t.Error(err)
	}
}

// TestTransientTargetErrorsLeaveACompleteBackup has a target that fails now
// and then; the job retries and the guest's writes fail meanwhile.
func TestTransientTargetErrorsLeaveACompleteBackup(t *testing.T) {
	w := newWorld(t)
	source, src := w.Mem("src", 8<<20)
	target, dst := w.Mem("dst", 8<<20)
	fill(src, rand.New(rand.NewPCG(2, 2)))
	old := src.Bytes()
	guest := w.Root(source, graphtest.ReadWrite, blockgraph.PermAll)
	var k atomic.Int64
	f, n, job := w.insert(source, target, nil, nil)
	dst.SetHook(func(r graphtest.Request) error {
		if r.Kind != graphtest.Read && k.Add(1)%3 != 0 {
			return syscall.EIO
		}
		return nil
	})
	var wg sync.WaitGroup
	wg.Go(func() {
		r := rand.New(rand.NewPCG(3, 3))
		for range 500 {
			off := r.Int64N(8<<20-4096) &^ 4095
			if err := guest.WriteV(t.Context(), off, graphtest.Vec(make([]byte, 4096)), 0); err != nil && !errors.Is(err, syscall.EIO) {
				t.Error(err)
			}
		}
	})
	o := engine(ioengine.Process)
	o.OnError = func(context.Context, *copy.Fault) copy.Action { return copy.Retry }
	if err := copy.NewJob(f.Work(job), o).Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if !bytes.Equal(old, dst.Bytes()) {
		t.Error("the target differs from the source's old content")
	}
	w.remove(source, n, job)
}

func TestAbandonLetsWaitingWritesGoOnPastAStuckTarget(t *testing.T) {
	w := newWorld(t)
	source, src := w.Mem("src", 1<<20)
	target, dst := w.Mem("dst", 1<<20)
	fill(src, rand.New(rand.NewPCG(1, 1)))
	guest := w.Root(source, graphtest.ReadWrite, blockgraph.PermAll)
	f, n, job := w.insert(source, target, nil, nil)
	stuck := graphtest.NewHold(graphtest.Write, graphtest.Zero)
	dst.SetHook(stuck.Wait)
	written := make(chan error, 2)
	for range 2 { // one copies, the other waits for it
		go func() { written <- guest.WriteV(context.Background(), 0, graphtest.Vec(make([]byte, 4096)), 0) }()
	}
	<-stuck.Entered
	f.Abandon()
	for range 2 {
		if err := <-written; err != nil {
			t.Error(err)
		}
	}
	if err := copy.NewJob(f.Work(job), engine(ioengine.Process)).Run(t.Context()); !errors.Is(err, copybeforewrite.ErrAbandoned) {
		t.Error(err)
	}
	stuck.Release()
	w.remove(source, n, job)
}

// TestChangeOfTheTargetWaitsForACopyThatOutlivedItsWrite: the copy is nobody's
// request any more, but it writes to the target.
func TestChangeOfTheTargetWaitsForACopyThatOutlivedItsWrite(t *testing.T) {
	w := newWorld(t)
	source, src := w.Mem("src", 1<<20)
	target, dst := w.Mem("dst", 1<<20)
	fill(src, rand.New(rand.NewPCG(1, 1)))
	guest := w.Root(source, graphtest.ReadWrite, blockgraph.PermAll)
	f, n, job := w.insert(source, target, nil, nil)
	stuck := graphtest.NewHold(graphtest.Write)
	var released atomic.Bool
	dst.SetHook(stuck.Wait)
	written := make(chan error)
	go func() { written <- guest.WriteV(context.Background(), 0, graphtest.Vec(make([]byte, 4096)), 0) }()
	<-stuck.Entered
	f.Abandon()
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	changed := make(chan struct{})
	go func() {
		w.Update(func(tx *blockgraph.Tx) error {
			err := tx.Drain(target)
			if !released.Load() {
				t.Error("the drain did not wait for the copy")
			}
			return err
		})
		close(changed)
	}()
	graphtest.AwaitClosed(guest)
	released.Store(true)
	stuck.Release()
	<-changed
	w.remove(source, n, job)
}

func TestLongWriteSavesAllItTouches(t *testing.T) {
	w := newWorld(t)
	source, src := w.Mem("src", 16<<20)
	target, dst := w.Mem("dst", 16<<20)
	fill(src, rand.New(rand.NewPCG(1, 1)))
	old := src.Bytes()
	guest := w.Root(source, graphtest.ReadWrite, blockgraph.PermAll)
	f, n, job := w.insert(source, target, nil, nil)
	const off, length = 3*cluster + 512, 9<<20 + 4096
	if err := guest.WriteV(t.Context(), off, graphtest.Vec(make([]byte, length)), 0); err != nil {
		t.Fatal(err)
	}
	first, end := int64(3*cluster), int64(off+length+cluster-1)/cluster*cluster
	want := make([]byte, 16<<20)
	copyAt(want[first:], old[first:end])
	if !bytes.Equal(dst.Bytes(), want) || f.Clusters().Remaining() != 16<<20-(end-first) {
		t.Error("not exactly the touched clusters were saved", f.Clusters().Remaining())
	}
	w.remove(source, n, job)
}

func TestDataIsWrittenCompressed(t *testing.T) {
	w := newWorld(t)
	source, src := w.Mem("src", 4<<20)
	target, dst := w.Mem("dst", 4<<20)
	fill(src, rand.New(rand.NewPCG(1, 1)))
	f, n, job := w.insert(source, target, nil, func(f *copybeforewrite.Filter) { f.SetCompressed(true) })
	if err := copy.NewJob(f.Work(job), engine(ioengine.Process)).Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if k := dst.Compressed.Load(); k == 0 || k != dst.Writes.Load() || !bytes.Equal(src.Bytes(), dst.Bytes()) {
		t.Errorf("%d of %d writes compressed", k, dst.Writes.Load())
	}
	w.remove(source, n, job)
}
