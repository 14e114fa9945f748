package copy

import (
	"context"
	"testing"

	"blockd/clock"
	"blockd/ioengine"
)

// emptyWork is pieces of one size that cost nothing to copy.
type emptyWork struct{ size, left int64 }

func (w *emptyWork) Unit() int64 { return w.size }

func (w *emptyWork) Next(context.Context, Limit) (Piece, error) {
	if w.left == 0 {
		return Piece{}, nil
	}
	w.left--
	return Piece{Off: w.left * w.size, N: w.size}, nil
}

func (w *emptyWork) Do(context.Context, Piece, []byte) error { return nil }

func (w *emptyWork) Skip(Piece, bool) {}

func (w *emptyWork) Settle(context.Context) (bool, error) { return false, nil }

func runSteps(t testing.TB, steps int64) {
	t.Helper()
	const size = 64 << 10
	o := Options{Clock: clock.Real(), Scheduler: NewScheduler(clock.Real(), 2, DefaultShare), Budget: ioengine.NewBudget(DefaultShare), MaxChunk: size}
	if err := NewJob(&emptyWork{size: size, left: steps}, o).Run(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// BenchmarkStep is a step of a job without its I/O: the plan, the turn, the buffer,
// the worker.
func BenchmarkStep(b *testing.B) {
	b.ReportAllocs()
	b.ResetTimer()
	runSteps(b, int64(b.N))
}
