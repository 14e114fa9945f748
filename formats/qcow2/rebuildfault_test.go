package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"
	"testing"

	"blockd/blockgraph"
)

// TestRebuildFailsAnywhere fails each write and flush of a rebuild, before and
// after it has reached the file, for structures that are of no use any more and for
// some that are. Whoever goes on using the image, or opens it again, loses nothing:
// it can be repaired once more, and new structures that are in force are right.
func TestRebuildFailsAnywhere(t *testing.T) {
	t.Run("useless", func(t *testing.T) { rebuildFails(t, func(p *patient) { p.setBlock(0, 1<<26) }) })
	t.Run("usable", func(t *testing.T) { rebuildFails(t, func(p *patient) { p.setBlock(1, p.block(0)) }) })
}

func rebuildFails(t *testing.T, lose func(p *patient)) {
	for fail, done := 1, false; !done; fail++ {
		for _, late := range []bool{false, true} {
			t.Run(fmt.Sprint(fail, late), func(t *testing.T) {
				p := newPatient(t, 4096, 20)
				lose(p)
				content := contentOf(t, p.f)
				d := toRepair(t, p.f)
				u := toRebuild(t, d)
				n := 0
				p.f.setFault(func(op string, _, _ int64) error {
					if op == "write" || op == "flush" {
						n++
					}
					if n == fail && (op == "written" || !late && op != "read") {
						n++ // once
						return syscall.ENOSPC
					}
					return nil
				})
				err := u.Rebuild(ctxb)
				p.f.setFault(nil)
				u.Close()
				switch {
				case n < fail:
					done = true
				case err == nil && !late: // a flush is not "written"
					t.Error("it tells of no error")
				case err != nil && !errors.Is(err, syscall.ENOSPC):
					t.Error(err)
				}
				hole := 22 * p.h.clusterSize
				fresh := fill(0x77, int(p.h.clusterSize))
				err = d.WriteV(ctxb, hole, blockgraph.MakeIOVec(fresh), 0)
				if err == nil {
					if err := d.Flush(ctxb); err != nil {
						t.Fatal(err)
					}
					copy(content[hole:], fresh)
				}
				closeImage(t, d)
				if at := binary.BigEndian.Uint64(p.f.b[fieldRefTableOffset:]); at != p.h.refTableOffset {
					if c, err := check(ctxb, p.f); err != nil || c.res.corruptions > 0 {
						t.Errorf("new structures are in force and wrong: %v %q", err, c.res.messages)
					}
				}
				d = toRepair(t, p.f)
				inspect(t, d, blockgraph.CheckFixAll, 0)
				put(t, d, hole, content[hole:hole+p.h.clusterSize])
				closeImage(t, d)
				holdRebuilt(t, p.f, content)
			})
		}
	}
}

// toRebuild has a check of an image come to where the rebuild begins.
func toRebuild(t *testing.T, d *Driver) blockgraph.Check {
	t.Helper()
	u, err := d.StartCheck(blockgraph.CheckOptions{Fix: blockgraph.CheckFixAll})
	if err != nil {
		t.Fatal(err)
	}
	for more := true; more; {
		if _, more, err = u.Step(ctxb, 1<<20); err != nil {
			t.Fatal(err)
		}
	}
	return u
}

// TestRebuildIsDurable: the old structures are given up only when the disk has the
// new ones, and those only when what they consist of is there.
func TestRebuildIsDurable(t *testing.T) {
	p := newPatient(t, 4096, 20)
	p.setBlock(0, 1<<26)
	d := toRepair(t, p.f)
	u := toRebuild(t, d)
	p.f.record, p.f.log = true, nil
	if err := u.Rebuild(ctxb); err != nil {
		t.Fatal(err)
	}
	// The end of what it did: a flush, the header, a flush.
	last := p.f.log[max(0, len(p.f.log)-3):]
	if len(last) < 3 || !last[0].Flush || last[1].Flush || last[1].Off != 0 || !last[2].Flush {
		t.Error("the header is not between two flushes at the end")
	}
	u.Close()
	closeImage(t, d)
}

// holesFile is a file whose end is far behind what it holds.
type holesFile struct {
	memFile
	length int64
}

