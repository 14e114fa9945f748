package jobs_test

import (
	"fmt"
	"strings"
	"syscall"
	"testing"

	"blockd/jobs"
	"blockd/qapi"
)

func TestMirrorThatStopsForAnErrorIsResumed(t *testing.T) {
	for _, side := range []string{"read", "write"} {
		t.Run(side, func(t *testing.T) {
			w := newWorld(t)
			source, target := newDisk("source", 4).fill(0, 4, 'a'), newDisk("target", 4)
			policy := ptr(qapi.BlockdevOnErrorStop)
			if side == "read" {
				source.onRead = failing(1, syscall.EIO)
			} else {
				target.onWrite = failing(1, syscall.ENOSPC)
			}
			w.add(source, "")
			w.add(target, "")
			w.startMirror("source", "target", qapi.BlockdevMirror{OnSourceError: policy, OnTargetError: policy})
			w.await("m ERROR " + side + " stop")
			w.await("m paused")
			want := map[string]qapi.BlockDeviceIoStatus{"read": qapi.BlockDeviceIoStatusFailed, "write": qapi.BlockDeviceIoStatusNospace}[side]
			if i := w.info("m"); i.IOStatus != want || !i.Paused {
				t.Errorf("%+v", i)
			}
			w.verb("m", (*jobs.Job).Resume)
			w.await("m READY 4/4")
			w.complete()
			w.await("m null")
			if target.clusters() != "aaaa" {
				t.Errorf("target %s", target.clusters())
			}
		})
	}
}

func TestMirrorTriesAgainWhatItIgnored(t *testing.T) {
	w := newWorld(t)
	source, target := newDisk("source", 4).fill(0, 4, 'a'), newDisk("target", 4)
	target.onWrite = failing(2, syscall.EIO)
	w.add(source, "")
	w.add(target, "")
	w.startMirror("source", "target", qapi.BlockdevMirror{OnTargetError: ptr(qapi.BlockdevOnErrorIgnore)})
	w.await("m ERROR write ignore")
	w.await("m READY 4/4")
	if target.clusters() != "aaaa" {
		t.Errorf("target %s", target.clusters())
	}
}

func TestMirrorReportsAnError(t *testing.T) {
	w, g, target := mirrorWorld(t)
	target.onWrite = failing(1, syscall.EIO)
	w.startMirror("source", "target", qapi.BlockdevMirror{})
	w.await("m ERROR write report")
	w.await("m aborting")
	got := w.await("m null")
	if want := "m COMPLETED mirror 0/4: Input/output error, m concluded, m null"; got != want {
		t.Errorf("events %s", got)
	}
	if g.r.Node().Name() != "source" || w.filters() != 0 {
		t.Errorf("guest over %s", g.r.Node().Name())
	}
}

// TestMirrorWhoseLastCopyFailsFollowsItsPolicy: what a guest has written since
// the job's work was done, and what did not get to the target, is copied by the
// change that ends the job. If that fails, too, the policy decides.
func TestMirrorWhoseLastCopyFailsFollowsItsPolicy(t *testing.T) {
	for _, c := range []struct {
		policy qapi.BlockdevOnError
		want   string // events after the finalize
	}{
		{qapi.BlockdevOnErrorStop, "m ERROR write stop, m ready, m standby"},
		{qapi.BlockdevOnErrorIgnore, "m ERROR write ignore, m ready, m waiting, m pending, m PENDING"},
		{qapi.BlockdevOnErrorEnospc, "m ERROR write report, m aborting, m COMPLETED mirror 4/4: Input/output error, m concluded, m null"},
	} {
		t.Run(string(c.policy), func(t *testing.T) {
			w, g, target := mirrorWorld(t)
			w.startMirror("source", "target", qapi.BlockdevMirror{AutoFinalize: ptr(false), OnTargetError: &c.policy})
			w.expectEvents("m READY", mirrorReady)
			w.complete()
			w.await("m PENDING")
			// The guest's own write, and the one of the end.
			target.onWrite = failing(2, syscall.EIO)
			if err := g.write(2, 'n'); err != nil {
				t.Fatal(err)
			}
			w.verb("m", (*jobs.Job).Finalize)
			last := c.want[strings.LastIndex(c.want, ", ")+2:]
			w.expectEvents(last, c.want)
			if c.policy == qapi.BlockdevOnErrorEnospc {
				if g.r.Node().Name() != "source" || w.filters() != 0 || g.sees() != "aana" {
					t.Errorf("guest over %s sees %s", g.r.Node().Name(), g.sees())
				}
				return
			}
			if c.policy == qapi.BlockdevOnErrorStop {
				if i := w.info("m"); i.IOStatus != qapi.BlockDeviceIoStatusFailed || !i.Paused || i.Busy {
					t.Errorf("%+v", i)
				}
				if err := g.write(1, 'o'); err != nil { // guests go on
					t.Fatal(err)
				}
				w.verb("m", (*jobs.Job).Resume)
				w.expectEvents("m PENDING", "m ready, m waiting, m pending, m PENDING")
				if i := w.info("m"); i.IOStatus != qapi.BlockDeviceIoStatusOk {
					t.Errorf("%+v", i)
				}
			}
			w.verb("m", (*jobs.Job).Finalize)
			w.await("m null")
			if want := g.sees(); target.clusters() != want || g.r.Node().Name() != "target" || want[2] != 'n' {
				t.Errorf("target %s, the guest sees %s over %s", target.clusters(), want, g.r.Node().Name())
			}
		})
	}
}

// TestMirrorThatCouldNotEndCanBeCancelled, by force and without.
func TestMirrorThatCouldNotEndCanBeCancelled(t *testing.T) {
	for _, force := range []bool{true, false} {
		t.Run(fmt.Sprint(force), func(t *testing.T) {
			w, g, target := mirrorWorld(t)
			w.startMirror("source", "target", qapi.BlockdevMirror{AutoFinalize: ptr(false), OnTargetError: ptr(qapi.BlockdevOnErrorStop)})
			w.expectEvents("m READY", mirrorReady)
			w.complete()
			w.await("m PENDING")
			target.onWrite = failing(2, syscall.EIO)
			if err := g.write(2, 'n'); err != nil {
				t.Fatal(err)
			}
			w.verb("m", (*jobs.Job).Finalize)
			w.await("m standby")
			if !force {
				w.verb("m", (*jobs.Job).Resume)
				w.await("m PENDING")
			}
			w.verb("m", func(j *jobs.Job) error { return j.BlockCancel(force) })
			w.await("m null")
			if g.r.Node().Name() != "source" || w.filters() != 0 || g.sees() != "aana" {
				t.Errorf("guest over %s sees %s", g.r.Node().Name(), g.sees())
			}
		})
	}
}
