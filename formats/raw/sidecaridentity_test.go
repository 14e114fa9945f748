package raw

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"blockd/blockgraph"
)

// oldHost is the host of a file that was changed at some time.
type oldHost struct {
	memHost
	id blockgraph.FileIdentity
}

func (h *oldHost) Identity(context.Context) (blockgraph.FileIdentity, error) { return h.id, nil }

// TestOnlyAFreshChangeIsWaitedFor: after a close the clock of files has gone on since
// the last change, and nobody waits for more than that.
func TestOnlyAFreshChangeIsWaitedFor(t *testing.T) {
	for _, row := range []struct {
		name            string
		ago             time.Duration
		device, settled bool
		want            time.Duration
	}{
		{"just changed", 0, false, true, timeGrain},
		{"changed a moment ago", timeGrain / 4, false, true, timeGrain - timeGrain/4},
		{"changed long ago", time.Hour, false, true, 0},
		{"changed in the future", -time.Hour, false, true, 0},
		{"not to be settled", 0, false, false, 0},
		{"a device", 0, true, true, 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begun := time.Now()
				id := blockgraph.FileIdentity{Device: row.device, Dev: 1, Ino: 2, Changed: begun.Add(-row.ago).UnixNano()}
				s := &sidecar{host: &oldHost{id: id}}
				got, err := s.identity(t.Context(), row.settled)
				if err != nil || got != id {
					t.Fatal(got, err)
				}
				if waited := time.Since(begun); waited != row.want {
					t.Errorf("waited for %v, want %v", waited, row.want)
				}
			})
		})
	}
}
