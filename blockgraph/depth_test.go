package blockgraph

import (
	"fmt"
	"strings"
	"testing"
)

// TestChainsDeeperThanTheLimitAreRefused, however they are built.
func TestChainsDeeperThanTheLimitAreRefused(t *testing.T) {
	const limit = 16
	w := newReopenWorld(t)
	w.g.maxChain = limit
	image := func(i int, backing string) string {
		return fmt.Sprintf(`{"driver": "qcow2", "node-name": "n%d", "file": "f", "backing": %s, "read-only": true}`, i, backing)
	}
	over := func(i int) string { return fmt.Sprintf(`"n%d"`, i) }
	w.add(`{"driver": "null-co", "node-name": "f", "read-only": true}`)
	w.add(image(1, "null"))
	for i := 2; i <= limit; i++ {
		w.add(image(i, over(i-1)))
	}
	const want = "Backing chain is longer than 16 nodes"
	w.refused(want, func(tx *Tx) error {
		_, err := tx.Open(w.options(image(0, over(limit))))
		return err
	})
	// Two halves that would be too long together.
	half := limit / 2
	w.reopen(image(half, "null"))
	w.add(image(limit+1, over(half-1)))
	w.add(image(limit+2, over(limit+1)))
	w.refused(want, func(tx *Tx) error {
		return tx.Reopen(w.list([]string{image(half, over(limit+2))}))
	})
	w.reopen(image(half, over(half-1)))
	nested := "null"
	for i := range limit + 2 {
		nested = fmt.Sprintf(`{"driver": "qcow2", "node-name": "m%d", "file": "f", "backing": %s, "read-only": true}`, i, nested)
	}
	w.refused(strings.Repeat("Could not open backing file: ", limit+1)+want, func(tx *Tx) error {
		_, err := tx.Open(w.options(nested))
		return err
	})
}
