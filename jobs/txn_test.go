package jobs

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"blockd/blockgraph/graphtest"
)

func toString(phases []string) string { return fmt.Sprint(phases) }

func groupIDs() []string {
	ids := make([]string, 64)
	for i := range ids {
		ids[i] = fmt.Sprintf("j%d", i)
	}
	return ids
}

// TestGroupedJobsThatEndAtOnceCommitTogether: jobs that end as soon as they
// are started do not end their transaction before their siblings are ready.
func TestGroupedJobsThatEndAtOnceCommitTogether(t *testing.T) {
	ids := groupIDs()
	rounds := graphtest.Sample(t, 200, 1000)
	synced(t, func(t *testing.T, b *bench) {
		b.committing = func(id string) {
			b.mu.Lock()
			defer b.mu.Unlock()
			if k := count(b.events, " pending"); k != len(ids) {
				t.Errorf("%s commits when %d of %d are ready", id, k, len(ids))
			}
		}
		for range rounds {
			txn := b.set.NewTxn()
			b.launchFinished(txn, "", ids)
			<-txn.Over()
			events := b.take()
			lastPending, firstCompleted := -1, len(events)
			for i, e := range events {
				switch {
				case strings.HasSuffix(e, " pending"):
					lastPending = i
				case strings.HasSuffix(e, " COMPLETED"):
					firstCompleted = min(firstCompleted, i)
				}
			}
			if lastPending > firstCompleted || count(events, " COMPLETED") != len(ids) || count(events, " null") != len(ids) {
				t.Fatalf("%q", events)
			}
		}
		if b.deep != 1 {
			t.Errorf("phases nested %d deep", b.deep)
		}
	})
}

// TestGroupedJobsThatEndAtOnceWithOneFailing: all others end cancelled, and
// nothing of theirs was committed.
func TestGroupedJobsThatEndAtOnceWithOneFailing(t *testing.T) {
	ids := groupIDs()
	rounds := graphtest.Sample(t, 200, 1000)
	synced(t, func(t *testing.T, b *bench) {
		for i := range rounds {
			bad := ids[i%len(ids)]
			txn := b.set.NewTxn()
			b.phases = nil
			b.launchFinished(txn, bad, ids)
			<-txn.Over()
			events := b.take()
			if count(events, " CANCELLED") != len(ids)-1 || !slices.Contains(events, bad+" COMPLETED: Input/output error") || count(events, " null") != len(ids) {
				t.Fatalf("%q", events)
			}
			if count(b.phases, " commit") != 0 || count(b.phases, " abort") != len(ids) || count(b.phases, " clean") != len(ids) {
				t.Fatalf("%q", b.phases)
			}
			b.on(func() {
				if left := b.set.Infos(); len(left) != 0 {
					t.Errorf("jobs are left: %+v", left)
				}
			})
		}
		if b.deep != 1 {
			t.Errorf("phases nested %d deep", b.deep)
		}
	})
}

// TestCleanUpsNeverNest: jobs of many transactions end at once; their phases
// run one after the other, on a call stack that is no deeper than for one job.
func TestCleanUpsNeverNest(t *testing.T) {
	endAll := func(t *testing.T, b *bench, ids []string) []*fake {
		var fakes []*fake
		for _, id := range ids {
			fakes = append(fakes, b.launch(false, nil, Options{}, id)...)
		}
		for i, f := range fakes {
			if i%3 == 0 {
				f.fail()
			} else {
				f.finish()
			}
		}
		synctest.Wait()
		return fakes
	}
	var one, many int
	synced(t, func(t *testing.T, b *bench) {
		endAll(t, b, []string{"a"})
		f := b.launch(false, nil, Options{}, "b")
		f[0].finish()
		synctest.Wait()
		one = b.frames
	})
	synced(t, func(t *testing.T, b *bench) {
		fakes := endAll(t, b, groupIDs())
		many = b.frames
		if b.deep != 1 || count(b.phases, " clean") != len(fakes) {
			t.Errorf("depth %d, phases %q", b.deep, b.phases)
		}
		for i := 0; i < len(b.phases); { // the phases of one job stand together
			id, _, _ := strings.Cut(b.phases[i], " ")
			k := i
			for k < len(b.phases) && strings.HasPrefix(b.phases[k], id+" ") {
				k++
			}
			if !strings.HasSuffix(b.phases[k-1], " clean") {
				t.Fatalf("%q", b.phases[i:k])
			}
			i = k
		}
	})
	t.Logf("the call stack of a phase is %d frames deep for one job at a time, %d for 64", one, many)
	if many != one || one == 0 {
		t.Errorf("the call stack is %d frames deep for one job at a time, %d for 64", one, many)
	}
}

func count(list []string, suffix string) int {
	n := 0
	for _, e := range list {
		if strings.HasSuffix(e, suffix) {
			n++
		}
	}
	return n
}
