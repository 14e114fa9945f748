package jobs

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"blockd/qapi"
)

// told is a job's history as text: states with seconds since the first.
func told(h qapi.JobHistory) []string {
	var list []string
	for _, s := range h.States {
		list = append(list, fmt.Sprintf("%s %d", s.Status, s.Timestamp.Seconds-h.States[0].Timestamp.Seconds))
	}
	return list
}

func (b *bench) history() (list []qapi.JobHistory) {
	b.on(func() { list = b.set.History() })
	return list
}

func TestHistoryHasEachStateWithItsTime(t *testing.T) {
	synced(t, func(t *testing.T, b *bench) {
		f := b.launch(false, nil, Options{Request: 7}, "a")
		b.clock.Step(5 * time.Second)
		b.do("a", (*Job).Pause)
		synctest.Wait()
		b.clock.Step(3 * time.Second)
		b.do("a", (*Job).Resume)
		f[0].fail()
		synctest.Wait()
		b.launch(false, nil, Options{}, "a") // the id is free again
		list := b.history()
		if len(list) != 2 || list[0].Request == nil || *list[0].Request != 7 || list[1].Request != nil {
			t.Fatalf("%+v", list)
		}
		want := []string{"created 0", "running 0", "paused 5", "running 8", "aborting 8", "concluded 8", "null 8"}
		if got := told(list[0]); !slices.Equal(got, want) {
			t.Errorf("got %q", got)
		}
		if list[0].Error == nil || *list[0].Error != errBody.Error() || list[1].Error != nil {
			t.Errorf("errors %v, %v", list[0].Error, list[1].Error)
		}
		if got := told(list[1]); !slices.Equal(got, []string{"created 0", "running 0"}) {
			t.Errorf("the second job: %q", got)
		}
	})
}

func TestHistoryIsBounded(t *testing.T) {
	synced(t, func(t *testing.T, b *bench) {
		b.launch(false, nil, Options{}, "lives")
		const rounds = 100
		for range rounds {
			b.do("lives", (*Job).Pause)
			synctest.Wait()
			b.do("lives", (*Job).Resume)
		}
		for i := range maxGone + 10 {
			f := b.launch(false, nil, Options{}, fmt.Sprintf("j%d", i))
			f[0].finish()
			synctest.Wait()
		}
		list := b.history()
		if len(list) != 1+maxGone || list[0].ID != "lives" || list[1].ID != "j10" || list[maxGone].ID != fmt.Sprintf("j%d", maxGone+9) {
			t.Errorf("%d jobs, from %s, %s to %s", len(list), list[0].ID, list[1].ID, list[len(list)-1].ID)
		}
		h := list[0]
		if len(h.States) != maxFirst+maxNewest || h.Dropped != 2+2*rounds-maxFirst-maxNewest {
			t.Errorf("%d states, %d dropped", len(h.States), h.Dropped)
		}
		if h.States[0].Status != created || h.States[1].Status != running || h.States[len(h.States)-1].Status != running {
			t.Errorf("states %+v", h.States)
		}
	})
}
