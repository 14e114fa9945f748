package jobs_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"blockd/blockgraph"
	"blockd/blockgraph/graphtest"
	"blockd/jobs"
	"blockd/qapi"
)

// addRaw makes a node of a disk without a format.
func (w *world) addRaw(d *disk) *blockgraph.Node {
	w.t.Helper()
	w.disks["/"+d.name] = d
	unmap := qapi.BlockdevDiscardOptionsUnmap
	var n *blockgraph.Node
	w.update(func(tx *blockgraph.Tx) (err error) {
		o := &qapi.BlockdevOptions{Driver: "file", NodeName: &d.name, Discard: &unmap, File: &qapi.BlockdevOptionsFile{Filename: "/" + d.name}}
		if n, err = tx.Open(o); err == nil {
			tx.SetMonitorOwned(n, true)
		}
		return err
	})
	return n
}

// storm is guests that write to one node in all ways, and what they must read
// there: requests that overlap follow each other, all others run at once.
type storm struct {
	g     *guest
	ways  []*blockgraph.Root // to the node
	model []byte
	locks blockgraph.RangeLock
	most  int64 // bytes of a request
	align int64
	stop  atomic.Bool
	wg    sync.WaitGroup
}

// start has guests write until halt, or until each has made so many requests.
func (s *storm) start(t *testing.T, seed uint64, writers, requests int) {
	for i := range writers {
		s.wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(i)))
			for k := 0; k < requests && !s.stop.Load(); k++ {
				if err := s.step(r); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
}

func (s *storm) halt() {
	s.stop.Store(true)
	s.wg.Wait()
}

// step makes one request.
func (s *storm) step(r *rand.Rand) error {
	size := int64(len(s.model))
	off := r.Int64N(size) &^ (s.align - 1)
	n := min(size-off, (1+r.Int64N(s.most))&^(s.align-1)+s.align)
	ctx := context.Background()
	h, err := s.locks.Lock(ctx, off, n, true)
	if err != nil {
		return err
	}
	defer s.locks.Unlock(h)
	way := s.ways[r.IntN(len(s.ways))]
	was := s.model[off : off+n]
	switch r.IntN(8) {
	case 0:
		if err := again(func() error { return way.WriteZeroes(ctx, off, n, blockgraph.MayUnmap) }); err != nil {
			return err
		}
		clear(was)
	case 1:
		if err := way.Discard(ctx, off, n); err != nil {
			return err
		}
		return way.ReadV(ctx, off, blockgraph.MakeIOVec(was), 0)
	case 2:
		got := make([]byte, n)
		if err := way.ReadV(ctx, off, blockgraph.MakeIOVec(got), 0); err != nil {
			return err
		}
		if !bytes.Equal(got, was) {
			s.g.w.t.Errorf("[%#x, +%#x) is not what was written", off, n)
		}
	default:
		data := bytes.Repeat([]byte{byte(1 + r.IntN(255))}, int(n))
		flags := blockgraph.Flags(r.IntN(2)) * blockgraph.FUA
		if err := again(func() error { return way.WriteV(ctx, off, blockgraph.MakeIOVec(data), flags) }); err != nil {
			return err
		}
		copy(was, data)
	}
	return nil
}

// again makes a request until it meets no fault: after the pivot those of the
// target are the guests'.
func again(f func() error) error {
	for {
		if err := f(); !errors.Is(err, syscall.EIO) {
			return err
		}
	}
}

// check compares what guests read with what they have written.
func (s *storm) check(t *testing.T, what string, read func(v *blockgraph.IOVec) error) {
	t.Helper()
	got := make([]byte, len(s.model))
	if err := read(blockgraph.MakeIOVec(got)); err != nil {
		t.Fatal(err)
	}
	for i := range got {
		if got[i] != s.model[i] {
			t.Fatalf("%s differs at %#x: %#x, want %#x", what, i, got[i], s.model[i])
		}
	}
}

// unsteady is a hook that fails some requests and reorders them.
func unsteady(seed uint64, fail *atomic.Int64, err error, kinds ...graphtest.Kind) func(graphtest.Request) error {
	var n atomic.Uint64
	return func(q graphtest.Request) error {
		r := rand.New(rand.NewPCG(seed, n.Add(1)))
		for range r.IntN(4) {
			runtime.Gosched()
		}
		if r.IntN(6) == 0 && fail.Add(-1) >= 0 {
			for _, k := range kinds {
				if k == q.Kind {
					return err
				}
			}
		}
		return nil
	}
}

// TestMirrorLosesNothing: in every way in which a mirror or a commit of the
// active layer may go and end, guests read what they have written, and a target
// that takes the source's place has it all. BLOCKD_SEED runs one seed,
// BLOCKD_LONG=10m new ones for that long.
func TestMirrorLosesNothing(t *testing.T) {
	rounds := 16
	seed := rand.Uint64()
	if s := os.Getenv("BLOCKD_SEED"); s != "" {
		seed, _ = strconv.ParseUint(s, 10, 64)
		rounds = 1
	}
	if d, err := time.ParseDuration(os.Getenv("BLOCKD_LONG")); err == nil {
		for end := time.Now().Add(d); time.Now().Before(end); {
			seed++
			if !t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) { stormOverMirror(t, seed) }) {
				return
			}
		}
		return
	}
	for range rounds {
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) { stormOverMirror(t, seed) })
		seed++
	}
}

