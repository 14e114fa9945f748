package jobs_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"blockd/blockgraph"
	"blockd/blockgraph/graphtest"
	"blockd/jobs"
	"blockd/jobs/backup"
	"blockd/qapi"
)

func (w *world) backup(tx *blockgraph.Tx, txn *jobs.Txn, source, target string, a qapi.BackupCommon) error {
	if a.Sync == "" {
		a.Sync = qapi.MirrorSyncModeFull
	}
	_, err := backup.Prepare(tx, backup.Request{Jobs: w.jobs, Txn: txn, Source: tx.Find(source), Target: tx.Find(target), Args: &a, Scratch: w.room})
	return err
}

func (w *world) startBackup(source, target string, a qapi.BackupCommon) {
	w.t.Helper()
	if a.JobID == nil {
		a.JobID = ptr("b")
	}
	w.update(func(tx *blockgraph.Tx) error { return w.backup(tx, nil, source, target, a) })
}

const started = "b created, b running, b paused, b running"

func TestBackupCopiesEverythingAndRemovesItsFilter(t *testing.T) {
	w := newWorld(t)
	w.add(newDisk("base", 4).fill(0, 4, 'a'), "")
	w.add(newDisk("top", 4).fill(1, 2, 'b'), "base")
	target := newDisk("target", 4)
	w.add(target, "")
	w.startBackup("top", "target", qapi.BackupCommon{})
	w.expectEvents("b null", started+", b waiting, b pending, b COMPLETED backup 4/4, b concluded, b null")
	if got := target.clusters(); got != "abaa" {
		t.Errorf("target %q", got)
	}
	if !target.Synced() {
		t.Error("the target was not flushed before the job's end")
	}
	if w.filters() != 0 || w.names() != "base target top" {
		t.Errorf("left: %s, %d filters", w.names(), w.filters())
	}
	w.update(func(tx *blockgraph.Tx) error {
		for _, n := range w.nodes() {
			if err := tx.CheckBlocked(n, blockgraph.OpBackupSource); err != nil {
				t.Error(err)
			}
		}
		return nil
	})
}

func TestBackupTopCopiesWhatTheTopHas(t *testing.T) {
	w := newWorld(t)
	w.add(newDisk("base", 4).fill(0, 4, 'a'), "")
	w.add(newDisk("top", 4).fill(1, 3, 'b'), "base")
	target := newDisk("target", 4)
	w.add(target, "base")
	w.startBackup("top", "target", qapi.BackupCommon{Sync: qapi.MirrorSyncModeTop})
	w.expectEvents("b null", started+", b waiting, b pending, b COMPLETED backup 2/2, b concluded, b null")
	if got := target.clusters(); got != ".bb." {
		t.Errorf("target %q", got)
	}
}

// TestBackupTopGoesOnUnderANewOverlay: what the top had is copied by the job and
// saved for a guest, although the node below the filter is another one now,
// or the top was merged into its backing file.
func TestBackupTopGoesOnUnderANewOverlay(t *testing.T) {
	for _, merged := range []bool{false, true} {
		w := newWorld(t)
		base := w.add(newDisk("base", 6).fill(0, 6, 'a'), "")
		top := w.add(newDisk("top", 6).fill(1, 2, 'b').fill(3, 4, 'c').fill(5, 6, 'd'), "base")
		g := w.guest(top)
		target := newDisk("target", 6)
		begun := make(chan struct{}, 6)
		target.onWrite = func(int64, int64) error { begun <- struct{}{}; return nil }
		w.add(target, "")
		w.startBackup("top", "target", qapi.BackupCommon{Sync: qapi.MirrorSyncModeTop, Speed: oneStep})
		<-begun // cluster 1; nothing else is looked at in the next eleven minutes
		// What the top lacks was left out before the first copy.
		const want = ".b.c.d"
		if merged {
			w.disks["/base"].fill(1, 2, 'b').fill(3, 4, 'c').fill(5, 6, 'd')
			w.update(func(tx *blockgraph.Tx) error {
				if err := tx.Drain(top); err != nil {
					return err
				}
				return tx.ReplaceNode(top, base)
			})
		} else {
			overlay := w.add(newDisk("overlay", 6), "")
			w.update(func(tx *blockgraph.Tx) error {
				if err := tx.Drain(top); err != nil {
					return err
				}
				return tx.Append(overlay, top)
			})
		}
		if err := g.write(5, 'n'); err != nil {
			t.Fatal(err)
		}
		w.verb("b", func(j *jobs.Job) error { return j.SetSpeed(0) })
		w.await("b null")
		if got := target.clusters(); got != want || g.sees()[5] != 'n' {
			t.Errorf("merged %v: target %q, want %q, guest %q", merged, got, want, g.sees())
		}
	}
}

