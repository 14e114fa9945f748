package qcow2

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"blockd/blockgraph"
	"blockd/qapi"
)

// mapEntry is an element of qemu-img map's output.
type mapEntry struct {
	Start, Length       int64
	Present, Zero, Data bool
	Offset              *int64
}

// fieldMap is what qemu-img map says of an image.
func fieldMap(t *testing.T, f *memFile) []mapEntry {
	t.Helper()
	var list []mapEntry
	if err := json.Unmarshal([]byte(run(t, tool(t, "qemu-img"), "map", "--output=json", save(t, f, "m.qcow2"))), &list); err != nil {
		t.Fatal(err)
	}
	return list
}

// statusMap is the same of an open image.
func statusMap(t *testing.T, d *Driver) []mapEntry {
	t.Helper()
	var list []mapEntry
	size := d.size.Load()
	for at := int64(0); at < size; {
		st, err := d.BlockStatus(ctxb, at, size-at, blockgraph.StatusPrecise)
		if err != nil {
			t.Fatal(err)
		}
		e := mapEntry{Start: at, Length: st.N, Data: st.Flags&blockgraph.StatusData != 0, Zero: st.Flags&blockgraph.StatusZero != 0}
		e.Present = e.Data || e.Zero
		if st.Flags&blockgraph.StatusOffsetValid != 0 {
			e.Offset = &st.Offset
		}
		if d.ch.backing() == nil && !e.Present {
			e.Zero = true
		}
		list = append(list, e)
		at += st.N
	}
	return list
}

func sameMap(a, b []mapEntry) bool {
	x, _ := json.Marshal(a)
	y, _ := json.Marshal(b)
	return bytes.Equal(x, y)
}

func TestDataFileHoldsClustersAtTheGuestsOffsets(t *testing.T) {
	f := newImage(t, 8<<20, external)
	d := openImage(t, f, nil)
	put(t, d, 1<<20, fill(0x11, 4<<20))
	put(t, d, 0, fill(0x12, 100)) // the place is offset 0
	if err := d.Discard(ctxb, 2<<20, 2<<20); err != nil {
		t.Fatal(err)
	}
	if err := d.WriteZeroes(ctxb, 3<<20, 3<<20, 0); err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 8<<20)
	copy(want, fill(0x12, 100))
	copy(want[1<<20:], fill(0x11, 1<<20))
	if got := get(t, d, 0, 8<<20); !bytes.Equal(got, want) {
		t.Fatalf("differs at %#x", firstDiff(got, want))
	}
	mine := statusMap(t, d)
	closeImage(t, d)
	if int64(len(f.data.b)) != 8<<20 || !bytes.Equal(f.data.b[1<<20:2<<20], want[1<<20:2<<20]) {
		t.Fatal("the data file does not have the data at its place")
	}
	if len(f.b) > 1<<20 {
		t.Fatalf("the image file has %d bytes", len(f.b))
	}
	mustCheck(t, f, true)
	compareWithField(t, f, nil, want)
	if theirs := fieldMap(t, f); !sameMap(mine, theirs) {
		t.Fatalf("mapped %+v, the field says %+v", mine, theirs)
	}
}

func TestFieldsDataFileImagesOpen(t *testing.T) {
	img, io := tool(t, "qemu-img"), tool(t, "qemu-io")
	for _, opts := range []string{"", ",data_file_raw=on", ",preallocation=metadata", ",cluster_size=512", ",lazy_refcounts=on"} {
		dir := t.TempDir()
		q, raw := filepath.Join(dir, "q"), filepath.Join(dir, "raw")
		run(t, img, "create", "-q", "-f", "qcow2", "-o", "data_file="+raw+opts, q, "4M")
		run(t, io, "-c", "write -P 7 100000 100000", "-c", "write -z 128k 64k", "-c", "discard 192k 64k", "-c", "write -P 9 140k 1k", q)
		f := load(t, q)
		f.data, f.dataPath = load(t, raw), raw
		d := openImage(t, f, nil)
		want := make([]byte, 4<<20)
		copy(want[100000:], fill(7, 100000))
		clear(want[128<<10 : 256<<10])
		copy(want[140<<10:], fill(9, 1<<10))
		if got := get(t, d, 0, 4<<20); !bytes.Equal(got, want) {
			t.Fatalf("%q: differs at %#x", opts, firstDiff(got, want))
		}
		put(t, d, 3<<20-5, fill(3, 10))
		copy(want[3<<20-5:], fill(3, 10))
		closeImage(t, d)
		mustCheck(t, f, true)
		compareWithField(t, f, nil, want)
	}
}

