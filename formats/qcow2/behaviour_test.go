package qcow2

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"blockd/blockgraph"
	"blockd/qapi"
)

// blockOn makes the file wait at operations for which match is true, until the
// returned function is called. reached is closed at the first.
func blockOn(f *memFile, match func(op string, off, n int64) bool) (reached <-chan struct{}, release func()) {
	at, gate := make(chan struct{}), make(chan struct{})
	var once sync.Once
	f.setFault(func(op string, off, n int64) error {
		if match(op, off, n) {
			once.Do(func() { close(at) })
			<-gate
		}
		return nil
	})
	return at, func() { f.setFault(nil); close(gate) }
}

func hostOf(t *testing.T, d *Driver, off int64) int64 {
	t.Helper()
	m, err := d.lookup(ctxb, off, 1, false)
	if err != nil || m.kind != data {
		t.Fatalf("%#x: %+v, %v", off, m, err)
	}
	return m.host
}

func TestFreedClusterIsNotReusedUnderARead(t *testing.T) {
	f := newImage(t, 1<<20, clusterSize(4096))
	d := openImage(t, f, nil)
	put(t, d, 0, fill(1, 4096))
	flush(t, d)
	host := hostOf(t, d, 0)
	reached, release := blockOn(f, func(op string, off, _ int64) bool { return op == "read" && off == host })
	got := make([]byte, 4096)
	done := make(chan error)
	go func() { done <- d.ReadV(ctxb, 0, blockgraph.MakeIOVec(got), 0) }()
	<-reached
	if err := d.Discard(ctxb, 0, 4096); err != nil {
		t.Fatal(err)
	}
	for i := int64(1); i < 100; i++ {
		put(t, d, i*4096, fill(2, 4096))
		flush(t, d)
	}
	release()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, fill(1, 4096)) {
		t.Fatalf("read foreign data: %d", got[0])
	}
	// Now it may go.
	flush(t, d)
	closeImage(t, d)
	mustCheck(t, f, true)
}

func TestBlockedMetadataReadStopsNobodyElse(t *testing.T) {
	// 4 KiB clusters: a table maps 2 MiB.
	f := newImage(t, 64<<20, clusterSize(4096))
	d := openImage(t, f, nil)
	put(t, d, 0, fill(1, 8192))
	put(t, d, 40<<20, fill(2, 4096))
	closeImage(t, d)
	d = openImage(t, f, nil)
	if got := get(t, d, 0, 4096); got[0] != 1 {
		t.Fatal("content")
	}
	table := int64(d.l1.Load().entries[20].Load() & l1OffsetMask)
	reached, release := blockOn(f, func(op string, off, _ int64) bool { return op == "read" && off == table })
	done := make(chan error)
	go func() {
		done <- d.ReadV(ctxb, 40<<20, blockgraph.MakeIOVec(make([]byte, 4096)), 0)
	}()
	<-reached
	get(t, d, 4096, 4096)                 // mapped
	put(t, d, 1<<20, fill(3, 10000))      // allocates
	put(t, d, 60<<20, fill(3, 100))       // makes a table
	if err := d.Flush(ctxb); err != nil { // writes back
		t.Fatal(err)
	}
	release()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	closeImage(t, d)
	mustCheck(t, f, true)
}

func TestSlowDataWriteStopsNobodyElse(t *testing.T) {
	f := newImage(t, 64<<20)
	d := openImage(t, f, nil)
	put(t, d, 0, fill(1, 512))
	var first atomic.Bool
	reached, release := blockOn(f, func(op string, _, n int64) bool {
		return op == "write" && n == 4096 && first.CompareAndSwap(false, true)
	})
	done := make(chan error)
	go func() { done <- d.WriteV(ctxb, 1<<20, blockgraph.MakeIOVec(fill(5, 4096)), 0) }()
	<-reached
	put(t, d, 2<<20, fill(3, 100))
	flush(t, d)
	if got := get(t, d, 1<<20, 4096); !bytes.Equal(got, make([]byte, 4096)) {
		t.Fatal("a write shows before it is complete")
	}
	release()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := get(t, d, 1<<20, 4096); got[0] != 5 {
		t.Fatal("content")
	}
	closeImage(t, d)
}

func TestFlushWithoutChangesIsOneFlush(t *testing.T) {
	f := newImage(t, 1<<20)
	d := openImage(t, f, nil)
	put(t, d, 0, fill(1, 65536))
	flush(t, d)
	put(t, d, 512, fill(2, 512)) // in place
	before, writes := f.flushes, f.writes
	flush(t, d)
	if f.flushes != before+1 || f.writes != writes {
		t.Fatalf("%d flushes, %d writes", f.flushes-before, f.writes-writes)
	}
	closeImage(t, d)
}

