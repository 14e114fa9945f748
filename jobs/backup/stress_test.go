package backup_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"blockd/blockgraph"
	"blockd/blockgraph/graphtest"
	"blockd/clock"
	"blockd/filters/copybeforewrite"
	"blockd/jobs"
	"blockd/jobs/backup"
	"blockd/jobs/scratch"
	"blockd/qapi"
)

const cluster = graphtest.Cluster

func TestMain(m *testing.M) {
	slog.SetDefault(slog.New(slog.DiscardHandler))
	goleak.VerifyTestMain(m)
}

// layer is a disk as the model sees it.
type layer struct {
	mem   *graphtest.Memory
	image bool // clusters that it has not allocated are the base's, or zero
	base  *layer
}

func (l *layer) content() []byte {
	b := l.mem.Bytes()
	if !l.image {
		return b
	}
	below := make([]byte, len(b))
	if l.base != nil {
		below = l.base.content()
	}
	for c, own := range l.mem.Image().Allocated() {
		if off := c * cluster; !own {
			_ = append(b[off:off], below[off:min(off+cluster, len(b))]...)
		}
	}
	return b
}

// round is a transaction of backups, under guests that write and a monitor that
// does all that it may meanwhile.
type round struct {
	*graphtest.World
	t    *testing.T
	r    *rand.Rand // of the test's goroutine
	jobs *jobs.Set
	room *scratch.Pool
	news chan struct{} // capacity 1

	mu     sync.Mutex
	ended  map[string]*qapi.BlockJobCompleted // nil: cancelled
	gone   int
	faults atomic.Uint64 // requests that could fail

	disks []*disk
}

type disk struct {
	id             string
	source, target *blockgraph.Node
	from, to       *layer
	guest          *blockgraph.Root
	args           qapi.BackupCommon
	mayFail        bool
	wanted         []byte // the source at the point in time
}

func ptr[T any](v T) *T { return &v }

func oneOf[T any](r *rand.Rand, v ...T) T { return v[r.IntN(len(v))] }

func (w *round) emit(event string, data any) {
	w.mu.Lock()
	switch d := data.(type) {
	case qapi.BlockJobCompleted:
		w.ended[d.Device] = &d
	case qapi.JobStatusChange:
		if d.Status == qapi.JobStatusNull {
			w.gone++
		}
	}
	w.mu.Unlock()
	select {
	case w.news <- struct{}{}:
	default:
	}
}

// mem adds a memory, with random data in random places.
func (w *round) mem(name string, size int64, data bool) (*blockgraph.Node, *graphtest.Memory) {
	n, m := w.Mem(name, size)
	if data {
		for range 1 + w.r.IntN(6) {
			off := w.r.Int64N(size)
			m.EditRange(off, min(size-off, 1+w.r.Int64N(3*cluster)), func(b []byte) {
				x := byte(1 + w.r.IntN(255))
				for i := range b {
					b[i] = x
				}
			})
		}
	}
	return n, m
}

// image puts an image over a new memory, with a part of its clusters allocated.
func (w *round) image(driver, name string, size int64, base string, data bool) (*blockgraph.Node, *graphtest.Memory) {
	_, m := w.mem(name+"-file", size, false)
	if k := len(m.Image().Allocated()); data {
		for range 3 {
			c := w.r.IntN(k)
			m.Image().Fill(c, min(k, c+1+w.r.IntN(4)), byte(w.r.IntN(256)))
		}
	}
	o := graphtest.ImageOptions(name, name+"-file", base)
	o.Driver = qapi.BlockdevDriver(driver)
	return w.Add(o), m
}

// failing has requests fail now and then.
func (w *round) failing(m *graphtest.Memory, one uint64, err error, kinds ...graphtest.Kind) {
	seed := w.r.Uint64()
	m.SetHook(func(r graphtest.Request) error {
		n := w.faults.Add(1)
		if n%3 == 0 {
			runtime.Gosched()
		}
		for _, k := range kinds {
			if r.Kind == k && rand.NewPCG(seed, n).Uint64()%one == 0 {
				return err
			}
		}
		return nil
	})
}

