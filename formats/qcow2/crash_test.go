package qcow2

import (
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"blockd/blockgraph"
	"blockd/blockgraph/graphtest"
	"blockd/qapi"
)

// crashCase is a workload on an image of an option set.
type crashCase struct {
	name    string
	size    int64
	set     optionSet
	backing bool // a raw file below it
	chain   bool // two images below it that jobs write to, see crashchain_test.go
	steps   int
	big     int64 // largest write in sectors
	fill    int64 // first write the whole disk in pieces of so many sectors
	workers int   // requests at a time; 0 is 1
	bitmaps bool  // change dirty bitmaps, too
	shared  bool  // everything belongs to an internal snapshot, too
	snaps   bool  // snapshots come and go
	// more are steps beyond crashSteps.
	more []crashStep
	// costly is how many times fewer states are judged than of others.
	costly int
}

// crashRange is what a worker draws from: sectors [lo, hi).
type crashRange struct {
	rnd    *rand.Rand
	lo, hi int64
	big    int64
}

// pick draws a range of sectors.
func (r *crashRange) pick() (s, n int64) {
	n = 1 + r.rnd.Int64N(r.big)
	if r.rnd.IntN(3) == 0 {
		n = 1 + r.rnd.Int64N(8)
	}
	n = min(n, r.hi-r.lo)
	return r.lo + r.rnd.Int64N(r.hi-r.lo-n+1), n
}

// pickClusters draws a range of whole clusters, and may return none.
func (r *crashRange) pickClusters(c *crashDisk) (s, n int64) {
	return r.pickUnits(c.d.h.clusterSize / sector)
}

// pickSubclusters is pickClusters for what may be zeroed and discarded.
func (r *crashRange) pickSubclusters(c *crashDisk) (s, n int64) {
	return r.pickUnits(c.d.h.subclusterSize() / sector)
}

func (r *crashRange) pickUnits(u int64) (s, n int64) {
	s, n = r.pick()
	from, to := (s+u-1)/u*u, (s+n)/u*u
	return from, max(to-from, 0)
}

// crashStep is one kind of operation. One that runs alone has no other beside
// it, and may change the whole disk.
type crashStep struct {
	name   string
	weight int
	run    func(c *crashDisk, r *crashRange)
}

// crashSteps are what every workload does.
var crashSteps = []crashStep{
	{"write", 8, func(c *crashDisk, r *crashRange) { s, n := r.pick(); c.write(s, n) }},
	{"flush", 4, func(c *crashDisk, _ *crashRange) { c.flush() }},
	{"zero", 2, func(c *crashDisk, r *crashRange) {
		if s, n := r.pickSubclusters(c); n > 0 && c.zeroes() {
			c.zero(s, n, 0)
		}
	}},
	{"unmap", 2, func(c *crashDisk, r *crashRange) {
		if s, n := r.pickSubclusters(c); n > 0 && c.d.h.version >= 3 {
			c.zero(s, n, blockgraph.MayUnmap)
		}
	}},
	{"discard", 2, func(c *crashDisk, r *crashRange) {
		if s, n := r.pickSubclusters(c); n > 0 && c.zeroes() {
			c.discard(s, n)
		}
	}},
	{"compressed", 2, func(c *crashDisk, r *crashRange) {
		if s, n := r.pickClusters(c); n > 0 && !c.d.h.external {
			c.writeAs(s, n, blockgraph.Compressed)
		}
	}},
	{"populate", 1, func(c *crashDisk, r *crashRange) { s, n := r.pick(); c.populate(s, n) }},
}

// reopening closes the image and opens it again; it runs alone.
var reopening = crashStep{"reopen", 1, func(c *crashDisk, _ *crashRange) { c.reopen() }}

// zeroes tells whether the image can make a range read as zeroes.
func (c *crashDisk) zeroes() bool { return c.d.h.version >= 3 || c.below.s == nil }

// resizing changes the length of the disk; it runs alone.
var resizing = crashStep{"resize", 2, func(c *crashDisk, r *crashRange) {
	r.hi = max(r.hi/2, 8) + r.rnd.Int64N(r.hi)
	if r.rnd.IntN(4) == 0 {
		r.hi *= 8
	}
	r.hi = min(r.hi, 4000)
	c.resize(r.hi)
}}

