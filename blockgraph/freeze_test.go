package blockgraph

import (
	"context"
	"testing"
)

// TestThawEndsOnlyItsOwnFreeze: who thaws late, or once more, does not thaw what
// somebody else has frozen meanwhile.
func TestThawEndsOnlyItsOwnFreeze(t *testing.T) {
	g := newTestGraph()
	base := add(t, g, memOptions("base", 4096))
	add(t, g, memOptions("f", 4096))
	top := add(t, g, overOptions("fmt", "top", "f", "base"))
	var first *FrozenChain
	update(t, g, func(tx *Tx) (err error) {
		if first, err = tx.FreezeChain(top, base); err != nil {
			return err
		}
		tx.Thaw(first)
		_, err = tx.FreezeChain(top, base)
		return err
	})
	update(t, g, func(tx *Tx) error {
		tx.Thaw(first)
		return nil
	})
	err := g.Update(context.Background(), Cause{}, func(tx *Tx) error { return tx.SetChild(top, "backing", RoleCOW, nil) })
	if err == nil || err.Error() != "Cannot change frozen 'backing' link from 'top' to 'base'" {
		t.Error(err)
	}
}
