package qcow2

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"sync"

	"blockd/blockgraph/graphtest"
)

// crash is one state of the files that a crash may leave.
type crash struct {
	*graphtest.CrashState
	files []*crashFile
}

// rebuild returns the top image's file after a crash at k; keep decides which
// sectors of which unflushed operations survive.
func (c *crashDisk) rebuild(k int, keep func(op, sector int) bool) *memFile {
	last := 0
	for i, op := range c.f.log[:k] {
		if op.Flush {
			last = i + 1
		}
	}
	b := bytes.Clone(c.base)
	for i, op := range c.f.log[:k] {
		b = op.Apply(b, func(s int64) bool { return i < last || keep(i, int(s)) })
	}
	return &memFile{b: b, dirt: c.f.dirt}
}

// walk goes through the logs of all files.
func (c *crashDisk) walk() *graphtest.CrashWalk {
	var bases [][]byte
	var logs [][]graphtest.CrashOp
	for _, x := range c.files {
		bases, logs = append(bases, x.base), append(logs, x.f.log)
	}
	return graphtest.NewCrashWalk(bases, logs)
}

// crashed makes files with the content of a state.
func (c *crashDisk) crashed(x *graphtest.CrashState) *crash {
	s := &crash{CrashState: x}
	for i, y := range c.files {
		s.files = append(s.files, &crashFile{name: y.name, qcow2: y.qcow2, f: &memFile{b: bytes.Clone(x.Files[i]), dirt: y.f.dirt}})
	}
	linkData(c.files, s.files)
	return s
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

// enough tells whether states after a fault point have been judged often.
func (n *crashCount) enough(point string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.points[point] > 2
}

// crashEverywhere judges about budget of the states that crashes may leave,
// and takes care that each fault point is among them.
func (c *crashDisk) crashEverywhere(rnd *rand.Rand, budget int, count *crashCount) {
	c.walk().Everywhere(rnd, budget, count.enough, func(x *graphtest.CrashState, points []string) {
		c.oneCrash(x, points, rnd, count)
	})
}

// oneCrash judges a state, some by qemu-img and some by using them further.
func (c *crashDisk) oneCrash(state *graphtest.CrashState, points []string, rnd *rand.Rand, count *crashCount) {
	c.t.Helper()
	count.add(points)
	x := c.crashed(state)
	sampled := rnd.IntN(200) == 0
	if sampled {
		c.fieldJudges(x, count)
	}
	c.judge(x)
	if sampled || rnd.IntN(25) == 0 {
		c.goOn(c.crashed(state), rnd)
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
		h, err := parseHeader(y.f.b) // whose version a step may have changed
		if err != nil {
			c.t.Fatalf("%v: %s: %v", x, y.name, err)
		}
		if c.snaps != nil && h.incompatible&incompatDirty != 0 {
			continue // qemu-img does not mend it by itself when it only looks
		}
		// Nobody looks for what the header names below it.
		path := save(c.t, y.f, "crash.qcow2")
		args := []string{fmt.Sprintf(`json:{"driver":"qcow2","backing":null,"file":{"driver":"file","filename":%q}}`, path)}
		if isEncrypted(y.f) {
			args = append(fieldOpen(y.f, path)[:3:3], "driver=qcow2,encrypt.key-secret=s,backing=,file.filename="+path)
		}
		out, err := exec.Command(qemuImg, append([]string{"check"}, args...)...).CombinedOutput()
		if e, ok := err.(*exec.ExitError); err != nil && (!ok || e.ExitCode() != 3) && !(c.snaps != nil && onlyFlags(h, out)) {
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
	top := c.topAt(x.K)
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
