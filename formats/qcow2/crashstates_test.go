package qcow2

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"slices"
	"sync"
	"testing"
)

// The states of the files that a crash may leave. After k entries of the log
// everything is there that its file's last flush came after; of the other
// writes (the window) any may be missing, and of each any sector.
//
// A choice of writes is judged once, at the first k at which it can occur: the
// last of the window is among them. It can still occur until the next flush,
// and must be right then, too.

// maxWindow is how many whole writes may be in a window of which every choice
// is judged. Of longer ones, and of torn writes, some are drawn.
const maxWindow = 12

// crash is one state of the files: the log had at least k entries, and at most
// until.
type crash struct {
	k, until int
	how      string
	files    []*crashFile
}

func (x *crash) String() string { return fmt.Sprintf("crash at %d (%s)", x.k, x.how) }

// entry is one of the log of all files.
type entry struct {
	fileOp
	file int
}

// entries merges the logs of all files.
func (c *crashDisk) entries() []entry {
	var all []entry
	for i, x := range c.files {
		for _, op := range x.f.log {
			all = append(all, entry{op, i})
		}
	}
	slices.SortFunc(all, func(a, b entry) int { return int(a.seq - b.seq) })
	return all
}

// apply does to b what op does, of a write the sectors for which keep is true.
func (op *fileOp) apply(b []byte, keep func(sector int64) bool) []byte {
	longer := func(n int64) {
		if n > int64(len(b)) {
			b = append(b, make([]byte, n-int64(len(b)))...)
		}
	}
	switch {
	case op.flush:
	case op.cut:
		if keep(0) {
			b = b[:min(op.size, int64(len(b)))]
		}
	case op.data == nil:
		if keep(0) {
			longer(op.size)
		}
	default:
		for p, end := op.off, op.off+int64(len(op.data)); p < end; {
			n := min(end, (p/sector+1)*sector) - p
			if keep(p / sector) {
				longer(p + n)
				copy(b[p:], op.data[p-op.off:p-op.off+n])
			}
			p += n
		}
	}
	return b
}

// rebuild returns the top image's file after a crash at k; keep decides which
// sectors of which unflushed operations survive.
func (c *crashDisk) rebuild(k int, keep func(op, sector int) bool) *memFile {
	last := 0
	for i, op := range c.f.log[:k] {
		if op.flush {
			last = i + 1
		}
	}
	b := bytes.Clone(c.base)
	for i, op := range c.f.log[:k] {
		b = op.apply(b, func(s int64) bool { return i < last || keep(i, int(s)) })
	}
	return &memFile{b: b}
}

// crashWalk goes through the log and keeps what is durable and what is not.
type crashWalk struct {
	c       *crashDisk
	log     []entry
	k       int
	durable [][]byte
	window  []int // entries that are not durable
}

func (c *crashDisk) walk() *crashWalk {
	w := &crashWalk{c: c, log: c.entries()}
	for _, x := range c.files {
		w.durable = append(w.durable, bytes.Clone(x.base))
	}
	return w
}

// next takes one more entry.
func (w *crashWalk) next() {
	op := &w.log[w.k]
	if !op.flush {
		w.window = append(w.window, w.k)
		w.k++
		return
	}
	w.k++
	rest := w.window[:0]
	for _, i := range w.window {
		if x := &w.log[i]; x.file == op.file {
			w.durable[op.file] = x.apply(w.durable[op.file], func(int64) bool { return true })
		} else {
			rest = append(rest, i)
		}
	}
	w.window = rest
}

// state returns the files as they are when keep says so.
func (w *crashWalk) state(how string, keep func(op int, sector int64) bool) *crash {
	x := &crash{k: w.k, until: w.k, how: how}
	for x.until < len(w.log) && !w.log[x.until].flush {
		x.until++
	}
	for i, y := range w.c.files {
		x.files = append(x.files, &crashFile{name: y.name, qcow2: y.qcow2, f: &memFile{b: bytes.Clone(w.durable[i])}})
	}
	linkData(w.c.files, x.files)
	for _, i := range w.window {
		op := &w.log[i]
		f := x.files[op.file].f
		f.b = op.apply(f.b, func(s int64) bool { return keep(i, s) })
	}
	return x
}