func stormOverMirror(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 1<<40))
	w := newWorld(t)
	clusters := 4 + r.IntN(8)
	size := int64(clusters)*cluster - int64(r.IntN(3))*4096
	commit := r.IntN(3) == 0
	s := &storm{most: 1 << (10 + r.IntN(8)), align: 512}
	var source, target *disk
	mem := func(name string, size int64) *disk {
		d := newDisk(name, 0)
		d.Memory = graphtest.NewMemory(size)
		return d
	}
	var faults atomic.Int64
	var head *blockgraph.Node
	switch {
	case commit:
		if r.IntN(2) == 0 {
			target = mem("target", size).fill(0, 1+r.IntN(2), 'a')
			w.add(target, "")
		} else { // it may have to grow
			target = mem("target", size-int64(r.IntN(3))*cluster)
			target.EditRange(0, cluster, func(b []byte) { copy(b, bytes.Repeat([]byte{'a'}, len(b))) })
			w.addRaw(target)
		}
		mid := mem("mid", size-int64(r.IntN(2))*cluster)
		mid.fill(1, 2, 'b')
		w.add(mid, "target")
		source = mem("source", size)
		source.fill(2, 3, 'c')
		head = w.add(source, "mid")
	case r.IntN(2) == 0:
		w.add(mem("base", size).fill(0, 2, 'a'), "")
		source, target = mem("source", size).fill(1, 3, 'b'), mem("target", size)
		head = w.add(source, "base")
		if r.IntN(2) == 0 {
			target.fill(0, 4, 'x')
		}
		w.add(target, "")
	default:
		source, target = mem("source", size), mem("target", size)
		source.Edit(func(b []byte) { copy(b, bytes.Repeat([]byte{'r'}, 3*cluster)) })
		if r.IntN(2) == 0 {
			target.Edit(func(b []byte) { copy(b, bytes.Repeat([]byte{'y'}, len(b))) })
		}
		if r.IntN(3) == 0 {
			target.Limit.RequestAlignment = 4096
		}
		if r.IntN(3) == 0 {
			target.Cap.WriteZeroes, target.Cap.MayUnmap = 0, 0
		}
		head = w.addRaw(source)
		w.addRaw(target)
	}
	g := w.guest(head)
	s.g, s.ways = g, []*blockgraph.Root{g.r}
	s.model = make([]byte, size)
	if err := g.r.ReadV(t.Context(), 0, blockgraph.MakeIOVec(s.model), 0); err != nil {
		t.Fatal(err)
	}
	policy := []qapi.BlockdevOnError{qapi.BlockdevOnErrorIgnore, qapi.BlockdevOnErrorStop, qapi.BlockdevOnErrorReport}[r.IntN(3)]
	if policy != qapi.BlockdevOnErrorReport && !commit {
		faults.Store(int64(r.IntN(12)))
	}
	target.SetHook(unsteady(seed, &faults, syscall.EIO, graphtest.Write, graphtest.Zero, graphtest.Flush))
	none := atomic.Int64{}
	source.SetHook(unsteady(seed+1, &none, syscall.EIO))

	s.start(t, seed, 1+r.IntN(4), 300)
	defer s.halt()
	a := qapi.BlockdevMirror{OnTargetError: &policy, OnSourceError: &policy, AutoFinalize: ptr(r.IntN(3) != 0)}
	a.Granularity = ptr(uint32(512 << r.IntN(10)))
	if r.IntN(2) == 0 {
		a.BufSize = ptr(int64(1) << (9 + r.IntN(12)))
	}
	if r.IntN(2) == 0 {
		a.CopyMode = writeBlocking
	}
	t.Logf("commit %v, policy %s, granularity %d, manual %v", commit, policy, *a.Granularity, !*a.AutoFinalize)
	if commit {
		w.startActiveCommit("source", "target")
		*a.AutoFinalize = true
	} else {
		w.startMirror("source", "target", a)
	}
	try := func(f func(j *jobs.Job) error) {
		w.graph.Loop().Do(func() {
			if j, err := w.jobs.FindBlock("m"); err == nil {
				f(j)
			}
		})
	}
	// insist repeats what a paused job refuses until it is resumed.
	insist := func(f func(j *jobs.Job) error) {
		for again := true; again; runtime.Gosched() {
			w.graph.Loop().Do(func() {
				j, err := w.jobs.FindBlock("m")
				again = err == nil && f(j) != nil
			})
		}
	}
	var finalize atomic.Bool // whenever the job is pending: it may go back to its work
	nag := make(chan struct{})
	var nagging sync.WaitGroup
	nagging.Go(func() { // resumes what an error has stopped, and disturbs otherwise
		r := rand.New(rand.NewPCG(seed, 2<<40))
		for {
			select {
			case <-nag:
				return
			default:
			}
			if finalize.Load() {
				try((*jobs.Job).Finalize)
			}
			switch r.IntN(6) {
			case 0, 1:
				try((*jobs.Job).Resume)
			case 2:
				if s.stop.Load() {
					break
				}
				try((*jobs.Job).Pause)
				try((*jobs.Job).Resume)
			case 3:
				if !commit && !s.stop.Load() {
					mode := []qapi.MirrorCopyMode{qapi.MirrorCopyModeBackground, qapi.MirrorCopyModeWriteBlocking}[r.IntN(2)]
					w.setCopyMode(mode)
				}
			case 4:
				try(func(j *jobs.Job) error { return j.SetSpeed(int64(r.IntN(2)) * 64 << 20) })
			}
			runtime.Gosched()
		}
	})
	defer func() { close(nag); nagging.Wait() }()
	end := r.IntN(5)
	if end == 0 { // at any time
		for range r.IntN(200) {
			runtime.Gosched()
		}
		insist(func(j *jobs.Job) error { return j.BlockCancel(true) })
		w.await("m null")
		s.halt()
		s.check(t, "what the guests see after a cancel", func(v *blockgraph.IOVec) error { return g.r.ReadV(t.Context(), 0, v, 0) })
		return
	}
	reached := func(event string) {
		t.Helper()
		for {
			w.mu.Lock()
			so, news := strings.Join(w.events, ", "), w.news
			w.mu.Unlock()
			switch {
			case strings.Contains(so, event):
				w.await(event)
				return
			case strings.Contains(so, "m null"):
				t.Fatalf("the job ended: %s", so)
			}
			<-news
		}
	}
	reached("m READY")
	if end == 1 {
		s.halt()
		insist(func(j *jobs.Job) error { return j.BlockCancel(false) })
	} else {
		insist((*jobs.Job).Complete)
	}
	if !*a.AutoFinalize {
		reached("m PENDING")
		for range r.IntN(100) {
			runtime.Gosched()
		}
		finalize.Store(true)
	}
	done := w.await("m COMPLETED")
	w.await("m null")
	s.halt()
	s.check(t, "what the guests see", func(v *blockgraph.IOVec) error { return g.r.ReadV(t.Context(), 0, v, 0) })
	switch name := g.r.Node().Name(); {
	case end == 1:
	case strings.HasSuffix(done, "Input/output error"): // in the change that ends the job
		if name != "source" {
			t.Fatalf("a pivot to %s after an error: %s", name, done)
		}
	case name != "target":
		t.Fatalf("no pivot: %s: %s", name, done)
	}
	if w.filters() != 0 {
		t.Error("the filter is still there")
	}
	if end == 1 {
		other := w.guest(w.node("target"))
		s.check(t, "the target", func(v *blockgraph.IOVec) error { return other.r.ReadV(t.Context(), 0, v, 0) })
	}
}

