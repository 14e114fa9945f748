package copybeforewrite

import (
	"math/rand/v2"
	"sync"
	"testing"
)

// TestOverwrittenCountsEachClusterOnce marks random ranges by several goroutines
// and compares with a plain set.
func TestOverwrittenCountsEachClusterOnce(t *testing.T) {
	const clusters = 3*overwrittenPage + 100
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	type span struct{ first, end int64 }
	set := map[int64]bool{}
	var spans []span
	for range 400 {
		first := r.Int64N(clusters)
		s := span{first, min(first+1+r.Int64N(200), clusters)}
		spans = append(spans, s)
		for c := s.first; c < s.end; c++ {
			set[c] = true
		}
	}
	o := newOverwritten(clusters)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for _, s := range spans {
				o.mark(s.first, s.end)
			}
		})
	}
	wg.Wait()
	if got := o.count.Load(); got != int64(len(set)) {
		t.Errorf("%d clusters, not %d", got, len(set))
	}
	if n := testing.AllocsPerRun(100, func() { o.mark(spans[0].first, spans[0].end) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
