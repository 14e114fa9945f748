package jobs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"syscall"
	"testing"

	"blockd/blockgraph"
	"blockd/jobs"
	"blockd/qapi"
)

func (w *world) setCopyMode(mode qapi.MirrorCopyMode) error {
	var j *jobs.Job
	var err error
	w.graph.Loop().Do(func() { j, err = w.jobs.FindBlock("m") })
	if err != nil {
		return err
	}
	return j.ChangeOptions(context.Background(), &qapi.BlockJobChangeOptions{ID: "m", Type: qapi.JobTypeMirror, Mirror: &qapi.BlockJobChangeOptionsMirror{CopyMode: mode}})
}

// TestWriteBlockingBringsWritesToTheTarget: in that mode the target has a write
// when the guest hears of it.
func TestWriteBlockingBringsWritesToTheTarget(t *testing.T) {
	w, g, target := mirrorWorld(t)
	w.startMirror("source", "target", qapi.BlockdevMirror{CopyMode: writeBlocking})
	w.expectEvents("m READY", mirrorReady)
	if err := g.write(2, 'n'); err != nil || target.clusters() != "aana" {
		t.Errorf("%v, target %s", err, target.clusters())
	}
	if err := g.r.WriteV(t.Context(), 3*cluster+512, blockgraph.MakeIOVec([]byte("part")), 0); err != nil {
		t.Fatal(err)
	}
	if b := target.Bytes()[3*cluster+512:]; string(b[:4]) != "part" {
		t.Errorf("target has %q", b[:4])
	}
	if i := w.info("m"); i.Mirror == nil || !i.Mirror.ActivelySynced {
		t.Errorf("%+v", i.Mirror)
	}
	if err := g.r.WriteZeroes(t.Context(), cluster, cluster, 0); err != nil || target.clusters() != "a0na" {
		t.Errorf("%v, target %s", err, target.clusters())
	}
}

func TestCopyModeChangesBothWays(t *testing.T) {
	w, g, target := mirrorWorld(t)
	w.startMirror("source", "target", qapi.BlockdevMirror{})
	w.expectEvents("m READY", mirrorReady)
	if w.info("m").Mirror.ActivelySynced {
		t.Error("synced in background mode")
	}
	if err := w.setCopyMode(qapi.MirrorCopyModeWriteBlocking); err != nil {
		t.Fatal(err)
	}
	if err := g.write(0, 'n'); err != nil || target.clusters() != "naaa" {
		t.Errorf("%v, target %s", err, target.clusters())
	}
	// Somebody else may not write to the source now.
	other := func() error {
		return w.try(func(tx *blockgraph.Tx) error {
			_, err := tx.NewRoot(tx.Find("source"), blockgraph.RootOptions{Perm: blockgraph.PermWrite, Shared: blockgraph.PermAll})
			if err == nil {
				err = errors.New("granted")
			}
			return err
		})
	}
	if err := other(); err == nil || err.Error() == "granted" {
		t.Errorf("a second writer: %v", err)
	}
	slow := newHold()
	target.onWrite = slow.wait
	done := make(chan error, 1)
	go func() { done <- g.write(1, 'o') }()
	<-slow.entered
	changed := make(chan error, 1)
	go func() { changed <- w.setCopyMode(qapi.MirrorCopyModeBackground) }()
	close(slow.released)
	if err := errors.Join(<-done, <-changed); err != nil {
		t.Fatal(err)
	}
	if target.clusters() != "noaa" {
		t.Errorf("target %s", target.clusters())
	}
	if err := other(); err == nil || err.Error() != "granted" {
		t.Errorf("a second writer afterwards: %v", err)
	}
	if err := g.write(2, 'p'); err != nil || w.info("m").Mirror.ActivelySynced {
		t.Errorf("%v: still synced", err)
	}
	w.complete()
	w.await("m null")
	if target.clusters() != "nopa" {
		t.Errorf("target %s", target.clusters())
	}
}

