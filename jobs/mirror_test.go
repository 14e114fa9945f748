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
	"blockd/jobs/mirror"
	"blockd/qapi"
)

func (w *world) mirror(source, target string, a qapi.BlockdevMirror) error {
	return w.try(func(tx *blockgraph.Tx) error {
		if a.JobID == nil {
			a.JobID = ptr("m")
		}
		if a.Sync == "" {
			a.Sync = qapi.MirrorSyncModeFull
		}
		_, err := mirror.Prepare(tx, mirror.Request{Jobs: w.jobs, Source: tx.Find(source), Target: tx.Find(target), Args: &a, Unmap: true})
		return err
	})
}

func (w *world) startMirror(source, target string, a qapi.BlockdevMirror) {
	w.t.Helper()
	if err := w.mirror(source, target, a); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) startActiveCommit(top, base string) {
	w.t.Helper()
	w.update(func(tx *blockgraph.Tx) error {
		_, err := mirror.NewActiveCommit(tx, mirror.ActiveCommit{Jobs: w.jobs, Top: tx.Find(top), Base: tx.Find(base), JobID: ptr("m")})
		return err
	})
}

func (w *world) setCopyMode(mode qapi.MirrorCopyMode) error {
	var j *jobs.Job
	var err error
	w.graph.Loop().Do(func() { j, err = w.jobs.FindBlock("m") })
	if err != nil {
		return err
	}
	return j.ChangeOptions(context.Background(), &qapi.BlockJobChangeOptions{ID: "m", Type: qapi.JobTypeMirror, Mirror: &qapi.BlockJobChangeOptionsMirror{CopyMode: mode}})
}

func (w *world) complete() {
	w.t.Helper()
	w.verb("m", (*jobs.Job).Complete)
}

// softCancel is block-job-cancel without force.
func (w *world) softCancel() {
	w.t.Helper()
	w.verb("m", func(j *jobs.Job) error { return j.BlockCancel(false) })
}

const (
	mirrorReady = "m created, m running, m ready, m READY 4/4"
	mirrorEnded = "m waiting, m pending, m COMPLETED mirror 4/4, m concluded, m null"
)

var writeBlocking = ptr(qapi.MirrorCopyModeWriteBlocking)

func TestMirrorPivots(t *testing.T) {
	for _, mode := range []qapi.MirrorCopyMode{qapi.MirrorCopyModeBackground, qapi.MirrorCopyModeWriteBlocking} {
		t.Run(string(mode), func(t *testing.T) {
			w := newWorld(t)
			w.add(newDisk("base", 4).fill(0, 4, 'a'), "")
			source := newDisk("source", 4).fill(1, 2, 'b')
			g := w.guest(w.add(source, "base"))
			target := newDisk("target", 4)
			n := w.add(target, "")
			w.startMirror("source", "target", qapi.BlockdevMirror{CopyMode: &mode})
			w.expectEvents("m READY", mirrorReady)
			if w.filters() != 1 || g.r.Node().Type().Name != "mirror_top" {
				t.Errorf("the guest is over %s", g.r.Node().Name())
			}
			w.complete()
			w.expectEvents("m null", mirrorEnded)
			if g.r.Node() != n || w.filters() != 0 || w.names() != "base source target" {
				t.Errorf("the guest is over %s; nodes %s", g.r.Node().Name(), w.names())
			}
			if target.clusters() != "abaa" || !target.Synced() {
				t.Errorf("target %s", target.clusters())
			}
			if err := g.write(3, 'z'); err != nil || target.clusters() != "abaz" || source.clusters() != ".b.." {
				t.Errorf("after the pivot: %v, source %s, target %s", err, source.clusters(), target.clusters())
			}
			w.update(func(tx *blockgraph.Tx) error {
				for _, n := range w.nodes() {
					if err := tx.CheckBlocked(n, blockgraph.OpMirrorSource); err != nil && n.Name() != "base" {
						t.Error(err)
					}
				}
				return nil
			})
		})
	}
}