// TestRawDataFileIsWhatTheGuestSees: after each operation, and whatever is
// flushed, the data file alone has the guest's bytes.
func TestRawDataFileIsWhatTheGuestSees(t *testing.T) {
	for _, o := range []qapi.BlockdevOptionsQcow2{{}, {PassDiscardRequest: ptr(false)}} {
		rnd := rand.New(rand.NewPCG(1, 2))
		const size = 256 << 10
		f := newImage(t, size, externalRaw, clusterSize(4096))
		d := openWith(t, f, nil, &o)
		for i := range 120 {
			off := rnd.Int64N(size)
			n := min(1+rnd.Int64N(20000), size-off)
			var err error
			switch i % 4 {
			case 0, 1:
				err = d.WriteV(ctxb, off, blockgraph.MakeIOVec(randomBytes(rnd, n)), 0)
			case 2:
				err = d.WriteZeroes(ctxb, off, n, blockgraph.Flags(0))
			default:
				err = d.Discard(ctxb, off&^4095, (n+4095)&^4095)
			}
			if err != nil && !(i%4 == 3 && errors.Is(err, blockgraph.ErrNotSupported)) {
				t.Fatal(err)
			}
			if got := get(t, d, 0, size); !bytes.Equal(got, f.data.b) {
				t.Fatalf("step %d: the data file differs at %#x", i, firstDiff(got, f.data.b))
			}
		}
		if err := d.Truncate(ctxb, size+1<<20, false, "", false); err != nil {
			t.Fatal(err)
		}
		put(t, d, size+5000, fill(1, 5000))
		if got := get(t, d, 0, size+1<<20); !bytes.Equal(got, f.data.b) {
			t.Fatal("the data file differs after growing")
		}
		closeImage(t, d)
		mustCheck(t, f, true)
		compareWithField(t, f, nil, f.data.b)
	}
}

// TestRawDataFileKeepsItsContent: an image is made around a disk that is there
// already, and grows over what is there.
func TestRawDataFileKeepsItsContent(t *testing.T) {
	f, disk := &memFile{}, &memFile{b: fill(42, 1<<20)}
	o := &qapi.BlockdevCreateOptionsQcow2{Size: 1 << 20, DataFile: &qapi.BlockdevRef{}, DataFileRaw: ptr(true)}
	if err := (loneFile{f: f, external: disk, dataName: "x"}).create(ctxb, o); err != nil {
		t.Fatal(err)
	}
	f.data = disk
	disk.b = append(disk.b, fill(84, 1<<20)...)
	base := &memFile{b: fill(1, 2<<20)}
	d := openImage(t, f, base)
	if err := d.Truncate(ctxb, 2<<20, false, "", false); err != nil {
		t.Fatal(err)
	}
	if got := get(t, d, 0, 2<<20); !bytes.Equal(got[:1<<20], fill(42, 1<<20)) {
		t.Fatal("not the content of the disk")
	}
	if err := d.ChangeBackingFile(ctxb, "base", ""); !errors.Is(err, syscall.EINVAL) {
		t.Fatalf("a backing file was named: %v", err)
	}
	closeImage(t, d)
}

func TestStaleDataFileDoesNotShow(t *testing.T) {
	for _, mode := range []qapi.PreallocMode{qapi.PreallocModeOff, qapi.PreallocModeMetadata, qapi.PreallocModeFull} {
		f, disk := &memFile{}, &memFile{b: fill(42, 2<<20)}
		o := &qapi.BlockdevCreateOptionsQcow2{Size: 2 << 20, DataFile: &qapi.BlockdevRef{}, Preallocation: &mode}
		if err := (loneFile{f: f, external: disk}).create(ctxb, o); err != nil {
			t.Fatal(err)
		}
		f.data = disk
		d := openImage(t, f, nil)
		put(t, d, 1000, fill(1, 1000))
		want := make([]byte, 2<<20)
		copy(want[1000:], fill(1, 1000))
		if got := get(t, d, 0, 2<<20); !bytes.Equal(got, want) {
			t.Fatalf("%s: differs at %#x", mode, firstDiff(got, want))
		}
		closeImage(t, d)
		mustCheck(t, f, true)
	}
}

