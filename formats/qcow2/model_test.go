package qcow2

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"sync"
	"testing"

	"blockd/blockgraph"
	"blockd/qapi"
)

// modelRegion is a part of the disk that one goroutine owns. Regions are not
// aligned to clusters, so that neighbours meet in shared clusters.
type modelRegion struct {
	from  int64
	bytes []byte
}

type modelCase struct {
	name    string
	size    int64
	backing int64 // size of the backing file; 0: none
	opts    []imageOption
	run     qapi.BlockdevOptionsQcow2
}

func modelCases() []modelCase {
	var cases []modelCase
	for _, cs := range []uint64{512, 4096, 65536} {
		size := int64(cs) * 200
		size = min(max(size, 1<<20), 4<<20)
		for _, ver := range []string{"v2", "v3"} {
			for _, backing := range []int64{0, size/2 + 512} {
				c := modelCase{name: fmt.Sprintf("%d-%s-backing%d", cs, ver, backing), size: size + 1024, backing: backing}
				c.opts = []imageOption{clusterSize(cs)}
				if ver == "v2" {
					c.opts = append(c.opts, v2)
				}
				cases = append(cases, c)
			}
		}
	}
	// The smallest caches, so that everything is evicted all the time.
	cases = append(cases, modelCase{name: "tiny-cache", size: 8 << 20, backing: 4 << 20, opts: []imageOption{clusterSize(4096)},
		run: qapi.BlockdevOptionsQcow2{L2CacheSize: ptr(int64(512)), L2CacheEntrySize: ptr(int64(512)), RefcountCacheSize: ptr(int64(1))}})
	cases = append(cases, modelCase{name: "tiny-clusters", size: 8 << 20, opts: []imageOption{clusterSize(512), refcountBits(64)},
		run: qapi.BlockdevOptionsQcow2{L2CacheSize: ptr(int64(512)), RefcountCacheSize: ptr(int64(1))}})
	for _, s := range optionSets {
		switch s.name {
		case "data-file", "extended", "extended-small-cache", "extended-data-file":
			size := max(s.cluster*16, 200<<10) + 1024
			cases = append(cases, modelCase{name: s.name, size: size, backing: size/2 + 512, opts: s.create(), run: s.run})
		}
	}
	return cases
}

// TestConcurrentRequestsMatchModel runs random requests of many goroutines
// against a plain array of bytes.
func TestConcurrentRequestsMatchModel(t *testing.T) {
	for _, c := range modelCases() {
		t.Run(c.name, func(t *testing.T) {
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			runModel(t, c, seed, 8, 150)
		})
	}
}

func runModel(t *testing.T, c modelCase, seed uint64, workers, steps int) {
	rnd := rand.New(rand.NewPCG(seed, 1))
	f := newImage(t, c.size, c.opts...)
	want := make([]byte, c.size)
	var backing *memFile
	if c.backing > 0 {
		backing = &memFile{b: make([]byte, c.backing)}
		for i := range backing.b[:c.backing/2] {
			backing.b[i] = byte(rnd.Uint32())
		}
		copy(want, backing.b)
	}
	d := openWith(t, f, backing, &c.run)
	for round := range 3 {
		var wg sync.WaitGroup
		// Other boundaries in each round.
		cuts := []int64{0}
		for i := 1; i < workers; i++ {
			cuts = append(cuts, c.size*int64(i)/int64(workers)+rnd.Int64N(5000)&^511)
		}
		cuts = append(cuts, c.size)
		for i := range workers {
			r := &modelRegion{from: cuts[i], bytes: want[cuts[i]:cuts[i+1]]}
			wseed := rnd.Uint64()
			wg.Go(func() { modelWorker(t, d, r, rand.New(rand.NewPCG(wseed, 2)), steps) })
		}
		wg.Wait()
		if t.Failed() {
			return
		}
		if got := get(t, d, 0, c.size); !bytes.Equal(got, want) {
			t.Fatalf("round %d: content differs at %#x", round, firstDiff(got, want))
		}
		if round == 1 {
			closeImage(t, d)
			mustCheck(t, f, true)
			d = openWith(t, f, backing, &c.run)
		}
	}
	closeImage(t, d)
	mustCheck(t, f, true)
	compareWithField(t, f, backing, want)
}

func randomBytes(rnd *rand.Rand, n int64) []byte {
	p := make([]byte, n+8)
	for i := int64(0); i < n; i += 8 {
		binary.LittleEndian.PutUint64(p[i:], rnd.Uint64())
	}
	return p[:n]
}

