package copy

import (
	"context"

	"blockd/blockgraph"
)

// EnterRoots returns an Enter function for a copy from one root to another.
// It never waits for one gate while it is admitted by the other: a change that
// drains both would wait for it in turn. Data plane; the function blocks.
func EnterRoots(source, target *blockgraph.Root) func(ctx context.Context) (Ends, func(), error) {
	return func(ctx context.Context) (Ends, func(), error) {
		first, second := source, target
		for {
			a, err := first.Enter(ctx)
			if err != nil {
				return Ends{}, nil, err
			}
			b, err := second.Enter(noWait)
			if err == nil {
				leave := func() { b.Leave(); a.Leave() }
				if first == source {
					return Ends{a.Edge(), b.Edge()}, leave, nil
				}
				return Ends{b.Edge(), a.Edge()}, leave, nil
			}
			a.Leave()
			if noWait.Err() != err {
				return Ends{}, nil, err
			}
			// Wait where it was closed, next time.
			first, second = second, first
		}
	}
}

// TryEnter admits a request at a root unless a graph change keeps its gate
// closed. Data plane; it never waits.
func TryEnter(r *blockgraph.Root) (blockgraph.Admission, bool) {
	a, err := r.Enter(noWait)
	return a, err == nil
}

// noWait has ended: a gate that is closed refuses it at once.
var noWait = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()
