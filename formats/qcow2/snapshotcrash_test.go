package qcow2

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"blockd/blockgraph"
	"blockd/blockgraph/graphtest"
	"blockd/qapi"
)

// Internal snapshots in the crash tests. At any moment each snapshot that the
// image has holds, sector for sector, what the disk held when it was made; it is
// there from the reply of its command until its removal begins, and going back to
// one is a change of the whole disk that is durable when it is over.

var snapshotCrashCases = []crashCase{
	{name: "snapshots-512", size: 100 << 10, set: optionSet{cluster: 512}},
	{name: "snapshots-backing", size: 160 << 10, backing: true, set: optionSet{cluster: 2048, run: smallCache}},
	{name: "snapshots-v2", size: 100 << 10, set: optionSet{cluster: 512, v2: true}},
	{name: "snapshots-bitmaps", size: 100 << 10, bitmaps: true, set: optionSet{cluster: 1024}},
	{name: "snapshots-narrow-counts", size: 100 << 10, set: optionSet{cluster: 512, opts: []imageOption{refcountBits(2)}}},
	{name: "snapshots-extended", size: 400 << 10, backing: true, set: optionSet{cluster: 16 << 10, opts: []imageOption{extended}}},
	{name: "snapshots-encrypted", size: 100 << 10, set: optionSet{cluster: 1024, opts: []imageOption{encryptedAES}}},
	{name: "snapshots-amend", size: 100 << 10, backing: true, set: optionSet{cluster: 1024}, more: []crashStep{remakes}},
	{name: "snapshots-compact", size: 100 << 10, set: optionSet{cluster: 512}, more: []crashStep{compacting, leaking}},
}

// snapshotting makes, removes or goes back to a snapshot; it runs alone.
var snapshotting = crashStep{"snapshot", 6, func(c *crashDisk, r *crashRange) { c.snaps.step(r.rnd) }}

// crashSnapshot is one that the test has made. It may be there after a crash from
// entry began of the log on, and must be from entry made on; it may be gone from
// entry going on, and must be from entry gone on.
type crashSnapshot struct {
	id, name    string
	values      []uint64 // of the sectors
	began, made int
	going, gone int // 0: never
}

type crashSnapshots struct {
	c    *crashDisk
	all  []*crashSnapshot
	made int
}

func (s *crashSnapshots) present() []*crashSnapshot {
	var list []*crashSnapshot
	for _, x := range s.all {
		if x.going == 0 {
			list = append(list, x)
		}
	}
	return list
}

// step makes, removes or goes back to a snapshot at random.
func (s *crashSnapshots) step(rnd *rand.Rand) {
	list := s.present()
	if len(list) == 0 || len(list) < 4 && rnd.IntN(3) == 0 {
		s.create()
		return
	}
	x := list[rnd.IntN(len(list))]
	if rnd.IntN(2) == 0 {
		x.going = s.c.now()
		if err := s.c.d.DeleteSnapshot(ctxb, &x.id, nil); err != nil {
			s.c.t.Error(err)
		}
		x.gone = s.c.now()
		return
	}
	s.revert(x, rnd.IntN(3) == 0)
}

func (s *crashSnapshots) create() {
	c := s.c
	s.made++
	x := &crashSnapshot{name: fmt.Sprintf("s%d", s.made), began: c.now()}
	x.values = c.vals.Values()
	id, err := c.d.CreateSnapshot(ctxb, x.name, time.Unix(0, 0))
	if blockgraph.Errno(err) == syscall.EINVAL && c.d.h.refcountOrder < 3 {
		return // a count would not fit; that nothing came of it is judged like the rest
	}
	if err != nil {
		c.t.Error(err)
		return
	}
	x.id, x.made = id, c.now()
	s.all = append(s.all, x)
	s.durable(x.made)
}

// durable notes that all writes that are over are on disk.
func (s *crashSnapshots) durable(to int) {
	s.c.vals.FlushedBy(s.c.vals.FlushBegins(), to)
}