func firstDiff(a, b []byte) int {
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

// compareWithField lets qemu-img judge an image.
func compareWithField(t *testing.T, f, backing *memFile, want []byte) {
	t.Helper()
	p, err := exec.LookPath("qemu-img")
	if err != nil {
		return
	}
	img := save(t, f, "a.qcow2")
	if backing != nil {
		base := save(t, backing, "base.raw")
		run(t, p, "rebase", "-u", "-F", "raw", "-b", base, img)
	}
	if isEncrypted(f) {
		compareEncrypted(t, p, f, img, want)
		return
	}
	run(t, p, "check", "-q", img)
	raw := save(t, &memFile{b: want}, "want.raw")
	run(t, p, "compare", "-q", "-f", "qcow2", "-F", "raw", img, raw)
}

// modelWorker sends random requests to its region.
func modelWorker(t *testing.T, d *Driver, r *modelRegion, rnd *rand.Rand, steps int) {
	size := int64(len(r.bytes))
	cs, ss := d.h.clusterSize, d.h.subclusterSize()
	for range steps {
		off := rnd.Int64N(size)
		n := min(1+rnd.Int64N(min(size, 4*cs)), size-off)
		if rnd.IntN(2) == 0 {
			off &^= 511
			n = min((n+511)&^511, size-off)
		}
		abs := r.from + off
		fail := func(what string, err error) {
			t.Errorf("%s of %d bytes at %#x: %v", what, n, abs, err)
		}
		switch rnd.IntN(12) {
		case 0, 1, 2, 3:
			p := randomBytes(rnd, n)
			if err := d.WriteV(ctxb, abs, blockgraph.MakeIOVec(p[:n/2], p[n/2:]), 0); err != nil {
				fail("write", err)
				return
			}
			copy(r.bytes[off:], p)
		case 4, 5:
			// Whole subclusters inside the region.
			from, to := (abs+ss-1)&^(ss-1), (abs+n)&^(ss-1)
			if from >= to {
				continue
			}
			var flags blockgraph.Flags
			if rnd.IntN(2) == 0 {
				flags = blockgraph.MayUnmap
			}
			err := d.WriteZeroes(ctxb, from, to-from, flags)
			if errors.Is(err, blockgraph.ErrNotSupported) {
				continue
			}
			if err != nil {
				fail("zero write", err)
				return
			}
			clear(r.bytes[from-r.from : to-r.from])
		case 6:
			// Part of a cluster.
			if abs&^(ss-1) != (abs+n-1)&^(ss-1) {
				continue
			}
			err := d.WriteZeroes(ctxb, abs, n, 0)
			if errors.Is(err, blockgraph.ErrNotSupported) {
				continue
			}
			if err != nil {
				fail("partial zero write", err)
				return
			}
			clear(r.bytes[off : off+n])
		case 7:
			from, to := (abs+ss-1)&^(ss-1), (abs+n)&^(ss-1)
			if from >= to {
				continue
			}
			err := d.Discard(ctxb, from, to-from)
			if errors.Is(err, blockgraph.ErrNotSupported) {
				continue
			}
			if err != nil {
				fail("discard", err)
				return
			}
			// What it reads as is zeroes in both versions.
			clear(r.bytes[from-r.from : to-r.from])
		case 8:
			if err := d.Flush(ctxb); err != nil {
				fail("flush", err)
				return
			}
		case 9:
			// Populate as a copy-on-read would; nothing changes for the guest.
			p := bytes.Clone(r.bytes[off : off+n])
			if err := d.WriteV(ctxb, abs, blockgraph.MakeIOVec(p), blockgraph.WriteUnchanged|blockgraph.OnlyUnallocated); err != nil {
				fail("unchanged write", err)
				return
			}
		default:
			p := make([]byte, n)
			if err := d.ReadV(ctxb, abs, blockgraph.MakeIOVec(p), 0); err != nil {
				fail("read", err)
				return
			}
			if !bytes.Equal(p, r.bytes[off:off+n]) {
				t.Errorf("read of %d bytes at %#x differs at %#x", n, abs, abs+int64(firstDiff(p, r.bytes[off:off+n])))
				return
			}
		}
	}
}

// TestFieldReadsAndWritesOurImages lets qemu-io change an image that we made
// and read it back.
func TestFieldReadsAndWritesOurImages(t *testing.T) {
	io := tool(t, "qemu-io")
	f := newImage(t, 4<<20)
	d := openImage(t, f, nil)
	put(t, d, 100000, fill(7, 100000))
	closeImage(t, d)
	p := save(t, f, "x.qcow2")
	run(t, io, "-c", "read -P 7 100000 100000", "-c", "write -P 9 150k 100k", "-c", "discard 0 64k", p)
	f = load(t, p)
	d = openImage(t, f, nil)
	want := make([]byte, 4<<20)
	copy(want[100000:], fill(7, 100000))
	copy(want[150<<10:], fill(9, 100<<10))
	clear(want[:64<<10])
	if got := get(t, d, 0, 4<<20); !bytes.Equal(got, want) {
		t.Fatalf("differs at %#x", firstDiff(got, want))
	}
	closeImage(t, d)
	mustCheck(t, f, true)
}
