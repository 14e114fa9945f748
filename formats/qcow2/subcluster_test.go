package qcow2

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"blockd/blockgraph"
	"blockd/qapi"
)

// TestWideEntryIsReadAsOne: a reader without a lock never sees the word of one
// change with the bitmap of another.
func TestWideEntryIsReadAsOne(t *testing.T) {
	s := &slice{}
	s.wide, s.words = true, make([]atomic.Uint64, 4)
	s.store(0, l2Entry{0, ^uint64(0)})
	var wg sync.WaitGroup
	var done atomic.Bool
	for range 2 {
		wg.Go(func() {
			for !done.Load() {
				if e := s.load(0); e.bitmap != ^e.word {
					t.Errorf("read %#x with %#x", e.word, e.bitmap)
					return
				}
			}
		})
	}
	for i := range uint64(20000) {
		s.store(0, l2Entry{i, ^i})
		s.store(1, l2Entry{i, i})
	}
	done.Store(true)
	wg.Wait()
}

// fieldOp is an operation for qemu-io and what it is for us.
type fieldOp struct {
	command string
	run     func(d *Driver) error
}

func randomOps(rnd *rand.Rand, size, cs int64, n int) (list []fieldOp) {
	for i := range n {
		unit := []int64{512, cs / 32, cs}[rnd.IntN(3)]
		count := min((1+rnd.Int64N(70))*unit, cs*3)
		off := rnd.Int64N(size-count) / unit * unit
		c := byte(i + 1)
		switch rnd.IntN(4) {
		case 0, 1:
			list = append(list, fieldOp{fmt.Sprintf("write -P %d %d %d", c, off, count), func(d *Driver) error {
				return d.WriteV(ctxb, off, blockgraph.MakeIOVec(fill(c, int(count))), 0)
			}})
		case 2:
			off, count := off/(cs/32)*(cs/32), max(count/(cs/32), 1)*(cs/32)
			list = append(list, fieldOp{fmt.Sprintf("write -z %d %d", off, count), func(d *Driver) error { return d.WriteZeroes(ctxb, off, count, 0) }})
		default:
			off, count := off/cs*cs, max(count/cs, 1)*cs
			list = append(list, fieldOp{fmt.Sprintf("discard %d %d", off, count), func(d *Driver) error { return d.Discard(ctxb, off, count) }})
		}
	}
	return list
}

// TestSubclustersAreAsTheFieldHasThem: the same operations by qemu-io and by us
// leave the same content, and the same subclusters allocated and zeroed.
func TestSubclustersAreAsTheFieldHasThem(t *testing.T) {
	img, io := tool(t, "qemu-img"), tool(t, "qemu-io")
	for _, backed := range []bool{false, true} {
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		rnd := rand.New(rand.NewPCG(seed, 1))
		const cs, size = 16 << 10, 1 << 20
		dir := t.TempDir()
		q, base := filepath.Join(dir, "q"), save(t, &memFile{b: randomBytes(rnd, size)}, "base")
		args := []string{img, "create", "-q", "-f", "qcow2", "-o", "extended_l2=on,cluster_size=16k"}
		var below *memFile
		if backed {
			below = load(t, base)
			args = append(args, "-b", base, "-F", "raw")
		}
		run(t, append(args, q, "1M")...)
		f := load(t, q)
		d := openImage(t, f, below)
		ops := randomOps(rnd, size, cs, 60)
		args = []string{io, "-d", "unmap"}
		for _, op := range ops {
			args = append(args, "-c", op.command)
			if err := op.run(d); err != nil {
				t.Fatalf("%s: %v", op.command, err)
			}
		}
		run(t, append(args, q)...)
		want := get(t, d, 0, size)
		closeImage(t, d)
		mustCheck(t, f, true)
		p := save(t, f, "mine")
		run(t, img, "check", "-q", p)
		run(t, img, "compare", "-q", p, q)
		theirs := fieldMap(t, load(t, q))
		mine := fieldMap(t, f)
		for _, list := range [][]mapEntry{mine, theirs} {
			for i := range list {
				list[i].Offset = nil // the places are each one's own
			}
		}
		if a, b := joinMap(mine), joinMap(theirs); !sameMap(a, b) {
			t.Fatalf("after %v\nours   %+v\ntheirs %+v", ops, a, b)
		}
		// And theirs is read by us as it is by them.
		d = openImage(t, load(t, q), below)
		if got := get(t, d, 0, size); !bytes.Equal(got, want) {
			t.Fatalf("theirs differs at %#x", firstDiff(got, want))
		}
		closeImage(t, d)
	}
}

