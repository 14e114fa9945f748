package qcow2

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"blockd/qapi"
)

// remaking changes what an image was created with; its driver is not used after.
func remaking(o qapi.BlockdevAmendOptionsQcow2) func(*testing.T, *Driver) {
	return func(t *testing.T, d *Driver) {
		if err := d.settle(ctxb); err != nil {
			t.Fatal(err)
		}
		if err := d.Amend(ctxb, free, &qapi.BlockdevAmendOptions{Driver: "qcow2", Qcow2: &o}, false); err != nil {
			t.Fatal(err)
		}
	}
}

var (
	toV2 = qapi.BlockdevAmendOptionsQcow2{XCompat: ptr(qapi.BlockdevQcow2VersionV2)}
	toV3 = qapi.BlockdevAmendOptionsQcow2{XCompat: ptr(qapi.BlockdevQcow2VersionV3)}
)

// zeroedWithSnapshot leaves zero clusters, with a place and without, in the active
// table and in one that only a snapshot has.
func zeroedWithSnapshot(t *testing.T, d *Driver) {
	put(t, d, 0, fill(1, 3*cs4K))
	zero := func(off int64) {
		if err := d.WriteZeroes(ctxb, off, cs4K, 0); err != nil {
			t.Fatal(err)
		}
	}
	zero(cs4K)
	zero(8 * cs4K)
	if _, err := d.CreateSnapshot(ctxb, "s", time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	put(t, d, 0, fill(2, 512))
	zero(2 * cs4K)
	if err := d.settle(ctxb); err != nil {
		t.Fatal(err)
	}
}

var remakeOrders = []writeOrder{
	{name: "amend-upgrade", about: "version 2 becomes 3, with a snapshot", opts: append([]imageOption{v2}, small...), start: func(t *testing.T, d *Driver) {
		put(t, d, 0, fill(1, cs4K))
		if _, err := d.CreateSnapshot(ctxb, "s", time.Unix(1, 0)); err != nil {
			t.Fatal(err)
		}
	}, run: remaking(toV3)},
	{name: "amend-downgrade", about: "version 3 becomes 2: zero clusters go, as nothing lies below", opts: small, start: zeroedWithSnapshot, run: remaking(toV2)},
	{name: "amend-downgrade-backing", about: "the same over a backing file: zero clusters become data", opts: small, below: true, start: zeroedWithSnapshot, run: remaking(toV2)},
	{name: "amend-refcount-bits", about: "refcounts of 64 bits instead of 16", opts: small, start: written(0, 3*cs4K), run: remaking(qapi.BlockdevAmendOptionsQcow2{XRefcountBits: ptr(int64(64))})},
	{name: "amend-lazy-refcounts", about: "the header says that refcounts may be written late", opts: small, run: remaking(qapi.BlockdevAmendOptionsQcow2{XLazyRefcounts: ptr(true)})},
	{name: "amend-data-file", about: "another name of the data file, which is no raw image any more", opts: append([]imageOption{externalRaw}, small...), run: remaking(qapi.BlockdevAmendOptionsQcow2{XDataFile: ptr("other"), XDataFileRaw: ptr(false)})},
}

// remakings are words for qemu-img amend, one line after the other on the same image.
var remakings = []struct {
	name, create string
	snapshots    int
	below        bool
	words        []string
}{
	{name: "up", create: "compat=0.10", words: []string{"compat=1.1", "compat=v3", "compat=1.1,lazy_refcounts=on", "lazy_refcounts=off"}},
	{name: "up-with-all", create: "compat=0.10,cluster_size=4k", snapshots: 1, words: []string{"compat=1.1,refcount_bits=64,lazy_refcounts=on"}},
	{name: "v2", create: "compat=0.10", words: []string{"lazy_refcounts=on", "refcount_bits=8", "refcount_bits=16", "compat=v2", "refcount_bits=3"}},
	{name: "down", create: "cluster_size=4k", words: []string{"compat=0.10", "compat=1.1", "compat=v2"}},
	{name: "down-snapshots", create: "cluster_size=4k", snapshots: 2, words: []string{"compat=0.10", "compat=1.1"}},
	{name: "down-below", create: "cluster_size=4k", below: true, words: []string{"compat=0.10"}},
	{name: "down-below-snapshots", create: "cluster_size=512", below: true, snapshots: 2, words: []string{"compat=0.10"}},
	{name: "down-lazy", create: "lazy_refcounts=on", words: []string{"compat=0.10,lazy_refcounts=on", "compat=0.10", "compat=0.10,lazy_refcounts=on"}},
	{name: "down-zstd", create: "compression_type=zstd", words: []string{"compat=0.10"}},
	{name: "down-width", create: "refcount_bits=8,cluster_size=512", words: []string{"compat=0.10", "compat=0.10,refcount_bits=16"}},
	{name: "down-extended", create: "extended_l2=on", words: []string{"compat=0.10"}},
	{name: "down-data-file", create: "data_file=DATA", words: []string{"compat=0.10"}},
	{name: "widths", create: "cluster_size=512", snapshots: 2, words: []string{"refcount_bits=64", "refcount_bits=1", "refcount_bits=2", "refcount_bits=8", "refcount_bits=3", "refcount_bits=128", "refcount_bits=0", "refcount_bits=16"}},
	{name: "one-bit", create: "refcount_bits=1,cluster_size=512", words: []string{"refcount_bits=32", "refcount_bits=1"}},
	{name: "data-file", create: "data_file=DATA", words: []string{"data_file_raw=on", "data_file=other"}},
	{name: "data-file-nameless", create: "data_file=DATA", words: []string{"data_file="}},
	{name: "raw-data-file", create: "data_file=DATA,data_file_raw=on", words: []string{"data_file_raw=on", "data_file_raw=off", "data_file_raw=on"}},
	{name: "no-data-file", create: "cluster_size=4k", words: []string{"data_file=other", "data_file_raw=on", "data_file_raw=off"}},
}

// amendWords are the options that words of the rival's stand for.
func amendWords(t *testing.T, words string) *qapi.BlockdevAmendOptionsQcow2 {
	o := &qapi.BlockdevAmendOptionsQcow2{}
	for _, w := range strings.Split(words, ",") {
		key, value, _ := strings.Cut(w, "=")
		switch key {
		case "compat":
			o.XCompat = ptr(map[string]qapi.BlockdevQcow2Version{"0.10": "v2", "v2": "v2", "1.1": "v3", "v3": "v3"}[value])
		case "lazy_refcounts":
			o.XLazyRefcounts = ptr(value == "on")
		case "refcount_bits":
			n := int64(0)
			if _, err := fmt.Sscan(value, &n); err != nil {
				t.Fatal(err)
			}
			o.XRefcountBits = &n
		case "data_file":
			o.XDataFile = &value
		case "data_file_raw":
			o.XDataFileRaw = ptr(value == "on")
		default:
			t.Fatal(key)
		}
	}
	return o
}

// What the rival changes of an image is changed alike, what it refuses is refused in
// its words and changes nothing, and the image holds what it held.
func TestRemadeImagesBesideTheRival(t *testing.T) {
	img, io := tool(t, "qemu-img"), tool(t, "qemu-io")
	for _, tc := range remakings {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			path, data := filepath.Join(dir, "i"), filepath.Join(dir, "data")
			args := []string{img, "create", "-q", "-f", "qcow2", "-o", strings.ReplaceAll(tc.create, "DATA", data)}
			var below *memFile
			if tc.below {
				below = &memFile{b: mixed(1 << 20)}
				args = append(args, "-F", "raw", "-b", save(t, below, "below"))
			}
			run(t, append(args, path, "1M")...)
			external := strings.Contains(tc.create, "DATA")
			commands := []string{"write -P 1 0 600k", "write -z 64k 64k", "write -z 704k 64k", "write -z -u 128k 64k"}
			write := func() {
				args := []string{io}
				for _, c := range commands {
					if !strings.Contains(c, "-z") || !strings.Contains(tc.create, "0.10") {
						args = append(args, "-c", c)
					}
				}
				run(t, append(args, path)...)
			}
			for i := range tc.snapshots {
				write()
				run(t, img, "snapshot", "-c", fmt.Sprint("s", i), path)
				commands = []string{"write -P 3 100k 100k", "write -z 300k 64k"}
			}
			if strings.Contains(tc.create, "zstd") {
				commands = append(commands, "write -c 768k 64k")
			}
			write()
			f := load(t, path)
			if external {
				f.data, f.dataPath = load(t, data), data
			}
			want := get(t, openImage(t, bytesOf(f), below), 0, 1<<20)
			snapshots := contentOfSnapshots(t, img, f, tc.snapshots)
			for _, words := range tc.words {
				out, err := exec.Command(img, "amend", "-o", words, path).CombinedOutput()
				theirs := strings.TrimPrefix(strings.TrimSpace(string(out)), "qemu-img: ")
				before := bytes.Clone(f.b)
				d := openImage(t, f, below)
				ours := d.Amend(ctxb, free, &qapi.BlockdevAmendOptions{Driver: "qcow2", Qcow2: amendWords(t, words)}, false)
				switch {
				case (err == nil) != (ours == nil):
					t.Fatalf("%s: %v, the rival: %s", words, ours, theirs)
				case ours != nil && !strings.HasPrefix(theirs, ours.Error()):
					t.Errorf("%s: %q, the rival: %q", words, ours, theirs)
				case ours != nil && !bytes.Equal(f.b, before):
					t.Errorf("%s: refused, and yet the image has changed", words)
				}
				mustCheck(t, f, true)
				if external {
					continue // its name is no file's
				}
				if got := get(t, openImage(t, bytesOf(f), below), 0, 1<<20); !bytes.Equal(got, want) {
					t.Fatalf("%s: the disk differs at %#x", words, firstDiff(got, want))
				}
				if got, has := specificOf(t, img, save(t, f, "i")), specificOf(t, img, path); !reflect.DeepEqual(got, has) {
					t.Errorf("%s: %v, the rival: %v", words, got, has)
				}
			}
			if external {
				return
			}
			fieldCheck(t, f)
			for i, got := range contentOfSnapshots(t, img, f, tc.snapshots) {
				if !bytes.Equal(got, snapshots[i]) {
					t.Errorf("snapshot %d differs at %#x", i, firstDiff(got, snapshots[i]))
				}
			}
		})
	}
}