// TestBackupIsOnePointInTime: what guests write after the change is not in the
// backups of any of its disks.
func TestBackupIsOnePointInTime(t *testing.T) {
	w := newWorld(t)
	sources, targets := map[string]*guest{}, map[string]*disk{}
	slow := newHold()
	for _, d := range []string{"x", "y"} {
		sources[d] = w.guest(w.add(newDisk(d, 8).fill(0, 8, 'a'), ""))
		targets[d] = newDisk(d+"t", 8)
		w.add(targets[d], "")
	}
	targets["x"].onWrite = slow.wait
	w.update(func(tx *blockgraph.Tx) error {
		txn := w.jobs.NewTxn()
		for _, d := range []string{"x", "y"} {
			if err := w.backup(tx, txn, d, d+"t", qapi.BackupCommon{JobID: ptr(d)}); err != nil {
				return err
			}
		}
		return nil
	})
	w.expectEvents("y running", "x created, y created, x running, x paused, y running")
	<-slow.entered
	done := make(chan error, 1)
	go func() { done <- sources["x"].write(7, 'n') }() // waits for its old data to be saved
	if err := sources["y"].write(0, 'n'); err != nil {
		t.Fatal(err)
	}
	close(slow.released)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	w.await("x null")
	for d, target := range targets {
		if got := target.clusters(); got != "aaaaaaaa" {
			t.Errorf("backup of %s is %q", d, got)
		}
	}
	if sources["x"].sees() != "aaaaaaan" || sources["y"].sees() != "naaaaaaa" {
		t.Errorf("guests see %s and %s", sources["x"].sees(), sources["y"].sees())
	}
}

// pace lets guests make so many rounds of writes, and has them rest then.
type pace struct {
	mu   sync.Mutex
	more *sync.Cond
	left int
	over bool
}

func newPace() *pace {
	p := &pace{}
	p.more = sync.NewCond(&p.mu)
	return p
}

// next waits for a round, and returns false in the end.
func (p *pace) next() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.left == 0 && !p.over {
		p.more.Wait()
	}
	p.left--
	return !p.over
}

// set sets how many rounds all guests together make from now on.
func (p *pace) set(rounds int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.left = rounds
	p.more.Broadcast()
}

func (p *pace) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.over = true
	p.more.Broadcast()
}

// TestBackupsOfATransactionUnderWriters: eight writers put a rising number on
// disk x, then y, then z, each after the other's completion. In every set of
// backups x >= y >= z, and x - z <= 1, per writer (seed: "install notifier
// during creation"). The writers rest soon after the point in time, but in
// every fourth round, in which they also write while the jobs end.
func TestBackupsOfATransactionUnderWriters(t *testing.T) {
	const writers = 8
	rounds := graphtest.Sample(t, 24, 1000)
	w := newWorld(t)
	names := []string{"x", "y", "z"}
	var guests []*guest
	for _, d := range names {
		guests = append(guests, w.guest(w.add(newDisk(d, writers), "")))
	}
	p := newPace()
	var written atomic.Int64
	var wg sync.WaitGroup
	for i := range int64(writers) {
		wg.Go(func() {
			for n := uint64(1); p.next(); n++ {
				for _, g := range guests {
					v := blockgraph.MakeIOVec(binary.BigEndian.AppendUint64(nil, n))
					if err := g.r.WriteV(t.Context(), i*cluster, v, 0); err != nil {
						t.Error(err)
						return
					}
				}
				written.Add(1)
			}
		})
	}
	defer wg.Wait()
	defer p.end()
	for round := range rounds {
		p.set(math.MaxInt)
		txn := w.jobs.NewTxn()
		targets := make([]*disk, len(names))
		for i, d := range names {
			targets[i] = newDisk(fmt.Sprintf("%s%d", d, round), writers)
			w.add(targets[i], "")
		}
		w.update(func(tx *blockgraph.Tx) error {
			for i, d := range names {
				if err := w.backup(tx, txn, d, targets[i].name, qapi.BackupCommon{JobID: &targets[i].name}); err != nil {
					return err
				}
				for more := written.Load() + 2; written.Load() < more; { // time for an early point in time to show
					runtime.Gosched()
				}
			}
			return nil
		})
		if round%4 != 0 {
			p.set(4 * writers)
		}
		<-txn.Over()
		for i := range writers {
			var n [3]uint64
			for k := range n {
				n[k] = binary.BigEndian.Uint64(targets[k].Bytes()[i*cluster:])
			}
			if n[0] < n[1] || n[1] < n[2] || n[0]-n[2] > 1 {
				t.Errorf("round %d, writer %d: %d", round, i, n)
			}
		}
		w.update(func(tx *blockgraph.Tx) error {
			for _, d := range targets {
				tx.SetMonitorOwned(tx.Find(d.name), false)
				delete(w.disks, "/"+d.name) // 1,000 rounds would keep gigabytes
			}
			return nil
		})
		w.takeEvents()
	}
}

