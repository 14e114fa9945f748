package monitor

import (
	"context"
	"testing"

	"blockd/blockgraph"
	"blockd/blockgraph/graphtest"
	"blockd/clock"
	"blockd/jobs"
	"blockd/qapi"
)

// sleeper is a job that does nothing until it is cancelled.
type sleeper struct{}

func (sleeper) Run(ctx context.Context, _ *jobs.Job) error {
	<-ctx.Done()
	return ctx.Err()
}

// hangs is a protocol whose open waits.
type hangs struct{ entered, released chan struct{} }

func (h *hangs) driverType() *blockgraph.DriverType {
	return &blockgraph.DriverType{Name: "hangs", Protocol: true,
		Open: func(_ context.Context, r *blockgraph.OpenRequest) (blockgraph.Driver, error) {
			close(h.entered)
			<-h.released
			return graphtest.NewMemory(*r.Options.Null.Size), nil
		}}
}

// answering is a monitor with a job, over a graph that a test makes hang.
type answering struct {
	*graphtest.World
	*Monitor
}

func newAnswering(t *testing.T, types ...*blockgraph.DriverType) *answering {
	w := graphtest.New(t, types...)
	set := jobs.New(w.Graph, clock.Real(), func(string, any) {})
	t.Cleanup(func() {
		if err := set.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return &answering{w, New(Config{Graph: w.Graph, Jobs: set})}
}

func (a *answering) statuses() (list []string) {
	a.loop.Do(func() {
		for _, i := range a.jobs.Infos() {
			list = append(list, i.ID+" "+string(i.Status))
		}
	})
	return list
}

// expectAnswers has clients begin a job, ask for it and cancel it.
func (a *answering) expectAnswers() {
	a.T.Helper()
	j, err := a.jobs.Create(jobs.Options{ID: "j", Type: qapi.JobTypeBackup, Block: true}, sleeper{})
	if err != nil {
		a.T.Fatal(err)
	}
	j.Start()
	var over <-chan struct{}
	a.loop.Do(func() { over = j.Txn().Over() })
	if got := a.statuses(); len(got) != 1 || got[0] != "j running" {
		a.T.Errorf("query-jobs: %q", got)
	}
	if err := a.onJob(a.jobs.Find, "j", jobs.VerbCancel, func(j *jobs.Job) error { return j.Cancel(true) }); err != nil {
		a.T.Error(err)
	}
	<-over
	if got := a.statuses(); len(got) != 0 {
		a.T.Errorf("after job-cancel: %q", got)
	}
	if g, err := a.queryBlockGraph(nil, nil); err != nil || len(g.Nodes) == 0 {
		a.T.Error("x-debug-query-block-graph", err)
	}
}

func TestJobsAreAskedForAndCancelledWhileABlockdevAddHangs(t *testing.T) {
	h := &hangs{entered: make(chan struct{}), released: make(chan struct{})}
	a := newAnswering(t, h.driverType())
	a.Mem("m", 4096)
	o := graphtest.MemOptions("slow", 4096)
	o.Driver = "hangs"
	added := make(chan error)
	go func() { added <- a.AddNode(context.Background(), o) }()
	<-h.entered
	a.expectAnswers()
	select {
	case err := <-added:
		t.Error("blockdev-add did not hang", err)
	default:
	}
	close(h.released)
	if err := <-added; err != nil {
		t.Error(err)
	}
}

func TestJobsAreAskedForAndCancelledWhileADrainHangs(t *testing.T) {
	a := newAnswering(t)
	n, m := a.Mem("m", 4096)
	guest := a.Root(n, graphtest.ReadWrite, blockgraph.PermAll)
	hold := graphtest.NewHold(graphtest.Read)
	m.SetHook(hold.Wait)
	done := make(chan error)
	go func() { done <- guest.ReadV(context.Background(), 0, graphtest.Vec(make([]byte, 512)), 0) }()
	<-hold.Entered
	drained := make(chan error)
	go func() {
		drained <- a.update(context.Background(), "block_resize", func(tx *blockgraph.Tx) error { return tx.Resize(n, 8192, false, qapi.PreallocModeOff) })
	}()
	graphtest.AwaitClosed(guest)
	a.expectAnswers()
	select {
	case err := <-drained:
		t.Error("the drain did not hang", err)
	default:
	}
	hold.Release()
	if err := <-drained; err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}