// bytesOf is a copy of an image, which may be opened beside it.
func bytesOf(f *memFile) *memFile {
	return &memFile{b: bytes.Clone(f.b), data: f.data, dataPath: f.dataPath}
}

func specificOf(t *testing.T, img, path string) any {
	t.Helper()
	out, err := exec.Command(img, "info", "--output=json", path).Output()
	if err != nil {
		t.Fatal(err)
	}
	var info map[string]any
	if err := json.Unmarshal(out, &info); err != nil {
		t.Fatal(err)
	}
	return info["format-specific"]
}

// contentOfSnapshots is what the rival reads of them. (It does not keep all of them
// itself: it writes zeroes to clusters that it marked as zeroes when a snapshot had
// them already.)
func contentOfSnapshots(t *testing.T, img string, f *memFile, n int) [][]byte {
	t.Helper()
	var list [][]byte
	path := save(t, f, "snapshots")
	for i := range n {
		out := filepath.Join(t.TempDir(), "raw")
		run(t, img, "convert", "-q", "-l", fmt.Sprint("snapshot.name=s", i), "-f", "qcow2", "-O", "raw", path, out)
		list = append(list, load(t, out).b)
	}
	return list
}

// What nobody knows stays over every change of the header.
func TestRemakingKeepsUnknownExtensions(t *testing.T) {
	f := newImage(t, 1<<20, clusterSize(4096))
	d := openImage(t, f, nil)
	if err := d.switchHeader(ctxb, func(ext *extensions) { ext.keep(0x12345678, []byte("nobody knows this")) }, nil); err != nil {
		t.Fatal(err)
	}
	closeImage(t, d)
	for _, o := range []qapi.BlockdevAmendOptionsQcow2{toV2, toV3, {XRefcountBits: ptr(int64(8))}, {XLazyRefcounts: ptr(true)}} {
		d := openImage(t, f, nil)
		remaking(o)(t, d)
		_, ext, _, err := readHeader(ctxb, f)
		if err != nil {
			t.Fatal(err)
		}
		if len(ext.others) != 1 || string(ext.others[0].data) != "nobody knows this" {
			t.Fatalf("%+v: %+v", o, ext.others)
		}
		fieldCheck(t, f)
	}
}

