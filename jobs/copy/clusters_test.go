package copy

import (
	"context"
	"math/rand/v2"
	"sync/atomic"
	"testing"
)

// TestClustersAgreeWithModel does random operations on a set and on a plain
// model of it.
func TestClustersAgreeWithModel(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	const size, n = 4096, 2*pageClusters + 1000
	c := NewClusters(n*size-100, size)
	var done, remaining atomic.Int64
	remaining.Store(n * size)
	c.SetProgress(func(d, r int64) { done.Add(d); remaining.Add(r) })
	dirty, claimed := make([]bool, n), make([]int, n)
	for i := range dirty {
		dirty[i] = true
	}
	type held struct {
		cl   *Claim
		a, b int
	}
	var claims []held
	var copied int64
	check := func(a, b int) {
		want := false
		for i := a; i < b; i++ {
			want = want || dirty[i] || claimed[i] > 0
		}
		if got := c.Dirty(int64(a)*size, int64(b-a)*size); got != want {
			t.Fatalf("Dirty(%d, %d) = %v", a, b, got)
		}
	}
	span := func() (int, int) {
		a := r.IntN(n)
		return a, min(n, a+1+r.IntN(1+r.IntN(3000)))
	}
	for range 20000 {
		a, b := span()
		off, ln := int64(a)*size, int64(b-a)*size
		switch op := r.IntN(10); {
		case op < 4:
			limit := 1 + r.IntN(500)
			cl, ok := c.Claim(off, ln, int64(limit)*size)
			i := a
			for i < b && (!dirty[i] || claimed[i] > 0) {
				i++
			}
			if ok != (i < b) {
				t.Fatalf("Claim(%d, %d) = %v", a, b, ok)
			}
			if !ok {
				break
			}
			k := i
			for k < b && k < i+limit && dirty[k] && claimed[k] == 0 {
				dirty[k] = false
				claimed[k]++
				k++
			}
			if cl.Off != int64(i)*size || cl.N != int64(k-i)*size {
				t.Fatalf("claimed %d+%d, want %d+%d", cl.Off/size, cl.N/size, i, k-i)
			}
			claims = append(claims, held{cl, i, k})
		case op < 8 && len(claims) > 0:
			x := r.IntN(len(claims))
			h := claims[x]
			claims = append(claims[:x], claims[x+1:]...)
			if k := h.a + 1 + r.IntN(h.b-h.a); r.IntN(3) == 0 && k < h.b {
				c.Shrink(h.cl, int64(k-h.a)*size)
				for i := k; i < h.b; i++ {
					dirty[i] = true
					claimed[i]--
				}
				h.b = k
			}
			o := Outcome(r.IntN(3))
			c.Done(h.cl, o)
			for i := h.a; i < h.b; i++ {
				claimed[i]--
				if o == Failed {
					dirty[i] = true
				}
			}
			if o == Copied {
				copied += int64(h.b-h.a) * size
			}
		case op == 8:
			c.Mark(off, ln)
			for i := a; i < b; i++ {
				dirty[i] = true
			}
		default:
			c.Clear(off, ln)
			for i := a; i < b; i++ {
				if claimed[i] == 0 {
					dirty[i] = false
				}
			}
		}
		check(span())
		check(a, b)
	}
	var pending int64
	for i := range dirty {
		if dirty[i] || claimed[i] > 0 {
			pending++
		}
	}
	if c.Remaining() != pending*size || remaining.Load() != pending*size || done.Load() != copied {
		t.Errorf("remaining %d %d want %d, done %d want %d", c.Remaining(), remaining.Load(), pending*size, done.Load(), copied)
	}
}

func TestCleanAndDirtyPagesTakeNoMemory(t *testing.T) {
	const size = 64 << 10
	c := NewClusters(64<<40, size)
	own := func() (k int) {
		for i := range c.pages {
			if p := c.pages[i].Load(); p != cleanPage && p != dirtyPage {
				k++
			}
		}
		return k
	}
	for off := int64(0); off < 8<<30; off += 32 << 20 {
		cl, ok := c.Claim(off, 32<<20, 32<<20)
		if !ok {
			t.Fatal("nothing to claim")
		}
		c.Done(cl, Copied)
	}
	if k := own(); k > 1 {
		t.Errorf("%d pages of its own after a copy in ascending order", k)
	}
}

func TestWaitEndsWithOverlappingClaimOnly(t *testing.T) {
	c := NewClusters(1<<20, 65536)
	a, _ := c.Claim(0, 65536, 65536)
	b, _ := c.Claim(65536, 65536, 65536)
	if err := c.Wait(t.Context(), 2*65536, 65536); err != nil {
		t.Fatal(err)
	}
	waited := make(chan error)
	go func() { waited <- c.Wait(t.Context(), 100, 10) }()
	c.Done(b, Copied)
	select {
	case err := <-waited:
		t.Fatal("ended while its claim is held", err)
	default:
	}
	c.Done(a, Failed)
	if err := <-waited; err != nil {
		t.Fatal(err)
	}
	d, _ := c.Claim(0, 65536, 65536)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Wait(ctx, 0, 1); err != context.Canceled {
		t.Error(err)
	}
	c.Done(d, Copied)
}

func BenchmarkDirtyTest(b *testing.B) {
	c := NewClusters(1<<30, 65536)
	cl, _ := c.Claim(0, 512<<20, 512<<20)
	c.Done(cl, Copied)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for off := int64(0); pb.Next(); off = (off + 4096) & (256<<20 - 1) {
			if c.Dirty(off, 4096) {
				b.Fail()
			}
		}
	})
}
