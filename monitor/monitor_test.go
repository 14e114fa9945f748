package monitor

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"blockd/blockgraph"
	"blockd/clock"
	"blockd/exports"
	"blockd/filters/copybeforewrite"
	"blockd/filters/copyonread"
	"blockd/formats/qcow2"
	"blockd/formats/raw"
	"blockd/jobs"
	"blockd/jobs/stream"
	"blockd/protocols/file"
	"blockd/qapi"
)

// world is the commands over real drivers and files.
type world struct {
	*Monitor
	t   *testing.T
	dir string

	mu      sync.Mutex
	results map[string]chan qapi.BlockJobCompleted
}

func newWorld(t *testing.T) *world {
	clk := clock.Real()
	loop := blockgraph.NewLoop()
	host := file.New(file.Config{})
	types := append(host.DriverTypes(), raw.DriverType(raw.Config{}), qcow2.Type, copybeforewrite.Type(clk), copyonread.Type())
	g := blockgraph.NewGraph(loop, clk, types...)
	w := &world{t: t, dir: t.TempDir(), results: map[string]chan qapi.BlockJobCompleted{}}
	set := jobs.New(g, clk, func(_ string, data any) {
		if done, ok := data.(qapi.BlockJobCompleted); ok {
			w.result(done.Device) <- done
		}
	})
	w.Monitor = New(Config{Graph: g, Jobs: set, Exports: exports.New(exports.Options{Graph: g, Clock: clk}),
		CreateFile: host.Create,
		Formats: map[string]FormatCreator{"qcow2": func(ctx context.Context, f ImageFiles, o *qapi.BlockdevCreateOptions) error {
			return qcow2.Create(ctx, qcow2.Files{File: f.File, Data: f.Data, DataName: f.DataName}, o.Qcow2)
		}}})
	t.Cleanup(func() {
		if err := set.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		if err := w.CloseNodes(context.Background()); err != nil {
			t.Error(err)
		}
		if left := w.names(); left != "" {
			t.Errorf("left behind: %s", left)
		}
		loop.Stop()
	})
	return w
}