func TestMirrorThatIsCancelledWhenReadyCompletesWithoutPivot(t *testing.T) {
	w := newWorld(t)
	source, target := newDisk("source", 4).fill(0, 4, 'a'), newDisk("target", 4)
	g := w.guest(w.add(source, ""))
	w.add(target, "")
	w.startMirror("source", "target", qapi.BlockdevMirror{})
	w.expectEvents("m READY", mirrorReady)
	if err := g.write(1, 'n'); err != nil {
		t.Fatal(err)
	}
	w.softCancel()
	w.await("m null")
	if target.clusters() != "anaa" || g.r.Node().Name() != "source" || w.filters() != 0 {
		t.Errorf("target %s, guest over %s", target.clusters(), g.r.Node().Name())
	}
	if err := g.write(0, 'z'); err != nil || target.clusters() != "anaa" {
		t.Errorf("after the job: %v, target %s", err, target.clusters())
	}
}

func TestMirrorThatIsCancelledByForceLeavesTheSource(t *testing.T) {
	w := newWorld(t)
	g := w.guest(w.add(newDisk("source", 4).fill(0, 4, 'a'), ""))
	w.add(newDisk("target", 4), "")
	w.startMirror("source", "target", qapi.BlockdevMirror{})
	w.expectEvents("m READY", mirrorReady)
	w.verb("m", func(j *jobs.Job) error { return j.BlockCancel(true) })
	w.expectEvents("m null", "m aborting, m CANCELLED 4/4, m concluded, m null")
	if g.r.Node().Name() != "source" || w.filters() != 0 || g.sees() != "aaaa" {
		t.Errorf("guest over %s", g.r.Node().Name())
	}
}

func TestMirrorOfAnotherLengthFailsBeforeTheFirstByte(t *testing.T) {
	w := newWorld(t)
	w.add(newDisk("source", 4).fill(0, 4, 'a'), "")
	target := newDisk("target", 5)
	w.add(target, "")
	w.startMirror("source", "target", qapi.BlockdevMirror{})
	w.expectEvents("m null", "m created, m running, m aborting, m COMPLETED mirror 0/0: Source and target image have different sizes, m concluded, m null")
	if target.Writes.Load()+target.Zeroes.Load() != 0 {
		t.Error("something was written")
	}
}

func TestMirrorNoneCopiesWhatIsWritten(t *testing.T) {
	w := newWorld(t)
	g := w.guest(w.add(newDisk("source", 4).fill(0, 4, 'a'), ""))
	target := newDisk("target", 4)
	w.add(target, "")
	w.startMirror("source", "target", qapi.BlockdevMirror{Sync: qapi.MirrorSyncModeNone})
	w.expectEvents("m READY", "m created, m running, m ready, m READY 0/0")
	if err := g.write(2, 'n'); err != nil {
		t.Fatal(err)
	}
	w.softCancel()
	w.await("m null")
	if target.clusters() != "..n." {
		t.Errorf("target %s", target.clusters())
	}
}

func TestMirrorTopCopiesWhatTheTopHas(t *testing.T) {
	w := newWorld(t)
	w.add(newDisk("base", 4).fill(0, 4, 'a'), "")
	w.add(newDisk("source", 4).fill(1, 3, 'b'), "base")
	target := newDisk("target", 4)
	w.add(target, "base")
	w.startMirror("source", "target", qapi.BlockdevMirror{Sync: qapi.MirrorSyncModeTop})
	w.expectEvents("m READY", "m created, m running, m ready, m READY 2/2")
	if target.clusters() != ".bb." {
		t.Errorf("target %s", target.clusters())
	}
}

func TestMirrorOverwritesWhatTheTargetHadWhereTheSourceIsEmpty(t *testing.T) {
	for _, sync := range []qapi.MirrorSyncMode{qapi.MirrorSyncModeFull, qapi.MirrorSyncModeTop} {
		t.Run(string(sync), func(t *testing.T) {
			w := newWorld(t)
			w.add(newDisk("source", 4).fill(1, 2, 'b'), "")
			target := newDisk("target", 4).fill(0, 4, 'x')
			w.add(target, "")
			w.startMirror("source", "target", qapi.BlockdevMirror{Sync: sync})
			w.await("m READY")
			if target.clusters() != "0b00" {
				t.Errorf("target %s", target.clusters())
			}
		})
	}
}

func TestMirrorToATargetThatIsZeroWritesOnlyData(t *testing.T) {
	w := newWorld(t)
	w.add(newDisk("source", 4).fill(1, 2, 'b'), "")
	target := newDisk("target", 4)
	w.add(target, "")
	w.startMirror("source", "target", qapi.BlockdevMirror{TargetIsZero: ptr(true)})
	w.expectEvents("m READY", "m created, m running, m ready, m READY 1/1")
	if target.clusters() != ".b.." {
		t.Errorf("target %s", target.clusters())
	}
}

