package jobs_test

import (
	"context"
	"testing"
	"time"

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
