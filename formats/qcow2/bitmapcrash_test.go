package qcow2

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"slices"
	"syscall"
	"testing"

	"blockd/bitmaps"
	"blockd/blockgraph"
	"blockd/blockgraph/graphtest"
)

// Bitmaps in the crash tests: whatever survives, no sector that is another than
// when the bitmap began to record may be clean, and no bit that the bitmap had
// then may be missing. What a command has replied to must be there.

// bitmapState is what a bitmap of a name must be like after a crash from entry
// from of the log on, and may be like from entry began on.
type bitmapState struct {
	began, from int
	exists      bool
	must        *bitmaps.Bitmap // its bits then
	values      []uint64        // of the sectors then; nil: it does not record
}

type crashBitmaps struct {
	c      *crashDisk
	list   []*blockgraph.DirtyBitmap
	states map[string][]bitmapState
	made   int
}

func newCrashBitmaps(c *crashDisk) *crashBitmaps {
	c.d.bitmaps.ahead.RegionBits = 14
	return &crashBitmaps{c: c, states: map[string][]bitmapState{}}
}

func (m *crashBitmaps) recording() bool {
	return slices.ContainsFunc(m.list, func(b *blockgraph.DirtyBitmap) bool { return b.Recorder() != nil })
}

func (m *crashBitmaps) before(off, n int64) error {
	if !m.recording() {
		return nil
	}
	return m.c.d.BeforeChange(ctxb, off, n)
}

func (m *crashBitmaps) after(off, n int64) {
	for _, b := range m.list {
		if r := b.Recorder(); r != nil {
			r.Set(off, n)
		}
	}
}

// store stores a list in which the bitmap of that name has changed.
func (m *crashBitmaps) store(name string, list []*blockgraph.DirtyBitmap) {
	began := m.c.now()
	if err := m.c.d.StoreBitmaps(ctxb, list); err != nil {
		m.c.t.Error(err)
		return
	}
	m.list = list
	s := bitmapState{began: began, from: m.c.now()}
	for _, b := range list {
		if b.Name != name {
			continue
		}
		s.exists, s.must = true, b.Bits.Clone()
		if b.Successor != nil {
			s.must.Merge(b.Successor)
		}
		if b.Recorder() != nil {
			s.values = m.c.vals.Values()
		}
	}
	m.states[name] = append(m.states[name], s)
}

// step changes a bitmap at random.
func (m *crashBitmaps) step(rnd *rand.Rand) {
	if len(m.list) == 0 || len(m.list) < 4 && rnd.IntN(4) == 0 {
		m.made++
		b := &blockgraph.DirtyBitmap{Name: fmt.Sprintf("b%d", m.made), Persistent: true, Disabled: rnd.IntN(5) == 0,
			Bits: bitmaps.New(m.c.d.size.Load(), 512<<rnd.IntN(3))}
		m.store(b.Name, append([]*blockgraph.DirtyBitmap{b}, m.list...))
		return
	}
	i := rnd.IntN(len(m.list))
	b := *m.list[i]
	list := slices.Clone(m.list)
	list[i] = &b
	switch rnd.IntN(6) {
	case 0:
		list = slices.Delete(list, i, i+1)
	case 1:
		b.Bits, b.Successor = bitmaps.New(b.Bits.Size(), b.Bits.Granularity()), nil
	case 2:
		b.Disabled = !b.Disabled
	case 3:
		b.Bits = b.Bits.Clone()
		b.Bits.Merge(list[rnd.IntN(len(list))].Bits)
	case 4: // a job begins to use it
		if b.Successor == nil {
			b.Successor = bitmaps.New(b.Bits.Size(), b.Bits.Granularity())
		}
	case 5: // and ends
		if b.Successor != nil {
			keep := b.Bits
			b.Bits, b.Successor = b.Successor, nil
			if rnd.IntN(2) == 0 {
				b.Bits = keep.Clone()
				b.Bits.Merge(m.list[i].Successor)
			}
		}
	}
	m.store(b.Name, list)
}

