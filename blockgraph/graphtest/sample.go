package graphtest

import (
	"os"
	"testing"
)

// Sample returns how many rounds a randomised test makes: quick, or all when
// the environment has BLOCKD_TEST_ALL=1, as under `make test-all`.
func Sample(t testing.TB, quick, all int) int {
	t.Helper()
	n := quick
	if os.Getenv("BLOCKD_TEST_ALL") == "1" {
		n = all
	}
	t.Logf("%d rounds", n)
	return n
}
