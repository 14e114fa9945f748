package throttle

import (
	"bytes"
	"context"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"blockd/blockgraph"
	"blockd/clock"
	"blockd/objects"
	"blockd/qapi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory is a protocol in memory that counts what arrives.
type memory struct {
	mu    sync.Mutex
	bytes []byte
	ops   atomic.Int64
}

func (d *memory) ReadV(_ context.Context, off int64, v *blockgraph.IOVec, _ blockgraph.Flags) error {
	d.ops.Add(1)
	d.mu.Lock()
	defer d.mu.Unlock()
	v.CopyIn(0, d.bytes[off:off+v.Len()])
	return nil
}

func (d *memory) WriteV(_ context.Context, off int64, v *blockgraph.IOVec, _ blockgraph.Flags) error {
	d.ops.Add(1)
	d.mu.Lock()
	defer d.mu.Unlock()
	v.CopyOut(0, d.bytes[off:off+v.Len()])
	return nil
}

func (d *memory) WriteZeroes(_ context.Context, off, n int64, _ blockgraph.Flags) error {
	d.ops.Add(1)
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.bytes[off : off+n])
	return nil
}

func (d *memory) Discard(context.Context, int64, int64) error { d.ops.Add(1); return nil }
func (d *memory) Flush(context.Context) error                 { d.ops.Add(1); return nil }
func (d *memory) BlockStatus(_ context.Context, off, n int64, _ blockgraph.StatusMode) (blockgraph.Status, error) {
	return blockgraph.Status{Flags: blockgraph.StatusData, N: n}, nil
}
func (d *memory) Size(context.Context) (int64, error) { return memorySize, nil }
func (d *memory) Close(context.Context) error         { return nil }
func (d *memory) Limits() blockgraph.Limits           { return blockgraph.Limits{RequestAlignment: 512} }
func (d *memory) Caps() blockgraph.Caps {
	return blockgraph.Caps{WriteZeroes: blockgraph.CapNative, Discard: blockgraph.CapNative}
}

const memorySize = 1 << 20

// world is a graph over a virtual clock.
type world struct {
	t       *testing.T
	graph   *blockgraph.Graph
	clock   *clock.Virtual
	objects *objects.Registry
}

