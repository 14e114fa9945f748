package jobs_test

import (
	"os"
	"strings"
	"syscall"
	"testing"

	"blockd/blockgraph"
	"blockd/jobs"
	"blockd/jobs/scratch"
	"blockd/qapi"
)

// scratchWorld has a source of 64 clusters with a guest, a target, and room
// for scratches.
func scratchWorld(t *testing.T, c scratch.Config) (w *world, g *guest, target *disk) {
	w = newWorld(t)
	var err error
	if w.room, err = scratch.NewPool(c); err != nil {
		t.Fatal(err)
	}
	g = w.guest(w.add(newDisk("top", 64).fill(0, 64, 'a'), ""))
	target = newDisk("target", 64)
	w.add(target, "")
	return w, g, target
}

// oneStep is a speed at which a job has one cluster in flight and then waits
// for eleven minutes.
var oneStep = ptr(int64(100))

func (w *world) expectNoRoomTaken() {
	w.t.Helper()
	if m, f := w.room.Usage(); m != 0 || f != 0 {
		w.t.Errorf("%d bytes of memory and %d of files are still taken", m, f)
	}
}

func TestGuestsWritesDoNotWaitForATargetThatHangs(t *testing.T) {
	for _, c := range []struct {
		name string
		room func(t *testing.T) scratch.Config
	}{
		{"in memory", func(*testing.T) scratch.Config { return scratch.Config{} }},
		{"spilled", func(t *testing.T) scratch.Config { return scratch.Config{Directory: t.TempDir(), Memory: 64 << 10} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, g, target := scratchWorld(t, c.room(t))
			hung := newHold()
			target.onWrite = hung.wait
			w.startBackup("top", "target", qapi.BackupCommon{Speed: oneStep})
			<-hung.entered
			for c := range 64 { // the one that the job's own step has, too
				if err := g.write(c, 'n'); err != nil {
					t.Fatal(err)
				}
			}
			i := w.info("b")
			if x := i.XScratch; i.Offset != 0 || x == nil || x.Memory+x.Spilled != 63*cluster {
				t.Errorf("%+v, scratch %+v", i, x)
			}
			close(hung.released)
			w.verb("b", func(j *jobs.Job) error { return j.SetSpeed(0) })
			w.expectEvents("b null", started+", b waiting, b pending, b COMPLETED backup 64/64, b concluded, b null")
			if got := target.clusters(); got != strings.Repeat("a", 64) || g.sees() != strings.Repeat("n", 64) {
				t.Errorf("target %q, guest %q", got, g.sees())
			}
			w.expectNoRoomTaken()
		})
	}
}

// TestFullScratchHasTheGuestWait: beyond its room the scratch changes nothing.
func TestFullScratchHasTheGuestWait(t *testing.T) {
	w, g, target := scratchWorld(t, scratch.Config{})
	hung := newHold()
	target.onWrite = hung.wait
	w.startBackup("top", "target", qapi.BackupCommon{Speed: oneStep, XScratch: &qapi.BackupScratch{MaxSize: ptr(uint64(2 * cluster))}})
	<-hung.entered
	for _, c := range []int{10, 11} {
		if err := g.write(c, 'n'); err != nil {
			t.Fatal(err)
		}
	}
	// The third one's copy arrives at the target, and its write only returns
	// when that does.
	direct := make(chan struct{})
	released := hung.released
	target.onWrite = func(off, _ int64) error {
		if off == 12*cluster {
			close(direct)
		}
		<-released
		return nil
	}
	done := make(chan error, 1)
	go func() { done <- g.write(12, 'n') }()
	<-direct
	select {
	case err := <-done:
		t.Error("the write did not wait", err)
	default:
	}
	close(released)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if x := w.info("b").XScratch; x == nil || x.Full != 1 || x.MaxSize != 2*cluster {
		t.Errorf("scratch %+v", x)
	}
	w.verb("b", func(j *jobs.Job) error { return j.SetSpeed(0) })
	w.await("b COMPLETED backup 64/64")
	if got := target.clusters(); got != strings.Repeat("a", 64) {
		t.Errorf("target %q", got)
	}
}

func TestFullScratchBreaksTheSnapshotIfAskedTo(t *testing.T) {
	w, g, target := scratchWorld(t, scratch.Config{})
	hung := newHold()
	target.onWrite = hung.wait
	w.startBackup("top", "target", qapi.BackupCommon{Speed: oneStep, XScratch: &qapi.BackupScratch{
		MaxSize: ptr(uint64(2 * cluster)), WhenFull: ptr(qapi.ScratchWhenFullBreakSnapshot)}})
	<-hung.entered
	for c := range 20 { // the step's own cluster, two with room, and more
		if err := g.write(c, 'n'); err != nil {
			t.Fatal(err)
		}
	}
	close(hung.released)
	w.await("b COMPLETED backup 1/64: No space left on device")
	w.await("b null")
	w.expectNoRoomTaken()
}

