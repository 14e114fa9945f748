//go:build !race

package nbd

import (
	"testing"

	"blockd/nbdproto"
)

// The race detector drops what is pooled, so this file is left out with it.

func TestRequestsAllocateNothing(t *testing.T) {
	for _, cmd := range []nbdproto.Command{nbdproto.CmdRead, nbdproto.CmdWrite} {
		if n := testing.AllocsPerRun(500, bursts(t, cmd, 1)); n != 0 {
			t.Errorf("%v: %v allocations", cmd, n)
		}
	}
}
