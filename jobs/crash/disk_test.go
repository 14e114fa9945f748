package crash

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"

	"blockd/blockgraph"
	"blockd/blockgraph/graphtest"
	"blockd/qapi"
)

const (
	sector   = graphtest.CrashSector
	diskSize = 192 << 10
)

// run is one of a scenario: a disk of which every sector is filled with a
// number, and what the images may be after a crash.
type run struct {
	*world
	sc    *scenario
	rnd   *rand.Rand
	seed  uint64
	vals  graphtest.CrashValues
	guest *blockgraph.Root
	// tops says who may come back to which image after a crash: from an entry of
	// the log on.
	tops []period
	// unsound is how many corruptions the images had at the beginning, and may
	// have until entry sound.
	unsound int64
	sound   int
	// look has ranges of entries after each of which a crash is judged.
	look [][2]int
	// keys of an encrypted top image.
	keys []key
	// pause is held for reading during a guest's request.
	pause sync.RWMutex
}

// period is when something holds: from entry may on it may, from entry must on
// it must, from entry mayNot on it need not, and from entry never on it must
// not. -1: not yet.
type period struct {
	name                   string
	may, must, mayNot, not int
}

// musts tells whether it holds after a crash at k.
func (p period) musts(k int) bool {
	return p.must >= 0 && p.must <= k && (p.mayNot < 0 || k <= p.mayNot)
}

// mays tells whether it may hold.
func (p period) mays(k int) bool {
	return p.may >= 0 && p.may < k && (p.not < 0 || k < p.not)
}

type key = period

// now is how many entries the log has.
func (r *run) now() int { return int(r.seq.Load()) }

// begin makes the images of the scenario, and opens the top one.
func begin(t *testing.T, sc *scenario, seed uint64) *run {
	t.Helper()
	r := &run{world: newWorld(t), sc: sc, seed: seed, rnd: rand.New(rand.NewPCG(seed, 1))}
	r.vals.Now = r.now
	below := ""
	for i, name := range sc.images {
		o := qapi.BlockdevCreateOptionsQcow2{Size: diskSize, ClusterSize: ptr(uint64(sc.cluster))}
		if sc.version2 {
			o.Version = ptr(qapi.BlockdevQcow2VersionV2)
		}
		if sc.key != "" {
			l := &qapi.QCryptoBlockCreateOptionsLUKS{IterTime: ptr(int64(0)), CipherAlg: ptr(qapi.QCryptoCipherAlgorithmAES128), CipherMode: ptr(qapi.QCryptoCipherModeCBC)}
			l.KeySecret = &sc.key
			o.Encrypt = &qapi.QCryptoBlockCreateOptions{Format: qapi.QCryptoBlockFormatLUKS, LUKS: l}
		}
		if below != "" {
			o.BackingFile, o.BackingFmt = ptr("/"+below), ptr(qapi.BlockdevDriverQcow2)
		}
		r.create(name, o)
		root := r.mustOpen(name, sc.key, true)
		for s := int64(0); s < diskSize/sector; s += 16 {
			if s/16%4 == int64(i) || sc.full {
				n := min(13, diskSize/sector-s) // parts of clusters, too
				if sc.full {
					n = 16
				}
				p := slices.Repeat(graphtest.Sector(uint64(s)|1<<(40+i)), int(n))
				r.must(root.WriteV(ctxb, s*sector, blockgraph.MakeIOVec(p), 0))
			}
		}
		if sc.prepare != nil {
			sc.prepare(r, root)
		}
		r.leave(root)
		below = name
	}
	if sc.damage != nil {
		sc.damage(r)
	}
	for _, f := range r.files {
		// Let others in at each operation.
		f.Hook = func() {
			for range graphtest.CrashMix(r.vals.NewValue()) % 6 {
				runtime.Gosched()
			}
		}
	}
	top := sc.images[len(sc.images)-1]
	r.guest = r.mustOpen(top, sc.key, false)
	r.tops = []period{{top, -1, 0, -1, -1}}
	r.keys = []key{{sc.key, -1, 0, -1, -1}}
	r.must(r.vals.Begin(r.read(r.guest)))
	r.must(r.guest.Flush(ctxb))
	if sc.damage != nil {
		c := r.check(r.guest)
		r.unsound = c.Corruptions
		if c.Corruptions+c.Leaks == 0 {
			t.Fatal("the image is not damaged")
		}
	}
	for _, name := range r.names() {
		r.files[name].Record(&r.seq)
	}
	return r
}

