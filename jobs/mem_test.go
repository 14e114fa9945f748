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
	"blockd/clock"
	"blockd/filters/copybeforewrite"
	"blockd/filters/copyonread"
	"blockd/jobs"
	"blockd/qapi"
)

// A small image format in memory, with backing files, clusters of 64 KiB and
// faults where a test wants them.

const cluster = 64 << 10

// disk is the content of an image file.
type disk struct {
	name string
	// onRead and onWrite see every request for the image's own data.
	onRead, onWrite func(off, n int64) error

	mu              sync.Mutex
	data            []byte
	alloc           []bool
	backing, format string
	headerErr       error
	flushed         bool    // since the last write
	flushErrs       []error // of the next flushes
}

func newDisk(name string, clusters int) *disk {
	return &disk{name: name, data: make([]byte, clusters*cluster), alloc: make([]bool, clusters)}
}

// fill gives clusters [from, to) the content b.
func (d *disk) fill(from, to int, b byte) *disk {
	for c := from; c < to; c++ {
		d.alloc[c] = true
		copy(d.data[c*cluster:], bytes.Repeat([]byte{b}, cluster))
	}
	return d
}

// clusters tells the first byte of every cluster, '.' where there is none.
func (d *disk) clusters() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := make([]byte, len(d.alloc))
	for c := range s {
		s[c] = '.'
		if d.alloc[c] {
			s[c] = d.data[c*cluster]
			if s[c] == 0 {
				s[c] = '0'
			}
		}
	}
	return string(s)
}

func (d *disk) header() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.backing + ":" + d.format
}

// memFile is the protocol node of a disk.
type memFile struct{ d *disk }

func (f *memFile) ReadV(context.Context, int64, *blockgraph.IOVec, blockgraph.Flags) error {
	return nil
}
func (f *memFile) WriteV(context.Context, int64, *blockgraph.IOVec, blockgraph.Flags) error {
	return nil
}
func (f *memFile) WriteZeroes(context.Context, int64, int64, blockgraph.Flags) error {
	return blockgraph.ErrNotSupported
}
func (f *memFile) Discard(context.Context, int64, int64) error { return blockgraph.ErrNotSupported }
func (f *memFile) Flush(context.Context) error                 { return nil }
func (f *memFile) Close(context.Context) error                 { return nil }

// PrepareReopen has nothing to do.
func (f *memFile) PrepareReopen(context.Context, *qapi.BlockdevOptions, bool) (commit, abort func(), err error) {
	return func() {}, func() {}, nil
}
func (f *memFile) Size(context.Context) (int64, error) { return int64(len(f.d.data)), nil }
func (f *memFile) BlockStatus(_ context.Context, _, n int64, _ blockgraph.StatusMode) (blockgraph.Status, error) {
	return blockgraph.Status{Flags: blockgraph.StatusData, N: n}, nil
}

// memImage is the format node.
type memImage struct {
	memFile
	node *blockgraph.Node
}

func (m *memImage) Limits() blockgraph.Limits { return blockgraph.Limits{} }
func (m *memImage) Caps() blockgraph.Caps {
	return blockgraph.Caps{Backing: true, WriteUnchanged: blockgraph.CapNative, OnlyUnallocated: blockgraph.CapNative}
}

