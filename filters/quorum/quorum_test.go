package quorum_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"

	"blockd/blockgraph"
	"blockd/blockgraph/graphtest"
	"blockd/filters/quorum"
	"blockd/jobs/mirror"
	"blockd/qapi"
)

const size = 1 << 20

func TestMain(m *testing.M) {
	slog.SetDefault(slog.New(slog.DiscardHandler))
	m.Run()
}

type world struct {
	*graphtest.World
	mem  []*graphtest.Memory
	node *blockgraph.Node
	root *blockgraph.Root

	mu     sync.Mutex
	events []string
}

// newWorld has n children of size bytes, called c0 and so on.
func newWorld(t *testing.T, n int) *world {
	w := &world{}
	w.World = graphtest.New(t, quorum.Type(func(event string, data any) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.events = append(w.events, event+" "+string(qapi.AppendJSON(nil, data)))
	}))
	for i := range n {
		_, m := w.Mem(fmt.Sprintf("c%d", i), size)
		w.mem = append(w.mem, m)
	}
	return w
}

func options(children int, more string) *qapi.BlockdevOptions {
	var list []string
	for i := range children {
		list = append(list, fmt.Sprintf(`"c%d"`, i))
	}
	v, err := qapi.ParseJSON([]byte(`{"driver":"quorum","node-name":"q","children":[` + strings.Join(list, ",") + `]` + more + `}`))
	if err != nil {
		panic(err)
	}
	o := &qapi.BlockdevOptions{}
	if err := qapi.Decode(v, o); err != nil {
		panic(err)
	}
	return o
}

func (w *world) open(more string) {
	w.T.Helper()
	w.node = w.Add(options(len(w.mem), more))
	w.root = w.Root(w.node, graphtest.ReadWrite, blockgraph.PermAll)
}

func (w *world) write(off int64, n int, c byte) error {
	return w.root.WriteV(context.Background(), off, graphtest.Vec(bytes.Repeat([]byte{c}, n)), 0)
}

func (w *world) read(off int64, n int) ([]byte, error) {
	b := make([]byte, n)
	return b, w.root.ReadV(context.Background(), off, graphtest.Vec(b), 0)
}

// said returns the events since the last call, sorted within by the order of
// their sending.
func (w *world) said() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	e := w.events
	w.events = nil
	return e
}

