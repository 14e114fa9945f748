package crash

import (
	"errors"
	"testing"

	"blockd/blockgraph"
	"blockd/jobs"
	"blockd/jobs/amend"
	"blockd/qapi"
)

// While an image is laid out anew nothing else amends it, and it has no new dirty
// bitmaps: its own come back with their names.
func TestAnImageIsAmendedAlone(t *testing.T) {
	w := newWorld(t)
	defer w.close()
	w.create("top", qapi.BlockdevCreateOptionsQcow2{Size: 1 << 20})
	r := w.mustOpen("top", "", true)
	w.update(func(tx *blockgraph.Tx) error {
		return errors.Join(tx.CloseRoot(r), tx.AddBitmap(tx.Find("top"), "b", 65536, true, false))
	})
	prepare := func(tx *blockgraph.Tx, id string, o qapi.BlockdevAmendOptionsQcow2) error {
		return amend.Prepare(tx, w.jobs, tx.Find("top"), &qapi.XBlockdevAmendArg{JobID: id, NodeName: "top", Options: qapi.BlockdevAmendOptions{Driver: "qcow2", Qcow2: &o}})
	}
	keys, layout := qapi.BlockdevAmendOptionsQcow2{}, qapi.BlockdevAmendOptionsQcow2{XRefcountBits: ptr(int64(64))}
	refused := func(err error, want string) {
		t.Helper()
		if err == nil || err.Error() != want {
			t.Errorf("%v, not %s", err, want)
		}
	}
	undone := errors.New("undone")
	for _, two := range [][2]qapi.BlockdevAmendOptionsQcow2{{keys, layout}, {layout, keys}, {layout, layout}} {
		err := w.graph.Update(ctxb, blockgraph.Cause{Command: "test"}, func(tx *blockgraph.Tx) error {
			if err := prepare(tx, "first", two[0]); err != nil {
				return err
			}
			refused(prepare(tx, "second", two[1]), "Node 'top' is busy: block device is in use by block job: amend")
			if two[0].XRefcountBits != nil {
				refused(tx.AddBitmap(tx.Find("top"), "b", 65536, false, false), "Node 'top' is busy: its image is being amended")
			}
			return undone
		})
		if !errors.Is(err, undone) {
			t.Fatal(err)
		}
	}
	w.update(func(tx *blockgraph.Tx) error { return prepare(tx, "alone", layout) })
	w.await("alone", qapi.JobStatusConcluded)
	w.verb("alone", (*jobs.Job).Dismiss)
	w.update(func(tx *blockgraph.Tx) error {
		n := tx.Find("top")
		if list := tx.State(n).Bitmaps; len(list) != 1 || list[0].Name != "b" {
			t.Errorf("%d bitmaps", len(list))
		}
		return tx.AddBitmap(n, "c", 65536, true, false)
	})
}
