package bitmaps

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

// naive is the model: one bool for each granule.
type naive struct {
	size, gran int64
	dirty      []bool
}

func newNaive(size, gran int64) *naive {
	return &naive{size: size, gran: gran, dirty: make([]bool, (size+gran-1)/gran)}
}

func (m *naive) set(off, n int64) {
	if n <= 0 {
		return
	}
	for i := range m.dirty {
		if at := int64(i) * m.gran; at < off+n && off < min(m.size, at+m.gran) {
			m.dirty[i] = true
		}
	}
}

func (m *naive) clear(off, n int64) {
	for i := range m.dirty {
		if at := int64(i) * m.gran; off <= at && min(m.size, at+m.gran) <= off+n {
			m.dirty[i] = false
		}
	}
}

func (m *naive) next(off, limit int64, want bool) (start, n int64, ok bool) {
	limit = min(limit, m.size)
	for i, d := range m.dirty {
		a, b := max(off, int64(i)*m.gran), min(limit, int64(i+1)*m.gran)
		switch {
		case a >= b:
		case ok && d != want:
			return start, n, ok
		case d == want && !ok:
			start, n, ok = a, b-a, true
		case ok:
			n = b - start
		}
	}
	return start, n, ok
}

func (m *naive) count() (n int64) {
	for _, d := range m.dirty {
		if d {
			n += m.gran
		}
	}
	return n
}

func (m *naive) resize(size int64) {
	d := make([]bool, (size+m.gran-1)/m.gran)
	copy(d, m.dirty)
	m.size, m.dirty = size, d
}

func (m *naive) data() []byte {
	p := make([]byte, (len(m.dirty)+63)/64*8)
	for i, d := range m.dirty {
		if d {
			p[i/8] |= 1 << (i % 8)
		}
	}
	return p
}

func compare(t interface {
	Helper()
	Fatalf(string, ...any)
}, b *Bitmap, m *naive, off, limit int64) {
	t.Helper()
	if b.Size() != m.size || b.Count() != m.count() {
		t.Fatalf("size %d, count %d, want %d, %d", b.Size(), b.Count(), m.size, m.count())
	}
	for _, want := range []bool{true, false} {
		next := b.NextDirty
		if !want {
			next = b.NextClean
		}
		s, n, ok := next(off, limit)
		if ws, wn, wok := m.next(off, limit, want); s != ws || n != wn || ok != wok {
			t.Fatalf("next(%d, %d, dirty %v): %d+%d %v, want %d+%d %v", off, limit, want, s, n, ok, ws, wn, wok)
		}
	}
	data := m.data()
	if len(data) == 0 {
		data = make([]byte, 8) // as the field has it
	}
	if got, want := b.SHA256(), fmt.Sprintf("%x", sha256.Sum256(data)); got != want {
		t.Fatalf("other bits")
	}
}

func TestBitmapIsAsTheModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		gran := int64(512) << rapid.IntRange(0, 3).Draw(t, "shift")
		size := func() int64 {
			return rapid.Int64Range(0, 9000).Draw(t, "granules")*gran/2 + rapid.Int64Range(0, 513).Draw(t, "rest")
		}
		pos := func() int64 { return rapid.Int64Range(0, 9000*gran/2).Draw(t, "pos") }
		first := size()
		b, m := New(first, gran), newNaive(first, gran)
		for range rapid.IntRange(1, 20).Draw(t, "steps") {
			off, n := pos(), pos()/rapid.Int64Range(1, 2000).Draw(t, "part")
			switch rapid.IntRange(0, 5).Draw(t, "op") {
			case 0, 1:
				b.Set(off, n)
				m.set(off, n)
			case 2:
				b.Clear(off, n)
				m.clear(off, n)
			case 3:
				s := size()
				if err := b.Resize(s); err != nil {
					t.Fatal(err)
				}
				m.resize(s)
			case 4:
				other := int64(512) << rapid.IntRange(0, 3).Draw(t, "shift")
				src, msrc := New(b.Size(), other), newNaive(b.Size(), other)
				for range 3 {
					off, n := pos(), pos()/100
					src.Set(off, n)
					msrc.set(off, n)
				}
				b.Merge(src)
				for i, d := range msrc.dirty {
					if d {
						m.set(int64(i)*other, min(other, msrc.size-int64(i)*other))
					}
				}
			case 5:
				c := New(b.Size(), gran)
				p := make([]byte, 8*rapid.IntRange(1, 40).Draw(t, "piece"))
				for at := int64(0); at < b.SerialSize(); at += int64(len(p)) {
					b.Serialize(at, p)
					c.Deserialize(at, p)
				}
				compare(t, c, m, 0, m.size)
			}
			if at := pos(); b.Get(at) != (at < m.size && m.dirty[at/gran]) {
				t.Fatalf("Get(%d) is %v", at, b.Get(at))
			}
			compare(t, b, m, pos(), pos())
		}
	})
}

func TestBitsPastTheEndOfTheDataAreIgnored(t *testing.T) {
	b := New(3*512, 512)
	b.Deserialize(0, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0})
	if b.Count() != 3*512 {
		t.Errorf("%d bytes dirty", b.Count())
	}
}

