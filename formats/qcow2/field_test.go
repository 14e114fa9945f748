package qcow2

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"blockd/blockgraph"
	"blockd/qapi"
)

// mixed returns data of which some compresses and some does not.
func mixed(n int) []byte {
	rnd := rand.New(rand.NewPCG(1, 1))
	b := make([]byte, n)
	for i := 0; i < n; i += 32 << 10 {
		end := min(i+32<<10, n)
		switch i >> 15 % 4 {
		case 0:
			copy(b[i:end], randomBytes(rnd, int64(end-i)))
		case 1:
			copy(b[i:end], bytes.Repeat([]byte("compressible "), (end-i)/13+1))
		case 2:
			for k := i; k < end; k++ {
				b[k] = byte(k >> 4)
			}
		}
	}
	return b
}

func TestReadsCompressedImagesOfTheField(t *testing.T) {
	img := tool(t, "qemu-img")
	want := mixed(3 << 20)
	for _, opts := range []string{"cluster_size=64k", "cluster_size=512", "cluster_size=2M", "compression_type=zstd", "compat=0.10"} {
		dir := t.TempDir()
		raw, q := filepath.Join(dir, "raw"), filepath.Join(dir, "q")
		if err := os.WriteFile(raw, want, 0o600); err != nil {
			t.Fatal(err)
		}
		run(t, img, "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", opts, raw, q)
		f := load(t, q)
		d := openImage(t, f, nil)
		if got := get(t, d, 0, int64(len(want))); !bytes.Equal(got, want) {
			t.Fatalf("%s: differs at %#x", opts, firstDiff(got, want))
		}
		// Overwriting part of a compressed cluster copies the rest.
		w := bytes.Clone(want)
		for _, off := range []int64{100, 70000, 1 << 20, 3<<20 - 600} {
			put(t, d, off, fill(0xab, 600))
			copy(w[off:], fill(0xab, 600))
		}
		closeImage(t, d)
		mustCheck(t, f, true)
		fieldCheck(t, f)
		compareWithField(t, f, nil, w)
	}
}

func TestFieldReadsOurCompressedClusters(t *testing.T) {
	want := mixed(3 << 20)
	for _, zstd := range []bool{false, true} {
		for _, cs := range []uint64{512, 4096, 65536, 2 << 20} {
			opts := []imageOption{clusterSize(cs)}
			if zstd {
				opts = append(opts, func(o *qapi.BlockdevCreateOptionsQcow2) { o.CompressionType = ptr(qapi.Qcow2CompressionTypeZstd) })
			}
			f := newImage(t, int64(len(want)), opts...)
			d := openImage(t, f, nil)
			for off := 0; off < len(want); off += 1 << 20 {
				n := min(1<<20, len(want)-off)
				if cs > 1<<20 {
					n = len(want)
				}
				if err := d.WriteV(ctxb, int64(off), blockgraph.MakeIOVec(want[off:off+n]), blockgraph.Compressed); err != nil {
					t.Fatal(err)
				}
				if n == len(want) {
					break
				}
			}
			if got := get(t, d, 0, int64(len(want))); !bytes.Equal(got, want) {
				t.Fatalf("differs at %#x", firstDiff(got, want))
			}
			flush(t, d)
			// Compressed clusters are given up, too, and their space is used
			// again.
			w := bytes.Clone(want)
			if err := d.Discard(ctxb, 0, 2<<20); err != nil {
				t.Fatal(err)
			}
			clear(w[:2<<20])
			flush(t, d)
			put(t, d, 1000, fill(5, 100000))
			copy(w[1000:], fill(5, 100000))
			closeImage(t, d)
			mustCheck(t, f, true)
			fieldCheck(t, f)
			compareWithField(t, f, nil, w)
		}
	}
}