// revert goes back to a snapshot, and takes it back again with undo.
func (s *crashSnapshots) revert(x *crashSnapshot, undo bool) {
	c := s.c
	if c.marks != nil && slices.ContainsFunc(c.marks.list, func(b *blockgraph.DirtyBitmap) bool { return b.Successor != nil }) {
		return // while a job uses a bitmap a revert is refused
	}
	was := c.vals.Values()
	from := c.now()
	r, err := c.d.PrepareRevert(ctxb, &x.id, nil)
	if blockgraph.Errno(err) == syscall.EINVAL && c.d.h.refcountOrder < 3 {
		return
	}
	if err != nil {
		c.t.Error(err)
		return
	}
	var list, before []*blockgraph.DirtyBitmap
	if c.marks != nil {
		before = c.marks.list
		list = slices.Clone(before)
		for i, b := range list {
			if b.Recorder() == nil {
				continue
			}
			n := *b
			n.Bits = b.Bits.Clone()
			for _, g := range r.Changed() {
				n.Bits.Set(g.Off, g.N)
			}
			list[i] = &n
		}
	}
	covered := make([]bool, len(was))
	for _, g := range r.Changed() {
		for i := g.Off / sector; i < (g.Off+g.N)/sector; i++ {
			covered[i] = true
		}
	}
	for i := range was {
		if was[i] != x.values[i] && !covered[i] {
			c.t.Errorf("sector %d differs and is not said to", i)
		}
	}
	if err := r.Switch(ctxb, list); err != nil {
		c.t.Error(err)
		return
	}
	c.vals.Changed(from, 0, int64(len(was)), func(i int64) uint64 { return x.values[i] })
	s.durable(c.now())
	if undo {
		from := c.now()
		if err := r.Undo(ctxb, before, nil); err != nil {
			c.t.Error(err)
		}
		c.vals.Changed(from, 0, int64(len(was)), func(i int64) uint64 { return was[i] })
		s.durable(c.now())
		return
	}
	if err := r.Finish(ctxb); err != nil {
		c.t.Error(err)
	}
	if c.marks != nil {
		c.marks.list = list
	}
}

// judge compares the snapshots that an image has after a crash with what they
// must be.
func (s *crashSnapshots) judge(at *crash, f *memFile, list []snapshot) {
	s.c.t.Helper()
	k, how := at.K, at.How
	for i, have := range list {
		j := slices.IndexFunc(s.all, func(x *crashSnapshot) bool { return x.name == have.name })
		if j < 0 {
			continue // one that was refused, or never completed
		}
		x := s.all[j]
		if x.began >= k || x.gone != 0 && x.gone <= k {
			s.c.t.Fatalf("crash at %d (%s): snapshot %s is there, %+v", k, how, x.name, x)
		}
		got := readSnapshot(s.c.t, f, s.c.nameless, &list[i])
		for n := range x.values {
			if !bytes.Equal(got[n*sector:(n+1)*sector], graphtest.Sector(x.values[n])) {
				s.c.t.Fatalf("crash at %d (%s): snapshot %s: sector %d is not %d", k, how, x.name, n, x.values[n])
			}
		}
	}
	for _, x := range s.all {
		there := slices.ContainsFunc(list, func(have snapshot) bool { return have.id == x.id && have.name == x.name })
		if !there && x.made <= k && (x.going == 0 || x.going >= k) {
			s.c.t.Fatalf("crash at %d (%s): snapshot %s is not there", k, how, x.name)
		}
	}
}

// readSnapshot reads a snapshot of an image that nobody has open: a copy whose
// header has the snapshot's L1 table as the active one.
func readSnapshot(t testing.TB, f, backing *memFile, s *snapshot) []byte {
	t.Helper()
	c := &memFile{b: bytes.Clone(f.b)}
	be := binary.BigEndian
	be.PutUint64(c.b[fieldSize:], s.diskSize)
	be.PutUint32(c.b[fieldL1Size:], s.l1Size)
	be.PutUint64(c.b[fieldL1Offset:], s.l1Offset)
	d, err := open(ctxb, testChildren{c, backing}, &qapi.BlockdevOptions{}, true)
	if err != nil {
		t.Fatal(err)
	}
	p := get(t, d, 0, int64(s.diskSize))
	closeImage(t, d)
	return p
}

// onlyFlags tells whether what qemu-img check says of a version 2 image is only
// about copied flags and leaks.
func onlyFlags(h *header, out []byte) bool {
	for line := range strings.Lines(string(out)) {
		if strings.HasPrefix(line, "ERROR") && !strings.Contains(line, "OFLAG_COPIED") {
			return false
		}
	}
	return h.version < 3
}
