package copybeforewrite_test

import (
	"log/slog"
	"testing"

	"go.uber.org/goleak"

	"blockd/blockgraph"
	"blockd/blockgraph/graphtest"
	"blockd/clock"
	"blockd/filters/copybeforewrite"
	"blockd/qapi"
)

func TestMain(m *testing.M) {
	slog.SetDefault(slog.New(slog.DiscardHandler))
	goleak.VerifyTestMain(m)
}

type world struct{ *graphtest.World }

func newWorld(t *testing.T) *world {
	return &world{graphtest.New(t, copybeforewrite.Type(clock.Real()), graphtest.ClusteredType("wide", 128<<10))}
}

func cbwOptions(file, target string, edit func(o *qapi.BlockdevOptionsCbw)) *qapi.BlockdevOptions {
	d := qapi.BlockdevDiscardOptionsUnmap
	c := &qapi.BlockdevOptionsCbw{File: qapi.BlockdevRef{Reference: &file}, Target: qapi.BlockdevRef{Reference: &target}}
	if edit != nil {
		edit(c)
	}
	return &qapi.BlockdevOptions{Driver: "copy-before-write", CopyBeforeWrite: c, Discard: &d}
}

// insert puts a filter over the source as a job does, and calls at within the
// drained section.
func (w *world) insert(source, target *blockgraph.Node, edit func(o *qapi.BlockdevOptionsCbw), at func(f *copybeforewrite.Filter)) (f *copybeforewrite.Filter, n *blockgraph.Node, job *blockgraph.Root) {
	w.T.Helper()
	w.Update(func(tx *blockgraph.Tx) (err error) {
		if err = tx.Drain(source); err != nil {
			return err
		}
		if n, err = tx.Open(cbwOptions(source.Name(), target.Name(), edit)); err != nil {
			return err
		}
		if err = tx.ReplaceNode(source, n); err != nil {
			return err
		}
		f = n.Driver().(*copybeforewrite.Filter)
		if at != nil {
			at(f)
		}
		job, err = tx.NewRoot(n, blockgraph.RootOptions{Perm: blockgraph.PermConsistentRead, Shared: blockgraph.PermAll, Job: "j", StayAtNode: true})
		return err
	})
	return f, n, job
}

// remove takes the filter out again.
func (w *world) remove(source, n *blockgraph.Node, job *blockgraph.Root) {
	w.T.Helper()
	w.Update(func(tx *blockgraph.Tx) error {
		if err := tx.CloseRoot(job); err != nil {
			return err
		}
		return tx.ReplaceNode(n, source)
	})
}
