package blockgraph_test

import (
	"context"
	"testing"

	"blockd/blockgraph"
	"blockd/blockgraph/graphtest"
	"blockd/qapi"
)

// TestUnmapByDiscardOption: a parent and a job may not give a node's space up that
// ignores discards, a guest of the node itself may (as in the field).
func TestUnmapByDiscardOption(t *testing.T) {
	for _, discard := range []qapi.BlockdevDiscardOptions{qapi.BlockdevDiscardOptionsIgnore, qapi.BlockdevDiscardOptionsUnmap} {
		w := graphtest.New(t)
		o := graphtest.MemOptions("m", 1<<20)
		o.Discard = &discard
		n := w.Add(o)
		unmaps := false
		n.Driver().(*graphtest.Memory).SetHook(func(r graphtest.Request) error {
			unmaps = r.Flags&blockgraph.MayUnmap != 0
			return nil
		})
		guest := w.Root(n, graphtest.ReadWrite, blockgraph.PermAll)
		above := w.Root(w.Pass("p", "m"), graphtest.ReadWrite, blockgraph.PermAll)
		var job *blockgraph.Root
		w.Update(func(tx *blockgraph.Tx) (err error) {
			job, err = tx.NewRoot(n, blockgraph.RootOptions{Perm: graphtest.ReadWrite, Shared: blockgraph.PermAll, Job: "j"})
			return err
		})
		allowed := discard == qapi.BlockdevDiscardOptionsUnmap
		for name, c := range map[string]struct {
			r    *blockgraph.Root
			want bool
		}{"guest": {guest, true}, "filter": {above, allowed}, "job": {job, allowed}} {
			if err := c.r.WriteZeroes(context.Background(), 0, 4096, blockgraph.MayUnmap); err != nil {
				t.Fatal(err)
			}
			if unmaps != c.want {
				t.Errorf("discard=%s, %s: unmap is %v", discard, name, unmaps)
			}
		}
		w.CloseRoots(guest, above, job)
	}
}
