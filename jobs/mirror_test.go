package jobs_test

import (
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

func (w *world) complete() {
	w.t.Helper()
	w.verb("m", (*jobs.Job).Complete)
}

// softCancel is block-job-cancel without force.
func (w *world) softCancel() {
	w.t.Helper()
	w.verb("m", func(j *jobs.Job) error { return j.BlockCancel(false) })
}

// mirrorWorld has a source of four clusters, full of a, with a guest, and an
// empty target of the same size.
func mirrorWorld(t *testing.T) (*world, *guest, *disk) {
	w := newWorld(t)
	g := w.guest(w.add(newDisk("source", 4).fill(0, 4, 'a'), ""))
	target := newDisk("target", 4)
	w.add(target, "")
	return w, g, target
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
	w, g, _ := mirrorWorld(t)
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
	w, g, target := mirrorWorld(t)
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
	w, g, _ := mirrorWorld(t)
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