// switching changes the length of the backing file's name, which begins with
// what it is; it runs alone.
var switching = crashStep{"switch", 2, func(c *crashDisk, r *crashRange) {
	name, format := c.d.BackingFile()
	name, _, _ = strings.Cut(name, "?")
	if name != "" && r.rnd.IntN(4) > 0 {
		name += "?" + strings.Repeat("x", r.rnd.IntN(int(min(c.d.h.clusterSize/3, 900))))
	}
	if err := c.d.ChangeBackingFile(ctxb, name, format); blockgraph.Errno(err) != syscall.ENOSPC {
		c.fail("change of the backing file's name", err)
	}
}}

// populate does what a copy-on-read or a stream does: it writes what is read,
// where nothing is allocated.
func (c *crashDisk) populate(s, n int64) {
	p := get(c.t, c.d, s*sector, n*sector)
	c.fail("populating write", c.change(s*sector, n*sector, func() error {
		return c.d.WriteV(ctxb, s*sector, blockgraph.MakeIOVec(p), blockgraph.WriteUnchanged|blockgraph.OnlyUnallocated)
	}))
}

func crashCases() []crashCase {
	var cases []crashCase
	for i, s := range optionSets {
		size := min(max(s.cluster*40, 100<<10), 1<<20)
		tc := crashCase{name: s.name, costly: int(s.cluster >> 15), set: s, size: size, steps: 40, big: min(s.cluster*8/sector, 100), backing: i%2 == 1 && s.name != "preallocated"}
		cases = append(cases, tc)
	}
	resized := []crashStep{resizing}
	cases = append(cases,
		crashCase{name: "table-grows", set: optionSet{cluster: 512, opts: []imageOption{refcountBits(64)}}, size: 3 << 20, steps: 6, fill: 800, big: 2000, costly: 20},
		crashCase{name: "2M", set: optionSet{cluster: 2 << 20}, size: 10 << 20, steps: 12, big: 9000, costly: 100},
		crashCase{name: "concurrent", set: optionSet{cluster: 1024, run: qapi.BlockdevOptionsQcow2{PassDiscardOther: ptr(true)}}, size: 400 << 10, steps: 20, workers: 4, big: 40},
		crashCase{name: "concurrent-backing", set: optionSet{cluster: 2048, run: smallCache}, size: 400 << 10, backing: true, steps: 20, workers: 4, big: 40},
		crashCase{name: "resize", set: optionSet{cluster: 512}, size: 100 << 10, steps: 50, big: 40, more: resized},
		crashCase{name: "resize-backing", set: optionSet{cluster: 1024, run: smallCache}, size: 100 << 10, backing: true, steps: 50, big: 40, more: resized},
		crashCase{name: "resize-v2", set: optionSet{cluster: 512, v2: true}, size: 100 << 10, backing: true, steps: 50, big: 40, more: resized},
		crashCase{name: "resize-data-file", set: optionSet{cluster: 1024, opts: []imageOption{external}}, size: 100 << 10, steps: 50, big: 40, more: resized},
		crashCase{name: "concurrent-data-file", set: optionSet{cluster: 2048, opts: []imageOption{external}, run: smallCache}, size: 400 << 10, backing: true, steps: 20, workers: 4, big: 40},
		crashCase{name: "shared", set: optionSet{cluster: 1024}, size: 200 << 10, shared: true, steps: 40, big: 40},
		crashCase{name: "shared-v2", set: optionSet{cluster: 4096, v2: true}, size: 400 << 10, shared: true, steps: 40, big: 40},
		crashCase{name: "compact-512", set: optionSet{cluster: 512}, size: 100 << 10, steps: 40, big: 40, more: []crashStep{compacting, leaking}},
		crashCase{name: "compact-backing", set: optionSet{cluster: 2048, run: smallCache}, size: 200 << 10, backing: true, steps: 40, big: 40, more: []crashStep{compacting, leaking}},
		crashCase{name: "compact-shared", set: optionSet{cluster: 1024}, size: 100 << 10, shared: true, steps: 40, big: 40, more: []crashStep{compacting, leaking}},
		crashCase{name: "compact-extended", set: optionSet{cluster: 16 << 10, opts: []imageOption{extended}}, size: 400 << 10, backing: true, steps: 40, big: 60, more: []crashStep{compacting, leaking}},
		crashCase{name: "compact-encrypted", set: optionSet{cluster: 4096, opts: []imageOption{encrypted}}, size: 200 << 10, steps: 40, big: 40, more: []crashStep{compacting, leaking}},
		crashCase{name: "compact-data-file", set: optionSet{cluster: 1024, opts: []imageOption{external}}, size: 100 << 10, backing: true, steps: 40, big: 40, more: []crashStep{compacting, leaking}},
		crashCase{name: "resize-extended", set: optionSet{cluster: 16 << 10, opts: []imageOption{extended}}, size: 200 << 10, backing: true, steps: 50, big: 60, more: resized},
		crashCase{name: "shared-extended", set: optionSet{cluster: 16 << 10, opts: []imageOption{extended}}, size: 400 << 10, shared: true, steps: 40, big: 60},
		crashCase{name: "concurrent-extended", set: optionSet{cluster: 16 << 10, opts: []imageOption{extended}, run: smallCache}, size: 400 << 10, backing: true, steps: 20, workers: 4, big: 60},
		crashCase{name: "bitmaps-512", set: optionSet{cluster: 512}, size: 120 << 10, steps: 40, big: 40, bitmaps: true},
		crashCase{name: "bitmaps-backing", set: optionSet{cluster: 4096}, size: 120 << 10, backing: true, steps: 40, big: 40, bitmaps: true},
		crashCase{name: "bitmaps-discard", set: optionSet{cluster: 1024, run: qapi.BlockdevOptionsQcow2{PassDiscardOther: ptr(true)}}, size: 120 << 10, steps: 40, big: 40, bitmaps: true},
	)
	cases = append(cases,
		crashCase{name: "amend-512", set: optionSet{cluster: 512}, size: 100 << 10, steps: 30, big: 40, more: []crashStep{remakes}},
		crashCase{name: "amend-backing", set: optionSet{cluster: 2048, v2: true}, size: 100 << 10, backing: true, steps: 30, big: 40, more: []crashStep{remakes}},
	)
	for _, tc := range snapshotCrashCases {
		tc.snaps, tc.steps, tc.big, tc.more = true, 35, 40, append(tc.more, snapshotting)
		cases = append(cases, tc)
	}
	for _, s := range []optionSet{{name: "512", cluster: 512}, {name: "4K-v2", cluster: 4096, v2: true}, {name: "small-cache", cluster: 1024, run: smallCache}} {
		cases = append(cases,
			crashCase{name: "switch-" + s.name, set: s, size: 100 << 10, chain: true, steps: 40, big: 40, more: []crashStep{switching}},
			crashCase{name: "stream-" + s.name, set: s, size: 100 << 10, chain: true, steps: 30, big: 40, more: []crashStep{streaming}},
			crashCase{name: "commit-" + s.name, set: s, size: 100 << 10, chain: true, steps: 30, big: 40, more: []crashStep{committing}},
			crashCase{name: "commit-active-" + s.name, set: s, size: 100 << 10, chain: true, steps: 30, big: 40, more: []crashStep{committingActive}})
	}
	return cases
}