func TestDataFileIsRequired(t *testing.T) {
	f := newImage(t, 1<<20, external)
	data := f.data
	f.data = nil
	if _, err := open(ctxb, testChildren{f, nil}, &qapi.BlockdevOptions{}, false); err == nil || err.Error() != "'data-file' is required for this image" {
		t.Fatal(err)
	}
	g := newImage(t, 1<<20)
	g.data = data
	if _, err := open(ctxb, testChildren{g, nil}, &qapi.BlockdevOptions{}, false); err == nil || err.Error() != "'data-file' can only be set for images with an external data file" {
		t.Fatal(err)
	}
}

func TestDataFileRefusesCompressedWrites(t *testing.T) {
	f := newImage(t, 1<<20, external)
	d := openImage(t, f, nil)
	if err := d.WriteV(ctxb, 0, blockgraph.MakeIOVec(make([]byte, 65536)), blockgraph.Compressed); !errors.Is(err, blockgraph.ErrNotSupported) {
		t.Fatal(err)
	}
	closeImage(t, d)
}

// TestFlushFailsWhenTheDataFilesDoes: then nothing refers to what is not
// durable.
func TestFlushFailsWhenTheDataFilesDoes(t *testing.T) {
	f := newImage(t, 1<<20, external)
	d := openImage(t, f, nil)
	before := bytes.Clone(f.b)
	put(t, d, 0, fill(1, 65536))
	f.data.setFault(func(op string, _, _ int64) error {
		if op == "flush" {
			return syscall.EIO
		}
		return nil
	})
	if err := d.Flush(ctxb); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	h, _ := parseHeader(before)
	if at := h.l1Offset; !bytes.Equal(f.b[at:at+8], before[at:at+8]) {
		t.Fatal("a mapping was written before the data was durable")
	}
	f.data.setFault(nil)
	closeImage(t, d)
	mustCheck(t, f, true)
}

// TestDiscardOfDataFileWaitsForItsUnmapping: the space is given up after the
// unmapping is durable, and not when the cluster has come back.
func TestDiscardOfDataFileWaitsForItsUnmapping(t *testing.T) {
	f := newImage(t, 1<<20, external)
	d := openImage(t, f, nil)
	put(t, d, 0, fill(1, 3*65536))
	flush(t, d)
	var discards []string
	var order []string
	f.data.setFault(func(op string, off, n int64) error {
		if op == "discard" {
			order = append(order, op)
			discards = append(discards, strings.Repeat("x", int(off/65536))+"|"+strings.Repeat("x", int(n/65536)))
		}
		return nil
	})
	f.setFault(func(op string, _, _ int64) error {
		if op == "flush" {
			order = append(order, op)
		}
		return nil
	})
	if err := d.Discard(ctxb, 0, 3*65536); err != nil {
		t.Fatal(err)
	}
	put(t, d, 65536, fill(2, 65536))
	if len(discards) != 0 {
		t.Fatal("discarded at once")
	}
	flush(t, d)
	if got := strings.Join(discards, " "); got != "|x xx|x" {
		t.Fatalf("discarded %q", got)
	}
	if order[0] != "flush" {
		t.Fatalf("order %q", order)
	}
	if got := get(t, d, 0, 3*65536); !bytes.Equal(got[65536:2*65536], fill(2, 65536)) {
		t.Fatal("the new cluster is gone")
	}
	closeImage(t, d)
	mustCheck(t, f, true)
}

func TestCorruptDataFileMappingIsFatal(t *testing.T) {
	f := newImage(t, 1<<20, external)
	d := openImage(t, f, nil)
	put(t, d, 0, fill(1, 65536))
	flush(t, d)
	d.mu.Lock()
	s := d.l1.Load().cached(0, 0)
	d.setEntry(s, 0, l2Entry{word: 65536 | flagCopied})
	d.mu.Unlock()
	var said string
	d.OnCorruption(func(msg string, _, _ int64, _ bool) { said = msg })
	if err := d.ReadV(context.Background(), 0, blockgraph.MakeIOVec(make([]byte, 512)), 0); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	if !strings.HasPrefix(said, "External data file host cluster offset 0x10000 does not match guest cluster offset: 0") {
		t.Fatal(said)
	}
	_ = d.Close(ctxb)
}
