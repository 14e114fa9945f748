package jobs_test

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"

	"blockd/blockgraph"
	"blockd/blockgraph/graphtest"
	"blockd/clock"
	"blockd/jobs"
	"blockd/qapi"
)

// This file is the proof of seed 001 ("Drain subtree around graph change"): a
// commit of the middle of a chain into its base, and a stream whose base is
// that commit's filter, end together. Whatever the order, the base is in the
// end what the stream's image has below it, and the dropped image never comes
// back.
//
// The order in which the two end has four steps: each job's body ends
// (waiting), and each job's graph change is over (concluded). That makes six
// classes. Rounds of one kind are steered into a class: a body is held by its
// speed limit, a graph change by its user or in its middle, where it writes a
// header. The others have random delays at these fault points and at each
// request. Each round is counted for the class that its events show.

// newTracedWorld is a world whose events tell when the change of a job is made,
// as "JOB change": another job's may be made before the events of its end.
func newTracedWorld(t *testing.T) *world {
	w := newWorld(t)
	w.graph.KeepHistory(16, clock.Real(), func(s *blockgraph.Step) {
		if s.Cause.Job != "" {
			w.note(s.Cause.Job + " change")
		}
	})
	return w
}

// present waits until all these events have come, and leaves them.
func (w *world) present(events ...string) {
	w.t.Helper()
	for {
		w.mu.Lock()
		news, so := w.news, slices.Clone(w.events)
		w.mu.Unlock()
		if !slices.ContainsFunc(events, func(e string) bool { return !slices.Contains(so, e) }) {
			return
		}
		select {
		case <-news:
		case <-w.t.Context().Done():
			w.t.Fatalf("no events %q; so far %q", events, so)
		}
	}
}

// takeEvents returns the events so far and forgets them.
func (w *world) takeEvents() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	e := w.events
	w.events = nil
	return e
}

// delays are random pauses at fault points.
type delays struct{ yields []int }

func newDelays(rng *rand.Rand) *delays {
	d := &delays{make([]int, 16)}
	for i := range d.yields {
		d.yields[i] = rng.IntN(1 << rng.IntN(8))
	}
	return d
}

func (d *delays) pause(point int64) {
	for range d.yields[uint64(point)%uint64(len(d.yields))] {
		runtime.Gosched()
	}
}

// at has the disk pause at each request and each change of its header.
func (d *delays) at(disk *disk) {
	disk.SetHook(func(r graphtest.Request) error {
		d.pause(r.Off/cluster + int64(r.Kind))
		return nil
	})
	disk.Image().OnHeader(func() error {
		d.pause(int64(len(disk.name)))
		return nil
	})
}

// longChain makes images n0 to n(k-1) of 12 clusters, each with two clusters
// of its own, and returns what a guest of the last one sees.
func (w *world) longChain(k int) string {
	sees := []byte(strings.Repeat("a", 12))
	for i := range k {
		d := newDisk(fmt.Sprintf("n%d", i), len(sees))
		if i == 0 {
			d.fill(0, len(sees), 'a')
			w.add(d, "")
			continue
		}
		sees[i%len(sees)] = byte('a' + i)
		// In two places, so that there is more than one piece to copy.
		sees[(i+6)%len(sees)] = byte('a' + i)
		d.fill((i+6)%len(sees), (i+6)%len(sees)+1, byte('a'+i))
		w.add(d.fill(i%len(sees), i%len(sees)+1, byte('a'+i)), fmt.Sprintf("n%d", i-1))
	}
	return string(sees)
}

// clear takes all nodes away, and fails when one stays.
func (w *world) clear() {
	w.t.Helper()
	w.update(func(tx *blockgraph.Tx) error {
		for _, n := range w.nodes() {
			tx.SetMonitorOwned(n, false)
		}
		return nil
	})
	if n := w.nodes(); len(n) != 0 {
		w.t.Fatalf("nodes are left: %s", w.names())
	}
}

// looker is a guest of a node that tells what it sees and is gone again.
func (w *world) look(n *blockgraph.Node) string {
	w.t.Helper()
	g := &guest{w: w}
	w.update(func(tx *blockgraph.Tx) (err error) {
		g.r, err = tx.NewRoot(n, blockgraph.RootOptions{Perm: blockgraph.PermConsistentRead, Shared: blockgraph.PermAll})
		return err
	})
	defer w.update(func(tx *blockgraph.Tx) error { return tx.CloseRoot(g.r) })
	return g.sees()
}