// judge compares what an image has after a crash at k with what it may have.
func (m *crashBitmaps) judge(list []*blockgraph.DirtyBitmap, disk []byte, k int, how string) {
	m.c.t.Helper()
	for _, b := range list {
		if m.states[b.Name] == nil {
			m.c.t.Fatalf("crash at %d (%s): bitmap %s was never made", k, how, b.Name)
		}
	}
	for name, states := range m.states {
		var b *blockgraph.DirtyBitmap
		if i := slices.IndexFunc(list, func(b *blockgraph.DirtyBitmap) bool { return b.Name == name }); i >= 0 {
			b = list[i]
		}
		allowed := []bitmapState{{}} // of which one must hold
		for _, s := range states {
			switch {
			case s.from <= k:
				allowed = []bitmapState{s}
			case s.began < k:
				allowed = append(allowed, s)
			}
		}
		var wrong error
		if !slices.ContainsFunc(allowed, func(s bitmapState) bool {
			wrong = s.check(b, disk)
			return wrong == nil
		}) {
			m.c.t.Fatalf("crash at %d (%s): bitmap %s: %v", k, how, name, wrong)
		}
	}
}

func (s *bitmapState) check(b *blockgraph.DirtyBitmap, disk []byte) error {
	if b == nil || !s.exists {
		if (b != nil) != s.exists {
			return fmt.Errorf("exists: %v", b != nil)
		}
		return nil
	}
	if b.Inconsistent || b.Disabled != (s.values == nil) {
		return fmt.Errorf("inconsistent %v, disabled %v", b.Inconsistent, b.Disabled)
	}
	for i := range s.must.Size() / sector {
		if s.must.Get(i*sector) && !b.Bits.Get(i*sector) {
			return fmt.Errorf("sector %d has lost its bit", i)
		}
		if s.values != nil && binary.LittleEndian.Uint64(disk[i*sector:]) != s.values[i] && !b.Bits.Get(i*sector) {
			return fmt.Errorf("sector %d has changed and is clean", i)
		}
	}
	return nil
}

