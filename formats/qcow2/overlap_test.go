package qcow2

import (
	"encoding/binary"
	"errors"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
	"weak"

	"blockd/blockgraph"
	"blockd/qapi"
)

// inactiveChecked are options that protect the tables of snapshots.
func inactiveChecked(on bool) *qapi.BlockdevOptionsQcow2 {
	mode := qapi.Qcow2OverlapCheckModeCached
	if on {
		mode = qapi.Qcow2OverlapCheckModeAll
	}
	return &qapi.BlockdevOptionsQcow2{OverlapCheck: &qapi.Qcow2OverlapChecks{Mode: &mode}}
}

// What snapshots have is protected from the moment they are made until they are
// gone, and as the options of a reopening say.
func TestTablesOfSnapshotsAreProtected(t *testing.T) {
	f := newImage(t, 4<<20, clusterSize(4096))
	d := openWith(t, f, nil, inactiveChecked(true))
	put(t, d, 0, fill(1, 4<<20))
	flush(t, d)
	table := int64(d.l1.Load().entries[1].Load() & l1OffsetMask)
	is := func(want bool) {
		t.Helper()
		if got := d.meta.at(table+8, 8, kindInactiveL2) != 0; got != want {
			t.Errorf("protected: %v", got)
		}
	}
	is(false)
	for _, name := range []string{"a", "b"} {
		if _, err := d.CreateSnapshot(ctxb, name, time.Unix(1, 0)); err != nil {
			t.Fatal(err)
		}
		is(true)
	}
	put(t, d, 3<<20, fill(2, 4096)) // the table is the snapshots' alone
	flush(t, d)
	is(true)
	if k := d.meta.at(table, 1, ^metadataKind(0)); k != kindInactiveL2 {
		t.Errorf("it is known as %v", k)
	}
	for _, name := range []string{"a", "b"} {
		is(true)
		if err := d.DeleteSnapshot(ctxb, nil, &name); err != nil {
			t.Fatal(err)
		}
	}
	is(false)
	if _, err := d.CreateSnapshot(ctxb, "c", time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	closeImage(t, d)
	mustCheck(t, f, true)

	d = openWith(t, f, nil, inactiveChecked(false))
	table = int64(d.l1.Load().entries[1].Load() & l1OffsetMask)
	is(false)
	p, err := d.PrepareReopen(ctxb, &blockgraph.ReopenRequest{Options: &qapi.BlockdevOptions{Qcow2: inactiveChecked(true)}})
	if err != nil {
		t.Fatal(err)
	}
	p.Apply()
	is(true)
	closeImage(t, d)

	// A table that is shared is the active one's first.
	d = openWith(t, f, nil, inactiveChecked(true))
	if k := d.meta.at(table, 1, overlapAll); k != kindActiveL2 {
		t.Errorf("a shared table is %v", k)
	}
	closeImage(t, d)
}

// A snapshot's L1 table that cannot be read is told where its tables are to be
// protected, and changes nothing.
func TestTablesOfSnapshotsThatCannotBeRead(t *testing.T) {
	f := newImage(t, 1<<20, clusterSize(4096))
	d := openWith(t, f, nil, inactiveChecked(true))
	put(t, d, 0, fill(1, 4096))
	if _, err := d.CreateSnapshot(ctxb, "a", time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	at := int64(d.snapshots.Load().list[0].l1Offset)
	unreadable := func(op string, off, _ int64) error {
		if op == "read" && off == at {
			return syscall.EIO
		}
		return nil
	}
	f.setFault(unreadable)
	if _, err := d.CreateSnapshot(ctxb, "b", time.Unix(1, 0)); !errors.Is(err, syscall.EIO) {
		t.Errorf("creating a snapshot: %v", err)
	}
	closeImage(t, d)
	f.setFault(nil)
	closeImage(t, openImage(t, f, nil)) // counts are put right
	f.setFault(unreadable)
	if _, err := open(ctxb, testChildren{f, nil}, &qapi.BlockdevOptions{Qcow2: inactiveChecked(true)}, false); !errors.Is(err, syscall.EIO) {
		t.Errorf("opening: %v", err)
	}
	d = openWith(t, f, nil, inactiveChecked(false))
	if n := len(d.snapshots.Load().list); n != 1 {
		t.Errorf("%d snapshots", n)
	}
	closeImage(t, d)
	f.setFault(nil)
	mustCheck(t, f, true)
}

// Where all counts are 0 the search for free space finds the header, which nobody
// gets, whatever overlap-check says. The texts are the field's.
func TestNothingIsAllocatedAtTheHeader(t *testing.T) {
	none := qapi.Qcow2OverlapCheckModeNone
	opts := &qapi.BlockdevOptionsQcow2{OverlapCheck: &qapi.Qcow2OverlapChecks{Mode: &none}}
	for _, x := range []struct {
		name, want string
		noBlock    bool // instead of a block with counts of 0
		table      bool // there is an L2 table already
		flags      blockgraph.Flags
	}{
		{name: "L2 table", want: "Preventing invalid allocation of L2 table at offset 0"},
		{name: "refcount block", noBlock: true, want: "Preventing invalid allocation of refcount block at offset 0"},
		{name: "compressed", table: true, flags: blockgraph.Compressed, want: "Preventing invalid allocation of compressed cluster at offset 0"},
		{name: "data", table: true, want: "Preventing invalid write on metadata (overlaps with qcow2_header)"},
	} {
		t.Run(x.name, func(t *testing.T) {
			f := newImage(t, 1<<20, clusterSize(4096))
			if x.table {
				d := openImage(t, f, nil)
				put(t, d, 0, fill(1, 4096))
				closeImage(t, d)
			}
			p := patientOf(t, f)
			if x.noBlock {
				p.setBlock(0, 0)
			} else {
				clear(f.b[p.block(0)&refTableMask:][:4096])
			}
			head := string(f.b[:fieldIncompatible]) + string(f.b[fieldIncompatible+8:4096])
			d := openWith(t, f, nil, opts)
			var got string
			d.OnCorruption(func(m string, off, n int64, fatal bool) {
				got = m
				if at := off == 0 && n == 4096; at != strings.Contains(m, "overlaps") || !fatal {
					t.Errorf("at %d, %d bytes, fatal %v", off, n, fatal)
				}
			})
			err := d.WriteV(ctxb, 64<<10, blockgraph.MakeIOVec(fill(2, 4096)), x.flags)
			if !errors.Is(err, syscall.EIO) || got != x.want {
				t.Errorf("%v, %q", err, got)
			}
			closeImage(t, d)
			if string(f.b[:fieldIncompatible])+string(f.b[fieldIncompatible+8:4096]) != head {
				t.Error("the header has changed")
			}
			if f.b[fieldIncompatible+7]&incompatCorrupt == 0 {
				t.Error("the image is not marked as corrupt")
			}
		})
	}
}

// An image that cannot be opened keeps nothing in memory; a clock that waits to
// clean its caches would.
func TestFailedOpenLeavesNothingInMemory(t *testing.T) {
	f := newImage(t, 1<<20)
	binary.BigEndian.PutUint64(f.b[fieldBackingOffset:], 512)
	binary.BigEndian.PutUint32(f.b[fieldBackingSize:], 1024)
	if _, err := open(ctxb, testChildren{f, nil}, &qapi.BlockdevOptions{}, false); err == nil || err.Error() != "Backing file name too long" {
		t.Fatal(err)
	}
	w := weak.Make(f)
	f = nil
	for range 3 {
		runtime.GC()
	}
	if w.Value() != nil {
		t.Error("something still refers to the image")
	}
}

// A table protects its last cluster as a whole, as in the field: what is written
// behind its end lies in metadata, too.
func TestTheClusterOfATableIsProtectedAsAWhole(t *testing.T) {
	d := openImage(t, newImage(t, 4<<20, clusterSize(4096)), nil)
	l1, end := int64(d.h.l1Offset), int64(d.h.l1Offset)+int64(d.h.l1Size)*8
	if end&4095 == 0 {
		t.Fatal("the table fills its cluster")
	}
	for _, r := range [][2]int64{{end, 8}, {end + 8, 512}, {l1 + 4088, 8}, {l1 + 4088, 4096}} {
		if k := d.meta.at(r[0], r[1], kindActiveL1); k != kindActiveL1 {
			t.Errorf("%d bytes at %#x are known as %v", r[1], r[0], k)
		}
	}
	for _, r := range [][2]int64{{l1 + 4096, 8}, {l1 - 8, 8}} {
		if k := d.meta.at(r[0], r[1], kindActiveL1); k != 0 {
			t.Errorf("%d bytes at %#x are known as %v", r[1], r[0], k)
		}
	}
}
