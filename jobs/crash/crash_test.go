package crash

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"blockd/blockgraph"
	"blockd/blockgraph/graphtest"
	"blockd/jobs"
	"blockd/jobs/amend"
	"blockd/jobs/commit"
	"blockd/jobs/mirror"
	"blockd/jobs/stream"
	"blockd/jobs/upkeep"
	"blockd/qapi"
)

// scenario is a job on images.
type scenario struct {
	name     string
	images   []string // from the lowest one up
	cluster  int64
	version2 bool
	key      string // secret of encrypted images
	full     bool   // each image holds the whole disk
	guests   int
	// prepare is done to each image while it is made, damage to the files then.
	prepare func(r *run, g *blockgraph.Root)
	// costly is how many times fewer states are judged than of others.
	costly int
	damage func(r *run)
	// job runs the job to its end.
	job func(r *run)
	// again runs it on the images after a crash, without guests; false: there was
	// nothing to do.
	again func(r *run) bool
}

func chained(n int) []string { return []string{"base", "mid", "top"}[3-n:] }

var scenarios = []scenario{
	{name: "stream", images: chained(3), cluster: 4096, guests: 3, job: streaming(""), again: streamAgain},
	{name: "stream-to-base", images: chained(3), cluster: 512, guests: 3, job: streaming("base"), again: streamAgain},
	{name: "stream-v2", images: chained(2), cluster: 4096, version2: true, guests: 2, job: streaming("")},
	{name: "commit", images: chained(3), cluster: 4096, guests: 3, job: committing, again: commitAgain},
	{name: "commit-512", images: chained(3), cluster: 512, guests: 3, job: committing, again: commitAgain},
	{name: "commit-v2", images: chained(3), cluster: 1024, version2: true, guests: 3, job: committing},
	{name: "commit-active", images: chained(3), cluster: 4096, guests: 3, job: committingActive(false)},
	{name: "commit-active-at-rest", images: chained(2), cluster: 1024, guests: 3, job: committingActive(true)},
	{name: "check-leaks", images: chained(2), cluster: 1024, guests: 3, damage: leaks, job: checking(qapi.ImageFixLeaks), again: checkAgain},
	{name: "check-all", images: chained(2), cluster: 512, damage: lowCounts, job: checking(qapi.ImageFixAll)},
	{name: "compact", images: chained(2), cluster: 1024, guests: 3, full: true, prepare: holes, job: compacting, again: compactAgain},
	{name: "compact-v2", images: chained(1), cluster: 4096, version2: true, guests: 2, full: true, prepare: holes, job: compacting},
	{name: "amend-layout", images: chained(2), cluster: 1024, full: true, prepare: holes, job: remaking, again: remakeAgain},
	{name: "amend", images: []string{"top"}, cluster: 4096, key: "old", guests: 2, costly: 3, job: amending},
}

// statesEach is how many states of a scenario are judged.
const (
	statesEach     = 24
	statesEachFull = 2500
)

func TestJobsLeaveImagesConsistentAfterCrashAnywhere(t *testing.T) {
	budget := graphtest.Sample(t, statesEach, statesEachFull)
	total := 0
	for i := range scenarios {
		sc := &scenarios[i]
		t.Run(sc.name, func(t *testing.T) {
			states, rounds, budget := 0, 0, budget/max(sc.costly, 1)
			for ; states < budget; rounds++ {
				seed := rand.Uint64()
				t.Logf("seed %d", seed)
				r := begin(t, sc, seed)
				stop := r.guests()
				sc.job(r)
				if sc.key == "" {
					r.look = append(r.look, [2]int{r.now() - 8, r.now()}) // where headers change
				}
				stop()
				r.end()
				states += r.everywhere(min(2*(budget-states), 300))
			}
			t.Logf("%d states of %d runs", states, rounds)
			total += states
		})
	}
	t.Logf("%d states", total)
}

// streaming copies what is below the top image into it, down to base.
func streaming(base string) func(r *run) {
	return func(r *run) {
		a := qapi.BlockStreamArg{Device: "top", JobID: ptr("job")}
		if base != "" {
			a.BaseNode = r.below("top", base)
		}
		r.update(func(tx *blockgraph.Tx) error {
			_, err := stream.Prepare(tx, r.jobs, tx.Find("top"), &a)
			return err
		})
		r.succeeds("job")
	}
}

func streamAgain(r *run) bool {
	streaming("")(r)
	return true
}