// names lists the files, sorted.
func (r *run) names() []string { return slices.Sorted(maps.Keys(r.files)) }

func (r *run) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// step does a guest's request to sectors [lo, hi).
func (r *run) step(rnd *rand.Rand, lo, hi int64) error {
	r.pause.RLock()
	defer r.pause.RUnlock()
	n := 1 + rnd.Int64N(min(40, hi-lo))
	s := lo + rnd.Int64N(hi-lo-n+1)
	var err error
	switch rnd.IntN(8) {
	case 0, 1:
		start := r.vals.FlushBegins()
		if err = r.guest.Flush(ctxb); err == nil {
			r.vals.Flushed(start)
		}
	case 2:
		r.vals.Change(s, n, func() { err = r.guest.WriteZeroes(ctxb, s*sector, n*sector, blockgraph.MayUnmap) }, func(int64) uint64 { return 0 })
	default:
		v := r.vals.NewValue()
		p := slices.Repeat(graphtest.Sector(v), int(n))
		r.vals.Change(s, n, func() { err = r.guest.WriteV(ctxb, s*sector, blockgraph.MakeIOVec(p), 0) }, func(int64) uint64 { return v })
	}
	return err
}

// guests has guests use the disk until stop is called, each at least a few
// times.
func (r *run) guests() (stop func()) {
	const least = 6
	quit := make(chan struct{})
	errs := make([]error, r.sc.guests)
	var wg sync.WaitGroup
	for i := range r.sc.guests {
		lo, hi := int64(i)*diskSize/sector/int64(r.sc.guests), int64(i+1)*diskSize/sector/int64(r.sc.guests)
		rnd := rand.New(rand.NewPCG(r.seed, uint64(i)+2))
		wg.Go(func() {
			for n := 0; errs[i] == nil; n++ {
				select {
				case <-quit:
					if n >= least {
						return
					}
				default:
				}
				if n >= 20*least {
					return // a log of bounded length
				}
				errs[i] = r.step(rnd, lo, hi)
			}
		})
	}
	return sync.OnceFunc(func() {
		close(quit)
		wg.Wait()
		for _, err := range errs {
			r.must(err)
		}
	})
}

// end holds what the guest has written, and ends the world.
func (r *run) end() {
	r.t.Helper()
	r.must(r.vals.Holds(r.read(r.guest)))
	r.world.endWith(r.guest)
}

// endWith takes the guest away, and ends the world.
func (w *world) endWith(g *blockgraph.Root) {
	w.t.Helper()
	w.update(func(tx *blockgraph.Tx) error { return tx.CloseRoot(g) })
	w.close()
}

// judges judges states of a run, in a world of its own.
type judges struct {
	*world
	r      *run
	states int
}

// judge opens the images as whoever comes after a crash does: each by itself for
// writing, which may repair it, and then the chain.
func (j *judges) judge(x *graphtest.CrashState) {
	t, r := j.t, j.r
	t.Helper()
	j.states++
	j.restore(x)
	key := j.openable(x)
	for _, name := range r.sc.images {
		g := j.mustOpen(name, key, true)
		c := j.check(g)
		j.leave(g)
		allowed := int64(0)
		if r.sound < 0 || x.K < r.sound {
			allowed = r.unsound
		}
		if c.Corruptions > allowed || c.CheckErrors > 0 {
			t.Fatalf("seed %d: %v: %s: %+v", r.seed, x, name, c)
		}
	}
	for _, p := range r.tops {
		if !p.musts(x.K) || !p.musts(x.Until) {
			continue
		}
		g := j.mustOpen(p.name, key, false)
		if err := r.vals.Judge(x, j.read(g)); err != nil {
			t.Fatalf("seed %d: through %s: %v", r.seed, p.name, err)
		}
		j.leave(g)
	}
	if r.rnd.IntN(150) == 0 {
		j.fieldJudges(x)
	}
	if r.sc.again != nil && r.rnd.IntN(15) == 0 {
		j.goOn(x, key)
	}
}

