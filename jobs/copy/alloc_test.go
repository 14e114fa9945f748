//go:build !race

package copy

import "testing"

// The race detector drops what is pooled, so this file is left out with it.

// A job takes memory for as many steps as are in flight, not for each.
func TestStepsTakeNoMemory(t *testing.T) {
	const steps = 4096
	allocs := testing.AllocsPerRun(3, func() { runSteps(t, steps) })
	t.Logf("%v allocations in %d steps", allocs, steps)
	if allocs > steps/4 {
		t.Errorf("%v allocations in %d steps", allocs, steps)
	}
}
