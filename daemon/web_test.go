package daemon

import (
	"runtime"
	"strings"
	"testing"

	"blockd/blockgraph"
	"blockd/qapi"
)

// TestWithoutWebNothingRunsForIt: a daemon whose web address is off has no
// goroutine of it, of the metrics or of any HTTP server, and counts no latencies.
func TestWithoutWebNothingRunsForIt(t *testing.T) {
	for _, on := range []bool{false, true} {
		d := New(Config{History: 1})
		defer d.Close()
		if on {
			if err := d.openWeb(t.Context(), "addr=127.0.0.1:0,qmp=on"); err != nil {
				t.Fatal(err)
			}
		}
		d.Start()
		stacks := make([]byte, 1<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		var found []string
		for _, part := range []string{"blockd/web.", "blockd/metrics.", "net/http."} {
			if strings.Contains(string(stacks), part) {
				found = append(found, part)
			}
		}
		if on != (len(found) > 0) {
			t.Errorf("web address on: %t, goroutines of %q", on, found)
		}
		if kept := keepsLatencies(t, d); kept != on {
			t.Errorf("web address on: %t, latencies kept: %t", on, kept)
		}
	}
}

// keepsLatencies tells whether users of a new node have their latencies counted.
func keepsLatencies(t *testing.T, d *Daemon) bool {
	name := "n"
	var r *blockgraph.Root
	err := d.Graph.Update(t.Context(), blockgraph.Cause{}, func(tx *blockgraph.Tx) error {
		n, err := tx.Open(&qapi.BlockdevOptions{Driver: qapi.BlockdevDriverNullCo, NodeName: &name, Null: &qapi.BlockdevOptionsNull{}})
		if err != nil {
			return err
		}
		r, err = tx.NewRoot(n, blockgraph.RootOptions{Name: "r", Shared: blockgraph.PermAll})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	_, _, _, kept := r.Latencies()
	err = d.Graph.Update(t.Context(), blockgraph.Cause{}, func(tx *blockgraph.Tx) error { return tx.CloseRoot(r) })
	if err != nil {
		t.Fatal(err)
	}
	return kept
}