func (f *holesFile) Size() int64 { return f.length }

// farApart is an image whose tables, of less than n entries of 8 bytes, refer to
// clusters far apart in a file of holes, and its refcount blocks, too.
func farApart(t *testing.T, entries int64) *holesFile {
	const apart = 4 << 20 // bytes
	f := newImage(t, entries*512, clusterSize(512))
	h, _, _, err := readHeader(ctxb, f)
	if err != nil {
		t.Fatal(err)
	}
	be := binary.BigEndian
	tables := h.clusters(int64(len(f.b))) * 512
	f.b = append(f.b, make([]byte, tables-int64(len(f.b))+entries*8)...)
	for i := range int64(h.l1Size) {
		be.PutUint64(f.b[int64(h.l1Offset)+i*8:], uint64(tables+i*512)|flagCopied)
	}
	for i := range entries {
		be.PutUint64(f.b[tables+i*8:], uint64((i+100)*apart)|flagCopied)
	}
	table := int64(len(f.b)+511) &^ 511
	f.b = append(f.b, make([]byte, table-int64(len(f.b))+entries*8)...)
	be.PutUint64(f.b[fieldRefTableOffset:], uint64(table))
	be.PutUint32(f.b[fieldRefTableSize:], uint32(entries*8/512))
	for i := range entries {
		be.PutUint64(f.b[table+i*8:], uint64((i+100)*apart+512))
	}
	return &holesFile{memFile{b: f.b}, (entries + 200) * apart}
}

// What a check and a rebuild keep in memory is a small multiple of what the file
// holds, not of its length; and there is an end to it.
func TestCheckOfAFileOfHolesTakesLittleMemory(t *testing.T) {
	const entries = 1 << 15
	f := farApart(t, entries)
	c, err := check(ctxb, f)
	if err != nil {
		t.Fatal(err)
	}
	kept := c.counts.memory + c.blockMemory
	t.Logf("%d bytes for a file of %d with %d bytes in it", kept, f.length, len(f.b))
	if kept > 10*int64(len(f.b)) {
		t.Errorf("%d bytes are kept, of a file with %d", kept, len(f.b))
	}
	if n := c.count(100 << 20 / 512 * 4); n != 1 {
		t.Errorf("a cluster is counted %d times", n)
	}
	if len(c.stored) > 0 {
		t.Errorf("%d blocks without counts are kept", len(c.stored))
	}

	c, err = newChecker(ctxb, f)
	if err != nil {
		t.Fatal(err)
	}
	c.most = 1 << 20
	if err := c.countReferences(); err != syscall.ENOMEM {
		t.Errorf("counting: %v", err)
	}
	if got := c.counts.memory; got > c.most+1<<10 {
		t.Errorf("%d bytes of counts", got)
	}

	// The blocks that are kept count, too.
	p := newPatient(t, 4096, 20)
	c, err = check(ctxb, p.f)
	if err != nil || c.blockMemory != 4096 {
		t.Fatalf("%v, %d bytes of blocks", err, c.blockMemory)
	}
	for most, want := range map[int64]error{c.counts.memory + 4096: nil, c.counts.memory + 4095: syscall.ENOMEM} {
		c, _ = newChecker(ctxb, p.f)
		if c.most = most; c.countReferences() != nil || c.walkRefcounts() != want {
			t.Errorf("within %d bytes: not %v", most, want)
		}
	}
}

// References are counted past what a byte holds.
func TestManyReferences(t *testing.T) {
	r := newReferences()
	for range 300 {
		r.add(70, 1)
	}
	r.add(70, 1<<33)
	r.add(71, 255)
	r.add(72, 254)
	r.add(1<<40, 2)
	want := map[int64]uint64{70: 300 + 1<<33, 71: 255, 72: 254, 1 << 40: 2}
	got := map[int64]uint64{}
	r.each(func(cl int64, n uint64) { got[cl] = n })
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v, not %v", got, want)
	}
	var order []int64
	r.between(71, 200, func(cl int64, n uint64) { order = append(order, cl, int64(n)) })
	if fmt.Sprint(order) != "[71 255 72 254]" || r.count(73) != 0 || r.count(5000) != 0 {
		t.Errorf("%v", order)
	}
}