// below returns the name of the node, at or below one, that has the image of
// that name open.
func (r *run) below(top, image string) (name *string) {
	r.update(func(tx *blockgraph.Tx) error {
		for n := tx.Find(top); n != nil; n = n.BackingChain() {
			if f := n.File(); f != nil && f.Child().Filename() == "/"+image {
				name = ptr(n.Name())
				return nil
			}
		}
		return nil
	})
	return name
}

// committing moves what the middle image has into the lowest one.
func committing(r *run) {
	if !commitAgain(r) {
		r.t.Fatal("there is no middle image")
	}
}

func commitAgain(r *run) bool {
	mid := r.below("top", "mid")
	if mid == nil {
		return false
	}
	a := qapi.BlockCommitArg{Device: "top", JobID: ptr("job"), TopNode: mid, BaseNode: r.below("top", "base")}
	r.update(func(tx *blockgraph.Tx) error {
		found, err := commit.Find(tx, tx.Find("top"), &a)
		if err == nil {
			_, err = commit.Prepare(tx, r.jobs, found, &a)
		}
		return err
	})
	r.succeeds("job")
	return true
}

// committingActive moves what all images have into the lowest one, which takes
// the top's place. At rest the guests wait meanwhile, so that both ends of the
// chain must be right; else who comes back takes the one or the other.
func committingActive(rest bool) func(r *run) {
	return func(r *run) {
		base := r.below("top", r.sc.images[0])
		r.update(func(tx *blockgraph.Tx) error {
			_, err := mirror.NewActiveCommit(tx, mirror.ActiveCommit{Jobs: r.jobs, Top: tx.Find("top"), Base: tx.Find(*base), JobID: ptr("job")})
			return err
		})
		r.await("job", qapi.JobStatusReady)
		if rest {
			r.pause.Lock()
			defer r.pause.Unlock()
		}
		from := r.now()
		r.verb("job", (*jobs.Job).Complete)
		r.succeeds("job")
		pivoted := period{r.sc.images[0], -1, r.now(), -1, -1}
		r.tops[0].mayNot = from
		if rest {
			r.tops[0].mayNot = r.now()
		}
		r.tops = append(r.tops, pivoted)
	}
}

// checking repairs what is wrong.
func checking(fix qapi.ImageFix) func(r *run) {
	return func(r *run) {
		r.sound = -1
		done := r.repair(fix)
		if fix == qapi.ImageFixAll && (done.CorruptionsFixed == nil || done.Corruptions != nil) || fix == qapi.ImageFixLeaks && done.LeaksFixed == nil {
			r.t.Fatalf("%+v", done)
		}
		r.sound = r.now()
	}
}

func checkAgain(r *run) bool {
	r.repair(qapi.ImageFixLeaks)
	return true
}

func (r *run) repair(fix qapi.ImageFix) *qapi.ImageCheck {
	r.t.Helper()
	r.update(func(tx *blockgraph.Tx) error {
		_, err := upkeep.PrepareCheck(tx, r.jobs, tx.Find("top"), &qapi.XBlockdevCheckArg{JobID: "job", NodeName: "top", Fix: &fix})
		return err
	})
	r.succeeds("job")
	return r.seen["job"].XCheck
}

// compacting gives space back.
func compacting(r *run) {
	compactAgain(r)
	if done := r.seen["job"].XCompact; done.MovedClusters == 0 {
		r.t.Fatalf("nothing has moved: %+v", done)
	}
}

func compactAgain(r *run) bool {
	r.update(func(tx *blockgraph.Tx) error {
		_, err := upkeep.PrepareCompact(tx, r.jobs, tx.Find("top"), &qapi.XBlockdevCompactArg{JobID: "job", NodeName: "top"})
		return err
	})
	r.succeeds("job")
	return true
}

// holes gives up most of what lies at the beginning of the file.
func holes(r *run, g *blockgraph.Root) {
	for off := int64(0); off < diskSize/2; off += 3 * 4096 {
		r.must(g.Discard(ctxb, off, 2*4096))
	}
	r.must(g.Flush(ctxb))
}

// amending adds a key to an encrypted image and takes the old one away.
func amending(r *run) {
	n := 0
	change := func(o qapi.QCryptoBlockAmendOptionsLUKS) {
		id := []string{"first", "second"}[n]
		n++
		r.amend(id, qapi.BlockdevAmendOptionsQcow2{Encrypt: &qapi.QCryptoBlockAmendOptions{Format: qapi.QCryptoBlockFormatLUKS, LUKS: &o}})
	}
	added := key{"new", r.now(), 0, -1, -1}
	change(qapi.QCryptoBlockAmendOptionsLUKS{State: qapi.QCryptoBlockLUKSKeyslotStateActive, NewSecret: ptr("new"), IterTime: ptr(int64(0))})
	added.must = r.now()
	r.look = append(r.look, [2]int{added.may, min(added.must, added.may+4)}, [2]int{added.must, added.must + 2})
	r.keys = append(r.keys, added)
	old := &r.keys[0]
	old.may, old.mayNot = -1, r.now()
	change(qapi.QCryptoBlockAmendOptionsLUKS{State: qapi.QCryptoBlockLUKSKeyslotStateInactive, OldSecret: ptr("old")})
	old.may, old.not = old.mayNot, r.now()
}