// A remake that fails at any of its writes and flushes leaves a sound image that holds
// the same, and done again without the failure it succeeds.
func TestRemakingThatFails(t *testing.T) {
	base := &memFile{b: fill(9, 256<<10)}
	first := newImage(t, 256<<10, small...)
	d := openImage(t, first, base)
	zeroedWithSnapshot(t, d)
	want := get(t, d, 0, 256<<10)
	closeImage(t, d)
	for _, o := range []qapi.BlockdevAmendOptionsQcow2{toV2, {XRefcountBits: ptr(int64(32)), XLazyRefcounts: ptr(true)}} {
		for n := 0; ; n++ {
			f := bytesOf(first)
			d := openImage(t, f, base)
			left, failed := n, false
			f.setFault(func(op string, _, _ int64) error {
				if op != "write" && op != "flush" {
					return nil
				}
				if left--; left < 0 {
					failed = true
					return syscall.EIO
				}
				return nil
			})
			err := d.Amend(ctxb, free, &qapi.BlockdevAmendOptions{Driver: "qcow2", Qcow2: &o}, false)
			f.setFault(nil)
			if failed && err == nil || !failed && err != nil || err != nil && !errors.Is(err, syscall.EIO) {
				t.Fatalf("failure %d: %v", n, err)
			}
			again := openImage(t, f, base)
			if got := get(t, again, 0, 256<<10); !bytes.Equal(got, want) {
				t.Fatalf("failure %d: the disk differs at %#x", n, firstDiff(got, want))
			}
			closeImage(t, again)
			mustCheck(t, f, false)
			remaking(o)(t, openImage(t, f, base))
			mustCheck(t, f, false)
			if !failed {
				break
			}
		}
	}
}

