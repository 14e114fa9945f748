package qcow2

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"blockd/blockgraph"
	"blockd/qapi"
)

// The crash tests record what reaches the file, and rebuild the file as it may
// be after a power failure at every point: what was flushed is there, of the
// rest any choice of sectors. Each such image must be consistent, and each
// sector must hold what it held at the guest's last flush or something written
// since.

// change is a new value of a guest sector. It began when the log had from
// entries; done is when it was complete, on the test's own clock.
type change struct {
	value uint64
	from  int
	done  int64
}

// guestFlush began at start on the clock and ended when the log had to
// entries.
type guestFlush struct {
	start int64
	to    int
}

// crashDisk is a disk of which every sector is filled with a number.
type crashDisk struct {
	t       *testing.T
	f       *memFile
	d       *Driver
	base    []byte // of the file, durable at the beginning
	backing *memFile
	hist    [][]change
	flushes []guestFlush
	next    atomic.Uint64
	clock   atomic.Int64
	mu      sync.Mutex
	marks   *crashBitmaps // nil: the disk has no bitmaps
}

// change changes bytes [off, off+n) by f, as the checked wrapper does.
func (c *crashDisk) change(off, n int64, f func() error) error {
	if c.marks == nil {
		return f()
	}
	if err := c.marks.before(off, n); err != nil {
		return err
	}
	err := f()
	c.marks.after(off, n)
	return err
}

func (c *crashDisk) now() int {
	c.f.mu.RLock()
	defer c.f.mu.RUnlock()
	return len(c.f.log)
}

func sectorOf(value uint64) []byte {
	b := make([]byte, sector)
	if value != 0 {
		for i := 0; i < sector; i += 8 {
			binary.LittleEndian.PutUint64(b[i:], value)
		}
	}
	return b
}

func newCrashDisk(t *testing.T, f, backing *memFile, o *qapi.BlockdevOptionsQcow2) *crashDisk {
	c := &crashDisk{t: t, f: f, backing: backing, base: bytes.Clone(f.b)}
	f.record = true
	c.next.Store(1)
	c.d = openWith(t, f, backing, o)
	for i := range c.d.size.Load() / sector {
		v := uint64(0)
		if backing != nil && (i+1)*sector <= int64(len(backing.b)) {
			v = binary.LittleEndian.Uint64(backing.b[i*sector:])
		}
		c.hist = append(c.hist, []change{{value: v}})
	}
	return c
}

// step runs a request that gives sectors [s, s+n) the values that f returns.
func (c *crashDisk) step(s, n int64, run func(), f func(i int64) uint64) {
	from := c.now()
	run()
	done := c.clock.Add(1)
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range n {
		c.hist[s+i] = append(c.hist[s+i], change{f(i), from, done})
	}
}

func (c *crashDisk) write(s, n int64) {
	v := c.next.Add(1)
	c.step(s, n, func() {
		if err := c.change(s*sector, n*sector, func() error {
			return c.d.WriteV(ctxb, s*sector, blockgraph.MakeIOVec(bytes.Repeat(sectorOf(v), int(n))), 0)
		}); err != nil {
			c.t.Error(err)
		}
	}, func(int64) uint64 { return v })
}

func (c *crashDisk) zero(s, n int64, flags blockgraph.Flags) {
	c.step(s, n, func() {
		if err := c.change(s*sector, n*sector, func() error { return c.d.WriteZeroes(ctxb, s*sector, n*sector, flags) }); err != nil {
			c.t.Error(err)
		}
	}, func(int64) uint64 { return 0 })
}

func (c *crashDisk) discard(s, n int64) {
	c.step(s, n, func() {
		if err := c.change(s*sector, n*sector, func() error { return c.d.Discard(ctxb, s*sector, n*sector) }); err != nil {
			c.t.Error(err)
		}
	}, func(int64) uint64 { return 0 })
}

func (c *crashDisk) flush() {
	start := c.clock.Add(1)
	if err := c.d.Flush(ctxb); err != nil {
		c.t.Error(err)
		return
	}
	to := c.now()
	c.mu.Lock()
	c.flushes = append(c.flushes, guestFlush{start, to})
	c.mu.Unlock()
}

// allowed tells whether a sector may hold value after a crash at k.
func (c *crashDisk) allowed(s int, value uint64, k int) bool {
	durable := int64(-1)
	for _, f := range c.flushes {
		if f.to <= k {
			durable = max(durable, f.start)
		}
	}
	list := c.hist[s]
	first := 0
	for i, h := range list {
		if i > 0 && h.done < durable {
			first = i
		}
	}
	for i := first; i < len(list); i++ {
		if list[i].value == value && (i == first || list[i].from < k) {
			return true
		}
	}
	return false
}

