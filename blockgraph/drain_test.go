package blockgraph_test

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"blockd/blockgraph"
	"blockd/blockgraph/graphtest"
	"blockd/clock"
)

// worker is a filter with work of its own, which rests when it is told to.
type worker struct {
	*graphtest.Pass
	began, rest chan struct{}
	log         *events
}

type events struct {
	mu   sync.Mutex
	list []string
}

func (e *events) add(what string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.list = append(e.list, what)
}

// Write takes a line of the log.
func (e *events) Write(p []byte) (int, error) { e.add(string(p)); return len(p), nil }

func (e *events) String() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return strings.Join(e.list, ", ")
}

func (w *worker) QuiesceBegin(ctx context.Context) {
	w.log.add("begin")
	close(w.began)
	select {
	case <-w.rest:
		w.log.add("rest")
	case <-ctx.Done():
	}
}

func (w *worker) QuiesceEnd() { w.log.add("end") }

// workerType opens workers; the last one is at *last.
func workerType(last **worker) *blockgraph.DriverType {
	t := graphtest.PassType()
	t.Name = "worker"
	open := t.Open
	t.Open = func(ctx context.Context, r *blockgraph.OpenRequest) (blockgraph.Driver, error) {
		d, err := open(ctx, r)
		if err != nil {
			return nil, err
		}
		*last = &worker{Pass: d.(*graphtest.Pass), began: make(chan struct{}), rest: make(chan struct{}), log: &events{}}
		return *last, nil
	}
	return t
}

// overMemory has a worker over two passes over memory, and a worker beside
// them.
func overMemory(w *graphtest.World, last **worker) (mem *blockgraph.Node, above, beside *worker) {
	mem, _ = w.Mem("mem", 4096)
	w.Pass("one", "mem")
	w.Pass("two", "one")
	add := func(name, file string) *worker {
		o := graphtest.PassOptions(name, file)
		o.Driver = "worker"
		w.Add(o)
		return *last
	}
	above = add("above", "two")
	w.Mem("other", 4096)
	return mem, above, add("beside", "other")
}

// TestWorkOfANodeAboveTheChangedOneRests, and that of no other.
func TestWorkOfANodeAboveTheChangedOneRests(t *testing.T) {
	var last *worker
	w := graphtest.New(t, workerType(&last))
	mem, above, beside := overMemory(w, &last)
	drained := make(chan struct{})
	go func() {
		w.Update(func(tx *blockgraph.Tx) error {
			if err := tx.Drain(mem); err != nil {
				return err
			}
			above.log.add("change")
			return tx.Drain(mem) // once is enough
		})
		close(drained)
	}()
	<-above.began
	close(above.rest)
	<-drained
	if got := above.log.String(); got != "begin, rest, change, end" {
		t.Error(got)
	}
	if got := beside.log.String(); got != "" {
		t.Error("another chain's work rested, too:", got)
	}
}

func TestDrainThatIsGivenUpIsAnError(t *testing.T) {
	var last *worker
	w := graphtest.New(t, workerType(&last))
	mem, above, _ := overMemory(w, &last)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		done <- w.Graph.Update(ctx, blockgraph.Cause{Command: "test"}, func(tx *blockgraph.Tx) error {
			err := tx.Drain(mem)
			above.log.add("returned")
			return err
		})
	}()
	<-above.began
	cancel()
	if err := <-done; err != context.Canceled {
		t.Error(err)
	}
	if got := above.log.String(); got != "begin, returned, end" {
		t.Error(got)
	}
}

// TestWhatHoldsADrainIsNamed after five seconds: requests, and nodes' work.
func TestWhatHoldsADrainIsNamed(t *testing.T) {
	log := &events{}
	defer slog.SetDefault(slog.Default())
	slog.SetDefault(slog.New(slog.NewTextHandler(log, nil)))
	synctest.Test(t, func(t *testing.T) {
		var last *worker
		w := graphtest.NewAt(t, clock.Real(), workerType(&last))
		defer w.Graph.Loop().Stop()
		mem, above, _ := overMemory(w, &last)
		var r *blockgraph.Root
		w.Update(func(tx *blockgraph.Tx) (err error) {
			r, err = tx.NewRoot(mem, blockgraph.RootOptions{Perm: blockgraph.PermConsistentRead, Shared: blockgraph.PermAll, Label: "export e"})
			return err
		})
		hold := graphtest.NewHold(graphtest.Read)
		mem.Driver().(*graphtest.Memory).SetHook(hold.Wait)
		go r.ReadV(context.Background(), 0, graphtest.Vec(make([]byte, 512)), 0)
		<-hold.Entered
		go w.Update(func(tx *blockgraph.Tx) error { return tx.Drain(mem) })
		time.Sleep(5*time.Second - 1)
		synctest.Wait()
		if got := log.String(); got != "" {
			t.Error("too early:", got)
		}
		time.Sleep(1 * time.Nanosecond)
		synctest.Wait()
		if !strings.Contains(log.String(), `change=test user="export e over node mem" requests=1`) {
			t.Error(log.String())
		}
		hold.Release()
		<-above.began
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if !strings.Contains(log.String(), "change=test node=above") {
			t.Error(log.String())
		}
		close(above.rest)
		synctest.Wait()
	})
}
