package jobs

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
)

func toString(phases []string) string { return fmt.Sprint(phases) }

const groupRounds = 300

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
	synced(t, func(t *testing.T, b *bench) {
		for range groupRounds {
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
	synced(t, func(t *testing.T, b *bench) {
		for i := range groupRounds {
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
		}
		if b.deep != 1 {
			t.Errorf("phases nested %d deep", b.deep)
		}
	})
}

// TestCleanUpsNeverNest: jobs of many transactions end at once; their phases
// run one after the other.
func TestCleanUpsNeverNest(t *testing.T) {
	synced(t, func(t *testing.T, b *bench) {
		var fakes []*fake
		for _, id := range groupIDs() {
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