// amend has a job amend the image, and waits for its end.
func (r *run) amend(id string, o qapi.BlockdevAmendOptionsQcow2) {
	a := qapi.XBlockdevAmendArg{JobID: id, NodeName: "top", Options: qapi.BlockdevAmendOptions{Driver: "qcow2", Qcow2: &o}}
	r.update(func(tx *blockgraph.Tx) error { return amend.Prepare(tx, r.jobs, tx.Find("top"), &a) })
	r.await(id, qapi.JobStatusConcluded)
	if text := r.errorOf(id); text != "" {
		r.t.Errorf("job %s: %s", id, text)
	}
	r.verb(id, (*jobs.Job).Dismiss)
}

// remake has a job change how an image is laid out.
func (r *run) remake(id string, o qapi.BlockdevAmendOptionsQcow2) {
	r.update(func(tx *blockgraph.Tx) error { return tx.CloseRoot(r.guest) }) // nobody else may use the node
	r.amend(id, o)
	r.update(func(tx *blockgraph.Tx) (err error) {
		r.guest, err = tx.NewRoot(tx.Find("top"), blockgraph.RootOptions{Perm: graphtest.ReadWrite, Shared: blockgraph.PermAll})
		return err
	})
}

// remaking takes an image down a version and up again, with other counts.
func remaking(r *run) {
	r.remake("down", qapi.BlockdevAmendOptionsQcow2{XCompat: ptr(qapi.BlockdevQcow2VersionV2), XRefcountBits: ptr(int64(16))})
	r.remake("up", qapi.BlockdevAmendOptionsQcow2{XCompat: ptr(qapi.BlockdevQcow2VersionV3), XRefcountBits: ptr(int64(32)), XLazyRefcounts: ptr(true)})
}

// remakeAgain does the rest of it.
func remakeAgain(r *run) bool {
	remaking(r)
	return true
}

// image gives access to the metadata of an image of 16-bit counts.
type image struct {
	b    []byte
	bits uint32
}

func (r *run) edit(name string, f func(m *image)) {
	b := r.files["/"+name].Bytes()
	m := &image{b, binary.BigEndian.Uint32(b[20:])}
	f(m)
	r.files["/"+name] = graphtest.NewRecorder(m.b)
}

// count returns where the count of a cluster is.
func (m *image) count(cluster int64) []byte {
	table := binary.BigEndian.Uint64(m.b[48:])
	perBlock := int64(1) << (m.bits - 1)
	block := binary.BigEndian.Uint64(m.b[table+uint64(cluster/perBlock)*8:])
	return m.b[block+uint64(cluster%perBlock)*2:]
}

// leaks counts clusters at the end of the file that nothing refers to.
func leaks(r *run) {
	r.edit("top", func(m *image) {
		end := int64(len(m.b)-1)>>m.bits + 1
		for c := end; c < end+8; c++ {
			binary.BigEndian.PutUint16(m.count(c), 1)
		}
		m.b = append(m.b, make([]byte, (end+8)<<m.bits-int64(len(m.b)))...)
	})
}

// lowCounts takes the counts of some guest clusters away, and the copied flags
// of others.
func lowCounts(r *run) {
	r.edit("top", func(m *image) {
		l1 := binary.BigEndian.Uint64(m.b[40:])
		const copied = 1 << 63
		n := 0
		for t := range 2 {
			l2 := binary.BigEndian.Uint64(m.b[l1+uint64(t)*8:]) &^ copied
			for i := uint64(0); i < 1<<(m.bits-3) && l2 != 0; i++ {
				e := binary.BigEndian.Uint64(m.b[l2+i*8:])
				if e&copied == 0 {
					continue
				}
				switch n++; n % 4 {
				case 0:
					binary.BigEndian.PutUint16(m.count(int64(e&^copied)>>m.bits), 0)
				case 1:
					binary.BigEndian.PutUint64(m.b[l2+i*8:], e&^copied)
				}
			}
		}
	})
}
