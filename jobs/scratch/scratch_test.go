package scratch

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"blockd/ioengine"
)

const cluster = 64 << 10

func newPool(t *testing.T, c Config) *Pool {
	t.Helper()
	p, err := NewPool(c)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func content(off, n int64) []byte {
	b := make([]byte, 0, n+7)
	for r := rand.NewPCG(uint64(off), 1); int64(len(b)) < n; {
		b = binary.NativeEndian.AppendUint64(b, r.Uint64())
	}
	return b[:n]
}

func buffer(b []byte) *ioengine.Buffer {
	buf := ioengine.Bounce(len(b))
	copy(buf.Bytes(), b)
	return buf
}

// keep keeps data that its offset determines, and tells whether there was room.
func keep(t *testing.T, s *Scratch, off, n int64, zero bool) bool {
	t.Helper()
	room, ok := s.Reserve(n, zero)
	if !ok {
		return false
	}
	var b *ioengine.Buffer
	if !zero {
		b = buffer(content(off, n))
	}
	if err := room.Keep(t.Context(), off, n, b); err != nil {
		t.Fatal(err)
	}
	return true
}

// check takes the first run of a range and compares it with what was kept.
func check(t *testing.T, s *Scratch, off, n int64, data bool) *Run {
	t.Helper()
	r, ok := s.Take(off, n, data)
	if !ok {
		return nil
	}
	if r.Zero {
		return r
	}
	got := make([]byte, r.N)
	if err := r.Read(t.Context(), got); err != nil {
		t.Fatal(err)
	}
	for at := r.Off; at < r.Off+r.N; at += cluster {
		k := min(cluster, r.Off+r.N-at)
		if !bytes.Equal(got[at-r.Off:][:k], content(at, cluster)[:k]) {
			t.Fatalf("other content at %d", at)
		}
	}
	return r
}

func expectEmpty(t *testing.T, p *Pool) {
	t.Helper()
	if m, f := p.Usage(); m != 0 || f != 0 {
		t.Errorf("%d bytes of memory and %d of files are still taken", m, f)
	}
}

func TestMemoryFirstThenTheFileThenNoRoom(t *testing.T) {
	before := ioengine.InUse()
	p := newPool(t, Config{Directory: t.TempDir(), Memory: 3 * cluster, Spill: 2 * cluster})
	const length = 5*cluster + 100
	s := p.New(length, cluster, 0)
	for i := range int64(4) {
		if !keep(t, s, i*cluster, cluster, false) {
			t.Fatalf("no room for cluster %d", i)
		}
	}
	if u := s.Usage(); u.Memory != 2*cluster || u.Spilled != 2*cluster {
		t.Errorf("%+v", u)
	}
	if keep(t, s, 4*cluster, cluster, false) {
		t.Error("room beyond the bounds")
	}
	if !keep(t, s, 4*cluster, length-4*cluster, true) {
		t.Error("no room for zeroes")
	}
	r := check(t, s, cluster, 3*cluster, true)
	if r == nil || r.Off != cluster || r.N != 3*cluster {
		t.Fatalf("run %+v", r)
	}
	if _, ok := s.Take(cluster, 3*cluster, true); ok {
		t.Error("taken twice")
	}
	r.Done()
	if !keep(t, s, cluster, cluster, false) {
		t.Error("the room did not come back")
	}
	if u := s.Usage(); u.Peak != 4*cluster || u.Full != 1 {
		t.Errorf("%+v", u)
	}
	s.Drop()
	expectEmpty(t, p)
	if n := ioengine.InUse(); n != before {
		t.Errorf("%d bytes of buffers are not released", n-before)
	}
}

func TestMaxSizeBoundsOneScratch(t *testing.T) {
	p := newPool(t, Config{})
	s := p.New(10*cluster, cluster, 2*cluster)
	if !keep(t, s, 0, 2*cluster, false) || keep(t, s, 2*cluster, cluster, false) {
		t.Error("max-size does not hold")
	}
	if s.MaxSize() != 2*cluster {
		t.Errorf("max-size %d", s.MaxSize())
	}
	room := s.Overdraw(cluster, false)
	if err := room.Keep(t.Context(), 2*cluster, cluster, buffer(content(2*cluster, cluster))); err != nil {
		t.Fatal(err)
	}
	if u := s.Usage(); u.Memory != 3*cluster {
		t.Errorf("%+v", u)
	}
	s.Drop()
	expectEmpty(t, p)
}

func TestZeroesAreCutWhereARangeEnds(t *testing.T) {
	p := newPool(t, Config{})
	s := p.New(100*cluster, cluster, 0)
	keep(t, s, 0, 10*cluster, true)
	off, n, zero, ok := s.Next(cluster, 4*cluster)
	if !ok || !zero || off != 0 || n != 4*cluster {
		t.Fatal(off, n, zero, ok)
	}
	r, ok := s.Take(cluster, 2*cluster, false)
	if !ok || r.Off != cluster || r.N != 2*cluster || !r.Zero {
		t.Fatalf("%+v", r)
	}
	r.Done()
	for _, want := range [][2]int64{{0, 1}, {3, 7}} {
		r, ok := s.Take(0, 100*cluster, true)
		if !ok || r.Off != want[0]*cluster || r.N != want[1]*cluster {
			t.Fatalf("%+v, want %v", r, want)
		}
		r.Done()
	}
	if !s.Empty() {
		t.Error("something is left")
	}
	expectEmpty(t, p)
}

func TestPlanningGoesRoundAndEachOnce(t *testing.T) {
	p := newPool(t, Config{})
	s := p.New(100*cluster, cluster, 0)
	plan := func() (off, n int64) {
		off, n, _, ok := s.Next(2*cluster, 2*cluster)
		if !ok {
			return -1, 0
		}
		return off / cluster, n / cluster
	}
	keep(t, s, 10*cluster, 3*cluster, false)
	for _, want := range [][2]int64{{10, 2}, {12, 1}, {-1, 0}} {
		if off, n := plan(); off != want[0] || n != want[1] {
			t.Errorf("%d %d, want %v", off, n, want)
		}
	}
	keep(t, s, 4*cluster, cluster, false)
	keep(t, s, 20*cluster, cluster, true)
	for _, want := range [][2]int64{{20, 1}, {4, 1}, {-1, 0}} {
		if off, n := plan(); off != want[0] || n != want[1] {
			t.Errorf("%d %d, want %v", off, n, want)
		}
	}
	s.Replan()
	if off, _ := plan(); off != 4 {
		t.Errorf("after Replan %d", off)
	}
	s.Drop()
	expectEmpty(t, p)
}

func TestFileHasNoNameAndNoPlaintextAndNoRepeatedNonce(t *testing.T) {
	dir := t.TempDir()
	p := newPool(t, Config{Directory: dir, Memory: entryCost * 10})
	s := p.New(100*cluster, cluster, 0)
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) != 0 {
		t.Fatal(left)
	}
	var files [][]byte
	for range 2 { // the same content into the same slot
		keep(t, s, 0, cluster, false)
		got := make([]byte, cluster)
		if _, err := s.file.file.ReadV(t.Context(), 0, [][]byte{got}); err != nil {
			t.Fatal(err)
		}
		files = append(files, got)
		r := check(t, s, 0, cluster, true)
		if r == nil || r.entries[0].seal.slot != 0 {
			t.Fatalf("%+v", r)
		}
		r.Done()
	}
	for _, f := range files {
		if bytes.Contains(f, content(0, cluster)[:32]) {
			t.Error("the file has plaintext")
		}
	}
	if bytes.Equal(files[0], files[1]) {
		t.Error("a nonce was used twice")
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("the file has a name: %v", left)
	}
	s.Drop()
	if s.file.file != nil {
		t.Error("the file is open after the drop")
	}
	expectEmpty(t, p)
}