// statesOfAQuickRun is how many states `make test` judges at least.
const statesOfAQuickRun = 2000

// statesOfAFullRun is how many BLOCKD_TEST_ALL=1 does.
const statesOfAFullRun = 100_000

func TestImageIsConsistentAfterCrashAnywhere(t *testing.T) {
	cases := crashCases()
	all := os.Getenv("BLOCKD_TEST_ALL") == "1"
	count := &crashCount{points: map[string]int{}}
	do := func(tc *crashCase, budget int) {
		t.Run(tc.name, func(t *testing.T) {
			seed := rand.Uint64()
			before := count.states
			runCrash(t, tc, seed, budget, count)
			t.Logf("seed %d: %d states", seed, count.states-before)
		})
	}
	least, budget := statesOfAQuickRun, statesOfAQuickRun/len(cases)
	if all {
		least, budget = statesOfAFullRun, 30_000
	}
	for i := range cases {
		if tc := &cases[i]; tc.costly == 0 {
			do(tc, budget)
		} else if budget/tc.costly > 0 {
			do(tc, budget/tc.costly)
		}
	}
	// What is drawn varies: go on until there is enough of everything.
	missing := func() (list []string) {
		for _, p := range faultPoints(t) {
			if count.points[p] == 0 {
				list = append(list, p)
			}
		}
		return list
	}
	for i := 0; i < 1000 && !t.Failed() && (count.states < least || len(missing()) > 0); i++ {
		if tc := &cases[i%len(cases)]; tc.costly < 100 {
			do(tc, budget/max(tc.costly, 1))
		}
	}
	if t.Failed() {
		return
	}
	t.Logf("%d states, of which qemu-img has judged %d", count.states, count.field)
	if count.states < least {
		t.Errorf("only %d states", count.states)
	}
	if list := missing(); len(list) > 0 {
		// A step that passes the new point belongs into crashSteps or a case.
		t.Errorf("no state after a crash at %v", list)
	}
}