func (w *round) disk(id string) *disk {
	r := w.r
	size := int64(1+r.IntN(24))*cluster + oneOf(r, 0, 0, 512*int64(r.IntN(128)))
	d := &disk{id: id}
	a := &d.args
	a.JobID, a.Sync = &id, qapi.MirrorSyncModeFull
	top := r.IntN(3) == 0
	align := oneOf(r, int64(0), 512)
	w.Setup = func(m *graphtest.Memory) { m.Limit.RequestAlignment = align }
	defer func() { w.Setup = nil }()
	if top || r.IntN(3) == 0 {
		_, below := w.mem(id+"-base", size, true)
		base := &layer{mem: below}
		var m *graphtest.Memory
		d.source, m = w.image("image", id, size, id+"-base", true)
		d.from = &layer{m, true, base}
	} else {
		d.from = &layer{}
		d.source, d.from.mem = w.mem(id, size, true)
	}
	switch {
	case top:
		a.Sync = qapi.MirrorSyncModeTop
		var m *graphtest.Memory
		d.target, m = w.image(oneOf(r, "image", "wide"), id+"-t", size, id+"-base", false)
		d.to = &layer{m, true, d.from.base}
	case r.IntN(2) == 0:
		var m *graphtest.Memory
		d.target, m = w.image(oneOf(r, "image", "wide"), id+"-t", size, "", r.IntN(2) == 0)
		d.to = &layer{mem: m, image: true}
	default:
		d.to = &layer{}
		d.target, d.to.mem = w.mem(id+"-t", size, true)
		a.Compress = ptr(r.IntN(3) == 0)
	}
	if r.IntN(2) == 0 {
		w.failing(d.to.mem, 6, syscall.ENOSPC, graphtest.Write, graphtest.Zero)
	}
	if r.IntN(4) == 0 {
		w.failing(d.from.mem, 20, syscall.EIO, graphtest.Read)
	}
	policies := []qapi.BlockdevOnError{qapi.BlockdevOnErrorStop, qapi.BlockdevOnErrorIgnore, qapi.BlockdevOnErrorEnospc, qapi.BlockdevOnErrorAuto}
	a.OnTargetError = ptr(oneOf(r, append(policies, qapi.BlockdevOnErrorReport)...))
	a.OnSourceError = ptr(oneOf(r, policies[:2]...))
	a.OnCBWError = ptr(oneOf(r, qapi.OnCbwErrorBreakGuestWrite, qapi.OnCbwErrorBreakGuestWrite, qapi.OnCbwErrorBreakSnapshot))
	a.Speed = ptr(oneOf[int64](r, 0, 0, 8<<20))
	d.mayFail = *a.OnTargetError == qapi.BlockdevOnErrorReport || *a.OnCBWError == qapi.OnCbwErrorBreakSnapshot
	if r.IntN(3) > 0 {
		x := &qapi.BackupScratch{Enable: ptr(r.IntN(4) > 0), MaxSize: ptr(oneOf[uint64](r, 0, 2*cluster))}
		if r.IntN(6) == 0 {
			x.WhenFull, d.mayFail = ptr(qapi.ScratchWhenFullBreakSnapshot), true
		}
		a.XScratch = x
	}
	if r.IntN(3) == 0 {
		a.XPerf = &qapi.BackupPerf{MaxWorkers: ptr(int64(1 + r.IntN(3)))}
	}
	d.guest = w.Root(d.source, graphtest.ReadWrite, blockgraph.PermAll)
	return d
}

// write lets a guest write until stop.
func (d *disk) write(t *testing.T, seed uint64, stop *atomic.Bool) {
	r := rand.New(rand.NewPCG(seed, 7))
	size := d.guest.Size()
	for !stop.Load() {
		off := r.Int64N(size)
		n := min(size-off, 1+r.Int64N(oneOf[int64](r, 512, 4096, cluster, 5*cluster)))
		var err error
		switch r.IntN(6) {
		case 0:
			err = d.guest.WriteZeroes(t.Context(), off, n, blockgraph.MayUnmap)
		case 1:
			err = d.guest.Discard(t.Context(), off, n)
		default:
			err = d.guest.WriteV(t.Context(), off, graphtest.Vec(bytes.Repeat([]byte{byte(r.Uint32())}, int(n))), 0)
		}
		if err != nil && !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EIO) {
			t.Error(err)
			return
		}
		runtime.Gosched()
	}
}

// prepare sets the backups up; the sources are drained.
func (w *round) prepare(tx *blockgraph.Tx, txn *jobs.Txn, suffix string) error {
	var nodes []*blockgraph.Node
	for _, d := range w.disks {
		nodes = append(nodes, d.source)
	}
	if err := tx.Drain(nodes...); err != nil {
		return err
	}
	for _, d := range w.disks {
		a := d.args
		a.JobID = ptr(d.id + suffix)
		if _, err := backup.Prepare(tx, backup.Request{Jobs: w.jobs, Txn: txn, Source: d.source, Target: d.target, Args: &a, Scratch: w.room}); err != nil {
			return err
		}
	}
	return nil
}

// verb applies a verb that may come at a bad time.
func (w *round) verb(f func(j *jobs.Job) error) {
	w.Graph.Loop().Do(func() {
		if j, err := w.jobs.FindBlock(oneOf(w.r, w.disks...).id); err == nil {
			_ = f(j)
		}
	})
}

// meddle does one thing that a monitor may do during a backup.
func (w *round) meddle(k int) (cancelled bool) {
	d := oneOf(w.r, w.disks...)
	switch w.r.IntN(9) {
	case 0, 1:
		w.verb((*jobs.Job).Pause)
	case 2:
		w.verb((*jobs.Job).Resume)
	case 3:
		speed := oneOf[int64](w.r, 0, 1<<20, 64<<20)
		w.verb(func(j *jobs.Job) error { return j.SetSpeed(speed) })
	case 4:
		nodes := oneOf(w.r, []*blockgraph.Node{d.source}, []*blockgraph.Node{d.target, d.source})
		w.Update(func(tx *blockgraph.Tx) error { return tx.Drain(nodes...) })
	case 5: // a snapshot; the guest's disk is the overlay from now on
		name := fmt.Sprintf("%s-o%d", d.id, k)
		overlay, _ := w.image("image", name, d.source.Size(), "", false)
		w.Update(func(tx *blockgraph.Tx) error {
			if err := tx.Drain(d.source); err != nil {
				return err
			}
			return tx.Append(overlay, d.source)
		})
		d.source = overlay
	case 6: // a transaction that is undone
		w.undone(k)
	case 7:
		if cancelled = w.r.IntN(4) == 0; cancelled {
			w.verb(func(j *jobs.Job) error { return j.Cancel(true) })
		}
	}
	return cancelled
}

