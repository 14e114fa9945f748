package blockgraph

import (
	"fmt"
	"testing"
)

// TestChainsDeeperThanTheLimitAreRefused, however they are built.
func TestChainsDeeperThanTheLimitAreRefused(t *testing.T) {
	w := newReopenWorld(t)
	image := func(i int, backing string) string {
		return fmt.Sprintf(`{"driver": "qcow2", "node-name": "n%d", "file": "f", "backing": %s, "read-only": true}`, i, backing)
	}
	w.add(`{"driver": "null-co", "node-name": "f", "read-only": true}`)
	update(t, w.g, func(tx *Tx) error {
		below := "null"
		for i := 1; i <= MaxChain; i++ {
			n, err := tx.Open(w.options(image(i, below)))
			if err != nil {
				return err
			}
			tx.SetMonitorOwned(n, true)
			below = fmt.Sprintf(`"n%d"`, i)
		}
		return nil
	})
	const want = "Backing chain is longer than 1024 nodes"
	w.refused(want, func(tx *Tx) error {
		_, err := tx.Open(w.options(image(0, fmt.Sprintf(`"n%d"`, MaxChain))))
		return err
	})
	// Two halves that would be too long together.
	half := MaxChain / 2
	w.reopen(image(half, "null"))
	w.add(image(MaxChain+1, fmt.Sprintf(`"n%d"`, half-1)))
	w.add(image(MaxChain+2, fmt.Sprintf(`"n%d"`, MaxChain+1)))
	w.refused(want, func(tx *Tx) error {
		return tx.Reopen(w.list([]string{image(half, fmt.Sprintf(`"n%d"`, MaxChain+2))}))
	})
	w.reopen(image(half, fmt.Sprintf(`"n%d"`, half-1)))
}