func runCrash(t *testing.T, tc *crashCase, seed uint64, budget int, count *crashCount) {
	rnd := rand.New(rand.NewPCG(seed, 3))
	c := newCrashCase(t, tc)
	if tc.bitmaps {
		c.marks = newCrashBitmaps(c)
	}
	if tc.snaps {
		c.snaps = &crashSnapshots{c: c}
	}
	sectors := tc.size / sector
	for s := int64(0); tc.fill > 0 && s < sectors; s += tc.fill {
		c.write(s, min(tc.fill, sectors-s))
		c.flush()
	}
	workers := int64(max(tc.workers, 1))
	if workers > 1 {
		// Let others in at each operation.
		c.f.setFault(func(string, int64, int64) error {
			for range graphtest.CrashMix(c.vals.NewValue()) % 8 {
				runtime.Gosched()
			}
			return nil
		})
	}
	var wg sync.WaitGroup
	for i := range workers {
		r := &crashRange{rnd: rand.New(rand.NewPCG(seed, uint64(i))), lo: sectors * i / workers, hi: sectors * (i + 1) / workers, big: tc.big}
		wg.Go(func() { c.worker(tc, r) })
	}
	wg.Wait()
	c.f.setFault(nil)
	if t.Failed() {
		return
	}
	c.holds()
	c.flush()
	c.end()
	c.crashEverywhere(rnd, budget, count)
}

// newCrashCase makes the images of a case.
func newCrashCase(t *testing.T, tc *crashCase) *crashDisk {
	if tc.chain {
		return newCommitChain(t, tc)
	}
	f := newImage(t, tc.size, tc.set.create()...)
	if tc.shared {
		f = sharedImage(t, f)
	}
	var backing *memFile
	if tc.backing {
		backing = &memFile{}
		for i := range tc.size / sector * 3 / 4 {
			backing.b = append(backing.b, graphtest.Sector(uint64(i)|1<<40)...)
		}
	}
	return newCrashDisk(t, f, backing, &tc.set.run)
}

// sharedImage writes to an image and makes an internal snapshot of it.
func sharedImage(t *testing.T, f *memFile) *memFile {
	d := openImage(t, f, nil)
	for s := range d.size.Load() / sector {
		if s/16%3 > 0 {
			put(t, d, s*sector, graphtest.Sector(uint64(s)|1<<42))
		}
	}
	if _, err := d.CreateSnapshot(ctxb, "s", time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	closeImage(t, d)
	return f
}

// close closes all images.
func (c *crashDisk) close() {
	c.t.Helper()
	closeImage(c.t, c.d)
	for _, d := range c.live {
		if d != c.d {
			closeImage(c.t, d)
		}
	}
	clear(c.live)
}

// reopen closes all images, which makes everything durable, and opens them.
func (c *crashDisk) reopen() {
	start := c.vals.FlushBegins()
	c.close()
	c.vals.Flushed(start)
	c.d, c.below = c.openChain(c.files, c.topAt(c.now()), c.live)
}

// end closes all images and checks them.
func (c *crashDisk) end() {
	c.t.Helper()
	c.close()
	for _, x := range c.files {
		if x.qcow2 {
			mustCheck(c.t, x.f, true)
		}
	}
}

// worker does random steps.
func (c *crashDisk) worker(tc *crashCase, r *crashRange) {
	steps := append(append([]crashStep{}, crashSteps...), tc.more...)
	switch {
	case c.marks == nil && tc.workers <= 1:
		steps = append(steps, reopening)
	case c.marks != nil:
		steps = append(steps, crashStep{"bitmaps", 9, func(c *crashDisk, r *crashRange) { c.marks.step(r.rnd) }})
	}
	total := 0
	for _, s := range steps {
		total += s.weight
	}
	for range tc.steps {
		n := r.rnd.IntN(total)
		for _, s := range steps {
			if n -= s.weight; n < 0 {
				s.run(c, r)
				break
			}
		}
		if c.t.Failed() {
			return
		}
	}
}

// faultPoints returns those that the package's sources name, in no order.
func faultPoints(t *testing.T) []string {
	t.Helper()
	known := map[string]bool{}
	for _, e := range qapi.BlkdebugEvent("").QAPIEnum() {
		known[e] = true
	}
	var list []string
	for _, s := range stringsInSources(t) {
		if known[s] {
			list = append(list, s)
			known[s] = false
		}
	}
	if len(list) < 20 {
		t.Fatalf("only %d fault points found in the sources: %v", len(list), list)
	}
	return list
}
