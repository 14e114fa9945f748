package qcow2

import (
	"bytes"
	"testing"
	"testing/synctest"

	"blockd/blockgraph"
)

// whileTableGrows does something while the active L1 table becomes longer, and has
// got as far as to write to its place. With it the image must be as before.
func whileTableGrows(t *testing.T, entries int64, do func(t *testing.T, d *Driver)) {
	synctest.Test(t, func(t *testing.T) {
		const cs = 512
		f := newImage(t, 1<<20, clusterSize(cs))
		d := openImage(t, f, nil)
		d.OnCorruption(func(msg string, _, _ int64, _ bool) { t.Error(msg) })
		want := fill(1, 512<<10)
		put(t, d, 0, want)
		// The table lies behind much that is free.
		if err := d.growL1(ctxb, 32*64-20); err != nil {
			t.Fatal(err)
		}
		if err := d.Discard(ctxb, 64<<10, 448<<10); err != nil {
			t.Fatal(err)
		}
		clear(want[64<<10:])
		if err := d.settle(ctxb); err != nil {
			t.Fatal(err)
		}
		reached, release := holdAt(f, "l1_grow_write_table")
		defer release()
		go func() {
			if err := d.growL1(ctxb, entries); err != nil {
				t.Error(err)
			}
		}()
		<-reached
		go do(t, d)
		synctest.Wait() // it is over, or waits for the table
		release()
		synctest.Wait()
		if n := int64(len(d.l1.Load().entries)); n != entries {
			t.Errorf("the table has %d entries, not %d", n, entries)
		}
		put(t, d, 512<<10, fill(2, 256<<10))
		if got := get(t, d, 0, 512<<10); !bytes.Equal(got, want) {
			t.Errorf("the disk differs at %#x", firstDiff(got, want))
		}
		closeImage(t, d)
		mustCheck(t, f, true)
	})
}

// TestRepairWaitsForATableThatGrows: the place of a table that is being made longer
// is not a leak.
func TestRepairWaitsForATableThatGrows(t *testing.T) {
	whileTableGrows(t, 40*64, func(t *testing.T, d *Driver) {
		if r := inspect(t, d, blockgraph.CheckFixAll, 0); r.Corruptions+r.Leaks+r.CorruptionsFixed+r.LeaksFixed > 0 {
			t.Errorf("found %+v", r)
		}
	})
}

// TestCompactWaitsForATableThatGrows: a table is moved or made longer, but not both at
// once.
func TestCompactWaitsForATableThatGrows(t *testing.T) {
	for _, entries := range []int64{40 * 64, 32 * 64} {
		whileTableGrows(t, entries, func(t *testing.T, d *Driver) { compact(t, d, noLock, 4096) })
	}
}

// TestRepairKnowsTablesOfADiskThatGrew: while a check rests behind the tables of the
// disk it becomes longer, and what guests write there is no leak.
func TestRepairKnowsTablesOfADiskThatGrew(t *testing.T) {
	const cs, size = 512, 64 << 10
	f := newImage(t, size, clusterSize(cs), refcountBits(64))
	d := openImage(t, f, nil)
	put(t, d, 0, fill(1, size))
	// Free clusters, which what is new takes.
	if err := d.Discard(ctxb, 0, size/2); err != nil {
		t.Fatal(err)
	}
	if err := d.settle(ctxb); err != nil {
		t.Fatal(err)
	}
	c := d.newInspection(blockgraph.CheckFixAll)
	c.ctx, c.want = ctxb, 1<<62 // one step
	c.limit = d.h.clusters(f.Size())
	c.shape = d.shape()
	c.setView(newView(d.h, 0, c.limit))
	c.first, c.extra, c.high = true, map[int64]int32{}, map[int64]int64{}
	for _, walk := range []func() error{c.readCounts, c.walkRefTable, c.walkActive} {
		if err := walk(); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Truncate(ctxb, 2*size, true, "", false); err != nil {
		t.Fatal(err)
	}
	put(t, d, size, fill(2, 8*cs))
	for _, end := range []func() error{c.judge, c.repair} {
		if err := end(); err != nil {
			t.Fatal(err)
		}
	}
	if c.res.LeaksFixed+c.win.Leaks+c.win.Corruptions > 0 {
		t.Errorf("%d leaks repaired; found %+v", c.res.LeaksFixed, c.win)
	}
	c.Close()
	closeImage(t, d)
	mustCheck(t, f, true)
}