func TestBackupNoneSavesOnlyWhatIsOverwritten(t *testing.T) {
	w := newWorld(t)
	g := w.guest(w.add(newDisk("top", 4).fill(0, 4, 'a'), ""))
	target := newDisk("target", 4)
	w.add(target, "")
	w.startBackup("top", "target", qapi.BackupCommon{Sync: qapi.MirrorSyncModeNone, FilterNodeName: ptr("cbw")})
	w.expectEvents("b running", "b created, b running")
	if w.names() != "cbw target top" {
		t.Errorf("nodes %s", w.names())
	}
	for range 2 {
		if err := g.write(2, 'n'); err != nil {
			t.Fatal(err)
		}
	}
	if got := target.clusters(); got != "..a." {
		t.Errorf("target %q", got)
	}
	if i := w.info("b"); i.Busy || i.Offset != cluster || i.Len != 4*cluster {
		t.Errorf("%+v", i)
	}
	w.verb("b", (*jobs.Job).Pause)
	w.verb("b", func(j *jobs.Job) error { return j.Cancel(true) })
	w.await("b aborting")
	w.expectEvents("b null", "b CANCELLED 1/4, b concluded, b null")
	if w.names() != "target top" || g.sees() != "aana" {
		t.Errorf("nodes %s, guest %s", w.names(), g.sees())
	}
	if err := g.write(0, 'z'); err != nil || target.clusters() != "..a." {
		t.Errorf("after the job: %v, target %s", err, target.clusters())
	}
}

func TestBackupTargetFullStopsTheJobUntilItIsResumed(t *testing.T) {
	w := newWorld(t)
	w.add(newDisk("top", 4).fill(0, 4, 'a'), "")
	target := newDisk("target", 4)
	target.onWrite = failing(1, syscall.ENOSPC)
	w.add(target, "")
	w.startBackup("top", "target", qapi.BackupCommon{OnTargetError: ptr(qapi.BlockdevOnErrorEnospc)})
	w.await("b ERROR write stop")
	w.await("b paused")
	if i := w.info("b"); i.IOStatus != qapi.BlockDeviceIoStatusNospace || !i.Paused || i.Status != qapi.JobStatusPaused {
		t.Errorf("%+v", i)
	}
	w.verb("b", (*jobs.Job).Resume)
	w.expectEvents("b null", "b running, b waiting, b pending, b COMPLETED backup 4/4, b concluded, b null")
	if got := target.clusters(); got != "aaaa" {
		t.Errorf("target %q", got)
	}
}

func TestBackupWhoseTargetCannotBeFlushedStops(t *testing.T) {
	w := newWorld(t)
	w.add(newDisk("top", 4).fill(0, 4, 'a'), "")
	target := newDisk("target", 4)
	target.flushErrs = []error{syscall.EIO}
	w.add(target, "")
	w.startBackup("top", "target", qapi.BackupCommon{OnTargetError: ptr(qapi.BlockdevOnErrorStop)})
	w.await("b ERROR write stop")
	w.await("b paused")
	w.verb("b", (*jobs.Job).Resume)
	w.expectEvents("b null", "b running, b waiting, b pending, b COMPLETED backup 4/4, b concluded, b null")
	if !target.Synced() {
		t.Error("the job ended without a flush")
	}
}

