package jobs_test

import (
	"context"
	"runtime"
	"sync"
	"testing"
	"time"

	"blockd/blockgraph"
	"blockd/clock"
	"blockd/jobs"
	"blockd/qapi"
)

// TestCancelWaitsForWhatGuestsHaveBegun: what a guest's write has begun for a
// job gets the time that the job's own steps get, before it counts as left
// behind. So clients who hear of the end find the graph without the job, though
// guests are busy.
func TestCancelWaitsForWhatGuestsHaveBegun(t *testing.T) {
	for _, c := range []struct {
		name  string
		start func(w *world)
	}{
		{"backup", func(w *world) {
			w.startBackup("source", "target", qapi.BackupCommon{JobID: ptr("m"), Sync: qapi.MirrorSyncModeNone})
		}},
		{"ready mirror", func(w *world) {
			w.startMirror("source", "target", qapi.BlockdevMirror{CopyMode: writeBlocking})
			w.await("m READY")
		}},
		{"pending mirror", func(w *world) {
			w.startMirror("source", "target", qapi.BlockdevMirror{AutoFinalize: ptr(false)})
			w.await("m READY")
			w.complete()
			w.await("m PENDING")
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			now := clock.NewVirtual()
			w := newWorldAt(t, now)
			g := w.guest(w.add(newDisk("source", 4).fill(0, 4, 'a'), ""))
			target := newDisk("target", 4)
			w.add(target, "")
			c.start(w)
			slow := newHold()
			target.onWrite = slow.wait
			done := make(chan error, 1)
			go func() { done <- g.write(0, 'n') }()
			<-slow.entered
			w.verb("m", func(j *jobs.Job) error { return j.BlockCancel(true) })
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			ctx, stop := context.WithTimeout(t.Context(), time.Minute)
			defer stop()
			if err := now.WaitForTimers(ctx, 1); err != nil {
				t.Errorf("nobody waits for the guest's write: %v", err)
			}
			close(slow.released)
			w.await("m CANCELLED")
			if w.filters() != 0 {
				t.Error("the filter is still there")
			}
			w.await("m null")
		})
	}
}

// TestJobStaysForItsStepsAndForWhatGuestsHaveBegun: whichever of the two ends
// first, the job and its filter stay for the other, and changes of the graph do not
// wait for it.
func TestJobStaysForItsStepsAndForWhatGuestsHaveBegun(t *testing.T) {
	for _, first := range []string{"step", "guest"} {
		t.Run(first+" ends first", func(t *testing.T) {
			w := newWorld(t)
			g := w.guest(w.add(newDisk("source", 4).fill(0, 4, 'a'), ""))
			target := newDisk("target", 4)
			step, copied := newHold(), newHold()
			target.onWrite = func(off, n int64) error {
				if off == 0 {
					return step.wait(off, n)
				}
				return copied.wait(off, n)
			}
			w.add(target, "")
			one := int64(1)
			chunk := int64(cluster)
			w.startBackup("source", "target", qapi.BackupCommon{XPerf: &qapi.BackupPerf{MaxWorkers: &one, MaxChunk: &chunk}})
			<-step.entered
			done := make(chan error, 1)
			go func() { done <- g.write(3, 'n') }()
			<-copied.entered
			w.verb("b", func(j *jobs.Job) error { return j.Cancel(true) })
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			w.await("b concluded")
			if i := w.info("b"); i.XOrphans == nil || *i.XOrphans != 2 {
				t.Fatalf("%+v", i)
			}
			endA, endB := sync.OnceFunc(func() { close(step.released) }), sync.OnceFunc(func() { close(copied.released) })
			if first == "guest" {
				endA, endB = endB, endA
			}
			t.Cleanup(endB) // before the world's
			endA()
			for i := w.info("b"); i.XOrphans != nil && *i.XOrphans != 1; i = w.info("b") {
				runtime.Gosched()
			}
			ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
			defer stop()
			for range 20 { // as many changes as it would take for the filter to go
				if err := w.graph.Update(ctx, blockgraph.Cause{}, func(*blockgraph.Tx) error { return nil }); err != nil {
					t.Fatalf("changes of the graph wait for the request in flight: %v", err)
				}
			}
			if w.filters() != 1 {
				t.Errorf("%d filters while a request is in flight", w.filters())
			}
			endB()
			w.await("b null")
			if w.filters() != 0 {
				t.Errorf("%d filters left", w.filters())
			}
		})
	}
}