func TestMirrorThatStopsForAnErrorIsResumed(t *testing.T) {
	for _, side := range []string{"read", "write"} {
		t.Run(side, func(t *testing.T) {
			w := newWorld(t)
			source, target := newDisk("source", 4).fill(0, 4, 'a'), newDisk("target", 4)
			policy := ptr(qapi.BlockdevOnErrorStop)
			if side == "read" {
				source.onRead = failing(1, syscall.EIO)
			} else {
				target.onWrite = failing(1, syscall.ENOSPC)
			}
			w.add(source, "")
			w.add(target, "")
			w.startMirror("source", "target", qapi.BlockdevMirror{OnSourceError: policy, OnTargetError: policy})
			w.await("m ERROR " + side + " stop")
			w.await("m paused")
			want := map[string]qapi.BlockDeviceIoStatus{"read": qapi.BlockDeviceIoStatusFailed, "write": qapi.BlockDeviceIoStatusNospace}[side]
			if i := w.info("m"); i.IOStatus != want || !i.Paused {
				t.Errorf("%+v", i)
			}
			w.verb("m", (*jobs.Job).Resume)
			w.await("m READY 4/4")
			w.complete()
			w.await("m null")
			if target.clusters() != "aaaa" {
				t.Errorf("target %s", target.clusters())
			}
		})
	}
}

func TestMirrorTriesAgainWhatItIgnored(t *testing.T) {
	w := newWorld(t)
	source, target := newDisk("source", 4).fill(0, 4, 'a'), newDisk("target", 4)
	target.onWrite = failing(2, syscall.EIO)
	w.add(source, "")
	w.add(target, "")
	w.startMirror("source", "target", qapi.BlockdevMirror{OnTargetError: ptr(qapi.BlockdevOnErrorIgnore)})
	w.await("m ERROR write ignore")
	w.await("m READY 4/4")
	if target.clusters() != "aaaa" {
		t.Errorf("target %s", target.clusters())
	}
}

func TestMirrorReportsAnError(t *testing.T) {
	w := newWorld(t)
	g := w.guest(w.add(newDisk("source", 4).fill(0, 4, 'a'), ""))
	target := newDisk("target", 4)
	target.onWrite = failing(1, syscall.EIO)
	w.add(target, "")
	w.startMirror("source", "target", qapi.BlockdevMirror{})
	w.await("m ERROR write report")
	w.await("m aborting")
	got := w.await("m null")
	if want := "m COMPLETED mirror 0/4: Input/output error, m concluded, m null"; got != want {
		t.Errorf("events %s", got)
	}
	if g.r.Node().Name() != "source" || w.filters() != 0 {
		t.Errorf("guest over %s", g.r.Node().Name())
	}
}