// rebuild returns the file after a crash at k; keep decides which sectors of
// which unflushed operations survive.
func (c *crashDisk) rebuild(k int, keep func(op, sector int) bool) *memFile {
	last := 0
	for i, op := range c.f.log[:k] {
		if op.flush {
			last = i + 1
		}
	}
	f := &memFile{b: bytes.Clone(c.base)}
	for i, op := range c.f.log[:k] {
		switch {
		case op.flush:
		case op.data == nil:
			if i < last || keep(i, 0) {
				f.resize(max(op.size, int64(len(f.b))))
			}
		default:
			for p, end := op.off, op.off+int64(len(op.data)); p < end; {
				n := min(end, (p/sector+1)*sector) - p
				if i < last || keep(i, int(p/sector)) {
					if p+n > int64(len(f.b)) {
						f.resize(p + n)
					}
					copy(f.b[p:], op.data[p-op.off:p-op.off+n])
				}
				p += n
			}
		}
	}
	return f
}

// judge checks one image after a crash.
func (c *crashDisk) judge(f *memFile, k int, how string) {
	c.t.Helper()
	chk, err := check(ctxb, f)
	if err != nil {
		c.t.Fatalf("crash at %d (%s): %v", k, how, err)
	}
	if chk.res.corruptions > 0 {
		c.t.Fatalf("crash at %d (%s): %q", k, how, chk.res.messages)
	}
	d, err := open(ctxb, testChildren{f, c.backing}, &qapi.BlockdevOptions{}, true)
	if err != nil {
		c.t.Fatalf("crash at %d (%s): %v", k, how, err)
	}
	size := d.size.Load()
	got := get(c.t, d, 0, size)
	if c.marks != nil {
		c.marks.judge(d.bitmaps.want, got, k, how)
	}
	closeImage(c.t, d)
	for s := range int(size / sector) {
		b := got[s*sector : (s+1)*sector]
		v := binary.LittleEndian.Uint64(b)
		if !bytes.Equal(b, sectorOf(v)) {
			c.t.Fatalf("crash at %d (%s): sector %d is torn", k, how, s)
		}
		if !c.allowed(s, v, k) {
			c.t.Fatalf("crash at %d (%s): sector %d holds %d, history %+v, flushes %+v", k, how, s, v, c.hist[s], c.flushes)
		}
	}
}

// goOn uses an image after a crash as a guest would, and checks it again.
func (c *crashDisk) goOn(f *memFile, rnd *rand.Rand) {
	c.t.Helper()
	d := openImage(c.t, f, c.backing)
	size := d.size.Load()
	want := get(c.t, d, 0, size)
	for range 10 {
		n := min(sector*(1+rnd.Int64N(40)), size)
		off := rnd.Int64N(size-n+1) &^ (sector - 1)
		p := randomBytes(rnd, n)
		put(c.t, d, off, p)
		copy(want[off:], p)
	}
	closeImage(c.t, d)
	mustCheck(c.t, f, false)
	d = openImage(c.t, f, c.backing)
	if got := get(c.t, d, 0, size); !bytes.Equal(got, want) {
		c.t.Fatalf("content after going on differs at %#x", firstDiff(got, want))
	}
	closeImage(c.t, d)
}

// crashEverywhere judges the image after a crash at every point of the log.
func (c *crashDisk) crashEverywhere(rnd *rand.Rand, variants, every int) (states int) {
	qemuImg, _ := exec.LookPath("qemu-img")
	for k := 0; k <= len(c.f.log); k++ {
		if k%every != 0 && !c.nearHeaderWrite(k) {
			continue
		}
		type way struct {
			name string
			keep func(op, sector int) bool
		}
		ways := []way{{"all", func(int, int) bool { return true }}, {"none", func(int, int) bool { return false }}}
		near := c.nearHeaderWrite(k)
		for i := 0; i < variants || near && i < 4*variants; i++ {
			seed := rnd.Uint64()
			odds := uint64(1 + rnd.IntN(3))
			ways = append(ways, way{fmt.Sprintf("sectors by %d", seed), func(op, sector int) bool {
				return mix(seed+uint64(op)<<32+uint64(sector))&3 < odds
			}})
			ways = append(ways, way{fmt.Sprintf("writes by %d", seed), func(op, _ int) bool {
				return mix(seed+uint64(op))&1 == 0
			}})
		}
		for i, w := range ways {
			f := c.rebuild(k, w.keep)
			c.judge(f, k, w.name)
			states++
			if rnd.IntN(25) == 0 {
				if qemuImg != "" && rnd.IntN(6) == 0 {
					p := save(c.t, f, fmt.Sprintf("crash%d-%d.qcow2", k, i))
					out, err := exec.Command(qemuImg, "check", "-f", "qcow2", p).CombinedOutput()
					if e, ok := err.(*exec.ExitError); err != nil && (!ok || e.ExitCode() != 3) {
						c.t.Fatalf("crash at %d (%s): qemu-img check: %v\n%s", k, w.name, err, out)
					}
				}
				c.goOn(f, rnd)
			}
		}
	}
	return states
}

// nearHeaderWrite tells whether the header changes at about operation k.
func (c *crashDisk) nearHeaderWrite(k int) bool {
	for _, op := range c.f.log[max(k-5, 0):min(k+3, len(c.f.log))] {
		if op.data != nil && op.off == 0 {
			return true
		}
	}
	return false
}

func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}