func newWorld(t *testing.T, group ...string) *world {
	t.Helper()
	w := &world{t: t, clock: clock.NewVirtual()}
	w.objects = objects.New(w.clock)
	loop := blockgraph.NewLoop()
	w.graph = blockgraph.NewGraph(loop, w.clock, Type(w.objects), &blockgraph.DriverType{
		Name: "memory", Protocol: true,
		Open: func(context.Context, *blockgraph.OpenRequest) (blockgraph.Driver, error) {
			return &memory{bytes: make([]byte, memorySize)}, nil
		},
	})
	t.Cleanup(loop.Stop)
	for _, o := range group {
		if err := w.objects.AddOption(t.Context(), "throttle-group,"+o); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

func (w *world) update(f func(tx *blockgraph.Tx) error) error {
	return w.graph.Update(context.Background(), blockgraph.Cause{Command: "test"}, f)
}

func (w *world) mustUpdate(f func(tx *blockgraph.Tx) error) {
	w.t.Helper()
	if err := w.update(f); err != nil {
		w.t.Fatal(err)
	}
}

// add opens a node by its JSON options.
func (w *world) tryAdd(o *qapi.BlockdevOptions) (n *blockgraph.Node, err error) {
	err = w.update(func(tx *blockgraph.Tx) error {
		if n, err = tx.Open(o); err == nil {
			tx.SetMonitorOwned(n, true)
		}
		return err
	})
	return n, err
}

func (w *world) add(o *qapi.BlockdevOptions) *blockgraph.Node {
	w.t.Helper()
	n, err := w.tryAdd(o)
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

func (w *world) del(n *blockgraph.Node) {
	w.t.Helper()
	w.mustUpdate(func(tx *blockgraph.Tx) error { tx.SetMonitorOwned(n, false); return nil })
}

func (w *world) root(n *blockgraph.Node) (r *blockgraph.Root) {
	w.t.Helper()
	w.mustUpdate(func(tx *blockgraph.Tx) (err error) {
		r, err = tx.NewRoot(n, blockgraph.RootOptions{Perm: blockgraph.PermWrite | blockgraph.PermConsistentRead, Shared: blockgraph.PermAll})
		return err
	})
	return r
}

func (w *world) closeRoots(roots ...*blockgraph.Root) {
	w.t.Helper()
	w.mustUpdate(func(tx *blockgraph.Tx) error {
		for _, r := range roots {
			if err := tx.CloseRoot(r); err != nil {
				return err
			}
		}
		return nil
	})
}

func memoryNode(name string) *qapi.BlockdevOptions {
	unmap := qapi.BlockdevDiscardOptionsUnmap
	return &qapi.BlockdevOptions{Driver: "memory", NodeName: &name, Discard: &unmap}
}

func throttleNode(name, group, file string) *qapi.BlockdevOptions {
	unmap := qapi.BlockdevDiscardOptionsUnmap
	return &qapi.BlockdevOptions{Driver: qapi.BlockdevDriverThrottle, NodeName: &name, Discard: &unmap,
		Throttle: &qapi.BlockdevOptionsThrottle{ThrottleGroup: group, File: qapi.BlockdevRef{Reference: &file}}}
}

// throttled makes a node of group tg over a new memory, and a root over it.
func (w *world) throttled(name, group string) (*blockgraph.Node, *blockgraph.Root, *memory) {
	w.t.Helper()
	m := w.add(memoryNode(name + "-mem"))
	n := w.add(throttleNode(name, group, name+"-mem"))
	return n, w.root(n), m.Driver().(*memory)
}

func waiting(n *blockgraph.Node) int { return n.Driver().(*Filter).now.Load().member.Waiting() }

// park starts n reads of a sector each, and returns when all of them wait.
func (w *world) park(n *blockgraph.Node, r *blockgraph.Root, count int) chan error {
	w.t.Helper()
	done := make(chan error, count)
	before := waiting(n)
	for range count {
		go func() {
			done <- r.ReadV(w.t.Context(), 0, blockgraph.MakeIOVec(make([]byte, 512)), 0)
		}()
	}
	for waiting(n) < before+count {
		runtime.Gosched()
	}
	return done
}

func collect(t *testing.T, done chan error, count int) {
	t.Helper()
	for range count {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
}

// spend uses up what passes without waiting at 10 requests a second.
func spend(t *testing.T, r *blockgraph.Root) {
	t.Helper()
	for range 2 {
		if err := r.ReadV(t.Context(), 0, blockgraph.MakeIOVec(make([]byte, 512)), 0); err != nil {
			t.Fatal(err)
		}
	}
}

func TestEveryRequestWithDataIsLimited(t *testing.T) {
	buf := func() *blockgraph.IOVec { return blockgraph.MakeIOVec(make([]byte, 4096)) }
	for _, c := range []struct {
		name  string
		group string
		waits bool
		do    func(ctx context.Context, r *blockgraph.Root) error
	}{
		{"read", "bps-read", true, func(ctx context.Context, r *blockgraph.Root) error { return r.ReadV(ctx, 0, buf(), 0) }},
		{"read under a limit on writes", "bps-write", false, func(ctx context.Context, r *blockgraph.Root) error { return r.ReadV(ctx, 0, buf(), 0) }},
		{"write", "bps-write", true, func(ctx context.Context, r *blockgraph.Root) error { return r.WriteV(ctx, 0, buf(), 0) }},
		{"zero write", "bps-write", true, func(ctx context.Context, r *blockgraph.Root) error { return r.WriteZeroes(ctx, 0, 4096, 0) }},
		{"discard", "bps-write", true, func(ctx context.Context, r *blockgraph.Root) error { return r.Discard(ctx, 0, 4096) }},
		{"flush", "iops-total", false, func(ctx context.Context, r *blockgraph.Root) error { return r.Flush(ctx) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, "id=tg,limits."+c.group+"=1000")
			n, r, m := w.throttled("t", "tg")
			before := m.ops.Load()
			if err := c.do(t.Context(), r); err != nil { // fills the bucket
				t.Fatal(err)
			}
			if c.waits {
				done := make(chan error)
				go func() { done <- c.do(t.Context(), r) }()
				if err := w.clock.WaitForTimers(t.Context(), 1); err != nil {
					t.Fatal(err)
				}
				if waiting(n) != 1 || m.ops.Load() != before+1 {
					t.Fatalf("%d wait, %d arrived", waiting(n), m.ops.Load()-before)
				}
				d, _ := w.clock.Next()
				w.clock.Step(d)
				if err := <-done; err != nil {
					t.Fatal(err)
				}
				if d.Milliseconds() != 3996 {
					t.Errorf("waited %v for 4096 bytes over a bucket of 100, at 1000 a second", d)
				}
			} else if err := c.do(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			if got := m.ops.Load() - before; got != 2 {
				t.Errorf("%d requests arrived", got)
			}
		})
	}
}

func TestDataPassesUnchanged(t *testing.T) {
	w := newWorld(t, "id=tg")
	n, r, _ := w.throttled("t", "tg")
	data := bytes.Repeat([]byte("blockd"), 1000)
	if err := r.WriteV(t.Context(), 77, blockgraph.MakeIOVec(data), blockgraph.FUA); err != nil {
		t.Fatal(err)
	}
	if err := r.WriteZeroes(t.Context(), 77+600, 100, 0); err != nil {
		t.Fatal(err)
	}
	clear(data[600:700])
	got := make([]byte, len(data))
	if err := r.ReadV(t.Context(), 77, blockgraph.MakeIOVec(got), 0); err != nil || !bytes.Equal(got, data) {
		t.Fatal(err, bytes.Equal(got, data))
	}
	st, _, err := r.BlockStatus(t.Context(), 0, memorySize, blockgraph.StatusPrecise)
	if err != nil || st.N != memorySize || st.Flags&blockgraph.StatusData == 0 {
		t.Fatal(st, err)
	}
	if n.Size() != memorySize {
		t.Fatal(n.Size())
	}
}

func TestMembersOfAGroupTakeTurns(t *testing.T) {
	w := newWorld(t, "id=tg,x-iops-total=10")
	a, ra, _ := w.throttled("a", "tg")
	b, rb, _ := w.throttled("b", "tg")
	spend(t, ra)
	doneA := w.park(a, ra, 6)
	doneB := w.park(b, rb, 3)
	for i, want := range [][2]int{{5, 3}, {5, 2}, {4, 2}, {4, 1}, {3, 1}, {3, 0}, {2, 0}} {
		d, _ := w.clock.Next()
		w.clock.Step(d)
		if got := [2]int{waiting(a), waiting(b)}; got != want {
			t.Fatalf("after turn %d %v wait, want %v", i, got, want)
		}
	}
	w.closeRoots(ra, rb)
	collect(t, doneA, 6)
	collect(t, doneB, 3)
}

func TestDrainReleasesWhatWaits(t *testing.T) {
	for name, change := range map[string]func(tx *blockgraph.Tx, n *blockgraph.Node, r *blockgraph.Root) error{
		"drain of the node": func(tx *blockgraph.Tx, n *blockgraph.Node, _ *blockgraph.Root) error { return tx.Drain(n) },
		"drain of the node below": func(tx *blockgraph.Tx, n *blockgraph.Node, _ *blockgraph.Root) error {
			return tx.Drain(n.File().Child())
		},
		"permissions withdrawn": func(tx *blockgraph.Tx, _ *blockgraph.Node, r *blockgraph.Root) error {
			return tx.SetRootPerms(r, blockgraph.PermConsistentRead, blockgraph.PermAll)
		},
		"root closed": func(tx *blockgraph.Tx, _ *blockgraph.Node, r *blockgraph.Root) error { return tx.CloseRoot(r) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "id=tg,x-iops-total=10")
			n, r, m := w.throttled("t", "tg")
			spend(t, r)
			before := m.ops.Load()
			done := w.park(n, r, 20)
			// The clock stands still, so only the drain can let them go.
			w.mustUpdate(func(tx *blockgraph.Tx) error { return change(tx, n, r) })
			collect(t, done, 20)
			if got := m.ops.Load() - before; got != 20 {
				t.Fatalf("%d arrived", got)
			}
		})
	}
}

func TestLimitsHoldAgainAfterADrain(t *testing.T) {
	w := newWorld(t, "id=tg,x-iops-total=10")
	n, r, _ := w.throttled("t", "tg")
	spend(t, r)
	done := w.park(n, r, 20)
	w.mustUpdate(func(tx *blockgraph.Tx) error { return tx.Drain(n) })
	collect(t, done, 20)
	done = w.park(n, r, 1)
	w.clock.Step(2_099_999_999) // 22 passed, one of them at once
	if waiting(n) != 1 {
		t.Fatal("what a drain releases is not accounted for")
	}
	w.clock.Step(1)
	collect(t, done, 1)
}

// TestDrainLeavesOthersOfTheGroupWaiting: two nodes in one group, one drained.
func TestDrainLeavesOthersOfTheGroupWaiting(t *testing.T) {
	w := newWorld(t, "id=tg,x-iops-total=10")
	a, ra, _ := w.throttled("a", "tg")
	b, rb, _ := w.throttled("b", "tg")
	spend(t, ra)
	doneA, doneB := w.park(a, ra, 3), w.park(b, rb, 3)
	w.mustUpdate(func(tx *blockgraph.Tx) error { return tx.Drain(a) })
	collect(t, doneA, 3)
	if waiting(b) != 3 {
		t.Fatalf("%d of the other node wait", waiting(b))
	}
	w.closeRoots(rb)
	collect(t, doneB, 3)
}

func TestAnEndedContextEndsTheWait(t *testing.T) {
	w := newWorld(t, "id=tg,x-iops-total=10")
	n, r, _ := w.throttled("t", "tg")
	spend(t, r)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- r.WriteZeroes(ctx, 0, 512, 0) }()
	if err := w.clock.WaitForTimers(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if waiting(n) != 0 {
		t.Fatal("it still waits")
	}
}

func TestNewLimitsLetWaitingRequestsGo(t *testing.T) {
	w := newWorld(t, "id=tg,x-iops-total=10")
	n, r, _ := w.throttled("t", "tg")
	spend(t, r)
	done := w.park(n, r, 20)
	if err := w.objects.Set("tg", "limits", qapi.NewObject("iops-total", int64(0))); err != nil {
		t.Fatal(err)
	}
	collect(t, done, 20)
}

func TestGroupMustExist(t *testing.T) {
	w := newWorld(t, "id=tg")
	if err := w.objects.AddOption(t.Context(), "secret,id=s,data=x"); err != nil {
		t.Fatal(err)
	}
	w.add(memoryNode("mem"))
	for _, c := range [][3]string{
		{"zz", "mem", "Throttle group 'zz' does not exist"},
		{"s", "mem", "Throttle group 's' does not exist"},
		{"zz", "nothing", "Cannot find device='nothing' nor node-name='nothing'"},
	} {
		if _, err := w.tryAdd(throttleNode("t", c[0], c[1])); err == nil || err.Error() != c[2] {
			t.Errorf("%s over %s: %v", c[0], c[1], err)
		}
	}
}

func TestGroupOfANodeIsInUse(t *testing.T) {
	w := newWorld(t, "id=tg", "id=other")
	w.add(memoryNode("mem"))
	n := w.add(throttleNode("t", "tg", "mem"))
	const inUse = "object 'tg' is in use, can not be deleted"
	if err := w.objects.Delete("tg"); err == nil || err.Error() != inUse {
		t.Fatal(err)
	}
	// A node that could not be opened keeps nothing.
	if _, err := w.tryAdd(throttleNode("t", "other", "mem")); err == nil {
		t.Fatal("a name was taken twice")
	}
	if err := w.objects.Delete("other"); err != nil {
		t.Fatal(err)
	}
	w.del(n)
	if err := w.objects.Delete("tg"); err != nil {
		t.Fatal(err)
	}
}

func TestReopenMovesToAnotherGroup(t *testing.T) {
	w := newWorld(t, "id=slow,x-iops-total=10", "id=fast")
	n, r, _ := w.throttled("t", "slow")
	f := n.Driver().(*Filter)
	reopen := func(group string) (func(), func(), error) {
		return f.PrepareReopen(t.Context(), throttleNode("t", group, "t-mem"), false)
	}
	if _, _, err := reopen("zz"); err == nil || err.Error() != "Throttle group 'zz' does not exist" {
		t.Fatal(err)
	}
	_, abort, err := reopen("fast")
	if err != nil {
		t.Fatal(err)
	}
	if err := w.objects.Delete("fast"); err == nil {
		t.Fatal("deleted under a reopen")
	}
	abort()
	commit, _, err := reopen("fast")
	if err != nil {
		t.Fatal(err)
	}
	w.mustUpdate(func(tx *blockgraph.Tx) error {
		if err := tx.Drain(n); err != nil {
			return err
		}
		commit()
		return nil
	})
	for range 50 { // would wait in the other one
		spend(t, r)
	}
	if err := w.objects.Delete("slow"); err != nil {
		t.Fatal(err)
	}
	if err := w.objects.Delete("fast"); err == nil {
		t.Fatal("deleted while in use")
	}
}

func TestFilenameSaysTheGroup(t *testing.T) {
	w := newWorld(t, "id=tg")
	w.add(memoryNode("mem"))
	n := w.add(throttleNode("t", "tg", "mem"))
	if got, want := n.Filename(), `json:{"throttle-group": "tg", "driver": "throttle", "file": {"driver": "memory"}}`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// TestDrainsUnderLoad: graph changes and throttled requests from many
// goroutines, each request done once, each drain an end.
func TestDrainsUnderLoad(t *testing.T) {
	w := newWorld(t, "id=tg,x-iops-total=10,x-bps-write=100000")
	a, ra, ma := w.throttled("a", "tg")
	b, rb, mb := w.throttled("b", "tg")
	const each = 60
	var wg sync.WaitGroup
	for _, r := range []*blockgraph.Root{ra, rb} {
		for k := range 4 {
			wg.Go(func() {
				for i := range each {
					var err error
					v := blockgraph.MakeIOVec(make([]byte, 512))
					if (i+k)%2 == 0 {
						err = r.WriteV(t.Context(), 0, v, 0)
					} else {
						err = r.ReadV(t.Context(), 0, v, 0)
					}
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	for i := 0; ; i++ {
		w.mustUpdate(func(tx *blockgraph.Tx) error { return tx.Drain([]*blockgraph.Node{a, b}[i%2]) })
		select {
		case <-done:
			if got := ma.ops.Load() + mb.ops.Load(); got != 8*each {
				t.Fatalf("%d requests arrived", got)
			}
			return
		default:
		}
	}
}