// TestBackupPausesWhileItWaitsForItsSpeed: a pause does not wait for the next
// piece to be due.
func TestBackupPausesWhileItWaitsForItsSpeed(t *testing.T) {
	w := newWorld(t)
	w.add(newDisk("top", 64).fill(0, 64, 'a'), "")
	target := newDisk("target", 64)
	w.add(target, "")
	w.startBackup("top", "target", qapi.BackupCommon{Speed: ptr(int64(100))}) // a piece in eleven minutes
	w.expectEvents("b paused", "b created, b running, b paused")
	w.await("b running")
	w.verb("b", (*jobs.Job).Pause)
	w.expectEvents("b paused", "b paused")
	if i := w.info("b"); i.Offset == i.Len || i.Speed != 100 {
		t.Errorf("%+v", i)
	}
	w.verb("b", func(j *jobs.Job) error { return j.SetSpeed(0) })
	w.verb("b", (*jobs.Job).Resume)
	w.await("b COMPLETED backup 64/64")
}

// TestCancelOfABackupWhoseTargetHangs: the end is told although a write does
// not return; the job and the filter stay until it has.
func TestCancelOfABackupWhoseTargetHangs(t *testing.T) {
	w := newWorld(t)
	w.add(newDisk("top", 4).fill(0, 4, 'a'), "")
	target := newDisk("target", 4)
	hung := newHold()
	target.onWrite = hung.wait
	w.add(target, "")
	w.startBackup("top", "target", qapi.BackupCommon{})
	<-hung.entered
	w.verb("b", func(j *jobs.Job) error { return j.Cancel(true) })
	w.expectEvents("b concluded", started+", b aborting, b CANCELLED 0/4, b concluded")
	if i := w.info("b"); w.filters() != 1 || i.XOrphans == nil || *i.XOrphans != 1 || i.Status != qapi.JobStatusConcluded {
		t.Errorf("%d filters while a request is in flight, %+v", w.filters(), i)
	}
	close(hung.released)
	w.expectEvents("b null", "b null")
	if err := w.jobs.Shutdown(t.Context()); err != nil { // waits for what is in flight
		t.Fatal(err)
	}
	if w.filters() != 0 {
		t.Errorf("%d filters left", w.filters())
	}
}

func TestBackupErrorIsReported(t *testing.T) {
	for _, c := range []struct {
		read, write, flush error
		event, text        string
	}{
		{read: syscall.EIO, event: "b ERROR read report", text: "Input/output error"},
		{read: syscall.ENXIO, event: "b ERROR read report", text: "No such device or address"},
		{write: syscall.ENOSPC, event: "b ERROR write report", text: "No space left on device"},
		{flush: syscall.EDQUOT, event: "b ERROR write report", text: "Disk quota exceeded"},
	} {
		w := newWorld(t)
		source, target := newDisk("top", 4).fill(0, 4, 'a'), newDisk("target", 4)
		source.onRead = func(int64, int64) error { return c.read }
		target.onWrite = func(int64, int64) error { return c.write }
		copied := "0/4"
		if c.flush != nil {
			target.flushErrs, copied = []error{c.flush}, "4/4"
		}
		w.add(source, "")
		w.add(target, "")
		w.startBackup("top", "target", qapi.BackupCommon{})
		w.expectEvents("b null", started+", "+c.event+", b aborting, b COMPLETED backup "+copied+": "+c.text+", b concluded, b null")
		if w.filters() != 0 {
			t.Error("the filter was left behind")
		}
	}
}

func TestBackupThatIgnoresAnErrorTriesAgain(t *testing.T) {
	w := newWorld(t)
	source := newDisk("top", 4).fill(0, 4, 'a')
	source.onRead = failing(1, syscall.EIO)
	w.add(source, "")
	target := newDisk("target", 4)
	w.add(target, "")
	w.startBackup("top", "target", qapi.BackupCommon{OnSourceError: ptr(qapi.BlockdevOnErrorIgnore)})
	w.await("b ERROR read ignore")
	w.await("b COMPLETED backup 4/4")
	if got := target.clusters(); got != "aaaa" {
		t.Errorf("target %q", got)
	}
}

