package preallocate_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"

	"blockd/blockgraph"
	"blockd/blockgraph/graphtest"
	"blockd/filters/preallocate"
	"blockd/qapi"
)

const (
	kib    = 1 << 10
	mib    = 1 << 20
	resize = graphtest.ReadWrite | blockgraph.PermResize
)

type world struct {
	*graphtest.World
	file *graphtest.Memory
	node *blockgraph.Node
}

// newWorld has a file of 64 KiB and a filter that preallocates 1 MiB, aligned
// to 256 KiB.
func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{World: graphtest.New(t, preallocate.Type())}
	w.Setup = func(m *graphtest.Memory) { m.Cap.Grow, m.Cap.NoFallback = true, blockgraph.CapNative }
	_, w.file = w.Mem("f", 64*kib)
	w.node = w.Add(options("f", 256*kib, mib))
	return w
}

func options(file string, align, size int64) *qapi.BlockdevOptions {
	name := "p"
	return &qapi.BlockdevOptions{Driver: "preallocate", NodeName: &name,
		Preallocate: &qapi.BlockdevOptionsPreallocate{File: qapi.BlockdevRef{Reference: &file}, PreallocAlign: &align, PreallocSize: &size}}
}

// user is somebody who writes past the end, as a format does.
type user struct {
	t *testing.T
	a blockgraph.Admission
}

func (w *world) user(t *testing.T) (user, *blockgraph.Root, func()) {
	t.Helper()
	r := w.Root(w.node, resize, blockgraph.PermConsistentRead)
	a, err := r.Enter(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return user{t, a}, r, func() { a.Leave(); w.CloseRoots(r) }
}

func (u user) write(off, n int64, c byte) {
	u.t.Helper()
	if err := u.a.Edge().WriteV(context.Background(), off, graphtest.Vec(bytes.Repeat([]byte{c}, int(n))), 0); err != nil {
		u.t.Error(err)
	}
}

func (u user) zero(off, n int64) {
	u.t.Helper()
	if err := u.a.Edge().WriteZeroes(context.Background(), off, n, 0); err != nil {
		u.t.Error(err)
	}
}

func (w *world) expect(t *testing.T, length, file int64) {
	t.Helper()
	if got := w.node.Size(); got != length {
		t.Errorf("the length is %d, want %d", got, length)
	}
	if got := int64(len(w.file.Bytes())); got != file {
		t.Errorf("the file has %d bytes, want %d", got, file)
	}
}

func TestWritePastTheEndPreallocates(t *testing.T) {
	w := newWorld(t)
	u, _, done := w.user(t)
	u.write(0, 64*kib, 1)
	w.expect(t, 64*kib, 64*kib)
	u.write(64*kib, 4*kib, 2)
	w.expect(t, 68*kib, 1280*kib) // 68 KiB and 1 MiB, rounded up to 256 KiB
	for off := int64(68 * kib); off < 1280*kib; off += 4 * kib {
		u.write(off, 4*kib, 3)
	}
	if n := w.file.Zeroes.Load(); n != 1 {
		t.Error("extended", n, "times")
	}
	w.expect(t, 1280*kib, 1280*kib)
	u.write(1280*kib, 1, 4)
	w.expect(t, 1280*kib+1, 2560*kib)
	done()
	w.expect(t, 1280*kib+1, 1280*kib+1) // cut off with the permission
	b := w.file.Bytes()
	if b[0] != 1 || b[64*kib] != 2 || b[68*kib] != 3 || b[1280*kib-1] != 3 || b[1280*kib] != 4 {
		t.Error("data is lost")
	}
}

func TestCloseCutsOffWhatWasNotUsed(t *testing.T) {
	w := newWorld(t)
	root := w.Root(w.node, resize, blockgraph.PermConsistentRead)
	a, err := root.Enter(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	user{t, a}.write(100*kib, 4*kib, 1)
	a.Leave()
	w.Update(func(tx *blockgraph.Tx) error {
		tx.SetMonitorOwned(w.node, false)
		return tx.CloseRoot(root)
	})
	if n := len(w.file.Bytes()); n != 104*kib {
		t.Error(n)
	}
}

func TestZeroesBehindTheDataAreNotWritten(t *testing.T) {
	w := newWorld(t)
	u, _, done := w.user(t)
	u.zero(64*kib, 64*kib) // part of the extension
	w.expect(t, 128*kib, 1280*kib)
	u.zero(128*kib, 64*kib)
	if n := w.file.Zeroes.Load(); n != 1 {
		t.Error(n, "zero writes")
	}
	// Data among the zeroes ends that: what follows it is still known to be zero,
	// what is before is not.
	u.write(100*kib, 4*kib, 1)
	u.zero(96*kib, 200*kib)
	if n := w.file.Zeroes.Load(); n != 2 {
		t.Error(n, "zero writes")
	}
	if b := w.file.Bytes(); !bytes.Equal(b[64*kib:], make([]byte, len(b)-64*kib)) {
		t.Error("a zero write was lost")
	}
	w.expect(t, 296*kib, 1280*kib)
	done()
}

func TestGuestWithoutResizeIsLeftAlone(t *testing.T) {
	w := newWorld(t)
	r := w.Root(w.node, graphtest.ReadWrite, blockgraph.PermAll)
	if err := r.WriteV(t.Context(), 0, graphtest.Vec(make([]byte, 4096)), 0); err != nil {
		t.Error(err)
	}
	w.expect(t, 64*kib, 64*kib)
	if perm, shared := w.file.Locks(); perm&blockgraph.PermResize != 0 || shared != blockgraph.PermAll {
		t.Error(perm, "shared", shared)
	}
}

func TestNobodyElseMayWriteMeanwhile(t *testing.T) {
	w := newWorld(t)
	_, _, done := w.user(t)
	if _, shared := w.file.Locks(); shared&resize != blockgraph.PermConsistentRead {
		t.Error("shared", shared)
	}
	done()
	if _, shared := w.file.Locks(); shared != blockgraph.PermAll {
		t.Error("shared", shared)
	}
}

func TestTruncate(t *testing.T) {
	for _, c := range []struct {
		mode              qapi.PreallocMode
		size, len, atLast int64
	}{
		{qapi.PreallocModeOff, 200 * kib, 200 * kib, 200 * kib},
		{qapi.PreallocModeFalloc, 200 * kib, 1280 * kib, 200 * kib}, // is there already
		{qapi.PreallocModeFalloc, 2 * mib, 2 * mib, 2 * mib},
		{qapi.PreallocModeOff, 8 * kib, 8 * kib, 8 * kib},
	} {
		w := newWorld(t)
		u, _, done := w.user(t)
		u.write(64*kib, 4*kib, 1)
		if err := u.a.Edge().Truncate(t.Context(), c.size, true, c.mode, false); err != nil {
			t.Error(err)
		}
		w.expect(t, c.size, c.len)
		done()
		w.expect(t, c.size, c.atLast)
	}
}

// TestFileThatCannotBeExtended: then writes go on as if there were no filter.
func TestFileThatCannotBeExtended(t *testing.T) {
	for _, failure := range []error{blockgraph.ErrNotSupported, syscall.ENOSPC} {
		w := newWorld(t)
		w.file.SetHook(graphtest.Failing(-1, failure, graphtest.Zero))
		u, _, done := w.user(t)
		for off := int64(64 * kib); off < 128*kib; off += 4 * kib {
			u.write(off, 4*kib, 1)
		}
		w.expect(t, 128*kib, 128*kib)
		n := w.file.Zeroes.Load()
		if errors.Is(failure, blockgraph.ErrNotSupported) != (n == 1) {
			t.Error("tried", n, "times after", failure)
		}
		w.file.SetHook(nil)
		u.write(128*kib, 4*kib, 1)
		if failure == syscall.ENOSPC {
			w.expect(t, 132*kib, 1280*kib)
		}
		done()
		w.expect(t, 132*kib, 132*kib)
	}
}

// TestNoZeroesOverDataOnItsWay: a write that makes the file longer itself, since
// extending failed, is under way; another one must not extend over it.
func TestNoZeroesOverDataOnItsWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.Graph.Loop().Stop()
		hold := graphtest.NewHold(graphtest.Write)
		fail := graphtest.Failing(1, syscall.ENOSPC, graphtest.Zero)
		w.file.SetHook(func(r graphtest.Request) error {
			if r.Kind == graphtest.Write && r.Off == 64*kib {
				return hold.Wait(r)
			}
			return fail(r)
		})
		u, _, done := w.user(t)
		slow := make(chan struct{})
		go func() { u.write(64*kib, 64*kib, 1); close(slow) }()
		<-hold.Entered
		u.write(128*kib, 4*kib, 2) // bare, too
		hold.Release()
		<-slow
		u.write(132*kib, 4*kib, 3) // extends
		want := append(bytes.Repeat([]byte{1}, 64*kib), append(bytes.Repeat([]byte{2}, 4*kib), bytes.Repeat([]byte{3}, 4*kib)...)...)
		if b := w.file.Bytes(); !bytes.Equal(b[64*kib:136*kib], want) || len(b) <= 136*kib {
			t.Error("data was lost, or nothing extended:", len(b))
		}
		done()
	})
}

