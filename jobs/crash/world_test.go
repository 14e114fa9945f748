// Package crash runs the jobs that change images over files that record what
// reaches them, with guests beside them, and judges the images as a crash at any
// moment may leave them.
//
// It has only tests: jobs know no formats.
package crash

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"blockd/blockgraph"
	"blockd/blockgraph/graphtest"
	"blockd/clock"
	"blockd/filters/copyonread"
	"blockd/formats/luks"
	"blockd/formats/qcow2"
	"blockd/jobs"
	"blockd/qapi"
)

var ctxb = context.Background()

func ptr[T any](v T) *T { return &v }

// keys has the secrets: the one that images are made with, and another.
var keys = luks.Config{Clock: clock.Real(), Secret: func(id string) (string, error) {
	if id == "old" || id == "new" {
		return "the " + id + " one", nil
	}
	return "", fmt.Errorf("No secret with id '%s'", id)
}}

// world is a graph of qcow2 images in files that record, with jobs over it. An
// image is called like its file without the slash.
type world struct {
	t     *testing.T
	graph *blockgraph.Graph
	jobs  *jobs.Set
	files map[string]*graphtest.Recorder
	seq   atomic.Int64

	mu    sync.Mutex
	seen  map[string]*qapi.BlockJobCompleted
	state map[string]qapi.JobStatus
	news  chan struct{} // closed and replaced at each event
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, files: map[string]*graphtest.Recorder{}, seen: map[string]*qapi.BlockJobCompleted{}, state: map[string]qapi.JobStatus{}, news: make(chan struct{})}
	types := []*blockgraph.DriverType{
		graphtest.RecorderType(func(name string) *graphtest.Recorder { return w.files[name] }),
		qcow2.DriverType(keys, qapi.Qcow2BitmapPersistenceCrashSafe), copyonread.Type(), graphtest.PassType(),
	}
	w.graph = blockgraph.NewGraph(blockgraph.NewLoop(), clock.Real(), types...)
	w.jobs = jobs.New(w.graph, clock.Real(), w.emit)
	return w
}

func (w *world) update(f func(tx *blockgraph.Tx) error) {
	w.t.Helper()
	if err := w.graph.Update(ctxb, blockgraph.Cause{Command: "test"}, f); err != nil {
		w.t.Fatal(err)
	}
}

// close ends everything.
func (w *world) close() {
	w.t.Helper()
	if err := w.jobs.Shutdown(ctxb); err != nil {
		w.t.Fatal(err)
	}
	w.update(func(tx *blockgraph.Tx) error {
		for _, n := range w.nodes() {
			tx.SetMonitorOwned(n, false)
		}
		return nil
	})
	w.graph.Loop().Stop()
}

func (w *world) nodes() (nodes []*blockgraph.Node) {
	w.graph.Loop().Do(func() { nodes = w.graph.Nodes() })
	return nodes
}

func (w *world) emit(event string, data any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch d := data.(type) {
	case qapi.JobStatusChange:
		w.state[d.ID] = d.Status
	case qapi.BlockJobCompleted:
		w.seen[d.Device] = &d
	}
	close(w.news)
	w.news = make(chan struct{})
}

// await waits until a job has one of the states, and returns it.
func (w *world) await(id string, states ...qapi.JobStatus) qapi.JobStatus {
	w.t.Helper()
	for {
		w.mu.Lock()
		now, news := w.state[id], w.news
		w.mu.Unlock()
		if slices.Contains(states, now) {
			return now
		}
		select {
		case <-news:
		case <-w.t.Context().Done():
			w.t.Fatalf("job %s is %s", id, now)
		}
	}
}

// succeeds waits for the end of a job that must succeed.
func (w *world) succeeds(id string) {
	w.t.Helper()
	w.await(id, qapi.JobStatusNull)
	w.mu.Lock()
	defer w.mu.Unlock()
	if done := w.seen[id]; done == nil || done.Error != nil {
		w.t.Fatalf("job %s: %+v", id, done)
	}
}