// subset is the state in which exactly the writes of the window whose bits are
// set have survived, and the last.
func (w *crashWalk) subset(bits uint64) *crash {
	kept := map[int]bool{w.window[len(w.window)-1]: true}
	for n, i := range w.window {
		if bits&(1<<n) != 0 {
			kept[i] = true
		}
	}
	return w.state(fmt.Sprintf("writes %#x of the window", bits), func(op int, _ int64) bool { return kept[op] })
}

// drawn are the states at this point that are drawn: all and no other writes,
// some choices of writes, and torn ones.
func (w *crashWalk) drawn(rnd *rand.Rand, whole, torn int) []*crash {
	last := w.k - 1
	list := []*crash{w.state("all", func(int, int64) bool { return true })}
	if len(w.window) == 0 {
		return list
	}
	if len(w.window) > 1 {
		list = append(list, w.state("the last", func(op int, _ int64) bool { return op == last }))
		for range whole {
			seed := rnd.Uint64()
			list = append(list, w.state(fmt.Sprintf("writes by %d", seed), func(op int, _ int64) bool {
				return op == last || mix(seed+uint64(op))&1 == 0
			}))
		}
	}
	for range torn {
		seed, odds := rnd.Uint64(), 1+rnd.Uint64N(3)
		list = append(list, w.state(fmt.Sprintf("sectors by %d", seed), func(op int, s int64) bool {
			return mix(seed+uint64(op)<<32+uint64(s))&3 < odds
		}))
	}
	return list
}

func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}

// crashCount is what has been judged.
type crashCount struct {
	mu     sync.Mutex
	states int
	// points counts, for each fault point, the states whose last write is one
	// that it was passed before.
	points map[string]int
	field  int // states that qemu-img has judged
}

func (n *crashCount) add(points []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.states++
	for _, p := range points {
		n.points[p]++
	}
}

// crashEverywhere judges about budget of the states that crashes may leave,
// and takes care that each fault point is among them. If the budget is large
// every point of the log is looked at, and every choice of writes in short
// windows as far as it reaches.
func (c *crashDisk) crashEverywhere(rnd *rand.Rand, budget int, count *crashCount) {
	const whole, torn = 2, 2
	w := c.walk()
	each := 2 + whole + torn // states of a point that are drawn
	points := c.choosePoints(rnd, w.log, max(budget/each, 1), count)
	rest := budget - each*len(points) // for choosing writes exhaustively
	for w.k < len(w.log) {
		w.next()
		if !points[w.k] {
			continue
		}
		n := len(w.window)
		if full := 1 << max(n-1, 0); n > 1 && n <= maxWindow && full <= rest && !w.log[w.k-1].flush {
			rest -= full
			for bits := range uint64(full) {
				c.oneCrash(w, w.subset(bits), rnd, count)
			}
			for _, x := range w.drawn(rnd, 0, torn)[2:] {
				c.oneCrash(w, x, rnd, count)
			}
			continue
		}
		for _, x := range w.drawn(rnd, whole, torn) {
			c.oneCrash(w, x, rnd, count)
		}
	}
}

// choosePoints draws n points of the log, among them one after each fault
// point that has not been judged often.
func (c *crashDisk) choosePoints(rnd *rand.Rand, log []entry, n int, count *crashCount) map[int]bool {
	chosen := map[int]bool{}
	count.mu.Lock()
	seen := map[string]bool{}
	for p, n := range count.points {
		seen[p] = n > 2
	}
	count.mu.Unlock()
	for k, op := range log {
		for _, p := range op.points {
			if !seen[p] {
				seen[p], chosen[k+1] = true, true
			}
		}
	}
	for len(chosen) < min(n, len(log)) {
		chosen[1+rnd.IntN(len(log))] = true
	}
	return chosen
}

