package qcow2

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"

	"blockd/blockgraph/graphtest"
	"blockd/qapi"
)

func TestGrowMovesTheL1Table(t *testing.T) {
	for _, version := range []string{"v2", "v3"} {
		for _, mode := range []qapi.PreallocMode{qapi.PreallocModeOff, qapi.PreallocModeMetadata, qapi.PreallocModeFalloc} {
			opts := []imageOption{clusterSize(512)}
			if version == "v2" {
				opts = append(opts, v2)
			}
			f := newImage(t, 100<<10, opts...)
			d := openImage(t, f, nil)
			put(t, d, 0, fill(1, 100<<10))
			for _, size := range []int64{101 << 10, 1 << 20, 4<<20 + 512, 8 << 20} {
				if err := d.Truncate(ctxb, size, false, mode, false); err != nil {
					t.Fatal(err)
				}
				put(t, d, size-512, fill(2, 512))
			}
			want := make([]byte, 8<<20)
			copy(want, fill(1, 100<<10))
			for _, size := range []int64{101 << 10, 1 << 20, 4<<20 + 512, 8 << 20} {
				copy(want[size-512:], fill(2, 512))
			}
			if got := get(t, d, 0, 8<<20); !bytes.Equal(got, want) {
				t.Fatalf("differs at %#x", firstDiff(got, want))
			}
			closeImage(t, d)
			mustCheck(t, f, true)
			fieldCheck(t, f)
			compareWithField(t, f, nil, want)
		}
	}
}

func TestGrownAreaReadsAsZeroesAfterShrinking(t *testing.T) {
	for _, version := range []string{"v2", "v3"} {
		opts := []imageOption{clusterSize(4096)}
		if version == "v2" {
			opts = append(opts, v2)
		}
		f := newImage(t, 1<<20, opts...)
		d := openImage(t, f, nil)
		put(t, d, 0, fill(1, 1<<20))
		if err := d.Truncate(ctxb, 10240+512, false, "", false); err != nil {
			t.Fatal(err)
		}
		mustCheck(t, f, true)
		fieldCheck(t, f)
		if err := d.Truncate(ctxb, 1<<20, false, "", false); err != nil {
			t.Fatal(err)
		}
		want := append(fill(1, 10240+512), make([]byte, 1<<20-10240-512)...)
		if got := get(t, d, 0, 1<<20); !bytes.Equal(got, want) {
			t.Fatalf("differs at %#x", firstDiff(got, want))
		}
		closeImage(t, d)
		mustCheck(t, f, true)
	}
}

func TestGrownAreaHidesLongerBackingFile(t *testing.T) {
	for _, version := range []string{"v2", "v3"} {
		opts := []imageOption{clusterSize(4096)}
		if version == "v2" {
			opts = append(opts, v2)
		}
		f, b := newImage(t, 10240+512, opts...), &memFile{b: fill(9, 1<<20)}
		d := openImage(t, f, b)
		if err := d.Truncate(ctxb, 900<<10, false, "", version == "v2"); err != nil {
			t.Fatal(err)
		}
		want := append(fill(9, 10240+512), make([]byte, 900<<10-10240-512)...)
		if got := get(t, d, 0, 900<<10); !bytes.Equal(got, want) {
			t.Fatalf("%s differs at %#x", version, firstDiff(got, want))
		}
		closeImage(t, d)
		mustCheck(t, f, true)
	}
}

