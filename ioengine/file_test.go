package ioengine

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

func openFile(t testing.TB, c *Calls, path string, flags int) *File {
	t.Helper()
	fd, err := unix.Open(path, flags|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	f := c.NewFile(fd)
	t.Cleanup(func() { f.Close() })
	return f
}

// places are directories on storage of different kinds.
func places(t testing.TB) map[string]string {
	m := map[string]string{"disk": t.TempDir()}
	if dir, err := os.MkdirTemp("/dev/shm", "ioengine"); err == nil {
		t.Cleanup(func() { os.RemoveAll(dir) })
		m["tmpfs"] = dir
	}
	return m
}

// cut makes segments of random lengths from b.
func cut(rnd *rand.Rand, b []byte, parts int) [][]byte {
	var segs [][]byte
	for len(b) > 0 {
		n := len(b)
		if parts--; parts > 0 {
			n = 1 + rnd.IntN(min(len(b), 40))
		}
		segs = append(segs, b[:n:n])
		b = b[n:]
	}
	return segs
}

func TestVectorsLongerThanOneCallArriveWhole(t *testing.T) {
	for name, dir := range places(t) {
		t.Run(name, func(t *testing.T) {
			f := openFile(t, NewCalls(2), filepath.Join(dir, "v"), unix.O_RDWR)
			rnd := rand.New(rand.NewPCG(2, 3))
			for _, parts := range []int{1, 2, 17, maxIOV, 3*maxIOV + 5} {
				data := make([]byte, 200_000)
				for i := range data {
					data[i] = byte(rnd.Uint32())
				}
				if n, err := f.WriteV(t.Context(), 77, cut(rnd, data, parts)); err != nil || n != int64(len(data)) {
					t.Fatalf("%d parts: wrote %d, %v", parts, n, err)
				}
				got := make([]byte, len(data))
				if n, err := f.ReadV(t.Context(), 77, cut(rnd, got, parts)); err != nil || n != int64(len(data)) {
					t.Fatalf("%d parts: read %d, %v", parts, n, err)
				}
				if !bytes.Equal(got, data) {
					t.Fatalf("%d parts: data differ", parts)
				}
			}
		})
	}
}

func TestReadIsShortOnlyAtTheEnd(t *testing.T) {
	for name, dir := range places(t) {
		t.Run(name, func(t *testing.T) {
			f := openFile(t, NewCalls(2), filepath.Join(dir, "s"), unix.O_RDWR)
			if _, err := f.WriteV(t.Context(), 0, [][]byte{make([]byte, 1000)}); err != nil {
				t.Fatal(err)
			}
			for _, c := range []struct{ off, len, want int64 }{{0, 1000, 1000}, {0, 4096, 1000}, {999, 2, 1}, {1000, 1, 0}, {5000, 10, 0}} {
				for _, parts := range []int{1, 2} {
					b := make([]byte, c.len)
					n, err := f.ReadV(t.Context(), c.off, cut(rand.New(rand.NewPCG(1, 1)), b, parts))
					if err != nil || n != c.want {
						t.Errorf("%+v in %d: %d, %v", c, parts, n, err)
					}
				}
			}
		})
	}
}

func TestUncachedReadIsMadeWithinASlot(t *testing.T) {
	dir := t.TempDir()
	c := NewCalls(2)
	f := openFile(t, c, filepath.Join(dir, "u"), unix.O_RDWR)
	data := bytes.Repeat([]byte{7}, 1<<20)
	if _, err := f.WriteV(t.Context(), 0, [][]byte{data}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fsync(f.Fd()); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fadvise(f.Fd(), 0, 0, unix.FADV_DONTNEED); err != nil {
		t.Fatal(err)
	}
	before := c.Stats().InlineMisses
	got := make([]byte, len(data))
	if n, err := f.ReadV(t.Context(), 0, [][]byte{got}); err != nil || n != int64(len(data)) || !bytes.Equal(got, data) {
		t.Fatal(n, err)
	}
	if c.Stats().InlineMisses == before {
		t.Skip("needs a file system whose cache can be dropped")
	}
	misses := c.Stats().InlineMisses
	if _, err := f.ReadV(t.Context(), 0, [][]byte{got[:4096]}); err != nil {
		t.Fatal(err)
	}
	if c.Stats().InlineMisses != misses {
		t.Error("a cached read missed")
	}
}

func TestErrorsOfTheKernelComeBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "e")
	c := NewCalls(2)
	openFile(t, c, path, unix.O_RDWR)
	ro := openFile(t, c, path, unix.O_RDONLY)
	for _, parts := range []int{1, 2} {
		segs := cut(rand.New(rand.NewPCG(1, 1)), make([]byte, 100), parts)
		if _, err := ro.WriteV(t.Context(), 0, segs); err != unix.EBADF {
			t.Errorf("write: %v", err)
		}
	}
	wo := openFile(t, c, path, unix.O_WRONLY)
	for _, parts := range []int{1, 2} {
		segs := cut(rand.New(rand.NewPCG(1, 1)), make([]byte, 100), parts)
		if _, err := wo.ReadV(t.Context(), 0, segs); err != unix.EBADF {
			t.Errorf("read: %v", err)
		}
	}
	if c.taken.Load() != 0 {
		t.Error("a slot was lost")
	}
}