// joinMap joins neighbours that are alike.
func joinMap(list []mapEntry) (out []mapEntry) {
	for _, e := range list {
		if n := len(out); n > 0 {
			if l := &out[n-1]; l.Present == e.Present && l.Zero == e.Zero && l.Data == e.Data {
				l.Length += e.Length
				continue
			}
		}
		out = append(out, e)
	}
	return out
}

// TestWriteCopiesOnlyTouchedSubclusters: of a cluster that is not allocated
// nothing else is read or written.
func TestWriteCopiesOnlyTouchedSubclusters(t *testing.T) {
	f := newImage(t, 8<<20, extended)
	base := &memFile{b: fill(7, 8<<20)}
	d := openImage(t, f, base)
	put(t, d, 5<<20, fill(1, 100)) // tables are there
	flush(t, d)
	var read, written int64
	base.setFault(func(op string, _, n int64) error {
		if op == "read" {
			read += n
		}
		return nil
	})
	f.setFault(func(op string, _, n int64) error {
		if op == "write" {
			written += n
		}
		return nil
	})
	put(t, d, 1<<20+100, fill(1, 100)) // in one subcluster of 2 KiB
	if read != 2048-100 || written != 2048 {
		t.Fatalf("%d bytes read, %d written", read, written)
	}
	read, written = 0, 0
	put(t, d, 1<<20+2048, fill(2, 2048)) // the next one, whole
	if read != 0 || written != 2048 {
		t.Fatalf("%d bytes read, %d written", read, written)
	}
	closeImage(t, d)
	want := fill(7, 8<<20)
	copy(want[5<<20:], fill(1, 100))
	copy(want[1<<20+100:], fill(1, 100))
	copy(want[1<<20+2048:], fill(2, 2048))
	compareWithField(t, f, base, want)
}

func TestClusterWithoutDataLeftIsFreed(t *testing.T) {
	f := newImage(t, 1<<20, extended)
	d := openImage(t, f, nil)
	put(t, d, 0, fill(1, 8192))
	for _, r := range [][2]int64{{0, 2048}, {4096, 61440}} {
		if err := d.Discard(ctxb, r[0], r[1]); err != nil {
			t.Fatal(err)
		}
	}
	if e := entryOf(d, 0); !d.h.hasPlace(e) || uint32(e.bitmap) != 2 {
		t.Fatalf("%+v", e)
	}
	if err := d.Discard(ctxb, 2048, 2048); err != nil {
		t.Fatal(err)
	}
	if e := entryOf(d, 0); e.word != 0 || e.bitmap != allZero {
		t.Fatalf("%+v", e)
	}
	closeImage(t, d)
	mustCheck(t, f, true)
	fieldCheck(t, f)
}

func entryOf(d *Driver, cluster int64) l2Entry {
	p := d.position(cluster << d.h.clusterBits)
	return d.l1.Load().cached(p.table, p.index).load(p.entry)
}

func TestCompressedClusterBesideSubclusters(t *testing.T) {
	const cs = 64 << 10
	f := newImage(t, 1<<20, extended)
	d := openImage(t, f, nil)
	c := fill(3, cs)
	if err := d.WriteV(ctxb, 0, blockgraph.MakeIOVec(c), blockgraph.Compressed); err != nil {
		t.Fatal(err)
	}
	if e := entryOf(d, 0); e.word&flagCompressed == 0 || e.bitmap != 0 {
		t.Fatalf("%+v", e)
	}
	if err := d.WriteZeroes(ctxb, 2048, 2048, 0); !errors.Is(err, blockgraph.ErrNotSupported) {
		t.Fatal(err)
	}
	if err := d.Discard(ctxb, 2048, 2048); err != nil {
		t.Fatal(err)
	}
	put(t, d, 5000, fill(4, 100))
	copy(c[5000:], fill(4, 100))
	if e := entryOf(d, 0); uint32(e.bitmap) != allAllocated {
		t.Fatalf("%+v", e)
	}
	// Only where nothing is allocated, and compressed: a part is.
	put(t, d, cs, fill(5, 2048))
	if err := d.WriteV(ctxb, cs, blockgraph.MakeIOVec(fill(6, cs)), blockgraph.Compressed|blockgraph.OnlyUnallocated); err != nil {
		t.Fatal(err)
	}
	want := append(c, fill(6, cs)...)
	copy(want[cs:], fill(5, 2048))
	want = append(want, make([]byte, 1<<20-2*cs)...)
	if got := get(t, d, 0, 1<<20); !bytes.Equal(got, want) {
		t.Fatalf("differs at %#x", firstDiff(got, want))
	}
	closeImage(t, d)
	mustCheck(t, f, true)
	compareWithField(t, f, nil, want)
}