type crashCase struct {
	name    string
	size    int64
	backing bool
	steps   int
	big     int64 // largest write in sectors
	fill    int64 // first write the whole disk in pieces of so many sectors
	workers int   // requests at a time; 0 is 1
	every   int   // away from header writes, look at every so many points; 0 is 1
	opts    []imageOption
	run     qapi.BlockdevOptionsQcow2
	bitmaps bool // change dirty bitmaps, too
}

func TestImageIsConsistentAfterCrashAnywhere(t *testing.T) {
	cases := []crashCase{
		{name: "512", size: 200 << 10, steps: 60, big: 60, opts: []imageOption{clusterSize(512)}},
		{name: "512-backing", size: 200 << 10, backing: true, steps: 50, big: 60, opts: []imageOption{clusterSize(512)}},
		{name: "4096-backing", size: 512 << 10, backing: true, steps: 50, big: 100, opts: []imageOption{clusterSize(4096)}},
		{name: "4096-v2", size: 512 << 10, steps: 50, big: 100, opts: []imageOption{clusterSize(4096), v2}},
		{name: "table-grows", size: 3 << 20, steps: 6, fill: 800, every: 16, big: 2000, opts: []imageOption{clusterSize(512), refcountBits(64)}},
		{name: "small-cache", size: 400 << 10, backing: true, steps: 60, big: 40, opts: []imageOption{clusterSize(512)},
			run: qapi.BlockdevOptionsQcow2{L2CacheSize: ptr(int64(512)), PassDiscardOther: ptr(true)}},
		{name: "concurrent", size: 400 << 10, steps: 25, workers: 4, big: 40, opts: []imageOption{clusterSize(1024)},
			run: qapi.BlockdevOptionsQcow2{PassDiscardOther: ptr(true)}},
		{name: "concurrent-backing", size: 400 << 10, backing: true, steps: 25, workers: 4, big: 40, opts: []imageOption{clusterSize(2048)},
			run: qapi.BlockdevOptionsQcow2{L2CacheSize: ptr(int64(512)), PassDiscardOther: ptr(true)}},
	}
	cases = append(cases, bitmapCrashCases...)
	total := 0
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			total += runCrash(t, tc, seed)
		})
	}
	t.Logf("%d states", total)
	if !t.Failed() && total < 2000 {
		t.Errorf("only %d states", total)
	}
}

func runCrash(t *testing.T, tc crashCase, seed uint64) int {
	rnd := rand.New(rand.NewPCG(seed, 3))
	f := newImage(t, tc.size, tc.opts...)
	var backing *memFile
	if tc.backing {
		backing = &memFile{}
		for i := range tc.size / sector * 3 / 4 {
			backing.b = append(backing.b, sectorOf(uint64(i)|1<<40)...)
		}
	}
	c := newCrashDisk(t, f, backing, &tc.run)
	if tc.bitmaps {
		c.marks = newCrashBitmaps(c)
	}
	sectors := tc.size / sector
	for s := int64(0); tc.fill > 0 && s < sectors; s += tc.fill {
		c.write(s, min(tc.fill, sectors-s))
		c.flush()
	}
	workers := int64(max(tc.workers, 1))
	if workers > 1 {
		// Let others in at each operation.
		f.setFault(func(string, int64, int64) error {
			for range mix(c.next.Load()+uint64(c.now())) % 8 {
				runtime.Gosched()
			}
			return nil
		})
	}
	var wg sync.WaitGroup
	for i := range workers {
		rnd := rand.New(rand.NewPCG(seed, uint64(i)))
		wg.Go(func() { c.worker(tc, rnd, sectors*i/workers, sectors*(i+1)/workers) })
	}
	wg.Wait()
	f.setFault(nil)
	if t.Failed() {
		return 0
	}
	c.flush()
	closeImage(t, c.d)
	mustCheck(t, f, true)
	return c.crashEverywhere(rnd, 2, max(tc.every, 1))
}

// worker sends random requests for sectors [lo, hi).
func (c *crashDisk) worker(tc crashCase, rnd *rand.Rand, lo, hi int64) {
	cs := c.d.h.clusterSize / sector
	v3 := c.d.h.version >= 3
	for range tc.steps {
		n := 1 + rnd.Int64N(tc.big)
		if rnd.IntN(3) == 0 {
			n = 1 + rnd.Int64N(8)
		}
		n = min(n, hi-lo)
		s := lo + rnd.Int64N(hi-lo-n+1)
		from, to := (s+cs-1)/cs*cs, (s+n)/cs*cs
		if c.marks != nil && rnd.IntN(3) == 0 {
			c.marks.step(rnd)
			continue
		}
		switch rnd.IntN(10) {
		case 0, 1, 2, 3, 4:
			c.write(s, n)
		case 5:
			if from < to && (v3 || !tc.backing) {
				c.zero(from, to-from, 0)
			}
		case 6:
			if from < to && v3 {
				c.zero(from, to-from, blockgraph.MayUnmap)
			}
		case 7:
			if from < to && (v3 || !tc.backing) {
				c.discard(from, to-from)
			}
		default:
			c.flush()
		}
	}
}