// pieces calls f for each cluster's part of a range.
func pieces(off, n int64, f func(c int, off, n int64) error) error {
	for n > 0 {
		k := min(n, cluster-off%cluster)
		if err := f(int(off/cluster), off, k); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

func (m *memImage) isAllocated(c int) bool {
	m.d.mu.Lock()
	defer m.d.mu.Unlock()
	return m.d.alloc[c]
}

func (m *memImage) ReadV(ctx context.Context, off int64, v *blockgraph.IOVec, flags blockgraph.Flags) error {
	start := off
	return pieces(off, v.Len(), func(c int, off, n int64) error {
		if m.isAllocated(c) {
			if m.d.onRead != nil {
				if err := m.d.onRead(off, n); err != nil {
					return err
				}
			}
			m.d.mu.Lock()
			defer m.d.mu.Unlock()
			v.CopyIn(off-start, m.d.data[off:off+n])
			return nil
		}
		if b := m.node.Backing(); b != nil {
			return b.ReadV(ctx, off, v.Slice(off-start, n), 0)
		}
		v.Zero(off-start, n)
		return nil
	})
}

func (m *memImage) WriteV(ctx context.Context, off int64, v *blockgraph.IOVec, flags blockgraph.Flags) error {
	start := off
	return pieces(off, v.Len(), func(c int, off, n int64) error {
		if flags&blockgraph.OnlyUnallocated != 0 && m.isAllocated(c) {
			return nil
		}
		if m.d.onWrite != nil {
			if err := m.d.onWrite(off, n); err != nil {
				return err
			}
		}
		old := make([]byte, cluster)
		if n < cluster && !m.isAllocated(c) {
			if err := m.ReadV(ctx, int64(c)*cluster, blockgraph.MakeIOVec(old), 0); err != nil {
				return err
			}
		}
		m.d.mu.Lock()
		defer m.d.mu.Unlock()
		m.d.flushed = false
		if !m.d.alloc[c] {
			copy(m.d.data[c*cluster:(c+1)*cluster], old)
			m.d.alloc[c] = true
		} else if flags&blockgraph.OnlyUnallocated != 0 {
			return nil
		}
		v.CopyOut(off-start, m.d.data[off:off+n])
		return nil
	})
}

func (m *memImage) Flush(context.Context) error {
	m.d.mu.Lock()
	defer m.d.mu.Unlock()
	if errs := m.d.flushErrs; len(errs) > 0 {
		m.d.flushErrs = errs[1:]
		return errs[0]
	}
	m.d.flushed = true
	return nil
}

func (m *memImage) BlockStatus(_ context.Context, off, n int64, _ blockgraph.StatusMode) (blockgraph.Status, error) {
	m.d.mu.Lock()
	defer m.d.mu.Unlock()
	c := int(off / cluster)
	end := c + 1
	for end < len(m.d.alloc) && m.d.alloc[end] == m.d.alloc[c] {
		end++
	}
	st := blockgraph.Status{N: min(n, int64(end)*cluster-off)}
	if m.d.alloc[c] {
		st.Flags = blockgraph.StatusData
	}
	return st, nil
}

func (m *memImage) BackingFile() (name, format string) {
	m.d.mu.Lock()
	defer m.d.mu.Unlock()
	return m.d.backing, m.d.format
}

func (m *memImage) ChangeBackingFile(_ context.Context, name, format string) error {
	m.d.mu.Lock()
	defer m.d.mu.Unlock()
	if m.d.headerErr != nil {
		return m.d.headerErr
	}
	m.d.backing, m.d.format = name, format
	return nil
}

// PrepareReopen has nothing to do.
func (m *memImage) PrepareReopen(context.Context, *qapi.BlockdevOptions, bool) (commit, abort func(), err error) {
	return func() {}, func() {}, nil
}

// world is a graph of such images, with jobs over it.
type world struct {
	t     *testing.T
	graph *blockgraph.Graph
	jobs  *jobs.Set
	disks map[string]*disk

	mu     sync.Mutex
	events []string
	news   chan struct{} // closed and replaced at each event
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, disks: map[string]*disk{}, news: make(chan struct{})}
	file := &blockgraph.DriverType{
		Name: "file", Protocol: true,
		Open: func(_ context.Context, r *blockgraph.OpenRequest) (blockgraph.Driver, error) {
			return &memFile{w.disks[r.Options.File.Filename]}, nil
		},
		PlainFilename: func(o *qapi.BlockdevOptions) (string, bool) { return o.File.Filename, true },
		StrongOptions: func(o *qapi.BlockdevOptions) *qapi.Object {
			return qapi.NewObject("filename", o.File.Filename)
		},
	}
	image := &blockgraph.DriverType{
		Name: "qcow2",
		Children: func(o *qapi.BlockdevOptions) []blockgraph.ChildSpec {
			return []blockgraph.ChildSpec{{Name: "file", Role: blockgraph.RoleData | blockgraph.RoleMetadata | blockgraph.RolePrimary, Ref: o.Qcow2.File}}
		},
		Open: func(_ context.Context, r *blockgraph.OpenRequest) (blockgraph.Driver, error) {
			return &memImage{memFile: *r.Node.Child("file").Child().Driver().(*memFile), node: r.Node}, nil
		},
		BackingOption: func(o *qapi.BlockdevOptions) **qapi.BlockdevRefOrNull { return &o.Qcow2.Backing },
	}
	w.graph = blockgraph.NewGraph(blockgraph.NewLoop(), clock.Real(), file, image, copybeforewrite.Type(clock.Real()), copyonread.Type())
	w.jobs = jobs.New(w.graph, clock.Real(), w.emit)
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
			d.backing, d.format = "/"+backing, "qcow2"
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