func (w *world) expect(t *testing.T, want ...string) {
	t.Helper()
	got := w.said()
	equal := len(got) == len(want)
	for i := range want {
		equal = equal && sameEvent(got[i], want[i])
	}
	if !equal {
		t.Errorf("events\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func sameEvent(a, b string) bool {
	nameA, dataA, _ := strings.Cut(a, " ")
	nameB, dataB, _ := strings.Cut(b, " ")
	var x, y map[string]any
	return nameA == nameB && json.Unmarshal([]byte(dataA), &x) == nil && json.Unmarshal([]byte(dataB), &y) == nil && fmt.Sprint(x) == fmt.Sprint(y)
}

func bad(kind, node string, sector, count int, err string) string {
	if err != "" {
		err = `"error":"` + err + `",`
	}
	return fmt.Sprintf(`QUORUM_REPORT_BAD {%s"type":"%s","node-name":"%s","sector-num":%d,"sectors-count":%d}`, err, kind, node, sector, count)
}

func failure(sector, count int) string {
	return fmt.Sprintf(`QUORUM_FAILURE {"reference":"q","sector-num":%d,"sectors-count":%d}`, sector, count)
}

func differ(w *world, child int, off int64, c byte) {
	w.mem[child].EditRange(off, 512, func(b []byte) {
		for i := range b {
			b[i] = c
		}
	})
}

func TestWritesGoToAllChildren(t *testing.T) {
	w := newWorld(t, 3)
	w.open(`,"vote-threshold":2`)
	if err := w.write(4096, 4096, 7); err != nil {
		t.Fatal(err)
	}
	if err := w.root.WriteZeroes(t.Context(), 6144, 2048, 0); err != nil {
		t.Fatal(err)
	}
	for i, m := range w.mem {
		if b := m.Bytes(); b[4096] != 7 || b[6143] != 7 || b[6144] != 0 {
			t.Error("child", i)
		}
	}
	w.expect(t)
}

func TestMostChildrenDecide(t *testing.T) {
	w := newWorld(t, 3)
	w.open(`,"vote-threshold":2`)
	if err := w.write(0, 8192, 1); err != nil {
		t.Fatal(err)
	}
	differ(w, 1, 4096, 9)
	b, err := w.read(4096, 1024)
	if err != nil || !bytes.Equal(b, bytes.Repeat([]byte{1}, 1024)) {
		t.Error(err)
	}
	w.expect(t, bad("read", "c1", 8, 2, ""))
	if w.mem[1].Bytes()[4096] != 9 {
		t.Error("rewritten without being asked to")
	}
	differ(w, 2, 4096, 10) // three answers, no two agree
	if _, err := w.read(4096, 512); !errors.Is(err, syscall.EIO) {
		t.Error(err)
	}
	w.expect(t, failure(8, 1))
}

func TestRewriteCorrupted(t *testing.T) {
	w := newWorld(t, 3)
	w.open(`,"vote-threshold":2,"rewrite-corrupted":true`)
	if err := w.write(0, 4096, 1); err != nil {
		t.Fatal(err)
	}
	differ(w, 0, 512, 9)
	if b, err := w.read(0, 4096); err != nil || b[512] != 1 {
		t.Error(err)
	}
	w.expect(t, bad("read", "c0", 0, 8, ""))
	if w.mem[0].Bytes()[512] != 1 {
		t.Error("not rewritten")
	}
	if _, err := w.read(0, 4096); err != nil {
		t.Error(err)
	}
	w.expect(t)
}

// TestRewriteDoesNotPutBackOldData: a reader that finds children differing, of
// which one was just written, waits for the write.
func TestRewriteDoesNotPutBackOldData(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3)
		defer w.Graph.Loop().Stop()
		w.open(`,"vote-threshold":2,"rewrite-corrupted":true`)
		hold := graphtest.NewHold(graphtest.Write)
		w.mem[1].SetHook(hold.Wait)
		w.mem[2].SetHook(hold.Wait)
		written := make(chan error, 1)
		go func() { written <- w.write(0, 512, 5) }()
		synctest.Wait() // written in child 0 alone
		if w.mem[0].Bytes()[0] != 5 {
			t.Fatal("not written")
		}
		type answer struct {
			b   []byte
			err error
		}
		got := make(chan answer, 1)
		go func() { b, err := w.read(0, 512); got <- answer{b, err} }()
		synctest.Wait()
		if w.mem[0].Bytes()[0] != 5 {
			t.Error("old data was put back")
		}
		hold.Release()
		if err := <-written; err != nil {
			t.Error(err)
		}
		if a := <-got; a.err != nil || a.b[0] != 5 {
			t.Error(a.err, a.b[0])
		}
		w.expect(t)
	})
}

func TestFailingChildren(t *testing.T) {
	w := newWorld(t, 3)
	w.open(`,"vote-threshold":2`)
	w.mem[0].SetHook(graphtest.Failing(-1, syscall.ENOSPC))
	if err := w.write(0, 512, 1); err != nil {
		t.Error(err)
	}
	w.expect(t, bad("write", "c0", 0, 1, "No space left on device"))
	if b, err := w.read(0, 512); err != nil || b[0] != 1 {
		t.Error(err)
	}
	w.expect(t, bad("read", "c0", 0, 1, "No space left on device"))
	if err := w.root.Flush(t.Context()); err != nil {
		t.Error(err)
	}
	w.expect(t, bad("flush", "c0", 0, 0, "No space left on device"))

	w.mem[1].SetHook(graphtest.Failing(-1, syscall.EIO))
	if err := w.write(512, 512, 1); !errors.Is(err, syscall.EIO) {
		t.Error("of two errors the later one:", err)
	}
	w.expect(t, bad("write", "c0", 1, 1, "No space left on device"), bad("write", "c1", 1, 1, "Input/output error"), failure(1, 1))
	w.mem[2].SetHook(graphtest.Failing(-1, syscall.ENOSPC))
	if _, err := w.read(0, 512); !errors.Is(err, syscall.ENOSPC) {
		t.Error("the error of most:", err)
	}
	w.said()
	if err := w.root.Flush(t.Context()); !errors.Is(err, syscall.ENOSPC) {
		t.Error(err)
	}
	if got := w.said(); len(got) != 3 {
		t.Error("a failing flush is no QUORUM_FAILURE:", got)
	}
}