// restore puts the files into the state.
func (j *judges) restore(x *graphtest.CrashState) {
	for i, name := range j.r.names() {
		j.files[name] = graphtest.NewRecorder(x.Files[i])
	}
}

// openable holds that the top image opens by the secrets by which it must, and by
// no other; it returns one.
func (j *judges) openable(x *graphtest.CrashState) string {
	j.t.Helper()
	r := j.r
	if r.sc.key == "" {
		return ""
	}
	found := ""
	for _, k := range r.keys {
		g, err := j.open("top", k.name, true)
		if err == nil {
			j.leave(g)
			found = k.name
		}
		must := k.musts(x.K) && k.musts(x.Until)
		may := must || k.mays(x.K) || k.mays(x.Until) || k.musts(x.K) || k.musts(x.Until)
		if err != nil && must || err == nil && !may {
			j.t.Fatalf("seed %d: %v: secret %s: %v, with %+v", r.seed, x, k.name, err, k)
		}
	}
	if found == "" {
		j.t.Fatalf("seed %d: %v: no secret opens the image", r.seed, x)
	}
	return found
}

// goOn has the job run again on a state, to its end.
func (j *judges) goOn(x *graphtest.CrashState, key string) {
	j.t.Helper()
	r := j.r
	top := ""
	for _, p := range r.tops {
		if top == "" && p.musts(x.K) && p.musts(x.Until) {
			top = p.name
		}
	}
	if top == "" {
		return
	}
	j.restore(x)
	w := newWorld(j.t)
	w.files = j.files
	a := &run{world: w, sc: r.sc, seed: r.seed, rnd: r.rnd}
	a.vals.Now = a.now
	a.guest = w.mustOpen(top, key, false)
	want := w.read(a.guest)
	if r.sc.again(a) {
		if got := w.read(a.guest); string(got) != string(want) {
			j.t.Fatalf("seed %d: %v: the content is another one after the job has run again", r.seed, x)
		}
		if c := w.check(a.guest); c.Corruptions+c.CheckErrors > 0 {
			j.t.Fatalf("seed %d: %v: after the job has run again: %+v", r.seed, x, c)
		}
	}
	w.endWith(a.guest)
}

// fieldJudges lets qemu-img check the images.
func (j *judges) fieldJudges(x *graphtest.CrashState) {
	j.t.Helper()
	r := j.r
	qemuImg, err := exec.LookPath("qemu-img")
	if err != nil || r.unsound > 0 || r.sc.key != "" {
		return
	}
	j.restore(x)
	for _, name := range r.sc.images {
		path := filepath.Join(j.t.TempDir(), name)
		r.must(os.WriteFile(path, j.files["/"+name].Bytes(), 0o600))
		image := fmt.Sprintf(`json:{"driver":"qcow2","backing":null,"file":{"driver":"file","filename":%q}}`, path)
		out, err := exec.Command(qemuImg, "check", image).CombinedOutput()
		if e, ok := err.(*exec.ExitError); err != nil && (!ok || e.ExitCode() != 3) {
			j.t.Fatalf("seed %d: %v: %s: qemu-img check: %v\n%s", r.seed, x, name, err, out)
		}
	}
}

// everywhere judges about budget states of a run that has ended.
func (r *run) everywhere(budget int) int {
	r.t.Helper()
	var bases [][]byte
	var logs [][]graphtest.CrashOp
	for _, name := range r.names() {
		base, log := r.files[name].Log()
		bases, logs = append(bases, base), append(logs, log)
	}
	j := &judges{world: newWorld(r.t), r: r}
	w := graphtest.NewCrashWalk(bases, logs)
	for _, x := range r.look {
		w.Look(x[0], x[1])
	}
	w.Everywhere(r.rnd, budget, func(string) bool { return true }, func(x *graphtest.CrashState, _ []string) { j.judge(x) })
	j.close()
	return j.states
}