// TestBackupWhoseSnapshotBreaksFails: with break-snapshot a guest's write wins
// over the point in time, and the job says that the copy is worthless.
func TestBackupWhoseSnapshotBreaksFails(t *testing.T) {
	w := newWorld(t)
	g := w.guest(w.add(newDisk("top", 4).fill(0, 4, 'a'), ""))
	target := newDisk("target", 4)
	target.onWrite = func(int64, int64) error { return syscall.ENOSPC }
	w.add(target, "")
	w.startBackup("top", "target", qapi.BackupCommon{Sync: qapi.MirrorSyncModeNone, OnCBWError: ptr(qapi.OnCbwErrorBreakSnapshot)})
	if err := g.write(1, 'n'); err != nil {
		t.Fatal(err)
	}
	w.expectEvents("b null", started+", b aborting, b COMPLETED backup 0/4: No space left on device, b concluded, b null")
	if g.sees() != "anaa" {
		t.Errorf("guest sees %s", g.sees())
	}
}

func TestBackupWhoseCopyFailsFailsTheGuestsWrite(t *testing.T) {
	w := newWorld(t)
	g := w.guest(w.add(newDisk("top", 4).fill(0, 4, 'a'), ""))
	target := newDisk("target", 4)
	target.onWrite = failing(1, syscall.ENOSPC)
	w.add(target, "")
	w.startBackup("top", "target", qapi.BackupCommon{Sync: qapi.MirrorSyncModeNone})
	if err := g.write(1, 'n'); !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	if err := g.write(1, 'n'); err != nil { // the target has room again
		t.Fatal(err)
	}
	if got := target.clusters(); got != ".a.." {
		t.Errorf("target %q", got)
	}
}

func TestUndoneTransactionOfBackupsLeavesNothing(t *testing.T) {
	w := newWorld(t)
	g := w.guest(w.add(newDisk("x", 4).fill(0, 4, 'a'), ""))
	for _, d := range []string{"y", "xt", "yt"} {
		w.add(newDisk(d, 4), "")
	}
	before := len(w.nodes())
	err := w.try(func(tx *blockgraph.Tx) error {
		if err := w.backup(tx, nil, "x", "xt", qapi.BackupCommon{JobID: ptr("x")}); err != nil {
			return err
		}
		if err := w.backup(tx, nil, "y", "yt", qapi.BackupCommon{JobID: ptr("y"), AutoDismiss: ptr(false)}); err != nil {
			return err
		}
		return errors.New("Transaction aborted using Abort action")
	})
	if err == nil || len(w.nodes()) != before {
		t.Errorf("%v, %d nodes, before %d", err, len(w.nodes()), before)
	}
	w.expectEvents("x null", "x created, y created, y aborting, y concluded, y null, x aborting, x concluded, x null")
	if err := g.write(0, 'n'); err != nil || w.disks["/xt"].clusters() != "...." {
		t.Errorf("%v, target %s", err, w.disks["/xt"].clusters())
	}
}

func TestTwoBackupsOfOneSourceAtATime(t *testing.T) {
	w := newWorld(t)
	g := w.guest(w.add(newDisk("x", 4).fill(0, 4, 'a'), ""))
	w.add(newDisk("t1", 4), "")
	w.add(newDisk("t2", 4), "")
	none := qapi.MirrorSyncModeNone
	w.startBackup("x", "t1", qapi.BackupCommon{JobID: ptr("b1"), Sync: none})
	w.startBackup("x", "t2", qapi.BackupCommon{JobID: ptr("b2"), Sync: none})
	if err := g.write(1, 'n'); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"b1", "b2"} {
		w.verb(id, func(j *jobs.Job) error { return j.Cancel(true) })
		w.await(id + " null")
	}
	for _, d := range []string{"/t1", "/t2"} {
		if got := w.disks[d].clusters(); got != ".a.." {
			t.Errorf("%s is %q", d, got)
		}
	}
	if w.filters() != 0 || g.sees() != "anaa" {
		t.Errorf("%d filters, guest %s", w.filters(), g.sees())
	}
}

