package qcow2

import (
	"slices"
	"strings"
	"sync"
	"testing"

	"blockd/blockgraph"
	"blockd/qapi"
)

// pointsOf returns the fault points that f passes in an image, each once, in
// the order of their first occurrence.
func pointsOf(file *memFile, f func()) (points []string) {
	var mu sync.Mutex
	file.events = func(e string) {
		mu.Lock()
		defer mu.Unlock()
		if !slices.Contains(points, e) {
			points = append(points, e)
		}
	}
	f()
	file.events = nil
	return points
}

// TestFaultPoints holds which of the field's fault points an operation passes,
// in this order.
func TestFaultPoints(t *testing.T) {
	const cs = 64 << 10
	backing := newImage(t, 16<<20)
	step := func(f *memFile, want string, do func()) {
		t.Helper()
		if got := strings.Join(pointsOf(f, do), " "); got != want {
			t.Errorf("%s\nwant %s", got, want)
		}
	}
	f := newImage(t, 16<<20)
	var d *Driver
	step(f, "reftable_load", func() { d = openImage(t, f, backing) })
	step(f, "cluster_alloc refblock_load l2_alloc_write cow_read read_backing_aio cow_write write_aio", func() { put(t, d, 512, fill(1, 512)) })
	step(f, "refblock_update_part l2_update l1_update flush_to_disk", func() { flush(t, d) })
	step(f, "flush_to_disk", func() { flush(t, d) })
	step(f, "write_aio", func() { put(t, d, 512, fill(1, 512)) })
	step(f, "cluster_alloc write_aio", func() { put(t, d, 2*cs, fill(1, cs)) })
	step(f, "refblock_update_part l2_update flush_to_disk", func() { flush(t, d) })
	step(f, "read_aio", func() { get(t, d, 0, 512) })
	step(f, "read_backing_aio", func() { get(t, d, 8<<20, 512) })
	step(f, "cluster_alloc_bytes write_compressed l2_update_compressed", func() {
		if err := d.WriteV(ctxb, 3*cs, blockgraph.MakeIOVec(fill(1, cs)), blockgraph.Compressed); err != nil {
			t.Error(err)
		}
	})
	step(f, "read_compressed", func() { get(t, d, 3*cs, 512) })
	flush(t, d)
	step(f, "l2_update flush_to_disk cluster_free", func() {
		if err := d.Discard(ctxb, 2*cs, cs); err != nil {
			t.Error(err)
		}
		flush(t, d)
	})
	closeImage(t, d)
	d = openImage(t, f, nil)
	step(f, "l2_load read_aio", func() { get(t, d, 0, 512) })
	closeImage(t, d)
}

// TestFaultPointsOfGrowth: with clusters of 512 bytes and counts of 64 bits,
// a block counts 64 clusters and a cluster of the table 64 blocks.
func TestFaultPointsOfGrowth(t *testing.T) {
	f := newImage(t, 4<<20, clusterSize(512), refcountBits(64))
	d := openImage(t, f, nil)
	has := func(what string, got []string, want ...string) {
		t.Helper()
		for _, w := range want {
			if !slices.Contains(got, w) {
				t.Errorf("%s: no %s among %s", what, w, got)
			}
		}
	}
	has("new blocks", pointsOf(f, func() { put(t, d, 0, fill(1, 64<<10)) }), "refblock_alloc", "refblock_alloc_write", "l2_alloc_write")
	has("flush of them", pointsOf(f, func() { flush(t, d) }), "refblock_update_part", "refblock_alloc_hookup")
	has("new table", pointsOf(f, func() { put(t, d, 64<<10, fill(1, 3<<20)) }), "reftable_grow", "refblock_alloc_write_blocks")
	has("flush of it", pointsOf(f, func() { flush(t, d) }), "refblock_alloc_write_table", "refblock_alloc_switch_table")
	has("growth of the disk", pointsOf(f, func() {
		if err := d.Truncate(ctxb, 64<<20, false, qapi.PreallocModeOff, false); err != nil {
			t.Error(err)
		}
	}), "l1_grow_alloc_table", "l1_grow_write_table", "l1_grow_activate_table")
	has("shrinking", pointsOf(f, func() {
		if err := d.Truncate(ctxb, 1<<20, false, qapi.PreallocModeOff, false); err != nil {
			t.Error(err)
		}
	}), "l1_shrink_write_table", "l1_shrink_free_l2_clusters", "cluster_free")
	closeImage(t, d)
	mustCheck(t, f, true)
}

// TestFaultPointOfACopiedTable: an internal snapshot shares the L2 table.
func TestFaultPointOfACopiedTable(t *testing.T) {
	img := tool(t, "qemu-img")
	f := newImage(t, 1<<20)
	d := openImage(t, f, nil)
	put(t, d, 0, fill(1, 512))
	closeImage(t, d)
	p := save(t, f, "snap.qcow2")
	run(t, img, "snapshot", "-c", "s", p)
	f = load(t, p)
	d = openImage(t, f, nil)
	got := pointsOf(f, func() { put(t, d, 0, fill(2, 512)); flush(t, d) })
	if i, k := slices.Index(got, "l2_alloc_cow_read"), slices.Index(got, "l2_alloc_write"); i < 0 || k < i {
		t.Error(got)
	}
	closeImage(t, d)
}

// TestFaultPointsAreTheFields: no point has a name that the schema lacks, and
// none is passed with the lock held, where who acts on it could not wait.
func TestFaultPointsAreTheFields(t *testing.T) {
	known := qapi.BlkdebugEvent("").QAPIEnum()
	f := newImage(t, 4<<20, clusterSize(512), refcountBits(64))
	d := openImage(t, f, nil)
	for _, e := range pointsOf(f, func() {
		inner := f.events
		f.events = func(e string) {
			d.mu.Lock() // a deadlock if it is held
			_ = d.points
			d.mu.Unlock()
			inner(e)
		}
		put(t, d, 0, fill(1, 3<<20))
		flush(t, d)
		if err := d.Discard(ctxb, 0, 1<<20); err != nil {
			t.Error(err)
		}
		flush(t, d)
	}) {
		if !slices.Contains(known, e) {
			t.Errorf("%q is no fault point of the field", e)
		}
	}
	closeImage(t, d)
}