func TestInvalidBitmapIsFatal(t *testing.T) {
	for name, e := range map[string]l2Entry{
		"both bits":        {word: 5<<16 | flagCopied, bitmap: 1 | 1<<32},
		"allocated, empty": {bitmap: 1},
	} {
		f := newImage(t, 1<<20, extended)
		d := openImage(t, f, nil)
		put(t, d, 0, fill(1, 65536))
		flush(t, d)
		d.mu.Lock()
		d.setEntry(d.l1.Load().cached(0, 0), 0, e)
		d.mu.Unlock()
		var said string
		d.OnCorruption(func(msg string, _, _ int64, _ bool) { said = msg })
		if err := d.ReadV(ctxb, 65000, blockgraph.MakeIOVec(make([]byte, 512)), 0); !errors.Is(err, syscall.EIO) {
			t.Fatalf("%s: %v", name, err)
		}
		if !strings.HasPrefix(said, "Invalid cluster entry found (L2 offset: 0x") {
			t.Fatalf("%s: %q", name, said)
		}
		_ = d.Close(ctxb)
	}
}

func TestInvalidBitmapIsACorruption(t *testing.T) {
	img := tool(t, "qemu-img")
	f := newImage(t, 1<<20, extended)
	d := openImage(t, f, nil)
	put(t, d, 0, fill(1, 65536))
	flush(t, d)
	l2 := int64(d.l1.Load().entries[0].Load() & l1OffsetMask)
	closeImage(t, d)
	binary.BigEndian.PutUint64(f.b[l2+8:], 1|1<<32)
	c, err := check(ctxb, f)
	if err != nil || c.res.corruptions != 1 {
		t.Fatalf("%v, %+v", err, c.res)
	}
	out, err := exec.Command(img, "check", save(t, f, "x")).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "1 errors were found") {
		t.Fatalf("%v: %s", err, out)
	}
}

// TestPreallocatedSubclustersAreStillOpenBelow: with a backing file clusters get
// places, and read as before.
func TestPreallocatedSubclustersAreStillOpenBelow(t *testing.T) {
	f := newImage(t, 1<<20, extended, prealloc(qapi.PreallocModeFalloc))
	base := &memFile{b: fill(7, 1<<20)}
	d := openImage(t, f, base)
	if e := entryOfLoaded(t, d, 3); !d.h.hasPlace(e) || e.bitmap != 0 {
		t.Fatalf("%+v", e)
	}
	want := fill(7, 1<<20)
	put(t, d, 70000, fill(1, 1000))
	copy(want[70000:], fill(1, 1000))
	if got := get(t, d, 0, 1<<20); !bytes.Equal(got, want) {
		t.Fatalf("differs at %#x", firstDiff(got, want))
	}
	if err := d.Truncate(ctxb, 2<<20, false, qapi.PreallocModeMetadata, true); err != nil {
		t.Fatal(err)
	}
	want = append(want, make([]byte, 1<<20)...)
	if got := get(t, d, 0, 2<<20); !bytes.Equal(got, want) {
		t.Fatalf("differs at %#x after growing", firstDiff(got, want))
	}
	closeImage(t, d)
	mustCheck(t, f, true)
	compareWithField(t, f, base, want)
}

func entryOfLoaded(t *testing.T, d *Driver, cluster int64) l2Entry {
	t.Helper()
	get(t, d, cluster<<d.h.clusterBits, 1)
	return entryOf(d, cluster)
}

// TestMappedRequestsAllocateNothing: in images of each kind.
func TestMappedRequestsAllocateNothing(t *testing.T) {
	for name, opts := range map[string][]imageOption{"plain": nil, "extended": {extended}, "external": {external}, "extended external": {extended, external}} {
		d := openImage(t, newImage(t, 1<<20, opts...), nil)
		put(t, d, 0, fill(1, 1<<20))
		v := blockgraph.MakeIOVec(make([]byte, 4096))
		if n := testing.AllocsPerRun(100, func() {
			if err := d.ReadV(ctxb, 8192, v, 0); err != nil {
				t.Fatal(err)
			}
			if err := d.WriteV(ctxb, 8192, v, 0); err != nil {
				t.Fatal(err)
			}
		}); n > 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
		closeImage(t, d)
	}
}