// TestCopyModeChangesBeforeTheFirstCopy: who may write beside the filter is
// decided at once, not only when the job knows what to copy.
func TestCopyModeChangesBeforeTheFirstCopy(t *testing.T) {
	w := newWorld(t)
	g := w.guest(w.add(newDisk("source", 4).fill(1, 2, 'a'), ""))
	target := newDisk("target", 4).fill(0, 4, 'x')
	slow := newHold()
	target.onWrite = slow.wait
	w.add(target, "")
	w.startMirror("source", "target", qapi.BlockdevMirror{Sync: qapi.MirrorSyncModeTop})
	<-slow.entered // it looks for what there is to copy
	writer := func() (granted bool) {
		granted = true
		refused := errors.New("refused")
		err := w.try(func(tx *blockgraph.Tx) error {
			_, err := tx.NewRoot(tx.Find("source"), blockgraph.RootOptions{Perm: blockgraph.PermWrite, Shared: blockgraph.PermAll})
			granted = err == nil
			return refused // leaves nothing behind
		})
		return granted && errors.Is(err, refused)
	}
	for _, c := range []struct {
		mode    qapi.MirrorCopyMode
		granted bool
	}{
		{qapi.MirrorCopyModeBackground, true},
		{qapi.MirrorCopyModeWriteBlocking, false},
		{qapi.MirrorCopyModeBackground, true},
		{qapi.MirrorCopyModeWriteBlocking, false},
	} {
		if err := w.setCopyMode(c.mode); err != nil {
			t.Fatal(err)
		}
		if got := writer(); got != c.granted {
			t.Errorf("%s: a second writer is granted: %v", c.mode, got)
		}
	}
	close(slow.released)
	w.await("m READY")
	if err := g.write(3, 'n'); err != nil || target.clusters() != "0a0n" {
		t.Errorf("%v, target %s", err, target.clusters())
	}
}
