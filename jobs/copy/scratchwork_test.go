package copy_test

import (
	"context"
	"testing"

	"blockd/blockgraph"
	"blockd/blockgraph/graphtest"
	"blockd/ioengine"
	"blockd/jobs/copy"
	"blockd/jobs/scratch"
)

// keep does what a guest's write does to a cluster that it claimed.
func keep(t *testing.T, s *scratch.Scratch, off int64) {
	room, ok := s.Reserve(copy.DefaultCluster, false)
	if !ok {
		t.Fatal("no room")
	}
	if err := room.Keep(t.Context(), off, copy.DefaultCluster, ioengine.Bounce(copy.DefaultCluster)); err != nil {
		t.Fatal(err)
	}
}

func newScratch(t *testing.T, length int64) *scratch.Scratch {
	pool, err := scratch.NewPool(scratch.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return pool.New(length, copy.DefaultCluster, 0)
}

// TestNothingIsOverWhileAClusterIsClaimed: a guest's write failed to save a
// cluster that the planner had passed by, and another one claims it just when
// the work looks whether anything is left.
func TestNothingIsOverWhileAClusterIsClaimed(t *testing.T) {
	for _, scratched := range []bool{false, true} {
		w := graphtest.New(t)
		src, _ := w.Mem("src", copy.DefaultCluster)
		dst, _ := w.Mem("dst", copy.DefaultCluster)
		from, to := w.Root(src, graphtest.ReadWrite, blockgraph.PermAll), w.Root(dst, graphtest.ReadWrite, blockgraph.PermAll)
		c := copy.NewClusters(copy.DefaultCluster, copy.DefaultCluster)
		claim := func() *copy.Claim {
			cl, ok := c.Claim(0, copy.DefaultCluster, copy.DefaultCluster)
			if !ok {
				t.Fatal("nothing is dirty")
			}
			return cl
		}
		first := claim()
		var second *copy.Claim
		o := copy.ClusterOptions{Enter: copy.EnterRoots(from, to), Check: func() error {
			if second == nil {
				second = claim()
			}
			return nil
		}}
		if scratched {
			o.Scratch = newScratch(t, copy.DefaultCluster)
		}
		work := copy.NewClusterWork(c, o)
		l := copy.Limit{Data: copy.DefaultCluster, Zero: copy.DefaultCluster}
		if p, err := work.Next(t.Context(), l); p.N != 0 || err != nil {
			t.Fatal(p, err)
		}
		c.Done(first, copy.Failed)
		if more, err := work.Settle(t.Context()); !more || err != nil {
			t.Errorf("scratch %v: more %v, %v although a cluster is claimed", scratched, more, err)
		}
		if !scratched {
			c.Done(second, copy.Copied)
		} else {
			keep(t, o.Scratch, 0)
			c.Done(second, copy.Saved)
			if more, err := work.Settle(t.Context()); !more || err != nil {
				t.Errorf("more %v, %v although a cluster is kept", more, err)
			}
			o.Scratch.Drop()
		}
		if more, err := work.Settle(t.Context()); more || err != nil {
			t.Errorf("scratch %v: more %v, %v in the end", scratched, more, err)
		}
	}
}

// TestSkippedPieceLeavesWhatIsKept: between the choice of a piece and the look
// at its block status a guest's write may have kept a part of it and changed
// what the status says.
func TestSkippedPieceLeavesWhatIsKept(t *testing.T) {
	const size = 4 * copy.DefaultCluster
	w := graphtest.New(t)
	w.Mem("base", size)
	_, file := w.Mem("file", size)
	file.Image() // nothing is allocated
	top, _ := w.Image("top", "file", "base")
	dst, _ := w.Mem("dst", size)
	from, to := w.Root(top, graphtest.ReadWrite, blockgraph.PermAll), w.Root(dst, graphtest.ReadWrite, blockgraph.PermAll)
	c := copy.NewClusters(size, copy.DefaultCluster)
	s := newScratch(t, size)
	enter := copy.EnterRoots(from, to)
	work := copy.NewClusterWork(c, copy.ClusterOptions{Top: top, Scratch: s, Enter: func(ctx context.Context) (copy.Ends, func(), error) {
		if cl, ok := c.Claim(copy.DefaultCluster, copy.DefaultCluster, copy.DefaultCluster); ok {
			keep(t, s, cl.Off)
			c.Done(cl, copy.Saved)
		}
		return enter(ctx)
	}})
	p, err := work.Next(t.Context(), copy.Limit{Data: size, Zero: size})
	if err != nil || p != (copy.Piece{N: size, Kind: copy.Skip}) {
		t.Fatal(p, err)
	}
	work.Skip(p, false)
	if s.Empty() || c.Remaining() != 0 {
		t.Errorf("what was kept is gone, or %d bytes remain", c.Remaining())
	}
	s.Drop()
}