// TestCrashWhileResizing cuts a series of size changes off everywhere: the
// size is the old or the new one, and what was flushed is there.
func TestCrashWhileResizing(t *testing.T) {
	f := newImage(t, 100<<10, clusterSize(512))
	c := newCrashDisk(t, f, nil, &qapi.BlockdevOptionsQcow2{})
	rnd := rand.New(rand.NewPCG(5, 5))
	// The first 40 KiB are there at any size.
	c.vals.Only(80)
	c.write(0, 80)
	c.flush()
	sizes := []int64{100 << 10}
	marks := []int{0}
	for _, size := range []int64{300 << 10, 3 << 20, 50 << 10, 2 << 20, 41 << 10, 400 << 10} {
		put(t, c.d, c.d.size.Load()-1024, fill(0xee, 1024))
		c.write(rnd.Int64N(60), 20)
		marks = append(marks, len(f.log))
		if err := c.d.Truncate(ctxb, size, false, "", false); err != nil {
			t.Fatal(err)
		}
		sizes = append(sizes, size)
		c.flush()
		got := get(t, c.d, size-1, 1)
		if i := len(sizes) - 1; sizes[i] > sizes[i-1] && got[0] != 0 {
			t.Fatal("a grown area shows old content")
		}
	}
	closeImage(t, c.d)
	mustCheck(t, f, true)
	for k := range f.log {
		for v := range 3 {
			seed := rnd.Uint64()
			img := c.rebuild(k+1, func(op, s int) bool { return v == 0 || graphtest.CrashMix(seed+uint64(op)<<32+uint64(s))&1 == 0 })
			chk, err := check(ctxb, img)
			if err != nil || chk.res.corruptions > 0 {
				t.Fatalf("crash at %d: %v %q", k+1, err, chk.res.messages)
			}
			d, err := open(ctxb, testChildren{img, nil}, &qapi.BlockdevOptions{}, true)
			if err != nil {
				t.Fatal(err)
			}
			ok := false
			for i, size := range sizes {
				ok = ok || d.size.Load() == size && marks[i] <= k+1
			}
			if !ok {
				t.Fatalf("crash at %d: size %d", k+1, d.size.Load())
			}
			got := get(t, d, 0, 80*sector)
			for s := range 80 {
				b := got[s*sector : (s+1)*sector]
				if id := binary.LittleEndian.Uint64(b); !bytes.Equal(b, graphtest.Sector(id)) || !c.vals.Allowed(s, id, k+1) {
					t.Fatalf("crash at %d: sector %d holds %d", k+1, s, id)
				}
			}
		}
	}
}

// TestCrashWhileChangingBackingFile cuts changes of the name off everywhere:
// the header names the old file or the new one, nothing else.
func TestCrashWhileChangingBackingFile(t *testing.T) {
	for _, cs := range []uint64{512, 1024, 4096, 65536} {
		f := newImage(t, 1<<20, clusterSize(cs))
		c := newCrashDisk(t, f, nil, &qapi.BlockdevOptionsQcow2{})
		type name struct{ name, format string }
		names := []name{{"", ""}}
		marks := []int{0}
		for i, n := range []int{10, 300, 20, 700, 1023, 5, 0, 1000, 400, 900} {
			if cs < 2048+600 && n > int(cs)/4 {
				n = int(cs) / 4
			}
			x := name{string(bytes.Repeat([]byte{byte('a' + i)}, n)), []string{"qcow2", "raw", ""}[i%3]}
			if n == 0 {
				x.format = ""
			}
			marks = append(marks, len(f.log))
			names = append(names, x)
			if err := c.d.ChangeBackingFile(ctxb, x.name, x.format); err != nil {
				t.Fatalf("%d: name of %d bytes: %v", cs, n, err)
			}
			if got, format := c.d.BackingFile(); got != x.name || format != x.format {
				t.Fatalf("%q %q", got, format)
			}
		}
		closeImage(t, c.d)
		rnd := rand.New(rand.NewPCG(1, 2))
		for k := range len(f.log) + 1 {
			for range 6 {
				seed := rnd.Uint64()
				img := c.rebuild(k, func(op, s int) bool { return graphtest.CrashMix(seed+uint64(op)<<32+uint64(s))&1 == 0 })
				d, err := open(ctxb, testChildren{img, nil}, &qapi.BlockdevOptions{}, true)
				if err != nil {
					t.Fatalf("%d: crash at %d: %v", cs, k, err)
				}
				got, format := d.BackingFile()
				last, ok := 0, false
				for i := range names {
					if marks[i] <= k {
						last = i
					}
				}
				for _, i := range []int{last, max(last-1, 0)} {
					ok = ok || names[i] == name{got, format}
				}
				if !ok {
					t.Fatalf("%d: crash at %d: %q %q", cs, k, got, format)
				}
			}
		}
		mustCheck(t, f, true)
	}
	long := string(fill('x', 1024))
	d := openImage(t, newImage(t, 1<<20), nil)
	if err := d.ChangeBackingFile(ctxb, long, ""); err == nil {
		t.Fatal("too long a name was taken")
	}
	closeImage(t, d)
}

