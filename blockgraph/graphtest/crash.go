package graphtest

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
)

// The states of files that a crash may leave. After k entries of the log
// everything is there that its file's last flush came after; of the other
// writes (the window) any may be missing, and of each any sector.
//
// A choice of writes is judged once, at the first k at which it can occur: the
// last of the window is among them. It can still occur until the next flush,
// and must be right then, too.

// CrashSector is what a disk writes whole, in bytes.
const CrashSector = 512

// maxWindow is how many whole writes may be in a window of which every choice
// is judged. Of longer ones, and of torn writes, some are drawn.
const maxWindow = 12

// CrashOp is an entry of the log of a file: a write, a flush or a truncation.
type CrashOp struct {
	Off     int64
	Data    []byte // of a write
	Flush   bool
	Size    int64    // of a truncation, in bytes
	Cut     bool     // of a truncation: the file became shorter
	Discard bool     // of a write: it is what a discard left
	Dirt    byte     // what a longer file has where nothing was written
	Seq     int64    // place in the log of all files
	Points  []string // fault points that were passed before it
}

// Apply does to b what op does, of a write the sectors for which keep is true.
func (op *CrashOp) Apply(b []byte, keep func(sector int64) bool) []byte {
	longer := func(n int64) {
		if n > int64(len(b)) {
			b = append(b, bytes.Repeat([]byte{op.Dirt}, int(n)-len(b))...)
		}
	}
	switch {
	case op.Flush:
	case op.Cut:
		if keep(0) {
			b = b[:min(op.Size, int64(len(b)))]
		}
	case op.Data == nil:
		if keep(0) {
			longer(op.Size)
		}
	default:
		for p, end := op.Off, op.Off+int64(len(op.Data)); p < end; {
			n := min(end, (p/CrashSector+1)*CrashSector) - p
			if keep(p / CrashSector) {
				longer(p + n)
				copy(b[p:], op.Data[p-op.Off:p-op.Off+n])
			}
			p += n
		}
	}
	return b
}

// CrashState is one state of the files: the log had at least K entries, and at
// most Until.
type CrashState struct {
	K, Until int
	How      string
	Files    [][]byte
}

func (x *CrashState) String() string { return fmt.Sprintf("crash at %d (%s)", x.K, x.How) }

// CrashWalk goes through the logs of files and keeps what is durable and what is
// not.
type CrashWalk struct {
	log     []crashEntry
	k       int
	durable [][]byte
	window  []int // entries that are not durable
	chosen  map[int]bool
}

type crashEntry struct {
	CrashOp
	file int
}

// NewCrashWalk begins before the first entry: bases[i] is what file i held then,
// durably, and logs[i] its log.
func NewCrashWalk(bases [][]byte, logs [][]CrashOp) *CrashWalk {
	w := &CrashWalk{chosen: map[int]bool{}}
	for i, b := range bases {
		w.durable = append(w.durable, bytes.Clone(b))
		for _, op := range logs[i] {
			w.log = append(w.log, crashEntry{op, i})
		}
	}
	slices.SortFunc(w.log, func(a, b crashEntry) int { return int(a.Seq - b.Seq) })
	return w
}

// More tells whether there are further entries.
func (w *CrashWalk) More() bool { return w.k < len(w.log) }

// Look has Everywhere judge states after entries [from, to).
func (w *CrashWalk) Look(from, to int) {
	for k := max(from, 0); k < min(to, len(w.log)); k++ {
		w.chosen[k+1] = true
	}
}

// Window returns how many writes are not durable.
func (w *CrashWalk) Window() int { return len(w.window) }

// Next takes one more entry.
func (w *CrashWalk) Next() {
	op := &w.log[w.k]
	if !op.Flush {
		w.window = append(w.window, w.k)
		w.k++
		return
	}
	w.k++
	rest := w.window[:0]
	for _, i := range w.window {
		if x := &w.log[i]; x.file == op.file {
			w.durable[op.file] = x.Apply(w.durable[op.file], func(int64) bool { return true })
		} else {
			rest = append(rest, i)
		}
	}
	w.window = rest
}

// state returns the files as they are when keep says so.
func (w *CrashWalk) state(how string, keep func(op int, sector int64) bool) *CrashState {
	x := &CrashState{K: w.k, Until: w.k, How: how}
	for x.Until < len(w.log) && !w.log[x.Until].Flush {
		x.Until++
	}
	for _, b := range w.durable {
		x.Files = append(x.Files, bytes.Clone(b))
	}
	for _, i := range w.window {
		op := &w.log[i]
		x.Files[op.file] = op.Apply(x.Files[op.file], func(s int64) bool { return keep(i, s) })
	}
	return x
}

// Subset is the state in which exactly the writes of the window whose bits are
// set have survived, and the last.
func (w *CrashWalk) Subset(bits uint64) *CrashState {
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
func (w *CrashWalk) drawn(rnd *rand.Rand, whole, torn int) []*CrashState {
	last := w.k - 1
	list := []*CrashState{w.state("all", func(int, int64) bool { return true })}
	if len(w.window) == 0 {
		return list
	}
	if len(w.window) > 1 {
		list = append(list, w.state("the last", func(op int, _ int64) bool { return op == last }))
		for range whole {
			seed := rnd.Uint64()
			list = append(list, w.state(fmt.Sprintf("writes by %d", seed), func(op int, _ int64) bool {
				return op == last || CrashMix(seed+uint64(op))&1 == 0
			}))
		}
	}
	for range torn {
		seed, odds := rnd.Uint64(), 1+rnd.Uint64N(3)
		list = append(list, w.state(fmt.Sprintf("sectors by %d", seed), func(op int, s int64) bool {
			return CrashMix(seed+uint64(op)<<32+uint64(s))&3 < odds
		}))
	}
	return list
}

// CrashMix makes a number look random.
func CrashMix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}

// Everywhere calls judge for about budget of the states that crashes may leave,
// each with the fault points that were passed before the last entry. A state
// after each fault point for which enough is false is among them. If the budget
// is large every point of the log is looked at, and every choice of writes in
// short windows as far as it reaches.
func (w *CrashWalk) Everywhere(rnd *rand.Rand, budget int, enough func(point string) bool, judge func(x *CrashState, points []string)) {
	const whole, torn = 2, 2
	each := 2 + whole + torn // states of a point that are drawn
	points := w.choosePoints(rnd, max(budget/each, 1), enough)
	rest := budget - each*len(points) // for choosing writes exhaustively
	for w.More() {
		w.Next()
		if !points[w.k] {
			continue
		}
		last := &w.log[w.k-1]
		states := func(list []*CrashState) {
			for _, x := range list {
				judge(x, last.Points)
			}
		}
		n := len(w.window)
		if full := 1 << max(n-1, 0); n > 1 && n <= maxWindow && full <= rest && !last.Flush {
			rest -= full
			for bits := range uint64(full) {
				judge(w.Subset(bits), last.Points)
			}
			states(w.drawn(rnd, 0, torn)[2:])
			continue
		}
		states(w.drawn(rnd, whole, torn))
	}
}

// choosePoints draws n points of the log, among them one after each fault point
// of which there is not enough.
func (w *CrashWalk) choosePoints(rnd *rand.Rand, n int, enough func(point string) bool) map[int]bool {
	chosen, seen := w.chosen, map[string]bool{}
	for k, op := range w.log {
		for _, p := range op.Points {
			if !seen[p] && !enough(p) {
				seen[p], chosen[k+1] = true, true
			}
		}
	}
	for len(chosen) < min(n, len(w.log)) {
		chosen[1+rnd.IntN(len(w.log))] = true
	}
	return chosen
}