// oneCrash judges a state, some by qemu-img and some by using them further.
func (c *crashDisk) oneCrash(w *crashWalk, x *crash, rnd *rand.Rand, count *crashCount) {
	c.t.Helper()
	count.add(w.log[x.k-1].points)
	sampled := rnd.IntN(200) == 0
	if sampled {
		c.fieldJudges(x, count)
	}
	var used *crash
	if sampled || rnd.IntN(25) == 0 {
		used = &crash{k: x.k, until: x.until, how: x.how}
		for _, y := range x.files {
			used.files = append(used.files, &crashFile{name: y.name, qcow2: y.qcow2, f: &memFile{b: bytes.Clone(y.f.b)}})
		}
		linkData(c.files, used.files)
	}
	c.judge(x)
	if used != nil {
		c.goOn(used, rnd)
	}
}

// fieldJudges lets qemu-img check the images.
func (c *crashDisk) fieldJudges(x *crash, count *crashCount) {
	c.t.Helper()
	qemuImg, err := exec.LookPath("qemu-img")
	if err != nil {
		return
	}
	for _, y := range x.files {
		if !y.qcow2 {
			continue
		}
		if c.snaps != nil && binary.BigEndian.Uint64(y.f.b[fieldIncompatible:])&incompatDirty != 0 && c.d.h.version >= 3 {
			continue // qemu-img does not mend it by itself when it only looks
		}
		// Nobody looks for what the header names below it.
		path := save(c.t, y.f, "crash.qcow2")
		args := []string{fmt.Sprintf(`json:{"driver":"qcow2","backing":null,"file":{"driver":"file","filename":%q}}`, path)}
		if isEncrypted(y.f) {
			args = append(fieldOpen(y.f, path)[:3:3], "driver=qcow2,encrypt.key-secret=s,backing=,file.filename="+path)
		}
		out, err := exec.Command(qemuImg, append([]string{"check"}, args...)...).CombinedOutput()
		if e, ok := err.(*exec.ExitError); err != nil && (!ok || e.ExitCode() != 3) && !(c.snaps != nil && onlyFlags(c.d.h, out)) {
			c.t.Fatalf("%v: %s: qemu-img check: %v\n%s", x, y.name, err, out)
		}
	}
	count.mu.Lock()
	count.field++
	count.mu.Unlock()
}

// goOn uses an image after a crash as a guest would, and checks it again.
func (c *crashDisk) goOn(x *crash, rnd *rand.Rand) {
	c.t.Helper()
	top := c.topAt(x.k)
	d, _ := c.openChain(x.files, top, nil)
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
	c.mustBeSound(x.files[top].f, x.String())
	d, _ = c.openChain(x.files, top, nil)
	if got := get(c.t, d, 0, size); !bytes.Equal(got, want) {
		c.t.Fatalf("%v: content after going on differs at %#x", x, firstDiff(got, want))
	}
	closeImage(c.t, d)
}

func TestSubsetsOfAWindowAreComplete(t *testing.T) {
	// Two writes, a flush, three writes.
	f := &memFile{record: true}
	f.seq = &(&crashDisk{}).seq
	for i, p := range []int64{0, 1, -1, 0, 2, 3} {
		if p < 0 {
			f.note(fileOp{flush: true})
		} else {
			f.note(fileOp{off: p * sector, data: fill(byte(i+1), sector)})
		}
	}
	c := &crashDisk{t: t, f: f, files: []*crashFile{{f: f, base: make([]byte, 4*sector)}}}
	got := map[string]int{}
	w := c.walk()
	for w.k < len(w.log) {
		w.next()
		if n := len(w.window); n > 0 {
			for bits := range uint64(1) << (n - 1) {
				b := w.subset(bits).files[0].f.b
				got[string([]byte{b[0] + '0', b[sector] + '0', b[2*sector] + '0', b[3*sector] + '0'})]++
			}
		}
	}
	// Before the flush 1, 2 or both, after it both and any of the others.
	want := []string{"1000", "0200", "1200", "4200", "1250", "4250", "1206", "4206", "1256", "4256"}
	for _, s := range want {
		if got[s] == 0 {
			t.Errorf("no state %s", s)
		}
		delete(got, s)
	}
	if len(got) > 0 {
		t.Errorf("states that cannot be: %v", got)
	}
}