// TestWritersAtOnce: random data and zeroes by several writers, each in places
// of its own, leave what a model says.
func TestWritersAtOnce(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	w := newWorld(t)
	u, root, done := w.user(t)
	const unit, units, writers = 4 * kib, 400, 4
	model := make([]byte, unit*units)
	var wg sync.WaitGroup
	for k := range writers {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(k)))
			for range 150 {
				i := r.Int64N(units/writers)*writers + int64(k)
				c := byte(r.IntN(4))
				if c == 0 {
					u.zero(i*unit, unit)
				} else {
					u.write(i*unit, unit, c)
				}
				copy(model[i*unit:], bytes.Repeat([]byte{c}, unit))
			}
		})
	}
	wg.Wait()
	length := root.Size()
	done()
	if b := w.file.Bytes(); int64(len(b)) != length || !bytes.Equal(b, model[:length]) {
		t.Errorf("the file has %d bytes, want %d; equal: %v", len(b), length, bytes.Equal(b, model[:min(int64(len(b)), length)]))
	}
}

func TestOptions(t *testing.T) {
	w := graphtest.New(t, preallocate.Type())
	w.Setup = func(m *graphtest.Memory) { m.Limit.RequestAlignment = 4096 }
	w.Mem("f", mib)
	for _, c := range []struct {
		align, size int64
		want        string
	}{
		{1000, 0, "prealloc-align parameter of preallocate filter is not aligned to 512"},
		{512, 0, "prealloc-align parameter of preallocate filter is not aligned to underlying node request alignment (4096)"},
		{-512, 0, "Parameter 'prealloc-align' expects a non-negative number below 2^64"},
		{4096, -1, "Parameter 'prealloc-size' expects a non-negative number below 2^64"},
	} {
		if _, err := w.TryAdd(options("f", c.align, c.size)); err == nil || err.Error() != c.want {
			t.Errorf("%v, want %s", err, c.want)
		}
	}
	w.Add(options("f", 0, 0))
}
