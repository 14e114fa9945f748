package blockgraph

import (
	"context"
	"errors"
	"testing"
)

// TestStatusOfAChainWaitsForOldDataBeingSaved: while a Serialising request saves
// old data in the top image, what the image below says may already be of the new.
func TestStatusOfAChainWaitsForOldDataBeingSaved(t *testing.T) {
	w := newReopenWorld(t)
	w.add(`{"driver": "null-co", "node-name": "f", "read-only": true}`)
	w.add(`{"driver": "qcow2", "node-name": "base", "file": "f", "backing": null, "read-only": true}`)
	w.add(`{"driver": "qcow2", "node-name": "top", "file": "f", "backing": "base", "read-only": true}`)
	top := w.g.Node("top")
	top.size.Store(1 << 20)
	top.tracker.on, top.tracker.serialised = true, true
	saving, err := top.tracker.begin(t.Context(), 4096, 4096, true)
	if err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel() // who has to wait fails
	status := func(off, n int64) error {
		_, _, err := top.StatusAbove(ended, nil, off, n, StatusPrecise)
		return err
	}
	for _, c := range []struct {
		off, n int64
		waits  bool
	}{{0, 4096, false}, {0, 4097, true}, {8191, 512, true}, {8192, 512, false}} {
		if err := status(c.off, c.n); errors.Is(err, context.Canceled) != c.waits {
			t.Errorf("[%d, +%d): %v", c.off, c.n, err)
		}
	}
	top.tracker.end(saving)
	if err := status(0, 8192); err != nil {
		t.Error(err)
	}
	// Nothing is held afterwards.
	alone, err := top.tracker.begin(ended, 0, 1<<40, true)
	if err != nil {
		t.Fatal(err)
	}
	top.tracker.end(alone)
}