// A change of the disk's length and of the stored bitmaps is one.
func TestStoredBitmapsFitTheDiskAfterCrashAnywhere(t *testing.T) {
	f := newImage(t, 4<<20, clusterSize(512))
	d := openImage(t, f, nil)
	var list []*blockgraph.DirtyBitmap
	for i := range 3 {
		b := &blockgraph.DirtyBitmap{Name: fmt.Sprint(i), Persistent: true, Bits: bitmaps.New(4<<20, 512<<i)}
		b.Bits.Set(0, 1)
		b.Bits.Set(4<<20-1, 1)
		list = append(list, b)
	}
	if err := d.StoreBitmaps(ctxb, list); err != nil {
		t.Fatal(err)
	}
	f.record = true
	c := &crashDisk{t: t, f: f, d: d, base: slices.Clone(f.b)}
	sizes := []int64{4 << 20}
	for _, size := range []int64{9 << 20, 9<<20 + 512, 1 << 20, 3 << 20} {
		if err := d.Truncate(ctxb, size, true, "", false); err != nil {
			t.Fatal(err)
		}
		for _, b := range list {
			if err := b.Bits.Resize(size); err != nil {
				t.Fatal(err)
			}
		}
		sizes = append(sizes, size)
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	for k := range len(f.log) + 1 {
		for way := range uint64(4) {
			g := c.rebuild(k, func(op, sector int) bool {
				return way == 0 || way > 1 && graphtest.CrashMix(seed^way+uint64(op)<<32+uint64(sector))&1 == 0
			})
			mustCheck(t, g, false)
			d := openImage(t, g, nil)
			size := d.size.Load()
			if !slices.Contains(sizes, size) || len(d.bitmaps.want) != 3 {
				t.Fatalf("crash at %d: %d bytes, %d bitmaps", k, size, len(d.bitmaps.want))
			}
			for _, b := range d.bitmaps.want {
				if b.Inconsistent || !b.Bits.Get(0) {
					t.Fatalf("crash at %d: %+v", k, b)
				}
			}
			if k%20 == 0 && way == 2 {
				fieldOpens(t, g)
			}
			closeImage(t, d)
		}
	}
	closeImage(t, d)
}

// fieldOpens holds that qemu-img check finds nothing but leaks.
func fieldOpens(t *testing.T, f *memFile) {
	t.Helper()
	p, err := exec.LookPath("qemu-img")
	if err != nil {
		return
	}
	out, err := exec.Command(p, "check", "-f", "qcow2", save(t, f, "check.qcow2")).CombinedOutput()
	if e, ok := err.(*exec.ExitError); err != nil && (!ok || e.ExitCode() != 3) {
		t.Fatalf("qemu-img check: %v\n%s", err, out)
	}
}

// Without space a table says that all its bits are set, and the guest's write,
// which needs none, goes on.
func TestAFullDiskMakesTheStoredBitmapCoarseNotWrong(t *testing.T) {
	const size = 1 << 20
	f := newImage(t, size, clusterSize(512))
	d := openImage(t, f, nil)
	d.bitmaps.ahead.RegionBits = 14
	put(t, d, 0, fill(1, size))
	b := &blockgraph.DirtyBitmap{Name: "b", Persistent: true, Bits: bitmaps.New(size, 512)}
	if err := d.StoreBitmaps(ctxb, []*blockgraph.DirtyBitmap{b}); err != nil {
		t.Fatal(err)
	}
	flush(t, d)
	// What is free within the file is taken.
	for f.fixed = true; ; {
		d.mu.Lock()
		_, _, err := d.allocate(1, forOther)
		d.mu.Unlock()
		if blockgraph.Errno(err) == syscall.ENOSPC {
			break
		}
		if err != nil {
			if err := d.fetch(ctxb, err); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := d.BeforeChange(ctxb, 5000, 1); err != nil {
		t.Fatal(err)
	}
	g := &memFile{b: slices.Clone(f.b)}
	got := openImage(t, g, nil).bitmaps.want[0]
	if got.Inconsistent || got.Bits.Count() != size {
		t.Fatalf("%d bytes dirty", got.Bits.Count())
	}
}

// A write whose bits cannot be stored must not happen.
func TestAWriteFailsWhenItsBitsCannotBeStored(t *testing.T) {
	f := newImage(t, 1<<20)
	d := openImage(t, f, nil)
	b := &blockgraph.DirtyBitmap{Name: "b", Persistent: true, Bits: bitmaps.New(1<<20, 512)}
	if err := d.StoreBitmaps(ctxb, []*blockgraph.DirtyBitmap{b}); err != nil {
		t.Fatal(err)
	}
	f.setFault(func(op string, _, _ int64) error {
		if op == "write" {
			return syscall.EIO
		}
		return nil
	})
	if err := d.BeforeChange(ctxb, 0, 1); blockgraph.Errno(err) != syscall.EIO {
		t.Fatal(err)
	}
	f.setFault(nil)
	if err := d.BeforeChange(ctxb, 0, 1); err != nil {
		t.Fatal(err)
	}
	closeImage(t, d)
	mustCheck(t, f, true)
}

// A change of the list whose last write fails may have reached the disk. The
// list before it, which the caller stores again, must be the disk's then: bits
// that are set later go to what the disk knows.
func TestTheDiskFollowsWhenAStoreFailsAfterItReachedIt(t *testing.T) {
	const size = 1 << 20
	f := newImage(t, size, clusterSize(4096))
	d := openImage(t, f, nil)
	a := &blockgraph.DirtyBitmap{Name: "a", Persistent: true, Bits: bitmaps.New(size, 512)}
	a.Bits.Set(0, 512)
	list := []*blockgraph.DirtyBitmap{a}
	if err := d.StoreBitmaps(ctxb, list); err != nil {
		t.Fatal(err)
	}
	cleared := *a
	cleared.Bits = bitmaps.New(size, 512)
	f.setFault(func(op string, off, _ int64) error {
		if op == "written" && off == 0 {
			return syscall.EIO
		}
		return nil
	})
	if err := d.StoreBitmaps(ctxb, []*blockgraph.DirtyBitmap{&cleared}); blockgraph.Errno(err) != syscall.EIO {
		t.Fatal(err)
	}
	f.setFault(nil)
	if err := d.StoreBitmaps(ctxb, list); err != nil {
		t.Fatal(err)
	}
	if err := d.BeforeChange(ctxb, 8192, 512); err != nil {
		t.Fatal(err)
	}
	crashed := openImage(t, &memFile{b: slices.Clone(f.b)}, nil)
	if got := crashed.bitmaps.want[0].Bits; !got.Get(0) || !got.Get(8192) {
		t.Errorf("bits at 0 %v, at 8192 %v", got.Get(0), got.Get(8192))
	}
	a.Bits.Set(8192, 512)
	closeImage(t, d)
	mustCheck(t, f, true) // nothing has leaked
}
