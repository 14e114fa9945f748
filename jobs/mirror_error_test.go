package jobs_test

import (
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