func TestConcurrentFlushesShareOneWriteBack(t *testing.T) {
	f := newImage(t, 1<<20)
	d := openImage(t, f, nil)
	before := f.flushes
	reached, release := blockOn(f, func(op string, _, _ int64) bool { return op == "flush" })
	var wg sync.WaitGroup
	wg.Go(func() { _ = d.Flush(ctxb) })
	<-reached
	for range 20 {
		wg.Go(func() { _ = d.Flush(ctxb) })
	}
	joined := func() int {
		d.flushMu.Lock()
		defer d.flushMu.Unlock()
		if d.nextBatch == nil {
			return 0
		}
		return d.nextBatch.callers
	}
	for joined() < 20 {
		runtime.Gosched()
	}
	release()
	wg.Wait()
	if f.flushes != before+2 { // the first, and one for all twenty
		t.Fatalf("%d flushes", f.flushes-before)
	}
	closeImage(t, d)
}

func TestBigWriteIsOneDataWrite(t *testing.T) {
	f := newImage(t, 8<<20)
	d := openImage(t, f, nil)
	put(t, d, 0, fill(1, 512))
	before := f.writes
	put(t, d, 1<<20, fill(2, 1<<20))
	if f.writes != before+1 {
		t.Fatalf("%d writes", f.writes-before)
	}
	// Unaligned, with a backing file: head and tail go out with the data.
	b := &memFile{b: fill(9, 8<<20)}
	f = newImage(t, 8<<20)
	d2 := openImage(t, f, b)
	put(t, d2, 0, fill(1, 512)) // and makes the table
	before = f.writes
	put(t, d2, 1<<20+100, fill(2, 1<<20))
	if f.writes != before+1 {
		t.Fatalf("%d writes with copy-on-write", f.writes-before)
	}
	closeImage(t, d)
	closeImage(t, d2)
}

func TestOnlyUnallocatedNeverWins(t *testing.T) {
	b := &memFile{b: fill(9, 1<<20)}
	f := newImage(t, 1<<20, clusterSize(4096))
	d := openImage(t, f, b)
	put(t, d, 4096, fill(1, 4096))
	if err := d.WriteZeroes(ctxb, 8192, 4096, 0); err != nil {
		t.Fatal(err)
	}
	err := d.WriteV(ctxb, 0, blockgraph.MakeIOVec(fill(9, 5*4096)), blockgraph.WriteUnchanged|blockgraph.OnlyUnallocated)
	if err != nil {
		t.Fatal(err)
	}
	want := bytes.Join([][]byte{fill(9, 4096), fill(1, 4096), fill(0, 4096), fill(9, 8192)}, nil)
	if got := get(t, d, 0, 5*4096); !bytes.Equal(got, want) {
		t.Fatalf("differs at %d", firstDiff(got, want))
	}
	st, err := d.BlockStatus(ctxb, 3*4096, 4096, blockgraph.StatusPrecise)
	if err != nil || st.Flags&blockgraph.StatusData == 0 {
		t.Fatalf("%+v %v", st, err)
	}
	// A guest write that comes while such a write is under way lands on top.
	var once atomic.Bool
	reached, release := blockOn(f, func(op string, _, n int64) bool {
		return op == "write" && n == 4096 && once.CompareAndSwap(false, true)
	})
	done := make(chan error, 2)
	go func() {
		done <- d.WriteV(ctxb, 40960, blockgraph.MakeIOVec(fill(9, 4096)), blockgraph.WriteUnchanged|blockgraph.OnlyUnallocated)
	}()
	<-reached
	go func() { done <- d.WriteV(ctxb, 40960, blockgraph.MakeIOVec(fill(4, 4096)), 0) }()
	release()
	for range 2 {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	if got := get(t, d, 40960, 4096); !bytes.Equal(got, fill(4, 4096)) {
		t.Fatal("the guest's write was lost")
	}
	closeImage(t, d)
	mustCheck(t, f, true)
}

// TestFailedWritesLeaveConsistentState fails each kind of operation in turn,
// and then lets everything succeed.
func TestFailedWritesLeaveConsistentState(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.ENOSPC, syscall.EIO} {
		for nth := range 60 {
			f := newImage(t, 1<<20, clusterSize(512))
			d := openImage(t, f, nil)
			count := 0
			f.setFault(func(op string, off, n int64) error {
				if op == "read" {
					return nil
				}
				if count++; count >= nth && count < nth+3 {
					return errno
				}
				return nil
			})
			want := make([]byte, 1<<20)
			unsure := make([]bool, 1<<20)
			mark := func(off, n int, p []byte, err error) {
				for i := range n {
					if err != nil {
						unsure[off+i] = true
					} else {
						want[off+i], unsure[off+i] = p[i], false
					}
				}
			}
			for i := range 12 {
				off, n := (i*7919*512)%(900<<10), 20000
				p := fill(byte(i+1), n)
				mark(off, n, p, d.WriteV(ctxb, int64(off), blockgraph.MakeIOVec(p), 0))
				if i%3 == 0 {
					_ = d.Flush(ctxb)
				}
				if i%4 == 0 {
					off = off &^ 511
					mark(off, 4096, make([]byte, 4096), d.Discard(ctxb, int64(off), 4096))
				}
			}
			f.setFault(nil)
			flush(t, d)
			got := get(t, d, 0, 1<<20)
			for i := range got {
				if !unsure[i] && got[i] != want[i] {
					t.Fatalf("%v at operation %d: byte %#x is %d, not %d", errno, nth, i, got[i], want[i])
				}
			}
			closeImage(t, d)
			mustCheck(t, f, true)
			d = openImage(t, f, nil)
			if again := get(t, d, 0, 1<<20); !bytes.Equal(again, got) {
				t.Fatalf("%v at operation %d: reopened image differs at %#x", errno, nth, firstDiff(again, got))
			}
			closeImage(t, d)
		}
	}
}