func TestWriteStopsAtTheFileSizeLimitWithItsError(t *testing.T) {
	dir, err := os.MkdirTemp("/dev/shm", "ioengine")
	if err != nil {
		t.Skip("needs tmpfs")
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	// A sealed memory file refuses to grow in the middle of a write.
	fd, err := unix.MemfdCreate("limit", unix.MFD_ALLOW_SEALING|unix.MFD_CLOEXEC)
	if err != nil {
		t.Skip("needs memfd_create")
	}
	f := NewCalls(1).NewFile(fd)
	defer f.Close()
	if err := unix.Ftruncate(fd, 8192); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_GROW); err != nil {
		t.Skip("needs seals")
	}
	n, err := f.WriteV(t.Context(), 4096, [][]byte{bytes.Repeat([]byte{1}, 4096), bytes.Repeat([]byte{2}, 4096)})
	if err != unix.EPERM || n != 4096 {
		t.Errorf("wrote %d, %v", n, err)
	}
}

func TestShortWriteGoesOnWhereItStopped(t *testing.T) {
	c := NewCalls(1)
	f := openFile(t, c, filepath.Join(t.TempDir(), "w"), unix.O_RDWR)
	if err := c.acquire(t.Context(), &f.share); err != nil { // which writeRest gives back
		t.Fatal(err)
	}
	// As if a call had written the first three bytes.
	if n, err := f.writeRest(100, [][]byte{[]byte("01"), []byte("2345"), []byte("67")}, 3, 1); err != nil || n != 8 {
		t.Fatal(n, err)
	}
	got := make([]byte, 108)
	if _, err := f.ReadV(t.Context(), 0, [][]byte{got}); err != nil || string(got[100:]) != "\x00\x00\x0034567" {
		t.Errorf("%q, %v", got[100:], err)
	}
	if c.taken.Load() != 0 {
		t.Error("the slot was kept")
	}
}

func TestDoRepeatsInterruptedCalls(t *testing.T) {
	f := openFile(t, NewCalls(1), filepath.Join(t.TempDir(), "d"), unix.O_RDWR)
	n := 0
	err := f.Do(t.Context(), func(int) error {
		if n++; n < 3 {
			return unix.EINTR
		}
		return unix.ENOSPC
	})
	if err != unix.ENOSPC || n != 3 {
		t.Errorf("%v after %d calls", err, n)
	}
}

func TestRequestsSurviveReplacement(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "r")
	f := openFile(t, NewCalls(8), path, unix.O_RDWR)
	data := bytes.Repeat([]byte{9}, 64<<10)
	if _, err := f.WriteV(t.Context(), 0, [][]byte{data}); err != nil {
		t.Fatal(err)
	}
	number := f.Fd()
	var stop atomic.Bool
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			b := make([]byte, len(data))
			for !stop.Load() {
				if n, err := f.ReadV(context.Background(), 0, [][]byte{b}); err != nil || n != int64(len(b)) || !bytes.Equal(b, data) {
					t.Errorf("read %d, %v", n, err)
					return
				}
			}
		})
	}
	for i := range 200 {
		fd, err := unix.Open(path, []int{unix.O_RDONLY, unix.O_RDWR}[i&1]|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Replace(fd); err != nil {
			t.Fatal(err)
		}
	}
	stop.Store(true)
	wg.Wait()
	if f.Fd() != number {
		t.Error("the descriptor changed")
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if err := f.Close(); !errors.Is(err, unix.EBADF) {
		t.Errorf("second close: %v", err)
	}
}

func BenchmarkTransfer4k(b *testing.B) {
	for name, dir := range places(b) {
		f := openFile(b, NewCalls(DefaultCalls), filepath.Join(dir, "b"), unix.O_RDWR)
		if _, err := f.WriteV(b.Context(), 0, [][]byte{make([]byte, 1<<20)}); err != nil {
			b.Fatal(err)
		}
		ctx := context.Background()
		loop := func(op func(off int64, segs [][]byte) (int64, error)) func(b *testing.B) {
			return func(b *testing.B) {
				b.ReportAllocs()
				b.SetBytes(4096)
				segs := [][]byte{make([]byte, 4096)}
				for i := 0; b.Loop(); i++ {
					if _, err := op(int64(i&255)<<12, segs); err != nil {
						b.Fatal(err)
					}
				}
			}
		}
		b.Run(name+"/read", loop(func(off int64, segs [][]byte) (int64, error) { return f.ReadV(ctx, off, segs) }))
		b.Run(name+"/write", loop(func(off int64, segs [][]byte) (int64, error) { return f.WriteV(ctx, off, segs) }))
	}
}