func finalizeAll(w *world, ids ...string) {
	w.graph.Loop().Do(func() {
		for _, id := range ids {
			if j, err := w.jobs.FindBlock(id); err == nil {
				if err := j.Finalize(); err != nil {
					w.t.Errorf("finalize %s: %v", id, err)
				}
			}
		}
	})
}

// pairRound is one round of the two jobs. class is the one to steer into, "" for
// random delays only. Steps are written C and S for the end of a body, c and s
// for the end of a graph change.
func pairRound(w *world, rng *rand.Rand, class string) (got string) {
	t := w.t
	sees := w.longChain(6)
	d := newDelays(rng)
	for _, disk := range w.disks {
		d.at(disk)
	}
	steered := class != ""
	speed := ptr(int64(1)) // nothing after the first piece, for now
	w.startCommit(qapi.BlockCommitArg{
		Device: "n5", TopNode: ptr("n2"), BaseNode: ptr("n0"), FilterNodeName: ptr("cf"), Speed: speed, AutoFinalize: ptr(!steered),
	})
	w.startStream(qapi.BlockStreamArg{Device: "n4", BaseNode: ptr("cf"), Speed: speed, AutoFinalize: ptr(!steered)})
	if steered {
		w.steer(class)
	} else {
		w.letGo(rng.Perm(2), d)
	}
	w.present("c null", "s null")
	events := w.takeEvents()
	for _, e := range events {
		switch e {
		case "c waiting":
			got += "C"
		case "s waiting":
			got += "S"
		case "c change":
			got += "c"
		case "s change":
			got += "s"
		}
		if strings.Contains(e, "COMPLETED") && strings.Contains(e, ": ") {
			t.Errorf("class %s: %s", class, e)
		}
	}
	for _, n := range []string{"n3", "n4"} {
		if b, h := w.backingOf(n), w.disks["/"+n].header(); b != "n0" && !(n == "n3" && b == "") || h != "/n0:qcow2" {
			t.Errorf("class %s: %s has %s below it, and %s in its header", got, n, b, h)
		}
	}
	if w.filters() != 0 || w.backingOf("n5") != "n4" || w.look(w.node("n5")) != sees {
		t.Errorf("class %s: %d filters, n5 over %s, a guest sees %s instead of %s", got, w.filters(), w.backingOf("n5"), w.look(w.node("n5")), sees)
	}
	if t.Failed() {
		t.Fatalf("events %q", events)
	}
	return got
}

// letGo ends the wait of both bodies, in either order, almost at once.
func (w *world) letGo(order []int, d *delays) {
	for _, i := range order {
		w.verb([]string{"c", "s"}[i], func(j *jobs.Job) error { return j.SetSpeed(0) })
		d.pause(int64(i))
	}
}

// steer takes the two jobs through a class.
func (w *world) steer(class string) {
	overlay := map[string]string{"c": "/n3", "s": "/n4"} // whose header the change writes
	for i := 0; i < len(class); i++ {
		switch step := class[i : i+1]; step {
		case "C", "S":
			id := strings.ToLower(step)
			w.verb(id, func(j *jobs.Job) error { return j.SetSpeed(0) })
			w.present(id + " PENDING")
		default:
			if i+1 == len(class) || class[i+1] < 'a' {
				finalizeAll(w, step)
				w.present(step + " concluded")
				continue
			}
			// The second change is wanted in the middle of the first.
			h := newHold()
			w.disks[overlay[step]].Image().OnHeader(func() error { return h.wait(0, 0) })
			finalizeAll(w, step)
			<-h.entered
			i++
			finalizeAll(w, class[i:i+1])
			close(h.released)
			w.present(step+" concluded", class[i:i+1]+" concluded")
		}
	}
}

func TestCommitAndStreamThatEndTogether(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	classes := []string{"CcSs", "SsCc", "CScs", "SCsc", "CSsc", "SCcs"}
	steered, random := map[string]int{}, map[string]int{}
	w := newTracedWorld(t)
	for round := range graphtest.Sample(t, 30, 1000) {
		if round%2 == 0 {
			want := classes[round/2%len(classes)]
			got := pairRound(w, rng, want)
			if got != want {
				t.Errorf("round %d: steered into %s, ended as %s", round, want, got)
			}
			steered[got]++
		} else {
			random[pairRound(w, rng, "")]++
		}
		w.clear()
	}
	t.Logf("steered %v, random delays %v", steered, random)
	for _, c := range classes {
		if steered[c]+random[c] == 0 {
			t.Errorf("class %s was never seen", c)
		}
	}
}