// TestTargetThatFailsLosesNothing: what a step had read and the target refused
// is kept, although the guest has overwritten it since.
func TestTargetThatFailsLosesNothing(t *testing.T) {
	for _, room := range []scratch.Config{{}, {Memory: 1}} { // also without room
		w, g, target := scratchWorld(t, room)
		target.onWrite = failing(1, syscall.ENOSPC)
		w.startBackup("top", "target", qapi.BackupCommon{OnTargetError: ptr(qapi.BlockdevOnErrorEnospc)})
		w.await("b ERROR write stop")
		w.await("b paused")
		if i := w.info("b"); i.IOStatus != qapi.BlockDeviceIoStatusNospace || i.XScratch == nil || i.XScratch.Memory == 0 {
			t.Errorf("%+v", i)
		}
		for c := range 64 {
			if err := g.write(c, 'n'); err != nil {
				t.Fatal(err)
			}
		}
		w.verb("b", (*jobs.Job).Resume)
		w.await("b COMPLETED backup 64/64")
		if got := target.clusters(); got != strings.Repeat("a", 64) {
			t.Errorf("target %q", got)
		}
		w.await("b null")
		w.expectNoRoomTaken()
	}
}

func TestCancelDropsTheScratch(t *testing.T) {
	w, g, target := scratchWorld(t, scratch.Config{Directory: t.TempDir(), Memory: 3 * cluster})
	hung := newHold()
	target.onWrite = hung.wait
	w.startBackup("top", "target", qapi.BackupCommon{Speed: oneStep})
	<-hung.entered
	for c := range 20 {
		if err := g.write(c, 'n'); err != nil {
			t.Fatal(err)
		}
	}
	w.verb("b", func(j *jobs.Job) error { return j.Cancel(true) })
	w.expectEvents("b concluded", started+", b aborting, b CANCELLED 0/64, b concluded")
	w.expectNoRoomTaken() // although a request hangs
	close(hung.released)
	w.await("b null")
}

// TestScratchThatCannotBeWrittenHasNoRoom: a guest's write does not fail for a
// directory of ours.
func TestScratchThatCannotBeWrittenHasNoRoom(t *testing.T) {
	for _, full := range []qapi.ScratchWhenFull{qapi.ScratchWhenFullWait, qapi.ScratchWhenFullBreakSnapshot} {
		dir := t.TempDir() + "/d"
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		w, g, target := scratchWorld(t, scratch.Config{Directory: dir, Memory: 4096})
		if err := os.Remove(dir); err != nil {
			t.Fatal(err)
		}
		hung := newHold()
		target.onWrite = func(off, n int64) error {
			if off == 7*cluster {
				return nil // the guest's own copy
			}
			return hung.wait(off, n)
		}
		w.startBackup("top", "target", qapi.BackupCommon{Speed: oneStep, XScratch: &qapi.BackupScratch{WhenFull: &full}})
		<-hung.entered
		err := g.write(7, 'n')
		if err != nil {
			t.Error(full, err)
		}
		if full == qapi.ScratchWhenFullBreakSnapshot {
			close(hung.released)
			w.await("b COMPLETED backup 1/64: No such file or directory")
			w.await("b null")
			w.expectNoRoomTaken()
			continue
		}
		if x := w.info("b").XScratch; x == nil || x.Full != 1 || x.Peak == 0 {
			t.Errorf("scratch %+v", x)
		}
		close(hung.released)
		w.verb("b", func(j *jobs.Job) error { return j.SetSpeed(0) })
		w.await("b COMPLETED backup 64/64")
		if got := target.clusters(); got != strings.Repeat("a", 64) || g.sees()[7] != 'n' {
			t.Errorf("%s: target %q, guest %q", full, got, g.sees())
		}
		w.await("b null")
		w.expectNoRoomTaken()
	}
}

func TestNoScratchWhereReadersOfTheTargetWouldMissIt(t *testing.T) {
	w, g, _ := scratchWorld(t, scratch.Config{})
	overlay := newDisk("overlay", 64)
	w.add(overlay, "top")
	on := &qapi.BackupScratch{Enable: ptr(true)}
	for _, c := range []struct {
		target string
		a      qapi.BackupCommon
		want   string
	}{
		{"target", qapi.BackupCommon{Sync: qapi.MirrorSyncModeNone, XScratch: on}, "sync mode 'none' does not allow a scratch"},
		{"overlay", qapi.BackupCommon{XScratch: on}, "The target 'overlay' reads from the source, which does not allow a scratch"},
		{"target", qapi.BackupCommon{XScratch: &qapi.BackupScratch{MaxSize: ptr(uint64(1 << 63))}}, "max-size too large: 9223372036854775808 > 9223372036854775807"},
	} {
		c.a.JobID = ptr("b")
		err := w.try(func(tx *blockgraph.Tx) error { return w.backup(tx, nil, "top", c.target, c.a) })
		if err == nil || err.Error() != c.want {
			t.Errorf("%v, want %s", err, c.want)
		}
	}
	if w.filters() != 0 {
		t.Error("a filter was left behind")
	}
	w.startBackup("top", "overlay", qapi.BackupCommon{Speed: oneStep})
	if err := g.write(9, 'n'); err != nil {
		t.Fatal(err)
	}
	if got := overlay.clusters()[9]; got != 'a' {
		t.Errorf("the target has %q when the guest's write returns", got)
	}
	w.verb("b", func(j *jobs.Job) error { return j.Cancel(true) })
	w.await("b null")
}
