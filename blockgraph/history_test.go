package blockgraph

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"blockd/clock"
	"blockd/qapi"
)

func numbers(steps []*Step) (n []uint64) {
	for _, s := range steps {
		n = append(n, s.Number)
	}
	return n
}

func TestHistoryKeepsAsManyStepsAsItWasTold(t *testing.T) {
	g := newTestGraph()
	defer g.Loop().Stop()
	g.KeepHistory(3, clock.Real(), nil)
	for i := range 5 {
		add(t, g, memOptions(fmt.Sprint("m", i), 512))
	}
	h := g.History()
	for since, want := range map[uint64][]uint64{0: {3, 4, 5}, 1: {3, 4, 5}, 2: {3, 4, 5}, 3: {4, 5}, 5: nil, 9: nil} {
		g.Loop().Do(func() {
			steps, complete := h.Since(since)
			if got := numbers(steps); !slices.Equal(got, want) || complete != (since >= 2) {
				t.Errorf("since %d: %v, complete %v", since, got, complete)
			}
		})
	}
}

// TestHistoryOfLargeStepsIsShorter: memory is bounded, whatever a step says.
func TestHistoryOfLargeStepsIsShorter(t *testing.T) {
	h := newHistory(clock.Real())
	large := make([]Change, 10000)
	for range 100 {
		h.add(Cause{}, large)
	}
	if kept := h.Last() - h.First() + 1; kept != 8 {
		t.Errorf("%d steps of 10,000 changes are kept", kept)
	}
	if h.weights > DefaultHistory*stepBytes {
		t.Errorf("they weigh %d", h.weights)
	}
	h.add(Cause{}, make([]Change, 1000000))
	if h.First() != h.Last() {
		t.Error("the last step is not kept alone")
	}
}

func TestCauseIsTheCommandThatTheContextKnows(t *testing.T) {
	g := newTestGraph()
	defer g.Loop().Stop()
	ctx := qapi.WithOrigin(context.Background(), qapi.Origin{Command: "blockdev-add", ID: int64(7), HasID: true})
	for i, c := range []struct {
		ctx   context.Context
		given Cause
		want  Cause
	}{
		{ctx, Cause{Command: "other"}, Cause{Command: "blockdev-add", ID: int64(7), HasID: true}},
		{ctx, Cause{Job: "j"}, Cause{Job: "j"}},
		{context.Background(), Cause{Command: "other"}, Cause{Command: "other"}},
		{qapi.WithOrigin(ctx, qapi.Origin{Option: "blockdev"}), Cause{Command: "other"}, Cause{Option: "blockdev"}},
		{qapi.WithOrigin(ctx, qapi.Origin{Shutdown: true}), Cause{Command: "other"}, Cause{Shutdown: true}},
	} {
		err := g.Update(c.ctx, c.given, func(tx *Tx) error {
			_, err := tx.Open(memOptions(fmt.Sprint("m", i), 512))
			if err == nil {
				tx.SetMonitorOwned(tx.newNodes[0], true)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		g.Loop().Do(func() {
			if got := g.History().step(g.History().Last()).Cause; got != c.want {
				t.Errorf("%+v: %+v", c.given, got)
			}
		})
	}
}

func TestChangeThatMakesNoDifferenceIsNoStep(t *testing.T) {
	g := newTestGraph()
	defer g.Loop().Stop()
	n := add(t, g, memOptions("m", 512))
	update(t, g, func(tx *Tx) error { return tx.Drain(n) })
	update(t, g, func(tx *Tx) error { _, err := tx.Open(memOptions("unused", 512)); return err })
	_ = g.Update(context.Background(), Cause{}, func(tx *Tx) error {
		tx.SetMonitorOwned(n, false)
		return errors.New("no")
	})
	g.Loop().Do(func() {
		if last := g.History().Last(); last != 1 {
			t.Errorf("%d steps", last)
		}
	})
}
