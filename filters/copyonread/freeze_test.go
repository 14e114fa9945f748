package copyonread_test

import (
	"errors"
	"testing"

	"blockd/blockgraph"
)

// newChain is images top, mid and base, and whether links can be cut: what says
// why not.
func newChain(t *testing.T) (w *world, cut func(parent string, before func(tx *blockgraph.Tx) error) string) {
	w = newWorld(t, true)
	w.Mem("base", 1<<20)
	for _, n := range [][2]string{{"mid", "base"}, {"top", "mid"}} {
		w.Mem(n[0]+"-file", 1<<20)
		w.Image(n[0], n[0]+"-file", n[1])
	}
	return w, func(parent string, before func(tx *blockgraph.Tx) error) string {
		return w.Try(func(tx *blockgraph.Tx) error {
			if before != nil {
				if err := before(tx); err != nil {
					return err
				}
			}
			if err := tx.SetChild(tx.Find(parent), "backing", 0, nil); err != nil {
				return err
			}
			return errors.New("free")
		}).Error()
	}
}

const frozenTop = "Cannot change frozen 'backing' link from 'top' to 'mid'"

func TestBottomFreezesTheChainWhileTheFilterIsThere(t *testing.T) {
	w, cut := newChain(t)
	n := w.Add(corOptions("cor", "top", "mid"))
	if got := cut("top", nil); got != frozenTop {
		t.Error(got)
	}
	if got := cut("mid", nil); got != "free" {
		t.Errorf("below the bottom: %s", got)
	}
	_, err := w.TryAdd(corOptions("another", "top", "base"))
	if err == nil || err.Error() != "Cannot change 'backing' link from 'top' to 'mid'" {
		t.Error(err)
	}
	if got := cut("top", nil); got != frozenTop {
		t.Errorf("after another filter was refused: %s", got)
	}
	w.Del(n)
	if got := cut("top", nil); got != "free" {
		t.Errorf("when the filter is closed: %s", got)
	}
}

func TestWithoutABottomNothingIsFrozen(t *testing.T) {
	w, cut := newChain(t)
	w.Add(corOptions("cor", "top", ""))
	if got := cut("top", nil); got != "free" {
		t.Error(got)
	}
}

// TestFreezingIsUndoneWithItsChange, be it that of the open or of the close.
func TestFreezingIsUndoneWithItsChange(t *testing.T) {
	w, cut := newChain(t)
	open := func(tx *blockgraph.Tx) error {
		_, err := tx.Open(corOptions("cor", "top", "base"))
		return err
	}
	for range 2 {
		if got := cut("top", open); got != frozenTop {
			t.Errorf("in the change that opens: %s", got)
		}
		if got := cut("top", nil); got != "free" {
			t.Errorf("after it was undone: %s", got)
		}
	}
	w.Update(func(tx *blockgraph.Tx) error {
		n, err := tx.Open(corOptions("cor", "top", "base"))
		if err != nil {
			return err
		}
		return tx.Dispose(n)
	})
	if got := cut("top", nil); got != "free" {
		t.Errorf("after the filter was disposed of: %s", got)
	}
	w.Add(corOptions("cor", "top", "base"))
	del := func(tx *blockgraph.Tx) error {
		tx.Delete(tx.Find("cor"))
		return nil
	}
	if got := cut("top", del); got != "free" {
		t.Errorf("in the change that closes: %s", got)
	}
	if got := cut("mid", nil); got != "Cannot change frozen 'backing' link from 'mid' to 'base'" {
		t.Errorf("after it was undone: %s", got)
	}
}

// TestBottomIsLookedUpInTheChangedChain, not in the published one.
func TestBottomIsLookedUpInTheChangedChain(t *testing.T) {
	w, _ := newChain(t)
	w.Mem("over-file", 1<<20)
	w.Image("over", "over-file", "")
	w.Update(func(tx *blockgraph.Tx) error {
		if err := tx.Append(tx.Find("over"), tx.Find("top")); err != nil {
			return err
		}
		n, err := tx.Open(corOptions("cor", "over", "top"))
		if err == nil {
			tx.SetMonitorOwned(n, true)
		}
		return err
	})
	err := w.Try(func(tx *blockgraph.Tx) error { return tx.SetChild(tx.Find("over"), "backing", 0, nil) })
	if err == nil || err.Error() != "Cannot change frozen 'backing' link from 'over' to 'top'" {
		t.Error(err)
	}
}
