package blockgraph

import (
	"context"
	"errors"
	"syscall"
	"testing"
)

// TestFailedHandOverLeavesEverythingAsItWas, in both directions and whatever
// fails.
func TestFailedHandOverLeavesEverythingAsItWas(t *testing.T) {
	w := newReopenWorld(t)
	top := w.add(img("top", `, "backing": `+img("base", "")))
	away := func(tx *Tx) error { return tx.Inactivate(top) }
	for _, step := range []string{"flush", "prepare"} {
		w.refuse["top"] = step
		w.refused("refused", away)
		delete(w.refuse, "top")
	}
	writer := newRoot(t, w.g, top, PermWrite, PermAll)
	w.refused(syscall.EPERM.Error(), away)
	update(t, w.g, func(tx *Tx) error { return tx.CloseRoot(writer) })
	w.refused("no", func(tx *Tx) error { return errors.Join(away(tx), errors.New("no")) })

	update(t, w.g, away)
	before := top.Driver()
	back := func(tx *Tx) error { return tx.Activate(top) }
	w.refuse["top"] = "open"
	w.refused("Could not reopen qcow2 layer: refused", back)
	delete(w.refuse, "top")
	base := w.g.names["base"].File().Child().drv.(*loggedDriver).Driver.(*memDriver)
	base.fail = errors.New("locked")
	w.refused("locked", back)
	base.fail = nil
	w.refused("no", func(tx *Tx) error { return errors.Join(back(tx), errors.New("no")) })
	if top.Driver() != before {
		t.Error("the driver of a failed activation is there")
	}
	update(t, w.g, back)
	if top.Driver() == before {
		t.Error("what the driver knew of its image was kept")
	}
}

// TestInactiveNodesTakeNoWrites, and give up what they need below; their roots
// have their permissions again when they are active.
func TestInactiveNodesTakeNoWrites(t *testing.T) {
	w := newReopenWorld(t)
	n := w.add(img("n", ""))
	file := n.File().Child().drv.(*loggedDriver).Driver.(*memDriver)
	var r *Root
	update(t, w.g, func(tx *Tx) (err error) {
		r, err = tx.NewRoot(n, RootOptions{Perm: PermConsistentRead | PermWrite, Shared: PermAll, AllowInactive: true})
		return err
	})
	locks := file.locks
	update(t, w.g, func(tx *Tx) error { return tx.Inactivate(n) })
	if got := file.locks; got != [2]Perm{PermConsistentRead, PermAll} {
		t.Errorf("locks while inactive: %v", got)
	}
	ctx, v := context.Background(), MakeIOVec(make([]byte, 512))
	for what, err := range map[string]error{
		"write": r.WriteV(ctx, 0, v, 0), "zeroes": r.WriteZeroes(ctx, 0, 512, 0), "discard": r.Discard(ctx, 0, 512), "flush": r.Flush(ctx),
	} {
		if !errors.Is(err, ErrInactive) || !errors.Is(err, syscall.EPERM) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := r.ReadV(ctx, 0, v, 0); err != nil {
		t.Error(err)
	}
	update(t, w.g, func(tx *Tx) error {
		return tx.SetRootPerms(r, PermConsistentRead|PermWrite|PermWriteUnchanged, PermAll)
	})
	update(t, w.g, func(tx *Tx) error { return tx.Activate(n) })
	if p, _ := r.edge.Load().Perms(); p != PermConsistentRead|PermWrite|PermWriteUnchanged {
		t.Errorf("permissions of the root: %s", p)
	}
	if locks[0] |= PermWriteUnchanged; file.locks != locks {
		t.Errorf("locks %v, before %v", file.locks, locks)
	}
	if err := r.WriteV(ctx, 0, v, 0); err != nil {
		t.Error(err)
	}
}

// TestSharedChildStaysActiveForItsActiveParent.
func TestSharedChildStaysActiveForItsActiveParent(t *testing.T) {
	w := newReopenWorld(t)
	base := w.add(img("base", `, "read-only": true`))
	a, b := w.add(img("a", `, "backing": "base"`)), w.add(img("b", `, "backing": "base"`))
	update(t, w.g, func(tx *Tx) error { return tx.Inactivate(a) })
	if !a.State().Inactive || base.State().Inactive {
		t.Error("one parent")
	}
	update(t, w.g, func(tx *Tx) error { return tx.Inactivate(b) })
	if !base.State().Inactive || !base.File().Child().State().Inactive {
		t.Error("both parents")
	}
	w.refused("Inactive 'base' can't be a backing child of active 'c'", func(tx *Tx) error {
		_, err := tx.Open(w.options(img("c", `, "backing": "base"`)))
		return err
	})
	w.refused("Permission 'resize' unavailable on inactive node", func(tx *Tx) error { return tx.Resize(a, 512, false, "off") })
	w.refused("Cannot change the option 'active'", func(tx *Tx) error {
		return tx.Reopen(w.list([]string{img("a", `, "active": true, "backing": "base"`)}))
	})
	w.reopen(img("a", `, "active": false, "backing": "base"`))
	update(t, w.g, func(tx *Tx) error { return tx.Activate(a) })
	if a.State().Inactive || base.State().Inactive || !b.State().Inactive {
		t.Error("activation")
	}
}
