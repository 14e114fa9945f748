package jobs

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"blockd/blockgraph"
	"blockd/clock"
	"blockd/qapi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bench is a set of jobs over an empty graph, with what clients would see.
type bench struct {
	t     *testing.T
	set   *Set
	graph *blockgraph.Graph
	clock *clock.Virtual // the jobs'

	mu     sync.Mutex
	events []string
	phases []string // committed phases, in order
	depth  int
	deep   int // greatest depth of nested phases
	frames int // greatest depth of the call stack in a phase
	// committing is called at each commit, before it.
	committing func(id string)
}

func newBench(t *testing.T) *bench {
	b := &bench{t: t, clock: clock.NewVirtual()}
	b.graph = blockgraph.NewGraph(blockgraph.NewLoop(), clock.NewVirtual())
	b.set = New(b.graph, b.clock, b.emit)
	return b
}

func (b *bench) close() {
	b.t.Helper()
	if err := b.set.Shutdown(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
	b.graph.Loop().Stop()
}

func (b *bench) emit(event string, data any) {
	var s string
	switch d := data.(type) {
	case qapi.JobStatusChange:
		s = d.ID + " " + string(d.Status)
	case qapi.BlockJobCompleted:
		s = d.Device + " COMPLETED"
		if d.Error != nil {
			s += ": " + *d.Error
		}
	case qapi.BlockJobProgress:
		s = d.Device + " " + event[len("BLOCK_JOB_"):]
	case qapi.BlockJobPending:
		s = d.ID + " PENDING"
	case qapi.BlockJobError:
		s = fmt.Sprintf("%s ERROR %s %s", d.Device, d.Operation, d.Action)
	default:
		panic(event)
	}
	b.mu.Lock()
	b.events = append(b.events, s)
	b.mu.Unlock()
}

// take returns the events since the last call.
func (b *bench) take() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.events
	b.events = nil
	return e
}

func (b *bench) expect(want ...string) {
	b.t.Helper()
	if got := b.take(); !slices.Equal(got, want) {
		b.t.Fatalf("events\n got %q\nwant %q", got, want)
	}
}

// on runs f on the loop.
func (b *bench) on(f func()) { b.graph.Loop().Do(f) }

// do runs a verb on the loop and returns its error's text.
func (b *bench) do(id string, f func(*Job) error) string {
	var err error
	b.on(func() {
		var j *Job
		if j, err = b.set.Find(id); err == nil {
			err = f(j)
		}
	})
	if err == nil {
		return ""
	}
	return err.Error()
}

func (b *bench) status(id string) qapi.JobStatus {
	s := null
	b.on(func() {
		if j, err := b.set.Find(id); err == nil {
			s = j.status
		}
	})
	return s
}

func forced(j *Job) error { return j.Cancel(true) }

// fake is a job that does what the test tells it, one step at a time.
type fake struct {
	b     *bench
	id    string
	steps chan func(ctx context.Context, j *Job) (end bool, err error)

	prepareErr error
	unfinished *Unfinished // what Prepare fails with once
	unprepared int
	after      func() // runs right after the commit of the phases
}

func newFake(b *bench, id string) *fake {
	return &fake{b: b, id: id, steps: make(chan func(context.Context, *Job) (bool, error), 16)}
}

var errBody = blockgraph.Errorf(syscall.EIO, "%s", blockgraph.Strerror(syscall.EIO))

func (f *fake) finish() {
	f.steps <- func(context.Context, *Job) (bool, error) { return true, nil }
}

func (f *fake) fail() {
	f.steps <- func(context.Context, *Job) (bool, error) { return true, errBody }
}

func (f *fake) Run(ctx context.Context, j *Job) error {
	j.Progress().SetRemaining(100)
	for {
		if err := j.PausePoint(ctx); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-j.PauseRequested():
		case s := <-f.steps:
			if end, err := s(ctx, j); end {
				return err
			}
		}
	}
}

// phase notes a phase, and how deep phases are nested in each other. What the
// change commits is noted when it does.
func (f *fake) phase(tx *blockgraph.Tx, name string) func() {
	f.b.mu.Lock()
	f.b.depth++
	f.b.deep = max(f.b.deep, f.b.depth)
	f.b.frames = max(f.b.frames, runtime.Callers(0, make([]uintptr, 256)))
	f.b.mu.Unlock()
	tx.OnCommit(func() {
		f.b.mu.Lock()
		f.b.phases = append(f.b.phases, f.id+" "+name)
		f.b.mu.Unlock()
	})
	return func() {
		f.b.mu.Lock()
		f.b.depth--
		f.b.mu.Unlock()
	}
}

func (f *fake) Prepare(tx *blockgraph.Tx) error {
	defer f.phase(tx, "prepare")()
	tx.OnAbort(func() { f.unprepared++ })
	if u := f.unfinished; u != nil && f.prepareErr == nil {
		f.unfinished = nil
		return u
	}
	return f.prepareErr
}

func (f *fake) Commit(tx *blockgraph.Tx) error {
	defer f.phase(tx, "commit")()
	if f.b.committing != nil {
		f.b.committing(f.id)
	}
	if f.after != nil {
		tx.After(f.after)
	}
	return nil
}

func (f *fake) Abort(tx *blockgraph.Tx) error {
	defer f.phase(tx, "abort")()
	return nil
}

func (f *fake) Clean(tx *blockgraph.Tx) error {
	defer f.phase(tx, "clean")()
	return nil
}

// launch creates and starts jobs in one graph change.
func (b *bench) launch(drained bool, txn *Txn, o Options, ids ...string) []*fake {
	b.t.Helper()
	var fakes []*fake
	err := b.graph.Update(b.t.Context(), blockgraph.Cause{Command: "test"}, func(tx *blockgraph.Tx) error {
		for _, id := range ids {
			f := newFake(b, id)
			o.ID, o.Type, o.Block, o.Txn = id, qapi.JobTypeBackup, true, txn
			j, err := b.set.Create(o, f)
			if err != nil {
				return err
			}
			j.StartIn(tx, drained)
			fakes = append(fakes, f)
		}
		return nil
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return fakes
}

// launchFinished starts jobs whose bodies end at once; bad fails.
func (b *bench) launchFinished(txn *Txn, bad string, ids []string) {
	b.t.Helper()
	err := b.graph.Update(b.t.Context(), blockgraph.Cause{Command: "test"}, func(tx *blockgraph.Tx) error {
		for _, id := range ids {
			f := newFake(b, id)
			if id == bad {
				f.fail()
			} else {
				f.finish()
			}
			j, err := b.set.Create(Options{ID: id, Type: qapi.JobTypeBackup, Block: true, Txn: txn}, f)
			if err != nil {
				return err
			}
			j.StartIn(tx, true)
		}
		return nil
	})
	if err != nil {
		b.t.Fatal(err)
	}
}