func TestFullDeviceGivesENOSPCAndGoesOn(t *testing.T) {
	f := newImage(t, 1<<20, clusterSize(4096))
	f.resize(300 << 10)
	f.fixed = true
	d := openImage(t, f, nil)
	err := d.WriteV(ctxb, 0, blockgraph.MakeIOVec(fill(1, 1<<20)), 0)
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	if err := d.Discard(ctxb, 0, 1<<20); err != nil {
		t.Fatal(err)
	}
	// What was discarded is found again.
	put(t, d, 512<<10, fill(2, 200<<10))
	flush(t, d)
	if got := get(t, d, 512<<10, 200<<10); !bytes.Equal(got, fill(2, 200<<10)) {
		t.Fatal("content")
	}
	closeImage(t, d)
	mustCheck(t, f, true)
}

func TestCancelledFlushLeavesALeader(t *testing.T) {
	f := newImage(t, 1<<20)
	d := openImage(t, f, nil)
	put(t, d, 0, fill(1, 512))
	ctx, cancel := context.WithCancel(ctxb)
	cancel()
	for range 20 {
		_ = d.Flush(ctx)
	}
	flush(t, d)
	closeImage(t, d)
	mustCheck(t, f, true)
}

func TestCorruptEntryIsReportedAndStopsWriting(t *testing.T) {
	f := newImage(t, 1<<20)
	d := openImage(t, f, nil)
	put(t, d, 0, fill(1, 512))
	closeImage(t, d)
	d = openImage(t, f, nil)
	table := int64(d.l1.Load().entries[0].Load() & l1OffsetMask)
	closeImage(t, d)
	binary.BigEndian.PutUint64(f.b[table:], flagCopied|0x50200)
	d = openImage(t, f, nil)
	var msgs []string
	d.OnCorruption(func(msg string, off, n int64, fatal bool) {
		if !fatal {
			t.Error("not fatal")
		}
		msgs = append(msgs, msg)
	})
	err := d.ReadV(ctxb, 0, blockgraph.MakeIOVec(make([]byte, 512)), 0)
	if !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	if err := d.WriteV(ctxb, 500000, blockgraph.MakeIOVec(make([]byte, 512)), 0); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	if len(msgs) != 1 || !strings.HasPrefix(msgs[0], "Cluster allocation offset 0x50200 unaligned (L2 offset: ") || !strings.HasSuffix(msgs[0], ", L2 index: 0)") {
		t.Fatalf("%q", msgs)
	}
	closeImage(t, d)
	_, err = open(ctxb, testChildren{f, nil}, &qapi.BlockdevOptions{}, false)
	if err == nil || err.Error() != "qcow2: Image is corrupt; cannot be opened read/write" {
		t.Fatal(err)
	}
}