// remakes remakes the image at random; it runs alone.
var remakes = crashStep{"amend", 4, func(c *crashDisk, r *crashRange) {
	start := c.vals.FlushBegins()
	c.close()
	c.vals.Flushed(start)
	o := &qapi.BlockdevAmendOptionsQcow2{}
	switch bits := []int64{4, 8, 16, 32, 64}; r.rnd.IntN(3) {
	case 0:
		o.XCompat = ptr([]qapi.BlockdevQcow2Version{"v2", "v3"}[r.rnd.IntN(2)])
		if *o.XCompat == "v2" {
			o.XRefcountBits = ptr(int64(16))
		}
	case 1:
		o.XCompat, o.XRefcountBits = ptr(qapi.BlockdevQcow2VersionV3), &bits[r.rnd.IntN(len(bits))]
	default:
		o.XCompat, o.XLazyRefcounts = ptr(qapi.BlockdevQcow2VersionV3), ptr(r.rnd.IntN(2) == 0)
	}
	refused := []error{syscall.EINVAL, syscall.ENOTSUP} // a count that does not fit, what version 2 cannot tell
	if err := c.d.remake(ctxb, free, o); err != nil && !slices.ContainsFunc(refused, func(e error) bool { return errors.Is(err, e) }) {
		c.fail("amend", err)
	}
	c.d, c.below = c.openChain(c.files, c.topAt(c.now()), c.live)
}}

// Where a file does not grow, new structures are put among what is in use: counts that
// call something free that is not are no ground for that.
func TestRemakingADeviceWhoseCountsAreTooLow(t *testing.T) {
	f := newImage(t, 256<<10, small...)
	d := openImage(t, f, nil)
	put(t, d, 0, fill(1, 8*cs4K))
	closeImage(t, d)
	h := d.h
	block := int64(d.refs.table[0] & refTableMask)
	f.resize(int64(len(f.b)) + 4*cs4K)
	f.fixed = true
	setRefAt(f.b[block:block+h.clusterSize], h.refcountOrder, int64(h.l1Offset)>>h.clusterBits, 0)
	before := bytes.Clone(f.b)
	o := qapi.BlockdevAmendOptionsQcow2{XRefcountBits: ptr(int64(64))}
	err := openImage(t, f, nil).Amend(ctxb, free, &qapi.BlockdevAmendOptions{Driver: "qcow2", Qcow2: &o}, false)
	if !errors.Is(err, syscall.EIO) || !strings.Contains(err.Error(), "is in use and has a refcount of 0") {
		t.Error(err)
	}
	if !bytes.Equal(f.b, before) {
		t.Error("the image has changed")
	}
	setRefAt(f.b[block:block+h.clusterSize], h.refcountOrder, int64(h.l1Offset)>>h.clusterBits, 1)
	remaking(o)(t, openImage(t, f, nil))
	mustCheck(t, f, true)
	if got := get(t, openImage(t, f, nil), 0, 8*cs4K); !bytes.Equal(got, fill(1, 8*cs4K)) {
		t.Error("the disk differs")
	}
}

// Keys that are amended by the way do not give an image back that is remade.
func TestAnImageThatIsRemadeStaysSo(t *testing.T) {
	d := openImage(t, newImage(t, 256<<10, small...), nil)
	d.SetAmending(true, true)
	d.SetAmending(true, false)
	d.SetAmending(false, false)
	if err := d.Amend(ctxb, free, &qapi.BlockdevAmendOptions{Driver: "qcow2", Qcow2: &qapi.BlockdevAmendOptionsQcow2{}}, false); !errors.Is(err, syscall.EBUSY) {
		t.Error(err)
	}
	if _, err := d.PrepareReopen(ctxb, nil); !errors.Is(err, syscall.EBUSY) {
		t.Error(err)
	}
}

// What a table has past the end of the disk is no zero cluster of version 2 either,
// which a longer disk would come upon.
func TestRemakingExpandsZeroesPastTheDisk(t *testing.T) {
	for _, base := range []*memFile{nil, {b: fill(9, 256<<10)}} {
		f := newImage(t, 256<<10, small...)
		d := openImage(t, f, base)
		put(t, d, 0, fill(1, cs4K))
		closeImage(t, d)
		entry := int64(d.activeL1()[0]&l1OffsetMask) + 100*8
		f.b[entry+7] = 1
		remaking(toV2)(t, openImage(t, f, base))
		if f.b[entry+7] != 0 {
			t.Error("a zero cluster in version 2")
		}
		mustCheck(t, f, true)
	}
}
