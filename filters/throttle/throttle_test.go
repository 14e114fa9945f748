package throttle

import (
	"bytes"
	"context"
	"errors"
	"runtime"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"blockd/blockgraph"
	"blockd/blockgraph/graphtest"
	"blockd/clock"
	"blockd/objects"
	"blockd/qapi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const memorySize = 1 << 20

// world is a graph over a virtual clock, with memory in sectors.
type world struct {
	*graphtest.World
	clock   *clock.Virtual
	objects *objects.Registry
}

func newWorld(t *testing.T, group ...string) *world {
	t.Helper()
	c := clock.NewVirtual()
	w := &world{clock: c, objects: objects.New(c)}
	w.World = graphtest.NewAt(t, c, Type(w.objects))
	w.Setup = func(m *graphtest.Memory) { m.Limit.RequestAlignment = 512 }
	for _, o := range group {
		if err := w.objects.AddOption(t.Context(), "throttle-group,"+o); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

func (w *world) root(n *blockgraph.Node) *blockgraph.Root {
	w.T.Helper()
	return w.Root(n, graphtest.ReadWrite, blockgraph.PermAll)
}

func memoryNode(name string) *qapi.BlockdevOptions { return graphtest.MemOptions(name, memorySize) }

func throttleNode(name, group, file string) *qapi.BlockdevOptions {
	unmap := qapi.BlockdevDiscardOptionsUnmap
	return &qapi.BlockdevOptions{Driver: qapi.BlockdevDriverThrottle, NodeName: &name, Discard: &unmap,
		Throttle: &qapi.BlockdevOptionsThrottle{ThrottleGroup: group, File: qapi.BlockdevRef{Reference: &file}}}
}

// throttled makes a node of group tg over a new memory, and a root over it.
func (w *world) throttled(name, group string) (*blockgraph.Node, *blockgraph.Root, *graphtest.Memory) {
	w.T.Helper()
	m := w.Add(memoryNode(name + "-mem"))
	n := w.Add(throttleNode(name, group, name+"-mem"))
	return n, w.root(n), m.Driver().(*graphtest.Memory)
}

func waiting(n *blockgraph.Node) int { return n.Driver().(*Filter).now.Load().member.Waiting() }

// park starts n reads of a sector each, and returns when all of them wait.
func (w *world) park(n *blockgraph.Node, r *blockgraph.Root, count int) chan error {
	w.T.Helper()
	done := make(chan error, count)
	before := waiting(n)
	for range count {
		go func() {
			done <- r.ReadV(w.T.Context(), 0, blockgraph.MakeIOVec(make([]byte, 512)), 0)
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
			before := m.Requests()
			if err := c.do(t.Context(), r); err != nil { // fills the bucket
				t.Fatal(err)
			}
			if c.waits {
				done := make(chan error)
				go func() { done <- c.do(t.Context(), r) }()
				if err := w.clock.WaitForTimers(t.Context(), 1); err != nil {
					t.Fatal(err)
				}
				if waiting(n) != 1 || m.Requests() != before+1 {
					t.Fatalf("%d wait, %d arrived", waiting(n), m.Requests()-before)
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
			if got := m.Requests() - before; got != 2 {
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
	if err != nil || st.N != 2*graphtest.Block || st.Flags&blockgraph.StatusData == 0 {
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
	w.CloseRoots(ra, rb)
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
			before := m.Requests()
			done := w.park(n, r, 20)
			// The clock stands still, so only the drain can let them go.
			w.Update(func(tx *blockgraph.Tx) error { return change(tx, n, r) })
			collect(t, done, 20)
			if got := m.Requests() - before; got != 20 {
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
	w.Update(func(tx *blockgraph.Tx) error { return tx.Drain(n) })
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
	w.Update(func(tx *blockgraph.Tx) error { return tx.Drain(a) })
	collect(t, doneA, 3)
	if waiting(b) != 3 {
		t.Fatalf("%d of the other node wait", waiting(b))
	}
	w.CloseRoots(rb)
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
	w.Add(memoryNode("mem"))
	for _, c := range [][3]string{
		{"zz", "mem", "Throttle group 'zz' does not exist"},
		{"s", "mem", "Throttle group 's' does not exist"},
		{"zz", "nothing", "Cannot find device='nothing' nor node-name='nothing'"},
	} {
		if _, err := w.TryAdd(throttleNode("t", c[0], c[1])); err == nil || err.Error() != c[2] {
			t.Errorf("%s over %s: %v", c[0], c[1], err)
		}
	}
}

func TestGroupOfANodeIsInUse(t *testing.T) {
	w := newWorld(t, "id=tg", "id=other")
	w.Add(memoryNode("mem"))
	n := w.Add(throttleNode("t", "tg", "mem"))
	const inUse = "object 'tg' is in use, can not be deleted"
	if err := w.objects.Delete("tg"); err == nil || err.Error() != inUse {
		t.Fatal(err)
	}
	// A node that could not be opened keeps nothing.
	if _, err := w.TryAdd(throttleNode("t", "other", "mem")); err == nil {
		t.Fatal("a name was taken twice")
	}
	if err := w.objects.Delete("other"); err != nil {
		t.Fatal(err)
	}
	w.Del(n)
	if err := w.objects.Delete("tg"); err != nil {
		t.Fatal(err)
	}
}

func TestReopenMovesToAnotherGroup(t *testing.T) {
	w := newWorld(t, "id=slow,x-iops-total=10", "id=fast")
	n, r, _ := w.throttled("t", "slow")
	f := n.Driver().(*Filter)
	reopen := func(group string) (*blockgraph.Reopening, error) {
		return f.PrepareReopen(t.Context(), &blockgraph.ReopenRequest{Options: throttleNode("t", group, "t-mem")})
	}
	if _, err := reopen("zz"); err == nil || err.Error() != "Throttle group 'zz' does not exist" {
		t.Fatal(err)
	}
	p, err := reopen("fast")
	if err != nil {
		t.Fatal(err)
	}
	if err := w.objects.Delete("fast"); err == nil {
		t.Fatal("deleted under a reopen")
	}
	p.Undo(t.Context())
	p, err = reopen("fast")
	if err != nil {
		t.Fatal(err)
	}
	w.Update(func(tx *blockgraph.Tx) error {
		if err := tx.Drain(n); err != nil {
			return err
		}
		p.Apply()
		tx.After(p.Keep)
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
	w.Add(memoryNode("mem"))
	n := w.Add(throttleNode("t", "tg", "mem"))
	if got, want := n.Filename(), `json:{"throttle-group": "tg", "driver": "throttle", "file": {"driver": "mem"}}`; got != want {
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
		w.Update(func(tx *blockgraph.Tx) error { return tx.Drain([]*blockgraph.Node{a, b}[i%2]) })
		select {
		case <-done:
			if got := ma.Requests() + mb.Requests(); got != 8*each {
				t.Fatalf("%d requests arrived", got)
			}
			return
		default:
		}
	}
}