// overlapping are jobs that can run at once in a chain of eleven images with a
// second overlay d over n9: two commits, and a stream down to the filter of
// each.
var overlapping = []struct {
	id    string
	start func(w *world) error
}{
	{"c1", func(w *world) error {
		return w.commit(qapi.BlockCommitArg{JobID: ptr("c1"), Device: "n10", TopNode: ptr("n2"), BaseNode: ptr("n0"), FilterNodeName: ptr("f1"), AutoFinalize: ptr(false)})
	}},
	{"s1", func(w *world) error {
		return w.stream(qapi.BlockStreamArg{JobID: ptr("s1"), Device: "n4", BaseNode: ptr("f1"), AutoFinalize: ptr(false)})
	}},
	{"c2", func(w *world) error {
		return w.commit(qapi.BlockCommitArg{JobID: ptr("c2"), Device: "d", TopNode: ptr("n7"), BaseNode: ptr("n5"), FilterNodeName: ptr("f2"), AutoFinalize: ptr(false)})
	}},
	{"s2", func(w *world) error {
		return w.stream(qapi.BlockStreamArg{JobID: ptr("s2"), Device: "n9", BaseNode: ptr("f2"), AutoFinalize: ptr(false)})
	}},
}

// overlapRound runs the first k of them and lets them end in the given order:
// steered, one after the other, or all at once. It returns the order in which
// they ended.
func overlapRound(w *world, rng *rand.Rand, k int, order []int, steered bool) (ended string) {
	t := w.t
	sees := w.longChain(11)
	w.add(newDisk("d", 12), "n9")
	seesSecond := w.look(w.node("d"))
	pause := newDelays(rng)
	for _, d := range w.disks {
		pause.at(d)
	}
	var pending, over []string
	for _, j := range overlapping[:k] {
		if err := j.start(w); err != nil {
			t.Fatal(err)
		}
		pending, over = append(pending, j.id+" PENDING"), append(over, j.id+" null")
	}
	w.present(pending...)
	ids := make([]string, k)
	for i, o := range order {
		ids[i] = overlapping[o].id
	}
	if steered {
		for _, id := range ids {
			finalizeAll(w, id)
			w.present(id + " concluded")
		}
	} else {
		finalizeAll(w, ids...)
	}
	w.present(over...)
	events := w.takeEvents()
	for _, e := range events {
		if id, ok := strings.CutSuffix(e, " change"); ok {
			ended += id
		}
		if strings.Contains(e, "COMPLETED") && strings.Contains(e, ": ") {
			t.Error(e)
		}
	}
	below := map[string]string{"n10": "n9", "d": "n9", "n4": "n0", "n9": "n5", "n5": "n4"}
	if k < 4 {
		below["n9"], below["n8"] = "n8", "n5"
	}
	for n, want := range below {
		if got := w.backingOf(n); got != want {
			t.Errorf("order %s: %s has %s below it, not %s", ended, n, got, want)
		}
		if got := w.disks["/"+n].header(); got != "/"+want+":qcow2" {
			t.Errorf("order %s: the header of %s names %s, not %s", ended, n, got, want)
		}
	}
	if w.filters() != 0 || w.look(w.node("n10")) != sees || w.look(w.node("d")) != seesSecond {
		t.Errorf("order %s: %d filters, guests see %s and %s instead of %s and %s", ended, w.filters(), w.look(w.node("n10")), w.look(w.node("d")), sees, seesSecond)
	}
	if t.Failed() {
		t.Fatalf("events %q", events)
	}
	return ended
}

// permutations of 0 to k-1.
func permutations(k int) [][]int {
	if k == 0 {
		return [][]int{{}}
	}
	var all [][]int
	for _, p := range permutations(k - 1) {
		for i := range k {
			all = append(all, slices.Insert(slices.Clone(p), i, k-1))
		}
	}
	return all
}

// TestOverlappingJobsThatEndInAnyOrder: three and four of them, each order
// counted.
func TestOverlappingJobsThatEndInAnyOrder(t *testing.T) {
	for _, k := range []int{3, 4} {
		t.Run(fmt.Sprint(k), func(t *testing.T) {
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			rng := rand.New(rand.NewPCG(seed, 1))
			orders := permutations(k)
			counts := map[string]int{}
			w := newTracedWorld(t)
			for round := range graphtest.Sample(t, 30, 1000) {
				// Each order once steered, then all at once.
				steered := round < len(orders)
				order := rng.Perm(k)
				if steered {
					order = orders[round]
				}
				counts[overlapRound(w, rng, k, order, steered)]++
				w.clear()
			}
			t.Logf("%v", counts)
			for _, o := range orders {
				class := ""
				for _, i := range o {
					class += overlapping[i].id
				}
				if counts[class] == 0 {
					t.Errorf("order %s was never seen", class)
				}
			}
		})
	}
}