func (w *world) result(job string) chan qapi.BlockJobCompleted {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.results[job] == nil {
		w.results[job] = make(chan qapi.BlockJobCompleted, 1)
	}
	return w.results[job]
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// image makes a qcow2 file of 1 MiB; backing may be "".
func (w *world) image(name, backing, format string) {
	w.t.Helper()
	w.must(w.update(context.Background(), "test", func(tx *blockgraph.Tx) error {
		return w.createImage(tx, NewImage{File: w.path(name), Format: "qcow2", Size: 1 << 20, Backing: backing, BackingFormat: format})
	}))
}

func (w *world) open(node, name string) {
	w.t.Helper()
	w.must(w.AddNode(context.Background(), w.options(node, name)))
}

func (w *world) options(node, name string) *qapi.BlockdevOptions {
	return &qapi.BlockdevOptions{Driver: qapi.BlockdevDriverQcow2, NodeName: &node, Qcow2: &qapi.BlockdevOptionsQcow2{
		File: qapi.BlockdevRef{Definition: &qapi.BlockdevOptions{Driver: qapi.BlockdevDriverFile, File: &qapi.BlockdevOptionsFile{Filename: w.path(name)}}}}}
}

// names lists the nodes that have names of their own, and how many have not.
func (w *world) names() string {
	var named []string
	auto := 0
	w.loop.Do(func() {
		for _, n := range w.graph.Nodes() {
			if n.AutoNamed() {
				auto++
			} else {
				named = append(named, n.Name())
			}
		}
	})
	if auto > 0 {
		named = append(named, fmt.Sprintf("+%d", auto))
	}
	return strings.Join(named, " ")
}

func (w *world) run(actions ...action) error {
	return w.runActions(context.Background(), "test", actions)
}

func (w *world) stream(a qapi.BlockStreamArg) error {
	return w.update(context.Background(), "block-stream", func(tx *blockgraph.Tx) error {
		top, err := findNode(tx, a.Device)
		if err == nil {
			_, err = stream.Prepare(tx, w.jobs, top, &a)
		}
		return err
	})
}

func (w *world) syncSnapshot(node, name string) *snapshotSync {
	return &snapshotSync{m: w.Monitor, BlockdevSnapshotSync: qapi.BlockdevSnapshotSync{NodeName: &node, SnapshotFile: w.path(name), SnapshotNodeName: &name}}
}

func (w *world) backup(device, target, job string) *blockdevBackup {
	return &blockdevBackup{m: w.Monitor, BlockdevBackup: qapi.BlockdevBackup{Target: target,
		BackupCommon: qapi.BackupCommon{JobID: &job, Device: device, Sync: qapi.MirrorSyncModeFull}}}
}

// use gives the node a user, as an export is one.
func (w *world) use(node string) {
	w.t.Helper()
	var root *blockgraph.Root
	w.must(w.update(context.Background(), "test", func(tx *blockgraph.Tx) (err error) {
		root, err = tx.NewRoot(tx.Find(node), blockgraph.RootOptions{Perm: blockgraph.PermConsistentRead | blockgraph.PermWrite, Shared: blockgraph.PermAll})
		return err
	}))
	w.t.Cleanup(func() {
		w.must(w.update(context.Background(), "test", func(tx *blockgraph.Tx) error { return tx.CloseRoot(root) }))
	})
}

func wantError(t *testing.T, err error, text string) {
	t.Helper()
	if err == nil || err.Error() != text {
		t.Errorf("got %v\nnot %s", err, text)
	}
}

// TestStreamOntoARawBackingFile: the file below a raw image is no image of the
// chain.
func TestStreamOntoARawBackingFile(t *testing.T) {
	w := newWorld(t)
	w.must(os.WriteFile(w.path("raw"), make([]byte, 1<<20), 0o600))
	w.image("top", w.path("raw"), "raw")
	w.open("top", "top")
	job := "s"
	w.must(w.stream(qapi.BlockStreamArg{Device: "top", JobID: &job}))
	if done := <-w.result(job); done.Error != nil {
		t.Error(*done.Error)
	}
}

func TestStreamFindsItsBaseByAnyPathToIt(t *testing.T) {
	w := newWorld(t)
	w.must(os.Mkdir(w.path("sub"), 0o700))
	w.image("sub/base", "", "")
	w.image("sub/mid", "base", "qcow2")
	w.image("top", "sub/mid", "qcow2")
	w.must(os.Symlink("sub/mid", w.path("link")))
	w.open("top", "top")
	for _, base := range []string{"sub/mid", "./sub/mid", "link", w.path("sub/mid"), "base", w.path("sub/base")} {
		job := "s"
		// Not ready to begin: the name is looked up, and the job refused.
		bad := int64(-1)
		wantError(t, w.stream(qapi.BlockStreamArg{Device: "top", JobID: &job, Base: &base, Speed: &bad}), "Parameter 'speed' expects a non-negative value")
	}
	for _, base := range []string{"mid", "sub/base", w.path("top"), ""} {
		job := "s"
		wantError(t, w.stream(qapi.BlockStreamArg{Device: "top", JobID: &job, Base: &base}), "Can't find '"+base+"' in the backing chain")
	}
}

// TestSecondSnapshotOfATransactionSeesTheFirst, as it would by itself.
func TestSecondSnapshotOfATransactionSeesTheFirst(t *testing.T) {
	w := newWorld(t)
	w.image("n", "", "")
	w.open("n", "n")
	w.use("n")
	wantError(t, w.run(w.syncSnapshot("n", "a"), w.syncSnapshot("n", "b")), "Node 'n' is busy: node is used as backing hd of 'a'")
	if w.names() != "n +1" {
		t.Errorf("nodes %s", w.names())
	}
	for _, name := range []string{"a", "b"} {
		if _, err := os.Stat(w.path(name)); err == nil {
			t.Errorf("%s is left", name)
		}
	}
	w.must(w.run(w.syncSnapshot("n", "a"), w.syncSnapshot("a", "b")))
}

func TestSnapshotOfATargetOfItsTransactionIsRefused(t *testing.T) {
	w := newWorld(t)
	w.image("n", "", "")
	w.image("t", "", "")
	w.open("n", "n")
	w.open("t", "t")
	wantError(t, w.run(w.backup("n", "t", "j"), w.syncSnapshot("t", "a")), "Node 't' is busy: block device is in use by block job: backup")
	// The other way round the target stays writable for the job.
	w.must(w.run(w.syncSnapshot("t", "a"), w.backup("n", "t", "j")))
	if done := <-w.result("j"); done.Error != nil {
		t.Error(*done.Error)
	}
}

// TestOverlayThatNobodyUsesIsClosed: it could never be deleted.
func TestOverlayThatNobodyUsesIsClosed(t *testing.T) {
	w := newWorld(t)
	w.image("n", "", "")
	w.open("n", "n")
	w.must(w.run(w.syncSnapshot("n", "a")))
	if w.names() != "n +1" {
		t.Errorf("nodes %s", w.names())
	}
}

// TestFailedStreamLeavesAReadOnlyImageAlone: its locks, too.
func TestFailedStreamLeavesAReadOnlyImageAlone(t *testing.T) {
	w := newWorld(t)
	w.image("base", "", "")
	w.image("n", w.path("base"), "qcow2")
	o := w.options("n", "n")
	yes := true
	o.ReadOnly = &yes
	w.must(w.AddNode(context.Background(), o))
	bad := "bad id"
	wantError(t, w.stream(qapi.BlockStreamArg{Device: "n", JobID: &bad}), "Invalid job ID 'bad id'")
	w.loop.Do(func() {
		n := w.graph.Node("n")
		if perm, _ := n.File().Perms(); perm != blockgraph.PermConsistentRead || !n.ReadOnly() {
			t.Errorf("permissions %s, read-only %v", perm, n.ReadOnly())
		}
	})
}

// TestStreamEndsThoughItsImageGotAWriter: an image that was read-only before
// stays writable then, instead of keeping the job's filter for ever.
func TestStreamEndsThoughItsImageGotAWriter(t *testing.T) {
	w := newWorld(t)
	w.image("base", "", "")
	w.image("n", w.path("base"), "qcow2")
	o := w.options("n", "n")
	yes, no, job := true, false, "s"
	o.ReadOnly = &yes
	w.must(w.AddNode(context.Background(), o))
	w.must(w.stream(qapi.BlockStreamArg{Device: "n", JobID: &job, AutoFinalize: &no}))
	w.use("n")
	var j *jobs.Job
	w.loop.Do(func() {
		var err error
		if j, err = w.jobs.Find(job); err == nil {
			err = j.Cancel(true)
		}
		if err != nil {
			t.Error(err)
		}
	})
	<-j.Over()
	if w.names() != "n +3" {
		t.Errorf("nodes %s", w.names())
	}
}

// TestQueriesUnderGraphChanges: nodes come and go while queries run.
func TestQueriesUnderGraphChanges(t *testing.T) {
	w := newWorld(t)
	w.image("base", "", "")
	w.image("n", w.path("base"), "qcow2")
	ctx, stop := context.WithCancel(context.Background())
	var queries sync.WaitGroup
	for range 2 {
		queries.Go(func() {
			for ctx.Err() == nil {
				for _, flat := range []bool{false, true} {
					if _, err := w.queryInfos(context.Background(), flat); err != nil {
						t.Error(err)
					}
				}
				if _, err := w.queryBlockstats(nil, &qapi.QueryBlockstatsArg{QueryNodes: &flatTrue}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	defer queries.Wait()
	defer stop()
	for i := range 40 {
		w.open("n", "n")
		job := fmt.Sprintf("j%d", i)
		base := w.path("base")
		w.must(w.stream(qapi.BlockStreamArg{Device: "n", JobID: &job, Base: &base}))
		<-w.result(job)
		w.must(w.update(context.Background(), "test", func(tx *blockgraph.Tx) error {
			tx.SetMonitorOwned(tx.Find("n"), false)
			return nil
		}))
	}
}

var flatTrue = true
