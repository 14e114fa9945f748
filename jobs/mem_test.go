package jobs_test

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"blockd/blockgraph"
	"blockd/blockgraph/graphtest"
	"blockd/clock"
	"blockd/filters/copybeforewrite"
	"blockd/filters/copyonread"
	"blockd/jobs"
	"blockd/jobs/scratch"
	"blockd/qapi"
)

const cluster = graphtest.Cluster

// disk is an image in memory, with faults where a test wants them.
type disk struct {
	*graphtest.Memory
	name string
	// onRead and onWrite see every request for the image's own data.
	onRead, onWrite func(off, n int64) error

	mu        sync.Mutex
	flushErrs []error // of the next flushes
}

func newDisk(name string, clusters int) *disk {
	d := &disk{name: name, Memory: graphtest.NewMemory(int64(clusters) * cluster)}
	d.SetHook(d.hook)
	return d
}

func (d *disk) hook(r graphtest.Request) error {
	switch {
	case r.Kind == graphtest.Read && d.onRead != nil:
		return d.onRead(r.Off, r.N)
	case r.Kind == graphtest.Write && d.onWrite != nil:
		return d.onWrite(r.Off, r.N)
	case r.Kind == graphtest.Flush:
		d.mu.Lock()
		defer d.mu.Unlock()
		if errs := d.flushErrs; len(errs) > 0 {
			d.flushErrs = errs[1:]
			return errs[0]
		}
	}
	return nil
}

// fill gives clusters [from, to) the content b.
func (d *disk) fill(from, to int, b byte) *disk {
	d.Image().Fill(from, to, b)
	return d
}

// clusters tells the first byte of every cluster, '.' where there is none.
func (d *disk) clusters() string { return d.Image().String() }

func (d *disk) header() string {
	backing, format := d.Image().Header()
	return backing + ":" + format
}

// world is a graph of such images, with jobs over it.
type world struct {
	t     *testing.T
	graph *blockgraph.Graph
	jobs  *jobs.Set
	disks map[string]*disk
	room  *scratch.Pool // of backups; nil: none

	mu     sync.Mutex
	events []string
	news   chan struct{} // closed and replaced at each event
}

func newWorld(t *testing.T) *world { return newWorldAt(t, clock.Real()) }

// newWorldAt returns a world whose jobs go by that clock.
func newWorldAt(t *testing.T, c clock.Clock) *world {
	w := &world{t: t, disks: map[string]*disk{}, news: make(chan struct{})}
	file := &blockgraph.DriverType{
		Name: "file", Protocol: true,
		Open: func(_ context.Context, r *blockgraph.OpenRequest) (blockgraph.Driver, error) {
			return w.disks[r.Options.File.Filename].Memory, nil
		},
		PlainFilename: func(o *qapi.BlockdevOptions) (string, bool) { return o.File.Filename, true },
		StrongOptions: func(o *qapi.BlockdevOptions) *qapi.Object {
			return qapi.NewObject("filename", o.File.Filename)
		},
	}
	image := graphtest.ImageType(true)
	image.Name = "qcow2"
	w.graph = blockgraph.NewGraph(blockgraph.NewLoop(), clock.Real(), file, image, graphtest.PassType(), copybeforewrite.Type(clock.Real()), copyonread.Type())
	w.jobs = jobs.New(w.graph, c, w.emit)
	t.Cleanup(func() {
		if err := w.jobs.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		w.update(func(tx *blockgraph.Tx) error {
			for _, n := range w.nodes() {
				tx.SetMonitorOwned(n, false)
			}
			return nil
		})
		w.graph.Loop().Stop()
	})
	return w
}

func (w *world) nodes() (nodes []*blockgraph.Node) {
	w.graph.Loop().Do(func() { nodes = w.graph.Nodes() })
	return nodes
}