func TestFifoReadsTheFirstThatCan(t *testing.T) {
	w := newWorld(t, 2)
	w.open(`,"vote-threshold":1,"read-pattern":"fifo"`)
	differ(w, 0, 0, 1)
	differ(w, 1, 0, 2)
	if b, err := w.read(0, 512); err != nil || b[0] != 1 || w.mem[1].Reads.Load() != 0 {
		t.Error(err)
	}
	w.mem[0].SetHook(graphtest.Failing(-1, syscall.EIO))
	if b, err := w.read(0, 512); err != nil || b[0] != 2 {
		t.Error(err)
	}
	w.expect(t, bad("read", "c0", 0, 1, "Input/output error"))
	w.mem[1].SetHook(graphtest.Failing(-1, syscall.ENOSPC))
	if _, err := w.read(0, 512); !errors.Is(err, syscall.ENOSPC) {
		t.Error(err)
	}
}

func TestBlkverifyFailsWhereTheyDiffer(t *testing.T) {
	w := newWorld(t, 2)
	w.open(`,"vote-threshold":2,"blkverify":true`)
	if _, err := w.read(0, 4096); err != nil {
		t.Error(err)
	}
	differ(w, 1, 1024, 1)
	if _, err := w.read(512, 4096); err == nil || err.Error() != "quorum: offset=512 bytes=4096 contents mismatch at offset 1024" {
		t.Error(err)
	}
}

func TestStatusIsZeroWhereAllSaySo(t *testing.T) {
	w := newWorld(t, 2)
	w.open(`,"vote-threshold":1`)
	w.mem[0].EditRange(64<<10, 64<<10, func([]byte) {})
	w.mem[1].EditRange(96<<10, 64<<10, func([]byte) {})
	var got []string
	for off := int64(0); off < size; {
		st, _, err := w.root.BlockStatus(t.Context(), off, size-off, blockgraph.StatusPrecise)
		if err != nil {
			t.Fatal(err)
		}
		kind := "data"
		if st.Flags&blockgraph.StatusZero != 0 {
			kind = "zero"
		}
		got = append(got, fmt.Sprintf("%s %d", kind, st.N>>10))
		off += st.N
	}
	if want := "zero 64, data 64, data 32, zero 864"; strings.Join(got, ", ") != want {
		t.Error(got, "want", want)
	}
}

func TestChildrenComeAndGo(t *testing.T) {
	w := newWorld(t, 2)
	w.open(`,"vote-threshold":2`)
	w.Mem("new", size)
	change := func(f func(c blockgraph.ChildChanger, tx *blockgraph.Tx) error) error {
		return w.Try(func(tx *blockgraph.Tx) error { return f(w.node.Driver().(blockgraph.ChildChanger), tx) })
	}
	remove := func(name string) error {
		return change(func(c blockgraph.ChildChanger, tx *blockgraph.Tx) error { return c.RemoveChild(tx, w.node.Child(name)) })
	}
	add := func() error {
		return change(func(c blockgraph.ChildChanger, tx *blockgraph.Tx) error { return c.AddChild(tx, tx.Find("new")) })
	}
	names := func() (s []string) {
		for _, e := range w.node.State().Edges {
			s = append(s, e.Name())
		}
		return s
	}
	before := w.Dump()
	if err := remove("children.0"); err == nil || err.Error() != "The number of children cannot be lower than the vote threshold 2" {
		t.Error(err)
	}
	failed := errors.New("later")
	if err := change(func(c blockgraph.ChildChanger, tx *blockgraph.Tx) error {
		if err := c.AddChild(tx, tx.Find("new")); err != nil {
			return err
		}
		return failed
	}); !errors.Is(err, failed) {
		t.Error(err)
	}
	if w.Dump() != before {
		t.Error("a failed change left something")
	}
	for _, step := range []struct {
		do   func() error
		want string
	}{
		{add, "[children.0 children.1 children.2]"},
		{func() error { return remove("children.0") }, "[children.1 children.2]"},
		{func() error { _, err := w.read(0, 512); return err }, "[children.1 children.2]"},
	} {
		if err := step.do(); err != nil || fmt.Sprint(names()) != step.want {
			t.Error(err, names(), "want", step.want)
		}
	}
	if name := w.node.Filename(); !strings.Contains(name, `"children": [{"driver": "mem"}, {"driver": "mem"}]`) {
		t.Error(name)
	}
}