// TestCopyModeThatCannotBeHadIsRefused also while the job is about to end, which
// for its own part does without.
func TestCopyModeThatCannotBeHadIsRefused(t *testing.T) {
	w, g, _ := mirrorWorld(t)
	w.startMirror("source", "target", qapi.BlockdevMirror{AutoFinalize: ptr(false)})
	w.expectEvents("m READY", mirrorReady)
	w.guest(w.node("source")) // may write beside the filter
	pending, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			if err := w.setCopyMode(qapi.MirrorCopyModeWriteBlocking); err == nil {
				t.Error("accepted")
			}
			select {
			case <-pending:
				return
			default:
			}
		}
	}()
	w.complete()
	w.await("m PENDING")
	close(pending)
	<-stopped
	w.verb("m", (*jobs.Job).Finalize)
	w.await("m null")
	if g.r.Node().Name() != "target" {
		t.Errorf("guest over %s", g.r.Node().Name())
	}
}

// TestGuestGoesOnWhenTheTargetFails in write-blocking mode.
func TestGuestGoesOnWhenTheTargetFails(t *testing.T) {
	w, g, target := mirrorWorld(t)
	w.startMirror("source", "target", qapi.BlockdevMirror{CopyMode: writeBlocking, OnTargetError: ptr(qapi.BlockdevOnErrorStop)})
	w.expectEvents("m READY", mirrorReady)
	var mu sync.Mutex
	broken := true
	target.onWrite = func(int64, int64) error {
		mu.Lock()
		defer mu.Unlock()
		if broken {
			return syscall.EIO
		}
		return nil
	}
	if err := g.write(0, 'n'); err != nil {
		t.Fatal(err)
	}
	w.await("m ERROR write stop")
	w.await("m standby")
	if err := g.write(1, 'n'); err != nil { // the target is left alone
		t.Fatal(err)
	}
	if i := w.info("m"); i.Mirror.ActivelySynced || i.IOStatus != qapi.BlockDeviceIoStatusFailed {
		t.Errorf("%+v", i)
	}
	mu.Lock()
	broken = false
	mu.Unlock()
	w.verb("m", (*jobs.Job).Resume)
	w.await("m ready")
	w.complete()
	if got := w.await("m null"); got != "m waiting, m pending, m COMPLETED mirror 6/6, m concluded, m null" {
		t.Errorf("events %s", got)
	}
	if target.clusters() != "nnaa" {
		t.Errorf("target %s", target.clusters())
	}
}

// TestCancelLetsGuestsGoWhoseTargetHangs: a write that waits for a stuck target
// does not wait for it any more once the job was cancelled.
func TestCancelLetsGuestsGoWhoseTargetHangs(t *testing.T) {
	w, g, target := mirrorWorld(t)
	w.startMirror("source", "target", qapi.BlockdevMirror{CopyMode: writeBlocking})
	w.expectEvents("m READY", mirrorReady)
	stuck := newHold()
	target.onWrite = stuck.wait
	done := make(chan error, 2)
	go func() { done <- g.write(0, 'n') }()
	<-stuck.entered
	go func() { done <- g.write(0, 'o') }() // waits for the first one's granules
	w.verb("m", func(j *jobs.Job) error { return j.BlockCancel(true) })
	if err := errors.Join(<-done, <-done); err != nil {
		t.Fatal(err)
	}
	w.await("m concluded") // the write to the target has not returned
	if i := w.info("m"); i.XOrphans == nil || *i.XOrphans != 1 {
		t.Errorf("%+v", i)
	}
	close(stuck.released)
	w.await("m null")
	if g.r.Node().Name() != "source" || w.filters() != 0 {
		t.Errorf("guest over %s", g.r.Node().Name())
	}
}

// TestPendingMirrorDoesNotHoldGuestsUp: between its end and its finalize their
// writes reach the target by themselves.
func TestPendingMirrorDoesNotHoldGuestsUp(t *testing.T) {
	w, g, target := mirrorWorld(t)
	w.startMirror("source", "target", qapi.BlockdevMirror{AutoFinalize: ptr(false)})
	w.expectEvents("m READY", mirrorReady)
	w.complete()
	w.await("m PENDING")
	if err := g.write(2, 'n'); err != nil || target.clusters() != "aana" {
		t.Errorf("%v, target %s", err, target.clusters())
	}
	w.verb("m", (*jobs.Job).Finalize)
	w.await("m null")
	if g.r.Node().Name() != "target" || target.clusters() != "aana" {
		t.Errorf("guest over %s, target %s", g.r.Node().Name(), target.clusters())
	}
}

