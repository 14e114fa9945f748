package qcow2

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"syscall"
	"testing"

	"blockd/blockgraph"
	"blockd/qapi"
)

// Faults that reading the checks and the compaction has found.

// TestRepairLeavesAloneWhatWasTouchedAfterItWasJudged: a cluster with one
// reference less than its count is judged; before others are, its only reference
// goes away. Making its count fit what was found would take a reference twice.
func TestRepairLeavesAloneWhatWasTouchedAfterItWasJudged(t *testing.T) {
	const cs = 4096
	p := newPatient(t, cs, 20)
	p.setCount(p.host(4), 2)
	d := openImage(t, p.f, nil)
	d.OnCorruption(func(msg string, _, _ int64, _ bool) { t.Error(msg) })
	if !d.care.CompareAndSwap(false, true) {
		t.Fatal("somebody else is there")
	}
	c := d.newInspection(blockgraph.CheckFixAll)
	c.ctx, c.want = ctxb, 1<<62 // one step
	c.limit = d.h.clusters(d.file().Size())
	if err := c.look(0, c.limit); err != nil {
		t.Fatal(err)
	}
	if noBits(c.found) {
		t.Fatal("the leak was not found")
	}
	// Its guest cluster goes; another round follows for the sake of others.
	if err := d.Discard(ctxb, 4*cs, cs); err != nil {
		t.Fatal(err)
	}
	if err := c.barrier(); err != nil {
		t.Fatal(err)
	}
	if err := c.repair(); err != nil {
		t.Fatal(err)
	}
	c.Close()
	flush(t, d)
	if r := inspect(t, d, blockgraph.CheckFixAll, 0); r.LeaksFixed != 1 || r.Corruptions+r.Leaks > 0 {
		t.Errorf("found %+v", r)
	}
	closeImage(t, d)
	mustCheck(t, p.f, true)
}

// TestCheckKnowsATableThatGrewInMemory: an L1 table that no header on disk knows is
// no leak, and lies within the file, whose end was in its midst.
func TestCheckKnowsATableThatGrewInMemory(t *testing.T) {
	const cs = 512
	f := newImage(t, 1<<20, clusterSize(cs))
	d := openImage(t, f, nil)
	put(t, d, 0, fill(1, 100*cs))
	// The file's last cluster becomes free, and part of the new table.
	flush(t, d)
	end := d.refs.untouched
	if err := f.Truncate(ctxb, (end+1)*cs, false, qapi.PreallocModeOff, false); err != nil {
		t.Fatal(err)
	}
	d.mu.Lock()
	d.refs.hint[1] = end
	d.mu.Unlock()
	if err := d.growL1(ctxb, 64*64); err != nil {
		t.Fatal(err)
	}
	if at := d.l1.Load().offset; at != end*cs || f.Size() != at+64*64*8 {
		t.Fatalf("the table is at %#x, the file ends at %#x", at, f.Size())
	}
	if r := inspect(t, d, blockgraph.CheckFixAll, 0); r.Corruptions+r.Leaks+r.CorruptionsFixed+r.LeaksFixed > 0 {
		t.Errorf("found %+v", r)
	}
	closeImage(t, d)
	mustCheck(t, f, true)
}

// scattered is an image whose neighbouring guest clusters have counts in
// different refcount blocks, with free space before them.
func scattered(t *testing.T) (*memFile, *Driver, []byte) {
	const cs, n = 512, 1024
	f := newImage(t, n*cs, clusterSize(cs), refcountBits(64))
	d := openImage(t, f, nil)
	want := make([]byte, n*cs)
	rnd := rand.New(rand.NewPCG(3, 4))
	leak, err := d.allocateRun(ctxb, 700)
	if err != nil {
		t.Fatal(err)
	}
	for i := range int64(n) {
		at := i * 67 % n * cs
		p := randomBytes(rnd, cs)
		put(t, d, at, p)
		copy(want[at:], p)
	}
	d.mu.Lock()
	d.free(leak/cs, 700, discardNever)
	d.mu.Unlock()
	if err := d.settle(ctxb); err != nil {
		t.Fatal(err)
	}
	return f, d, want
}

// TestCompactNeedsFewRefcountBlocksAtOnce compacts with a cache that holds fewer
// refcount blocks than count the clusters of one move.
func TestCompactNeedsFewRefcountBlocksAtOnce(t *testing.T) {
	f, d, want := scattered(t)
	d.mu.Lock()
	d.refs.capacity = minRefBlocks
	d.mu.Unlock()
	reads := 0
	f.setFault(func(op string, _, _ int64) error {
		if op == "read" {
			if reads++; reads > 100000 {
				return syscall.EIO // it goes on for ever
			}
		}
		return nil
	})
	if r := compact(t, d, noLock, 10000); r.Moved < 600 {
		t.Errorf("%+v", r)
	}
	f.setFault(nil)
	if got := get(t, d, 0, int64(len(want))); !bytes.Equal(got, want) {
		t.Errorf("content differs at %#x", firstDiff(got, want))
	}
	closeImage(t, d)
	mustCheck(t, f, true)
}

// TestCompactGoesOnBehindWhatStays: a cluster whose count is too high stays, its
// neighbours move.
func TestCompactGoesOnBehindWhatStays(t *testing.T) {
	f, d, _ := scattered(t)
	host := func(i int64) int64 {
		return int64(d.l1.Load().cached(15, 0).load(i).word&l2OffsetMask) >> d.h.clusterBits
	}
	first := int64(0)
	for host(first) < 1300 || host(first+1) < 1300 {
		first++
	}
	stays, moves := host(first), host(first+1)
	if err := d.addRefs(ctxb, []int64{stays}); err != nil {
		t.Fatal(err)
	}
	compact(t, d, noLock, 10000)
	if host(first) != stays || host(first+1) == moves {
		t.Errorf("clusters %d and %d are at %d and %d", stays, moves, host(first), host(first+1))
	}
	if r := inspect(t, d, blockgraph.CheckFixAll, 0); r.LeaksFixed != 1 {
		t.Errorf("found %+v", r)
	}
	closeImage(t, d)
	mustCheck(t, f, true)
}

// TestCompactThatFailsLetsTablesGo: after an error while an L2 table is read to
// be moved, nothing of it has to stay in memory.
func TestCompactThatFailsLetsTablesGo(t *testing.T) {
	f, d, _ := scattered(t)
	flush(t, d)
	d.forgetTables(d.sliceBits, nil)
	c := startCompact(t, d, noLock).(*compaction)
	c.ctx = ctxb
	fail := errors.New("no")
	f.setFault(func(string, int64, int64) error { return fail })
	err := c.moveTable(3)
	f.setFault(nil)
	if !errors.Is(err, fail) {
		t.Errorf("moving a table that cannot be read: %v", err)
	}
	if len(d.unsharing) > 0 {
		t.Errorf("tables stay in memory: %v", d.unsharing)
	}
	c.Close()
	closeImage(t, d)
	mustCheck(t, f, true)
}