func TestDamageIsNoticed(t *testing.T) {
	p := newPool(t, Config{Directory: t.TempDir(), Memory: entryCost * 10})
	s := p.New(100*cluster, cluster, 0)
	keep(t, s, 0, cluster, false)
	if _, err := s.file.file.WriteV(t.Context(), 5000, [][]byte{{0}}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.file.file.WriteV(t.Context(), 5001, [][]byte{{1}}); err != nil {
		t.Fatal(err)
	}
	r, _ := s.Take(0, cluster, true)
	if err := r.Read(t.Context(), make([]byte, cluster)); !errors.Is(err, errDamaged) {
		t.Error(err)
	}
	r.Return()
	if r, ok := s.Take(0, cluster, true); !ok {
		t.Error("what was returned is gone")
	} else {
		r.Return()
	}
	s.Drop()
	expectEmpty(t, p)
}

func TestDropWaitsForNobody(t *testing.T) {
	p := newPool(t, Config{Directory: t.TempDir(), Memory: cluster + entryCost*10})
	s := p.New(100*cluster, cluster, 0)
	keep(t, s, 0, cluster, false)
	keep(t, s, cluster, cluster, false) // in the file
	keep(t, s, 2*cluster, cluster, true)
	r := check(t, s, 0, 2*cluster, true)
	room, ok := s.Reserve(cluster, false)
	if !ok {
		t.Fatal("no room")
	}
	s.Drop()
	s.Drop()
	if err := room.Keep(context.Background(), 3*cluster, cluster, buffer(content(0, cluster))); !errors.Is(err, ErrDropped) {
		t.Error(err)
	}
	if _, ok := s.Reserve(cluster, false); ok {
		t.Error("room in a scratch that was dropped")
	}
	if s.file.file == nil {
		t.Fatal("the file was closed under a step that has it")
	}
	if err := r.Read(t.Context(), make([]byte, r.N)); err != nil {
		t.Error(err)
	}
	r.Return()
	if s.file.file != nil {
		t.Error("the file is still open")
	}
	expectEmpty(t, p)
}

func TestDirectoryThatCannotBeUsedIsRefused(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "missing")
	if _, err := NewPool(Config{Directory: missing}); err == nil || !strings.Contains(err.Error(), missing) {
		t.Error(err)
	}
}