func TestWriteOverMetadataIsPrevented(t *testing.T) {
	for _, what := range []string{"qcow2_header", "refcount table", "refcount block", "active L1 table", "active L2 table"} {
		f := newImage(t, 1<<20)
		d := openImage(t, f, nil)
		put(t, d, 0, fill(1, 512))
		closeImage(t, d)
		d = openImage(t, f, nil)
		table := int64(d.l1.Load().entries[0].Load() & l1OffsetMask)
		at := map[string]int64{"qcow2_header": 0, "refcount table": d.refs.tableOffset, "refcount block": int64(d.refs.table[0]), "active L1 table": d.l1.Load().offset, "active L2 table": table}[what]
		closeImage(t, d)
		if at == 0 {
			// An entry for offset 0 means unallocated; let the free search go
			// there instead.
			binary.BigEndian.PutUint16(f.b[int64(f.b[0])*0+2*65536:], 0)
		} else {
			binary.BigEndian.PutUint64(f.b[table:], flagCopied|uint64(at))
		}
		d = openImage(t, f, nil)
		var msg string
		d.OnCorruption(func(m string, _, _ int64, _ bool) { msg = m })
		off := int64(0)
		if at == 0 {
			off = 200 << 10
		}
		before := bytes.Clone(f.b[at : at+512])
		if err := d.WriteV(ctxb, off, blockgraph.MakeIOVec(fill(0xaa, 512)), 0); !errors.Is(err, syscall.EIO) {
			t.Fatalf("%s: %v", what, err)
		}
		if !strings.HasSuffix(msg, "(overlaps with "+what+")") {
			t.Fatalf("%s: %q", what, msg)
		}
		closeImage(t, d)
		after := f.b[at : at+512]
		if at != 0 && !bytes.Equal(before, after) {
			t.Fatalf("%s was overwritten", what)
		}
	}
}

func TestFailedHeaderWriteDoesNotLoseTheSize(t *testing.T) {
	f := newImage(t, 1<<20)
	d := openImage(t, f, nil)
	put(t, d, 0, fill(1, 1<<20))
	flush(t, d)
	flushes := 0
	f.setFault(func(op string, _, _ int64) error {
		if op == "flush" {
			if flushes++; flushes == 2 { // after the header was written
				return syscall.EIO
			}
		}
		return nil
	})
	if err := d.Truncate(ctxb, 512<<10, false, "", false); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	f.setFault(nil)
	if size := d.size.Load(); size != 1<<20 {
		t.Fatal(size)
	}
	flush(t, d)
	if size := binary.BigEndian.Uint64(f.b[fieldSize:]); size != 1<<20 {
		t.Fatalf("size in the header: %d", size)
	}
	closeImage(t, d)
	mustCheck(t, f, true)
}

func TestPackingLeavesFreedClusters(t *testing.T) {
	f := newImage(t, 8<<20)
	d := openImage(t, f, nil)
	text := bytes.Repeat([]byte("some text "), 6554)[:65536]
	if err := d.WriteV(ctxb, 0, blockgraph.MakeIOVec(text), blockgraph.Compressed); err != nil {
		t.Fatal(err)
	}
	// All that is packed so far is given up, and on its way to be punched when
	// the next comes.
	if err := d.Discard(ctxb, 0, 65536); err != nil {
		t.Fatal(err)
	}
	reached, release := blockOn(f, func(op string, _, _ int64) bool { return op == "discard" })
	done := make(chan error)
	go func() { done <- d.Flush(ctxb) }()
	<-reached
	if err := d.WriteV(ctxb, 4<<20, blockgraph.MakeIOVec(text), blockgraph.Compressed); err != nil {
		t.Fatal(err)
	}
	release()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := get(t, d, 4<<20, 65536); !bytes.Equal(got, text) {
		t.Fatal("the data was punched")
	}
	closeImage(t, d)
	mustCheck(t, f, true)
	fieldCheck(t, f)
}

func TestReopenReadOnlyLeavesNothingBehind(t *testing.T) {
	f := newImage(t, 1<<20)
	d := openImage(t, f, nil)
	put(t, d, 0, fill(1, 100000))
	if err := d.Discard(ctxb, 0, 65536); err != nil {
		t.Fatal(err)
	}
	for _, ro := range []bool{true, false, true} {
		p, err := d.PrepareReopen(ctxb, &blockgraph.ReopenRequest{Options: &qapi.BlockdevOptions{}, ReadOnly: ro})
		if err != nil {
			t.Fatal(err)
		}
		p.Apply()
		if p.Start != nil {
			if err := p.Start(ctxb); err != nil {
				t.Fatal(err)
			}
		}
		if ro {
			mustCheck(t, f, true)
			writes := f.writes
			flush(t, d)
			if f.writes != writes {
				t.Fatal("a read-only image was written")
			}
		} else {
			put(t, d, 500000, fill(2, 100000))
		}
	}
	if got := get(t, d, 500000, 100000); got[0] != 2 {
		t.Fatal("content")
	}
	closeImage(t, d)
	mustCheck(t, f, true)
}