func TestCreateErrors(t *testing.T) {
	type opts = qapi.BlockdevCreateOptionsQcow2
	for _, c := range []struct {
		o    opts
		want string
	}{
		{opts{Size: 1000}, "Image size must be a multiple of 512 bytes"},
		{opts{ClusterSize: ptr(uint64(256))}, "Cluster size must be a power of two between 512 and 2048k"},
		{opts{ClusterSize: ptr(uint64(4 << 20))}, "Cluster size must be a power of two between 512 and 2048k"},
		{opts{ClusterSize: ptr(uint64(1000))}, "Cluster size must be a power of two between 512 and 2048k"},
		{opts{BackingFmt: ptr(qapi.BlockdevDriverRaw)}, "Backing format cannot be used without backing file"},
		{opts{RefcountBits: ptr(int64(7))}, "Refcount width must be a power of two and may not exceed 64 bits"},
		{opts{RefcountBits: ptr(int64(128))}, "Refcount width must be a power of two and may not exceed 64 bits"},
		{opts{Version: ptr(qapi.BlockdevQcow2VersionV2), RefcountBits: ptr(int64(8))}, "Different refcount widths than 16 bits require compatibility level 1.1 or above (use version=v3 or greater)"},
		{opts{Version: ptr(qapi.BlockdevQcow2VersionV2), LazyRefcounts: ptr(true)}, "Lazy refcounts only supported with compatibility level 1.1 and above (use version=v3 or greater)"},
		{opts{BackingFile: ptr("x"), Preallocation: ptr(qapi.PreallocModeFull)}, "Backing file and preallocation can only be used at the same time if extended_l2 is on"},
		{opts{Size: 1 << 63}, "Could not resize image: Image size cannot be negative"},
		{opts{Size: 1<<63 - 512}, "Could not resize image: offset(9223372036854775296) exceeds maximum(9223372035781033984)"},
		{opts{Size: 1 << 62}, "Could not resize image: Failed to grow the L1 table: File too large"},
	} {
		err := loneFile{f: &memFile{}}.create(ctxb, &c.o)
		if err == nil || err.Error() != c.want {
			t.Errorf("%v, not %q", err, c.want)
		}
	}
}

func TestCreateWithBackingFile(t *testing.T) {
	for _, cs := range []uint64{512, 65536} {
		f := newImage(t, 1<<20, clusterSize(cs), func(o *qapi.BlockdevCreateOptionsQcow2) {
			o.BackingFile, o.BackingFmt = ptr("/some/where/base.qcow2"), ptr(qapi.BlockdevDriverQcow2)
		})
		d := openImage(t, f, nil)
		if name, format := d.BackingFile(); name != "/some/where/base.qcow2" || format != "qcow2" {
			t.Fatal(name, format)
		}
		closeImage(t, d)
		fieldInfo := run(t, tool(t, "qemu-img"), "info", "-U", save(t, f, fmt.Sprint("i", cs)))
		for _, want := range []string{"backing file: /some/where/base.qcow2", "backing file format: qcow2"} {
			if !bytes.Contains([]byte(fieldInfo), []byte(want)) {
				t.Fatal(fieldInfo)
			}
		}
	}
}

func TestTruncateErrors(t *testing.T) {
	d := openImage(t, newImage(t, 1<<20), nil)
	for _, c := range []struct {
		size int64
		mode qapi.PreallocMode
		want string
	}{
		{1000, "", "The new size must be a multiple of 512"},
		{512, "full", "Preallocation can't be used for shrinking an image"},
		{1 << 61, "", "Failed to grow the L1 table: File too large"},
	} {
		if err := d.Truncate(ctxb, c.size, false, c.mode, false); err == nil || err.Error() != c.want {
			t.Errorf("%v, not %q", err, c.want)
		}
	}
	closeImage(t, d)
}

// TestGrowthWithinAClusterKeepsIt: the end of the disk moves from one sector of
// a cluster to another.
func TestGrowthWithinAClusterKeepsIt(t *testing.T) {
	for name, opts := range map[string][]imageOption{"plain": nil, "extended": {extended}, "external": {external}} {
		const old = 1<<20 + 1024
		f := newImage(t, old, opts...)
		d := openImage(t, f, &memFile{b: fill(7, 2<<20)})
		want := fill(7, old)
		put(t, d, 1<<20, fill(1, 1024))
		copy(want[1<<20:], fill(1, 1024))
		if err := d.Truncate(ctxb, old+4096, false, "", false); err != nil {
			t.Fatal(err)
		}
		want = append(want, make([]byte, 4096)...)
		if got := get(t, d, 0, old+4096); !bytes.Equal(got, want) {
			t.Errorf("%s: differs at %#x", name, firstDiff(got, want))
		}
		closeImage(t, d)
		mustCheck(t, f, true)
	}
}