func TestWritingLeavesInternalSnapshotsAlone(t *testing.T) {
	img, io := tool(t, "qemu-img"), tool(t, "qemu-io")
	for _, opts := range []string{"cluster_size=64k", "cluster_size=512", "compat=0.10,cluster_size=4k"} {
		q := filepath.Join(t.TempDir(), "q")
		run(t, img, "create", "-q", "-f", "qcow2", "-o", opts, q, "4M")
		run(t, io, "-c", "write -P 1 0 3M", q)
		run(t, img, "snapshot", "-c", "s1", q)
		run(t, io, "-c", "write -P 2 1M 1M", q)
		run(t, img, "snapshot", "-c", "s2", q)
		f := load(t, q)
		d := openWith(t, f, nil, &qapi.BlockdevOptionsQcow2{L2CacheSize: ptr(int64(1)), L2CacheEntrySize: ptr(int64(512))})
		put(t, d, 100, fill(3, 200000))
		put(t, d, 2<<20, fill(4, 512))
		if err := d.WriteZeroes(ctxb, 1<<20, 256<<10, 0); err != nil {
			t.Fatal(err)
		}
		if err := d.Discard(ctxb, 3<<19, 256<<10); err != nil {
			t.Fatal(err)
		}
		flush(t, d)
		put(t, d, 1<<20+512, fill(5, 3000))
		if list := d.InternalSnapshots(); len(list) != 2 || list[1].Name != "s2" || list[0].ID != "1" {
			t.Fatalf("%+v", list)
		}
		now := get(t, d, 0, 4<<20)
		closeImage(t, d)
		mustCheck(t, f, true)
		fieldCheck(t, f)
		compareWithField(t, f, nil, now)
		p := save(t, f, "after")
		run(t, img, "snapshot", "-a", "s1", p)
		run(t, io, "-c", "read -P 1 0 3M", "-c", "read -P 0 3M 1M", p)
		run(t, img, "snapshot", "-a", "s2", p)
		run(t, io, "-c", "read -P 1 0 1M", "-c", "read -P 2 1M 1M", "-c", "read -P 1 2M 1M", p)
		run(t, img, "check", "-q", p)
	}
}

func TestDirtyImageIsRepairedAtOpen(t *testing.T) {
	img, io := tool(t, "qemu-img"), tool(t, "qemu-io")
	q := filepath.Join(t.TempDir(), "q")
	run(t, img, "create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on,cluster_size=4k", q, "4M")
	// The image is killed in the middle, with its refcounts in memory only.
	run(t, "sh", "-c", io+" -c 'write -P 7 0 1M' -c 'flush' -c 'sigraise 9' "+q+" >/dev/null 2>&1; true")
	f := load(t, q)
	if binary.BigEndian.Uint64(f.b[fieldIncompatible:])&incompatDirty == 0 {
		t.Fatal("the image is not dirty: the test tests nothing")
	}
	d := openImage(t, f, nil)
	if got := get(t, d, 0, 1<<20); !bytes.Equal(got, fill(7, 1<<20)) {
		t.Fatal("content")
	}
	put(t, d, 2<<20, fill(1, 5000))
	closeImage(t, d)
	mustCheck(t, f, true)
	fieldCheck(t, f)
	if binary.BigEndian.Uint64(f.b[fieldIncompatible:])&incompatDirty != 0 {
		t.Fatal("still dirty")
	}
}

func TestUnsupportedFeaturesAreNamed(t *testing.T) {
	f := newImage(t, 1<<20)
	binary.BigEndian.PutUint64(f.b[fieldIncompatible:], 1<<60)
	_, err := open(ctxb, testChildren{f, nil}, &qapi.BlockdevOptions{}, false)
	if err == nil || err.Error() != "Unsupported qcow2 feature(s): Unknown incompatible feature: 1000000000000000" {
		t.Error(err)
	}
	// The image's own names; the last record may be short.
	names := (&extensions{features: append(append(make([]byte, 0, 99), record(0, 62, "one")...), 0, 63, 't', 'w', 'o')}).featureNames
	for mask, want := range map[uint64]string{
		1 << 62: "one", 1 << 63: "two", 3 << 62: "one, two",
		7 << 61: "one, two, Unknown incompatible feature: 2000000000000000", 1: "Unknown incompatible feature: 1",
	} {
		if got := names(mask); got != want {
			t.Errorf("%#x: %q, not %q", mask, got, want)
		}
	}
}

// record is one of a feature name table.
func record(kind, bit byte, name string) []byte {
	b := make([]byte, featureRecord)
	b[0], b[1] = kind, bit
	copy(b[2:], name)
	return b
}

func TestBitmapsStayInForceWhenTheImageIsWritten(t *testing.T) {
	img := tool(t, "qemu-img")
	q := filepath.Join(t.TempDir(), "q")
	run(t, img, "create", "-q", "-f", "qcow2", q, "1M")
	run(t, img, "bitmap", "--add", q, "b0")
	f := load(t, q)
	mustCheck(t, f, true)
	if f.b[fieldAutoclear+7] != 1 {
		t.Fatal("no bitmap in the image")
	}
	d := openImage(t, f, nil)
	put(t, d, 0, fill(1, 100))
	if err := d.ChangeBackingFile(ctxb, "", ""); err != nil {
		t.Fatal(err)
	}
	closeImage(t, d)
	if f.b[fieldAutoclear+7] != 1 {
		t.Fatal("the image has lost its bitmaps")
	}
	mustCheck(t, f, true)
	fieldCheck(t, f)
	if list := openImage(t, f, nil).bitmaps.want; len(list) != 1 || list[0].Name != "b0" || list[0].Inconsistent {
		t.Fatalf("%+v", list)
	}
}