// TestManyKeepAndTake: what is kept by some and taken by others is what it was,
// each once.
func TestManyKeepAndTake(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	const clusters = 120
	p := newPool(t, Config{Directory: t.TempDir(), Memory: 20 * cluster, Spill: clusters * cluster})
	s := p.New(clusters*cluster, cluster, 0)
	var wg sync.WaitGroup
	var mu sync.Mutex
	seen := map[int64]int{}
	for i := range int64(4) {
		wg.Go(func() {
			for c := i; c < clusters; c += 4 {
				keep(t, s, c*cluster, cluster, c%7 == 0)
			}
		})
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(i)))
			for {
				mu.Lock()
				all := len(seen) == clusters
				mu.Unlock()
				if all || t.Failed() {
					return
				}
				off, n, zero, ok := s.Next(4*cluster, 4*cluster)
				if !ok {
					off, n = r.Int64N(clusters)*cluster, clusters*cluster
				}
				run := check(t, s, off, min(n, 8*cluster), !zero)
				if run == nil {
					continue
				}
				if r.IntN(3) == 0 {
					run.Return()
					continue
				}
				mu.Lock()
				for at := run.Off; at < run.Off+run.N; at += cluster {
					if seen[at]++; seen[at] > 1 {
						t.Errorf("%d twice", at)
					}
				}
				mu.Unlock()
				run.Done()
			}
		})
	}
	wg.Wait()
	if !s.Empty() || s.fresh != 0 {
		t.Errorf("empty %v, fresh %d", s.Empty(), s.fresh)
	}
	s.Drop()
	expectEmpty(t, p)
}
