package jobs

import (
	"context"
	"testing"
	"testing/synctest"
)

// hanging is a job with a request that does not return.
type hanging struct {
	fake
	back chan struct{}
}

func (h *hanging) Drained() <-chan struct{} { return h.back }
func (h *hanging) Orphans() int             { return 3 }

// TestCancelDoesNotWaitForARequestThatDoesNotReturn: the end is told at once,
// the graph is cleaned when the request is back, and until then the job is to be
// seen.
func TestCancelDoesNotWaitForARequestThatDoesNotReturn(t *testing.T) {
	synced(t, func(t *testing.T, b *bench) {
		h := &hanging{fake: *newFake(b, "h"), back: make(chan struct{})}
		j, err := b.set.Create(Options{ID: "h", Block: true}, h)
		if err != nil {
			t.Fatal(err)
		}
		j.Start()
		b.do("h", forced)
		synctest.Wait()
		b.expect("h created", "h running", "h aborting", "h CANCELLED", "h concluded")
		b.on(func() {
			if i := b.set.Infos(); len(i) != 1 || i[0].XOrphans == nil || *i[0].XOrphans != 3 {
				t.Errorf("%+v", i)
			}
		})
		if len(b.phases) != 0 {
			t.Errorf("cleaned too early: %q", b.phases)
		}
		close(h.back)
		synctest.Wait()
		b.expect("h null")
		if got := toString(b.phases); got != "[h abort h clean]" {
			t.Error(got)
		}
	})
}

func TestShutdownNamesWhatDoesNotEnd(t *testing.T) {
	synced(t, func(t *testing.T, b *bench) {
		release := make(chan struct{})
		j, err := b.set.Create(Options{ID: "deaf", Block: true}, deaf(release))
		if err != nil {
			t.Fatal(err)
		}
		j.Start()
		ctx, stop := context.WithTimeout(t.Context(), 1)
		defer stop()
		if err := b.set.Shutdown(ctx); err == nil || err.Error() != "jobs did not end in time: deaf" {
			t.Error(err)
		}
		close(release)
	})
}

// deaf is a job that does not heed a cancel.
type deaf chan struct{}

func (d deaf) Run(context.Context, *Job) error { <-d; return nil }
