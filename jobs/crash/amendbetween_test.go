package crash

import (
	"bytes"
	"errors"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"blockd/blockgraph"
	"blockd/blockgraph/graphtest"
	"blockd/jobs"
	"blockd/jobs/amend"
	"blockd/qapi"
)

// halted is a world whose image `top`, over `base`, is being laid out anew by the job
// `amend`, which waits in its nth access to a file.
type halted struct {
	*world
	content []byte
	goOn    func()
	later   atomic.Int64 // accesses that came after it
}

// A layout is what becomes of an image, in a way that changes it most.
type layout struct {
	name    string
	options qapi.BlockdevAmendOptionsQcow2
	alone   bool // there is no base
}

var layouts = []layout{
	{"down", qapi.BlockdevAmendOptionsQcow2{XCompat: ptr(qapi.BlockdevQcow2VersionV2)}, false},
	{"down-alone", qapi.BlockdevAmendOptionsQcow2{XCompat: ptr(qapi.BlockdevQcow2VersionV2)}, true},
	{"wide", widened, false},
}

var widened = qapi.BlockdevAmendOptionsQcow2{XRefcountBits: ptr(int64(64)), XLazyRefcounts: ptr(true)}

// haltAmending returns nil when the job has no nth access.
func haltAmending(t *testing.T, nth int64, l layout) *halted {
	t.Helper()
	h := &halted{world: newWorld(t)}
	small := ptr(uint64(4096))
	h.create("base", qapi.BlockdevCreateOptionsQcow2{Size: diskSize, ClusterSize: small})
	o := qapi.BlockdevCreateOptionsQcow2{Size: diskSize, ClusterSize: small}
	if !l.alone {
		o.BackingFile, o.BackingFmt = ptr("/base"), ptr(qapi.BlockdevDriverQcow2)
	}
	h.create("top", o)
	g := h.mustOpen("base", "", true)
	must(t, g.WriteV(ctxb, 0, blockgraph.MakeIOVec(bytes.Repeat([]byte{7}, diskSize)), 0))
	h.leave(g)
	var count atomic.Int64
	reached, gate := make(chan struct{}), make(chan struct{})
	h.goOn = sync.OnceFunc(func() { close(gate) })
	count.Store(-1 << 40) // not yet
	for _, f := range h.files {
		f.Hook = func() {
			switch n := count.Add(1); {
			case n == nth:
				close(reached)
				<-gate
			case n > nth:
				h.later.Add(1)
			}
		}
	}
	g = h.mustOpen("top", "", false)
	must(t, g.WriteV(ctxb, 0, blockgraph.MakeIOVec(bytes.Repeat([]byte{1}, diskSize/2)), 0))
	must(t, g.WriteZeroes(ctxb, 0, 8192, 0))
	must(t, g.WriteZeroes(ctxb, diskSize-16384, 8192, 0))
	h.content = h.read(g)
	h.update(func(tx *blockgraph.Tx) error { return tx.CloseRoot(g) })
	h.update(func(tx *blockgraph.Tx) error {
		tx.OnCommit(func() { count.Store(0) }) // before the job starts
		return h.prepare(tx, "amend", l.options)
	})
	for {
		h.mu.Lock()
		now, news := h.state["amend"], h.news
		h.mu.Unlock()
		if now == qapi.JobStatusConcluded {
			break
		}
		select {
		case <-reached:
			return h
		case <-news:
		}
	}
	count.Store(-1 << 40)
	h.holds()
	h.verb("amend", (*jobs.Job).Dismiss)
	h.close()
	return nil
}

func (h *halted) prepare(tx *blockgraph.Tx, id string, o qapi.BlockdevAmendOptionsQcow2) error {
	return amend.Prepare(tx, h.jobs, tx.Find("top"), &qapi.XBlockdevAmendArg{JobID: id, NodeName: "top", Options: qapi.BlockdevAmendOptions{Driver: "qcow2", Qcow2: &o}})
}

// holds holds that the disk is as it was and the image sound.
func (h *halted) holds() {
	h.t.Helper()
	g := h.guest()
	if !bytes.Equal(h.read(g), h.content) {
		h.t.Error("the disk is another one")
	}
	if c := h.check(g); c.Corruptions+c.CheckErrors+c.Leaks > 0 {
		h.t.Errorf("the image: %+v", c)
	}
	h.update(func(tx *blockgraph.Tx) error { return tx.CloseRoot(g) })
}

// guest is a new user of the disk.
func (h *halted) guest() (g *blockgraph.Root) {
	h.t.Helper()
	h.update(func(tx *blockgraph.Tx) (err error) {
		g, err = tx.NewRoot(tx.Find("top"), blockgraph.RootOptions{Perm: graphtest.ReadWrite, Shared: blockgraph.PermAll})
		return err
	})
	return g
}