func TestBackupRefusals(t *testing.T) {
	w := newWorld(t)
	for _, d := range []string{"top", "target", "t2"} {
		w.add(newDisk(d, 4), "")
	}
	w.add(newDisk("small", 2), "")
	before := len(w.nodes())
	bitmap := func(s string) *string { return &s }
	mode := func(m qapi.BitmapSyncMode) *qapi.BitmapSyncMode { return &m }
	for _, c := range []struct {
		source, target string
		a              qapi.BackupCommon
		want           string
		events         string
	}{
		{"top", "small", qapi.BackupCommon{}, "Source and target image have different sizes", ""},
		{"top", "top", qapi.BackupCommon{}, "Source and target cannot be the same", ""},
		{"top", "target", qapi.BackupCommon{Compress: ptr(true)}, "Compression is not supported for this drive ", ""},
		{"top", "target", qapi.BackupCommon{Speed: ptr(int64(-1))}, "Parameter 'speed' expects a non-negative value", "b created, b null"},
		{"top", "target", qapi.BackupCommon{JobID: ptr("1 x")}, "Invalid job ID '1 x'", ""},
		{"top", "target", qapi.BackupCommon{FilterNodeName: ptr("small")}, "Could not create node: Duplicate nodes with node-name='small'", ""},
		{"top", "target", qapi.BackupCommon{Sync: "incremental"}, "must provide a valid bitmap name for 'incremental' sync mode", ""},
		{"top", "target", qapi.BackupCommon{Sync: "bitmap"}, "must provide a valid bitmap name for 'bitmap' sync mode", ""},
		{"top", "target", qapi.BackupCommon{Sync: "incremental", Bitmap: bitmap("zz")}, "Bitmap 'zz' could not be found", ""},
		{"top", "target", qapi.BackupCommon{Bitmap: bitmap("zz")}, "Bitmap 'zz' could not be found", ""},
		{"top", "target", qapi.BackupCommon{BitmapMode: mode("never")}, "Cannot specify bitmap sync mode without a bitmap", ""},
		{"top", "target", qapi.BackupCommon{Sync: "incremental", Bitmap: bitmap("zz"), BitmapMode: mode("never")}, "Bitmap sync mode must be 'on-success' when using sync mode 'incremental'", ""},
		{"top", "target", qapi.BackupCommon{XPerf: &qapi.BackupPerf{MaxWorkers: ptr(int64(0))}}, "max-workers must be between 1 and 2147483647", ""},
		{"top", "target", qapi.BackupCommon{XPerf: &qapi.BackupPerf{MaxChunk: ptr(int64(-1))}}, "max-chunk must be zero (which means no limit) or positive", ""},
		{"top", "target", qapi.BackupCommon{XPerf: &qapi.BackupPerf{MaxChunk: ptr(int64(512))}}, "Required max-chunk (512) is less than backup cluster size (65536)", ""},
	} {
		if c.a.JobID == nil {
			c.a.JobID = ptr("b")
		}
		err := w.try(func(tx *blockgraph.Tx) error { return w.backup(tx, nil, c.source, c.target, c.a) })
		if err == nil || err.Error() != c.want {
			t.Errorf("got %v, want %s", err, c.want)
		}
		if got := strings.Join(w.events, ", "); got != c.events {
			t.Errorf("%s: events %s", c.want, got)
		}
		w.events = nil
		if len(w.nodes()) != before {
			t.Fatalf("%s: nodes %s", c.want, w.names())
		}
	}
	const busy = "Node 'target' is busy: block device is in use by block job: backup"
	err := w.try(func(tx *blockgraph.Tx) error {
		if err := w.backup(tx, nil, "top", "target", qapi.BackupCommon{JobID: ptr("b1")}); err != nil {
			return err
		}
		return w.backup(tx, nil, "t2", "target", qapi.BackupCommon{JobID: ptr("b2")})
	})
	if err == nil || err.Error() != busy {
		t.Errorf("same target twice in one change: %v", err)
	}
	w.startBackup("top", "target", qapi.BackupCommon{Sync: "none"})
	for _, c := range [][2]string{{"t2", "target"}, {"target", "t2"}} {
		err := w.try(func(tx *blockgraph.Tx) error {
			return w.backup(tx, nil, c[0], c[1], qapi.BackupCommon{JobID: ptr("b2")})
		})
		if err == nil || err.Error() != busy {
			t.Errorf("%s to %s: %v", c[0], c[1], err)
		}
	}
}