// names lists the nodes with names from users, sorted.
func (w *world) names() string {
	var names []string
	for _, n := range w.nodes() {
		if !n.AutoNamed() {
			names = append(names, n.Name())
		}
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

// filters counts the nodes that jobs have inserted.
func (w *world) filters() int {
	k := 0
	for _, n := range w.nodes() {
		if n.Type().Filter {
			k++
		}
	}
	return k
}

func (w *world) update(fn func(tx *blockgraph.Tx) error) {
	w.t.Helper()
	if err := w.try(fn); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) try(fn func(tx *blockgraph.Tx) error) error {
	return w.graph.Update(context.Background(), blockgraph.Cause{Command: "test"}, fn)
}

// add makes a node named like the disk, over the node backing if not "".
func (w *world) add(d *disk, backing string) *blockgraph.Node {
	w.t.Helper()
	w.disks["/"+d.name] = d
	var n *blockgraph.Node
	w.update(func(tx *blockgraph.Tx) error {
		o := &qapi.BlockdevOptions{Driver: "qcow2", NodeName: &d.name, Qcow2: &qapi.BlockdevOptionsQcow2{
			File: qapi.BlockdevRef{Definition: &qapi.BlockdevOptions{Driver: "file", File: &qapi.BlockdevOptionsFile{Filename: "/" + d.name}}},
		}}
		if backing != "" {
			d.Image().SetHeader("/"+backing, "qcow2")
			o.Qcow2.Backing = &qapi.BlockdevRefOrNull{Reference: &backing}
		}
		var err error
		if n, err = tx.Open(o); err == nil {
			tx.SetMonitorOwned(n, true)
		}
		return err
	})
	return n
}

// guest is a user that reads and writes a node.
type guest struct {
	w *world
	r *blockgraph.Root
}

func (w *world) guest(n *blockgraph.Node) *guest {
	w.t.Helper()
	g := &guest{w: w}
	w.update(func(tx *blockgraph.Tx) (err error) {
		g.r, err = tx.NewRoot(n, blockgraph.RootOptions{
			Perm:   blockgraph.PermConsistentRead | blockgraph.PermWrite,
			Shared: blockgraph.PermAll,
		})
		return err
	})
	w.t.Cleanup(func() { // before the world's
		w.update(func(tx *blockgraph.Tx) error { return tx.CloseRoot(g.r) })
	})
	return g
}

// write gives cluster c the content b.
func (g *guest) write(c int, b byte) error {
	v := blockgraph.MakeIOVec(bytes.Repeat([]byte{b}, cluster))
	return g.r.WriteV(context.Background(), int64(c)*cluster, v, 0)
}

// sees tells the first byte of each cluster as the guest reads it.
func (g *guest) sees() string {
	g.w.t.Helper()
	buf := make([]byte, g.r.Size())
	if err := g.r.ReadV(context.Background(), 0, blockgraph.MakeIOVec(buf), 0); err != nil {
		g.w.t.Fatal(err)
	}
	var s []byte
	for c := 0; c < len(buf); c += cluster {
		if buf[c] == 0 {
			buf[c] = '0'
		}
		s = append(s, buf[c])
	}
	return string(s)
}

func (w *world) emit(event string, data any) {
	var s string
	switch d := data.(type) {
	case qapi.JobStatusChange:
		s = d.ID + " " + string(d.Status)
	case qapi.BlockJobCompleted:
		s = fmt.Sprintf("%s COMPLETED %s %d/%d", d.Device, d.Type, d.Offset/cluster, d.Len/cluster)
		if d.Error != nil {
			s += ": " + *d.Error
		}
	case qapi.BlockJobProgress:
		s = fmt.Sprintf("%s %s %d/%d", d.Device, event[len("BLOCK_JOB_"):], d.Offset/cluster, d.Len/cluster)
	case qapi.BlockJobPending:
		s = d.ID + " PENDING"
	case qapi.BlockJobError:
		s = fmt.Sprintf("%s ERROR %s %s", d.Device, d.Operation, d.Action)
	}
	w.note(s)
}

// note adds to the events.
func (w *world) note(s string) {
	w.mu.Lock()
	w.events = append(w.events, s)
	close(w.news)
	w.news = make(chan struct{})
	w.mu.Unlock()
}

// await waits for an event that begins so, and returns all up to it, joined.
func (w *world) await(prefix string) string {
	w.t.Helper()
	for {
		w.mu.Lock()
		for i, e := range w.events {
			if strings.HasPrefix(e, prefix) {
				got := strings.Join(w.events[:i+1], ", ")
				w.events = w.events[i+1:]
				w.mu.Unlock()
				return got
			}
		}
		news, so := w.news, strings.Join(w.events, ", ")
		w.mu.Unlock()
		select {
		case <-news:
		case <-w.t.Context().Done():
			w.t.Fatalf("no event %q; so far %s", prefix, so)
		}
	}
}

func (w *world) expectEvents(last, want string) {
	w.t.Helper()
	if got := w.await(last); got != want {
		w.t.Errorf("events\n got %s\nwant %s", got, want)
	}
}

// verb applies a verb to a job.
func (w *world) verb(id string, f func(j *jobs.Job) error) {
	w.t.Helper()
	var err error
	w.graph.Loop().Do(func() {
		var j *jobs.Job
		if j, err = w.jobs.FindBlock(id); err == nil {
			err = f(j)
		}
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) info(id string) (info qapi.BlockJobInfo) {
	w.graph.Loop().Do(func() {
		for _, i := range w.jobs.BlockInfos() {
			if i.Device == id {
				info = i
			}
		}
	})
	return info
}

// hold makes requests wait, from the first one after it on, until released.
type hold struct {
	entered  chan struct{} // receives once for the first request
	released chan struct{}
	once     sync.Once
}

func newHold() *hold {
	return &hold{entered: make(chan struct{}), released: make(chan struct{})}
}

func (h *hold) wait(int64, int64) error {
	h.once.Do(func() { close(h.entered) })
	<-h.released
	return nil
}

// failing fails the first n requests.
func failing(n int, err error) func(int64, int64) error {
	var mu sync.Mutex
	return func(int64, int64) error {
		mu.Lock()
		defer mu.Unlock()
		if n > 0 {
			n--
			return err
		}
		return nil
	}
}

func ptr[T any](v T) *T { return &v }

// blockgraphDump describes the graph.
func blockgraphDump(w *world) string { return graphtest.Dump(w.graph) }