// undone prepares everything once more and undoes it.
func (w *round) undone(k int) {
	refused := errors.New("refused")
	err := w.Try(func(tx *blockgraph.Tx) error {
		_ = tx.Drain(w.disks[0].source)
		d := w.disks[0]
		o := graphtest.PassOptions(fmt.Sprintf("p%d", k), d.source.Name())
		n, err := tx.Open(o)
		if err == nil {
			err = tx.ReplaceNode(d.source, n)
		}
		return errors.Join(err, refused)
	})
	if !errors.Is(err, refused) {
		w.t.Error(err)
	}
}

// over waits until no job is left, and resumes what stops.
func (w *round) over() {
	for {
		w.mu.Lock()
		left := len(w.disks) - w.gone
		w.mu.Unlock()
		if left == 0 {
			return
		}
		w.Graph.Loop().Do(func() {
			for _, d := range w.disks {
				if j, err := w.jobs.FindBlock(d.id); err == nil {
					_ = j.SetSpeed(0)
					_ = j.Resume()
				}
			}
		})
		<-w.news
	}
}

func run(t *testing.T, seed uint64) (succeeded int) {
	r := rand.New(rand.NewPCG(seed, 0))
	w := &round{World: graphtest.New(t, copybeforewrite.Type(clock.Real()), graphtest.ClusteredType("wide", 4*cluster)), t: t, r: r,
		news: make(chan struct{}, 1), ended: map[string]*qapi.BlockJobCompleted{}}
	w.jobs = jobs.New(w.Graph, clock.Real(), w.emit)
	var err error
	if w.room, err = scratch.NewPool(oneOf(r, scratch.Config{}, scratch.Config{Memory: 3 * cluster},
		scratch.Config{Memory: 2 * cluster, Directory: t.TempDir(), Spill: 4 * cluster}, scratch.Config{Memory: 1000, Directory: t.TempDir()})); err != nil {
		t.Fatal(err)
	}
	for i := range 1 + r.IntN(2) {
		w.disks = append(w.disks, w.disk(fmt.Sprintf("d%d", i)))
	}
	var stop atomic.Bool
	var guests sync.WaitGroup
	for i := range 2 * len(w.disks) {
		guests.Go(func() { w.disks[i/2].write(t, seed+uint64(i), &stop) })
	}
	var txn *jobs.Txn
	if r.IntN(2) == 0 {
		txn = w.jobs.NewTxn()
	}
	w.Update(func(tx *blockgraph.Tx) error {
		if err := w.prepare(tx, txn, ""); err != nil {
			return err
		}
		for _, d := range w.disks {
			d.wanted = d.from.content()
		}
		return nil
	})
	mayFail := false
	for k := range r.IntN(8) {
		mayFail = w.meddle(k) || mayFail
	}
	w.over()
	stop.Store(true)
	guests.Wait()
	for _, d := range w.disks {
		mayFail = mayFail || d.mayFail
	}
	for _, d := range w.disks {
		switch e := w.ended[d.id]; {
		case e == nil || e.Error != nil:
			if !mayFail {
				t.Errorf("%s ended with %+v", d.id, e)
			}
		case e.Offset != e.Len:
			t.Errorf("%s: progress %d of %d", d.id, e.Offset, e.Len)
		case !bytes.Equal(d.to.content(), d.wanted):
			got, off := d.to.content(), 0
			for got[off] == d.wanted[off] {
				off++
			}
			t.Errorf("%s reports success, and differs from the point in time at %d: %d, not %d", d.id, off, got[off], d.wanted[off])
		default:
			succeeded++
		}
	}
	if err := w.jobs.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	w.CloseRoots(func() (all []*blockgraph.Root) {
		for _, d := range w.disks {
			all = append(all, d.guest)
		}
		return all
	}()...)
	if m, f := w.room.Usage(); m != 0 || f != 0 {
		t.Errorf("%d bytes of memory and %d of files are still taken", m, f)
	}
	return succeeded
}

// TestSuccessMeansThePointInTime: whatever guests, the target, the monitor and
// the room for a scratch do, a backup that reports success holds what its
// source held when the transaction was committed.
func TestSuccessMeansThePointInTime(t *testing.T) {
	succeeded := 0
	for range graphtest.Sample(t, 40, 600) {
		seed := rand.Uint64()
		if !t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) { succeeded += run(t, seed) }) {
			return
		}
	}
	t.Logf("%d backups reported success", succeeded)
}