// verb applies a verb to a job.
func (w *world) verb(id string, f func(j *jobs.Job) error) {
	w.t.Helper()
	var err error
	w.graph.Loop().Do(func() {
		var j *jobs.Job
		if j, err = w.jobs.Find(id); err == nil {
			err = f(j)
		}
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// errorOf is a job's error, "" for none.
func (w *world) errorOf(id string) (text string) {
	w.graph.Loop().Do(func() {
		for _, i := range w.jobs.Infos() {
			if i.ID == id && i.Error != nil {
				text = *i.Error
			}
		}
	})
	return text
}

// create makes an image in a new file.
func (w *world) create(name string, o qapi.BlockdevCreateOptionsQcow2) {
	w.t.Helper()
	w.files["/"+name] = graphtest.NewRecorder(nil)
	var r *blockgraph.Root
	w.update(func(tx *blockgraph.Tx) error {
		n, err := tx.Open(&qapi.BlockdevOptions{Driver: "file", File: &qapi.BlockdevOptionsFile{Filename: "/" + name}})
		if err == nil {
			r, err = tx.NewRoot(n, blockgraph.RootOptions{Perm: blockgraph.PermWrite | blockgraph.PermResize, Shared: blockgraph.PermAll})
		}
		return err
	})
	a, err := r.Enter(ctxb)
	if err != nil {
		w.t.Fatal(err)
	}
	err = qcow2.Create(ctxb, qcow2.Files{File: a.Edge(), Keys: keys}, &o)
	a.Leave()
	if err != nil {
		w.t.Fatal(err)
	}
	w.update(func(tx *blockgraph.Tx) error { return tx.CloseRoot(r) })
}

// open opens an image for writing with a guest over it. With alone nothing is
// opened below it; key is its secret's name, or "".
func (w *world) open(name, key string, alone bool) (*blockgraph.Root, error) {
	o := &qapi.BlockdevOptions{Driver: "qcow2", NodeName: &name, Discard: ptr(qapi.BlockdevDiscardOptionsUnmap), Qcow2: &qapi.BlockdevOptionsQcow2{
		File: qapi.BlockdevRef{Definition: &qapi.BlockdevOptions{Driver: "file", File: &qapi.BlockdevOptionsFile{Filename: "/" + name}}},
	}}
	if alone {
		o.Qcow2.Backing = &qapi.BlockdevRefOrNull{Null: &qapi.Null{}}
	}
	if key != "" {
		o.Qcow2.Encrypt = &qapi.BlockdevQcow2Encryption{Format: qapi.BlockdevQcow2EncryptionFormatLUKS, LUKS: &qapi.QCryptoBlockOptionsLUKS{KeySecret: &key}}
	}
	var root *blockgraph.Root
	err := w.graph.Update(ctxb, blockgraph.Cause{Command: "test"}, func(tx *blockgraph.Tx) error {
		n, err := tx.Open(o)
		if err != nil {
			return err
		}
		tx.SetMonitorOwned(n, true)
		root, err = tx.NewRoot(n, blockgraph.RootOptions{Perm: graphtest.ReadWrite, Shared: blockgraph.PermAll})
		return err
	})
	return root, err
}

// mustOpen is open that must succeed.
func (w *world) mustOpen(name, key string, alone bool) *blockgraph.Root {
	w.t.Helper()
	r, err := w.open(name, key, alone)
	if err != nil {
		w.t.Fatalf("%s: %v", name, err)
	}
	return r
}

// leave takes a guest and its node away.
func (w *world) leave(r *blockgraph.Root) {
	w.t.Helper()
	n := r.Node()
	w.update(func(tx *blockgraph.Tx) error {
		if err := tx.CloseRoot(r); err != nil {
			return err
		}
		tx.SetMonitorOwned(n, false)
		return nil
	})
}

// read returns what the guest reads of the whole disk.
func (w *world) read(r *blockgraph.Root) []byte {
	w.t.Helper()
	p := make([]byte, r.Size())
	if err := r.ReadV(ctxb, 0, blockgraph.MakeIOVec(p), 0); err != nil {
		w.t.Fatal(err)
	}
	return p
}

// check returns what the format finds wrong with the image that a guest has
// open.
func (w *world) check(r *blockgraph.Root) blockgraph.CheckResult {
	w.t.Helper()
	a, err := r.Enter(ctxb)
	if err != nil {
		w.t.Fatal(err)
	}
	defer a.Leave()
	c, err := r.Node().Driver().(blockgraph.Checker).StartCheck(blockgraph.CheckOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	defer c.Close()
	for more := true; more; {
		if _, more, err = c.Step(ctxb, 1<<20); err != nil {
			w.t.Fatal(err)
		}
	}
	return c.Result()
}