func TestOddRangesAreIgnored(t *testing.T) {
	b := New(10<<9, 512)
	for _, r := range [][2]int64{{-1, 5}, {10 << 9, 1}, {1 << 62, 1 << 62}, {0, 0}, {5, -5}} {
		b.Set(r[0], r[1])
		b.Clear(r[0], r[1])
		if b.Count() != 0 {
			t.Fatalf("%v: %d bytes dirty", r, b.Count())
		}
	}
	b.Set(1, 1<<63-1)
	if b.Count() != 10<<9 {
		t.Errorf("%d bytes dirty", b.Count())
	}
}

func TestCheckRefusesWhatNewCannotMake(t *testing.T) {
	for _, c := range []struct{ size, gran int64 }{{1, 256}, {1, 513}, {1, 0}, {1, -512}, {-1, 512}, {1 << 62, 512}} {
		if Check(c.size, c.gran) == nil {
			t.Errorf("size %d, granularity %d", c.size, c.gran)
		}
	}
	if err := New(1<<20, 512).Resize(1 << 62); err == nil {
		t.Error("resized past the limit")
	}
}

// Every goroutine sets and clears granules of its own, next to those of the
// others, so that words and summaries become empty and are filled all the time:
// none ever misses a bit of its own.
func TestNoBitIsLostBetweenSettersAndClearers(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	const workers, rounds, words = 4, 2000, 64 * 64 * 2
	b := New(words*64<<9, 512)
	var wg sync.WaitGroup
	for s := range workers {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(s)))
			for range rounds {
				// Six words, far from each other.
				at := (rng.Int64N(6)*(words/6)*64 + rng.Int64N(16)*workers + int64(s)) << 9
				b.Set(at, 512)
				if start, _, ok := b.NextDirty(at, at+512); !ok || start != at {
					t.Errorf("granule %d is not found", at>>9)
					return
				}
				// From the front, others may come first.
				if start, _, ok := b.NextDirty(0, at+512); !ok || start > at {
					t.Errorf("granule %d is not found from the front: %d", at>>9, start>>9)
					return
				}
				b.Clear(at, 512)
				if b.Get(at) {
					t.Errorf("granule %d is still there", at>>9)
					return
				}
			}
		})
	}
	wg.Go(func() {
		for size := b.Size(); size < 3*words*64<<9; size += words << 9 {
			if err := b.Resize(size); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Wait()
	if b.Count() != 0 {
		t.Errorf("%d bytes dirty at the end", b.Count())
	}
}

// One word, set and emptied by all at once: what was set last must be found.
func TestSummariesSurviveAClearerInBetween(t *testing.T) {
	const setters = 3
	for range 300 {
		b := New(64*64*64<<9, 512)
		var wg sync.WaitGroup
		for s := range setters {
			wg.Go(func() { b.Set(int64(s)<<9, 512) })
		}
		b.Set(63<<9, 512)
		wg.Go(func() { b.Clear(63<<9, 512) })
		wg.Wait()
		if start, n, ok := b.NextDirty(0, b.Size()); !ok || start != 0 || n != setters<<9 {
			t.Fatalf("%d+%d %v", start, n, ok)
		}
	}
}

func TestNothingIsAllocatedOnceAChunkIsThere(t *testing.T) {
	b, src := New(1<<40, 64<<10), New(1<<40, 64<<10)
	b.Set(1<<39, 1)
	src.Set(1<<39, 1)
	for name, f := range map[string]func(){
		"set":        func() { b.Set(1<<39, 200<<10) },
		"clear":      func() { b.Clear(1<<39, 64<<10) },
		"next dirty": func() { b.NextDirty(0, b.Size()) },
		"merge":      func() { b.Merge(src) },
	} {
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func BenchmarkSet(b *testing.B) {
	m := New(1<<40, 64<<10)
	m.Set(0, m.Size())
	m.Clear(0, m.Size())
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		at := rand.Int64N(1 << 40)
		for pb.Next() {
			m.Set(at, 4096)
			at = (at*6364136223846793005 + 1442695040888963407) & (1<<40 - 1)
		}
	})
}

func BenchmarkNextDirtyEmpty(b *testing.B) {
	for _, size := range []int64{1 << 30, 1 << 40, 1 << 45} {
		b.Run(fmt.Sprintf("%dGiB", size>>30), func(b *testing.B) {
			m := New(size, 64<<10)
			b.ReportAllocs()
			for b.Loop() {
				if _, _, ok := m.NextDirty(0, size); ok {
					b.Fatal("dirty")
				}
			}
		})
	}
}

func BenchmarkNextDirtyAtTheEnd(b *testing.B) {
	m := New(1<<40, 64<<10)
	m.Set(m.Size()-1, 1)
	b.ReportAllocs()
	for b.Loop() {
		m.NextDirty(0, m.Size())
	}
}

func BenchmarkMerge(b *testing.B) {
	for _, c := range []struct {
		name string
		step int64
	}{{"sparse", 1 << 34}, {"dense", 1 << 22}} {
		b.Run(c.name, func(b *testing.B) {
			m, src := New(1<<40, 64<<10), New(1<<40, 64<<10)
			for at := int64(0); at < 1<<40; at += c.step {
				src.Set(at, 1)
			}
			m.Merge(src)
			b.ReportAllocs()
			for b.Loop() {
				m.Merge(src)
			}
		})
	}
}