func TestMirrorChangesToWriteBlockingWhenItTakesTooLong(t *testing.T) {
	w, g, target := mirrorWorld(t)
	target.onWrite = func(int64, int64) error { // it gets nowhere before
		if n := g.r.Node(); n.Type().Name == "mirror_top" && !n.Driver().(interface{ Active() bool }).Active() {
			return syscall.EIO
		}
		return nil
	}
	w.startMirror("source", "target", qapi.BlockdevMirror{XWriteBlockingAfter: ptr(uint32(1)), OnTargetError: ptr(qapi.BlockdevOnErrorIgnore)})
	w.await("m READY")
	filter := g.r.Node().Type().Name
	if err := g.write(1, 'n'); err != nil || target.clusters() != "anaa" || filter != "mirror_top" {
		t.Errorf("%v, target %s, guest over %s", err, target.clusters(), filter)
	}
	w.softCancel()
	w.await("m null")
}

// TestMirrorUnderManyWriters: whatever guests write while a mirror runs, in
// either copy mode and while that changes, the target is what the guests see
// at the pivot.
func TestMirrorUnderManyWriters(t *testing.T) {
	const clusters, writers = 12, 4
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	writes := 400 // of each writer, for a slow machine
	if os.Getenv("BLOCKD_LONG") != "" {
		writes = 1 << 30
	}
	for round := range 4 {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			w := newWorld(t)
			source, target := newDisk("source", clusters).fill(0, clusters, 'a'), newDisk("target", clusters)
			g := w.guest(w.add(source, ""))
			w.add(target, "")
			model := source.Bytes()
			stop := make(chan struct{})
			var wg sync.WaitGroup
			for i := range writers {
				wg.Go(func() {
					r := rand.New(rand.NewPCG(seed, uint64(round*writers+i)))
					for range writes {
						select {
						case <-stop:
							return
						default:
						}
						// Each writer has sectors of its own, spread over all granules.
						sector := int64(r.IntN(clusters*cluster/512/writers))*writers + int64(i)
						data := bytes.Repeat([]byte{byte(r.IntN(255) + 1)}, 512)
						err := error(nil)
						if r.IntN(8) == 0 {
							clear(data)
							err = g.r.WriteZeroes(t.Context(), sector*512, 512, 0)
						} else {
							err = g.r.WriteV(t.Context(), sector*512, blockgraph.MakeIOVec(data), 0)
						}
						if err != nil {
							t.Error(err)
							return
						}
						copy(model[sector*512:], data)
					}
				})
			}
			a := qapi.BlockdevMirror{AutoFinalize: ptr(round%3 != 0), Granularity: ptr(uint32(4096 << (round % 3 * 2)))}
			if round%2 == 1 {
				a.CopyMode = writeBlocking
			}
			w.startMirror("source", "target", a)
			for k := range 6 { // back and forth; the job may not be at it yet
				mode := qapi.MirrorCopyModeBackground
				if k%2 == 0 {
					mode = qapi.MirrorCopyModeWriteBlocking
				}
				if err := w.setCopyMode(mode); err != nil {
					t.Fatal(err)
				}
			}
			// Nothing new becomes dirty from here on, so it gets ready.
			if err := w.setCopyMode(qapi.MirrorCopyModeWriteBlocking); err != nil {
				t.Fatal(err)
			}
			w.await("m READY")
			if err := w.setCopyMode(qapi.MirrorCopyModeBackground); err != nil {
				t.Fatal(err)
			}
			w.complete()
			if round%3 == 0 {
				w.await("m PENDING")
				w.verb("m", (*jobs.Job).Finalize)
			}
			w.await("m null")
			before := source.Bytes()
			close(stop)
			wg.Wait()
			if g.r.Node().Name() != "target" {
				t.Fatalf("guest over %s", g.r.Node().Name())
			}
			if !bytes.Equal(target.Bytes(), model) {
				t.Error("the guests do not see what they have written")
			}
			if !bytes.Equal(before, source.Bytes()) {
				t.Error("the source was written to after the pivot")
			}
		})
	}
}