// end holds that the job ends so, and ends the world.
func (h *halted) end(want string) {
	h.t.Helper()
	h.goOn()
	h.await("amend", qapi.JobStatusConcluded)
	if got := h.errorOf("amend"); got != want {
		h.t.Errorf("the job: %q, not %q", got, want)
	}
	h.holds()
	h.verb("amend", (*jobs.Job).Dismiss)
	h.close()
}

// whileAmending does something at one access of a job after the other.
func whileAmending(t *testing.T, do func(t *testing.T, h *halted)) {
	for _, l := range layouts {
		t.Run(l.name, func(t *testing.T) {
			n := int64(1)
			for ; n < 1000; n++ {
				h := haltAmending(t, n, l)
				if h == nil {
					break
				}
				do(t, h)
				if t.Failed() {
					t.Fatalf("at access %d", n)
				}
			}
			if n < 10 {
				t.Errorf("the job has no more than %d accesses", n-1)
			}
		})
	}
}

// rests pauses the job. It is true when it rests, and not when it was doing its last
// access.
func (h *halted) rests() bool {
	h.t.Helper()
	h.verb("amend", (*jobs.Job).Pause)
	h.goOn()
	return h.await("amend", qapi.JobStatusPaused, qapi.JobStatusConcluded) == qapi.JobStatusPaused
}

// While a job that lays an image out anew is paused it touches no file, wherever it
// is, and any change of the graph has its turn: of what is below the image, too.
func TestAmendingRestsAnywhere(t *testing.T) {
	rested := 0
	whileAmending(t, func(t *testing.T, h *halted) {
		if !h.rests() {
			h.end("")
			return
		}
		rested++
		before := h.later.Load()
		h.update(func(tx *blockgraph.Tx) error {
			top := tx.Find("top")
			return errors.Join(tx.Drain(top), tx.Drain(top.File().Child()))
		})
		for _, child := range []func(n *blockgraph.Node) *blockgraph.Edge{(*blockgraph.Node).File, (*blockgraph.Node).Backing} {
			h.update(func(tx *blockgraph.Tx) error {
				e := child(tx.Find("top"))
				if e == nil {
					return nil
				}
				below := e.Child()
				name := below.Name()
				filter, err := tx.Open(&qapi.BlockdevOptions{Driver: "pass", Raw: &qapi.BlockdevOptionsRaw{File: qapi.BlockdevRef{Reference: &name}}})
				if err != nil {
					return err
				}
				return tx.InsertFilter(filter, below)
			})
		}
		if n := h.later.Load(); n != before {
			t.Errorf("%d accesses while it is paused", n-before)
		}
		h.verb("amend", (*jobs.Job).Resume)
		h.end("")
	})
	if rested < 20 {
		t.Errorf("the jobs rested at %d accesses", rested)
	}
}

// Cancelled at any access it leaves an image that is sound, and can be asked for again.
func TestAmendingCancelledAnywhere(t *testing.T) {
	whileAmending(t, func(t *testing.T, h *halted) {
		h.verb("amend", func(j *jobs.Job) error { return j.Cancel(true) })
		h.end("Operation canceled")
	})
}

// Where the image cannot be opened again nothing is written by what was known of it
// before, and the same command goes on when it can.
func TestAmendingWithoutReopening(t *testing.T) {
	h := haltAmending(t, 1, layout{options: widened})
	f := h.files["/top"]
	magic := f.Bytes()[:4]
	must(t, f.WriteV(ctxb, 0, blockgraph.MakeIOVec([]byte("none")), 0))
	h.goOn()
	h.await("amend", qapi.JobStatusConcluded)
	if got, want := h.errorOf("amend"), "Image is not in qcow2 format; Could not reopen qcow2 layer: Image is not in qcow2 format"; got != want {
		t.Errorf("%q, not %q", got, want)
	}
	h.verb("amend", (*jobs.Job).Dismiss)
	must(t, f.WriteV(ctxb, 0, blockgraph.MakeIOVec(magic), 0))
	before := f.Bytes()
	g := h.guest()
	if !bytes.Equal(h.read(g), h.content) {
		t.Error("the disk is another one")
	}
	if err := g.WriteV(ctxb, 0, blockgraph.MakeIOVec(h.content[:4096]), 0); !errors.Is(err, syscall.EIO) {
		t.Error(err)
	}
	h.update(func(tx *blockgraph.Tx) error { return tx.CloseRoot(g) })
	if !bytes.Equal(f.Bytes(), before) {
		t.Error("the file has changed")
	}
	undone := errors.New("undone")
	if err := h.graph.Update(ctxb, blockgraph.Cause{Command: "test"}, func(tx *blockgraph.Tx) error {
		return errors.Join(h.prepare(tx, "undone", widened), undone)
	}); err.Error() != undone.Error() {
		t.Fatal(err)
	}
	h.update(func(tx *blockgraph.Tx) error { return h.prepare(tx, "amend", widened) })
	h.end("")
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