func TestOnlyAChildThatIsThereOnceMayBeReplaced(t *testing.T) {
	w := newWorld(t, 3)
	o := options(3, `,"vote-threshold":1`)
	o.Quorum.Children = append(o.Quorum.Children, o.Quorum.Children[2])
	node := w.Add(o)
	for child, want := range map[string]bool{"c0": true, "c1": true, "c2": false} {
		if err := w.Try(func(tx *blockgraph.Tx) error {
			if got := node.Driver().(mirror.Replacer).CanReplace(tx, tx.Find(child)); got != want {
				t.Errorf("%s: %t", child, got)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	}
}

func TestOptionsThatAreRefused(t *testing.T) {
	w := newWorld(t, 3)
	_, _ = w.Mem("c3", 4096)
	before := w.Dump()
	for _, c := range []struct {
		children int
		more     string
		want     string
	}{
		{0, `,"vote-threshold":1`, "Number of provided children must be 1 or more"},
		{1, `,"vote-threshold":0`, "Parameter 'vote-threshold' expects a value >= 1"},
		{1, `,"vote-threshold":2`, "threshold may not exceed children count"},
		{3, `,"vote-threshold":2,"blkverify":true`, "blkverify=on can only be set if there are exactly two files and vote-threshold is 2"},
		{2, `,"vote-threshold":2,"blkverify":true,"rewrite-corrupted":true`, "rewrite-corrupted=on cannot be used with blkverify=on"},
		{4, `,"vote-threshold":2`, "Could not refresh total sector count: Input/output error"},
	} {
		if _, err := w.TryAdd(options(c.children, c.more)); err == nil || err.Error() != c.want {
			t.Errorf("%v, want %s", err, c.want)
		}
	}
	if w.Dump() != before {
		t.Error("the graph changed")
	}
}

func TestNobodyElseMayWriteToAChild(t *testing.T) {
	w := newWorld(t, 2)
	w.open(`,"vote-threshold":1`)
	if _, shared := w.mem[0].Locks(); shared != blockgraph.PermConsistentRead|blockgraph.PermWriteUnchanged {
		t.Error("shared", shared)
	}
}

// TestGuestsSeeWhatTheyWrote: with children that lose and corrupt data at
// random, never more than one at a place.
func TestGuestsSeeWhatTheyWrote(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	w := newWorld(t, 3)
	w.open(`,"vote-threshold":2,"rewrite-corrupted":true`)
	var wg sync.WaitGroup
	const guests, span = 4, size / 4
	for g := range guests {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(g)))
			model := make([]byte, span)
			for range 100 {
				k := 512 * (1 + r.IntN(8))
				off := r.IntN((span-k)/512) * 512
				at := int64(g*span + off)
				switch r.IntN(3) {
				case 0:
					c := byte(1 + r.IntN(200))
					if err := w.write(at, k, c); err != nil {
						t.Error(err)
					}
					copy(model[off:], bytes.Repeat([]byte{c}, k))
				case 1:
					differ(w, r.IntN(3), at, 255)
					fallthrough // and mended, before another child differs there
				default:
					if b, err := w.read(at, k); err != nil || !bytes.Equal(b, model[off:off+k]) {
						t.Error("wrong data:", err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	for i, m := range w.mem {
		if !bytes.Equal(m.Bytes(), w.mem[0].Bytes()) {
			t.Error("child", i, "differs at the end")
		}
	}
}
