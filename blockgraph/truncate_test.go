package blockgraph_test

import (
	"errors"
	"fmt"
	"syscall"
	"testing"

	"blockd/blockgraph"
	"blockd/blockgraph/graphtest"
	"blockd/qapi"
)

// TestTruncateHasAMaximum: more is refused before the driver is asked.
func TestTruncateHasAMaximum(t *testing.T) {
	w := graphtest.New(t)
	n, _ := w.Mem("a", 1<<20)
	const size = blockgraph.MaxSize + 1
	err := w.Try(func(tx *blockgraph.Tx) error { return tx.Resize(n, size, false, qapi.PreallocModeOff) })
	if want := fmt.Sprintf("offset(%d) exceeds maximum(%d)", int64(size), int64(blockgraph.MaxSize)); err == nil || err.Error() != want || !errors.Is(err, syscall.EIO) {
		t.Errorf("%v, not %s", err, want)
	}
	if n.Size() != 1<<20 {
		t.Errorf("the length is %d", n.Size())
	}
}