// TestWriteBlockingBringsWritesToTheTarget: in that mode the target has a write
// when the guest hears of it.
func TestWriteBlockingBringsWritesToTheTarget(t *testing.T) {
	w := newWorld(t)
	g := w.guest(w.add(newDisk("source", 4).fill(0, 4, 'a'), ""))
	target := newDisk("target", 4)
	w.add(target, "")
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
	w := newWorld(t)
	g := w.guest(w.add(newDisk("source", 4).fill(0, 4, 'a'), ""))
	target := newDisk("target", 4)
	w.add(target, "")
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

// TestGuestGoesOnWhenTheTargetFails in write-blocking mode.
func TestGuestGoesOnWhenTheTargetFails(t *testing.T) {
	w := newWorld(t)
	g := w.guest(w.add(newDisk("source", 4).fill(0, 4, 'a'), ""))
	target := newDisk("target", 4)
	w.add(target, "")
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
	w := newWorld(t)
	g := w.guest(w.add(newDisk("source", 4).fill(0, 4, 'a'), ""))
	target := newDisk("target", 4)
	w.add(target, "")
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
	w := newWorld(t)
	g := w.guest(w.add(newDisk("source", 4).fill(0, 4, 'a'), ""))
	target := newDisk("target", 4)
	w.add(target, "")
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
	w := newWorld(t)
	g := w.guest(w.add(newDisk("source", 4).fill(0, 4, 'a'), ""))
	target := newDisk("target", 4)
	target.onWrite = func(int64, int64) error { // it gets nowhere before
		if n := g.r.Node(); n.Type().Name == "mirror_top" && !n.Driver().(interface{ Active() bool }).Active() {
			return syscall.EIO
		}
		return nil
	}
	w.add(target, "")
	w.startMirror("source", "target", qapi.BlockdevMirror{XWriteBlockingAfter: ptr(uint32(1)), OnTargetError: ptr(qapi.BlockdevOnErrorIgnore)})
	w.await("m READY")
	filter := g.r.Node().Type().Name
	if err := g.write(1, 'n'); err != nil || target.clusters() != "anaa" || filter != "mirror_top" {
		t.Errorf("%v, target %s, guest over %s", err, target.clusters(), filter)
	}
	w.softCancel()
	w.await("m null")
}

func TestActiveCommitPivotsToItsBase(t *testing.T) {
	w := newWorld(t)
	base, mid, top := chain(w)
	g := w.guest(w.node("top"))
	w.startActiveCommit("top", "base")
	w.expectEvents("m READY", "m created, m running, m ready, m READY 3/3")
	if err := g.write(0, 'n'); err != nil {
		t.Fatal(err)
	}
	w.complete()
	w.await("m null")
	if g.r.Node().Name() != "base" || g.sees() != "nbbc" || base.clusters() != "nbbc" || w.filters() != 0 {
		t.Errorf("guest over %s sees %s; base %s", g.r.Node().Name(), g.sees(), base.clusters())
	}
	if mid.clusters() != ".bb." || top.clusters() != "n..c" {
		t.Errorf("mid %s, top %s", mid.clusters(), top.clusters())
	}
}

func TestActiveCommitThatIsCancelledLeavesTheChain(t *testing.T) {
	w := newWorld(t)
	base, _, _ := chain(w)
	g := w.guest(w.node("top"))
	w.startActiveCommit("top", "base")
	w.await("m READY")
	w.softCancel()
	w.await("m null")
	if g.r.Node().Name() != "top" || g.sees() != "abbc" || base.clusters() != "abbc" || w.backingOf("top") != "mid" || w.filters() != 0 {
		t.Errorf("guest over %s sees %s; base %s", g.r.Node().Name(), g.sees(), base.clusters())
	}
}

func TestRefusedMirrorLeavesEverythingAsItWas(t *testing.T) {
	w := newWorld(t)
	g := w.guest(w.add(newDisk("source", 4).fill(0, 4, 'a'), ""))
	w.add(newDisk("target", 4), "")
	for _, c := range []struct {
		target string
		a      qapi.BlockdevMirror
		want   string
	}{
		{"source", qapi.BlockdevMirror{}, "Can't mirror node into itself"},
		{"target", qapi.BlockdevMirror{Sync: qapi.MirrorSyncModeIncremental}, "Sync mode 'incremental' not supported"},
		{"target", qapi.BlockdevMirror{BufSize: ptr(int64(-1))}, "Invalid parameter 'buf-size'"},
		{"target", qapi.BlockdevMirror{Granularity: ptr(uint32(1000))}, "Parameter 'granularity' expects a power of 2"},
		{"target", qapi.BlockdevMirror{Replaces: ptr("target")}, "Cannot replace 'target' by a node mirrored from 'source', because it cannot be guaranteed that doing so would not lead to an abrupt change of visible data"},
		{"target", qapi.BlockdevMirror{FilterNodeName: ptr("target")}, "Duplicate nodes with node-name='target'"},
		{"target", qapi.BlockdevMirror{Speed: ptr(int64(-1))}, "Parameter 'speed' expects a non-negative value"},
		{"target", qapi.BlockdevMirror{JobID: ptr("1 bad")}, "Invalid job ID '1 bad'"},
	} {
		if err := w.mirror("source", c.target, c.a); err == nil || err.Error() != c.want {
			t.Errorf("%v, want %s", err, c.want)
		}
		if g.r.Node().Name() != "source" || w.filters() != 0 || w.names() != "source target" {
			t.Fatalf("left: %s, guest over %s", w.names(), g.r.Node().Name())
		}
	}
	w.startMirror("source", "target", qapi.BlockdevMirror{})
	w.await("m READY")
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
