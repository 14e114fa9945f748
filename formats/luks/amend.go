package luks

import (
	"bytes"
	"context"
	"syscall"

	"blockd/blockgraph"
	"blockd/qapi"
)

// The field's rules for amending key slots, in the field's order.

// Amend adds a key or erases keys, in the header that store has, which may be
// the one that the volume was opened with or another way to it. It goes by what
// the header has now. Where it fails before it writes, nothing has changed; a
// write that fails leaves the old or the new keys in force. Its context ends it
// while keys are derived and not while slots are written. Worker.
//
//blockd:blocking
func (v *Volume) Amend(ctx context.Context, store Store, o *qapi.QCryptoBlockAmendOptionsLUKS, force bool) error {
	select {
	case v.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-v.turn }()
	a := &access{v, store}
	if err := a.reread(ctx); err != nil {
		return err
	}
	if o.State == qapi.QCryptoBlockLUKSKeyslotStateActive {
		return a.addKey(ctx, o, force)
	}
	return a.eraseKeys(ctx, o, force)
}

// reread takes the header as it is now: other nodes may have amended it since it
// was read, and key slots share sectors.
func (v *access) reread(ctx context.Context) error {
	was := v.now.Load()
	h, err := readHeader(ctx, v.store, was.detached)
	if err != nil {
		return err
	}
	if !bytes.Equal(h.raw[:fieldSlots], was.raw[:fieldSlots]) {
		return invalid("The LUKS header is another one than when the image was opened")
	}
	for i := range h.slots {
		if h.slots[i].offset != was.slots[i].offset {
			return invalid("The LUKS header is another one than when the image was opened")
		}
	}
	v.now.Store(h)
	return nil
}

func badSlot(i any) error {
	return invalid("Invalid keyslot %d specified, must be between 0 and %d", i, Slots-1)
}

func (v *access) addKey(ctx context.Context, o *qapi.QCryptoBlockAmendOptionsLUKS, force bool) error {
	h := v.now.Load()
	if o.NewSecret == nil {
		return invalid("'new-secret' is required to activate a keyslot")
	}
	if o.OldSecret != nil {
		return invalid("'old-secret' must not be given when activating keyslots")
	}
	slot := 0
	if o.Keyslot != nil {
		if *o.Keyslot < 0 || *o.Keyslot >= Slots {
			return badSlot(uint32(*o.Keyslot)) // the field's format has it unsigned here
		}
		slot = int(*o.Keyslot)
	} else if slot = h.free(-1); slot < 0 {
		return invalid("Can't add a keyslot - all keyslots are in use")
	}
	if !force && h.slots[slot].active {
		return invalid("Refusing to overwrite active keyslot %d - please erase it first", slot)
	}
	password, err := v.cfg.Secret(or(o.Secret, v.keySecret))
	if err != nil {
		return err
	}
	key, err := v.findKey(ctx, password)
	if err != nil {
		return err
	}
	defer clear(key)
	password, err = v.cfg.Secret(*o.NewSecret)
	if err != nil {
		return err
	}
	f, err := v.fill(ctx, password, key, or(o.IterTime, defaultIterTime))
	if err != nil {
		return err
	}
	return v.replace(context.WithoutCancel(ctx), slot, f)
}

func (v *access) eraseKeys(ctx context.Context, o *qapi.QCryptoBlockAmendOptionsLUKS, force bool) error {
	for _, p := range []struct {
		name  string
		given bool
	}{{"new-secret", o.NewSecret != nil}, {"iter-time", o.IterTime != nil}, {"secret", o.Secret != nil}} {
		if p.given {
			return invalid("'%s' must not be given when erasing keyslots", p.name)
		}
	}
	password := ""
	if o.OldSecret != nil {
		var err error
		if password, err = v.cfg.Secret(*o.OldSecret); err != nil {
			return err
		}
	}
	switch {
	case o.Keyslot != nil:
		return v.eraseSlot(ctx, o, password, force)
	case o.OldSecret != nil:
		return v.erasePassword(ctx, password, force)
	}
	return invalid("To erase keyslot(s), either explicit keyslot index or the password currently contained in them must be given")
}

// eraseSlot erases the slot that is named, if it has the password.
func (v *access) eraseSlot(ctx context.Context, o *qapi.QCryptoBlockAmendOptionsLUKS, password string, force bool) error {
	if *o.Keyslot < 0 || *o.Keyslot >= Slots {
		return badSlot(*o.Keyslot)
	}
	slot := int(*o.Keyslot)
	if o.OldSecret != nil {
		has, err := v.slotsWith(ctx, password, slot)
		if err != nil {
			return err
		}
		if len(has) == 0 {
			return invalid("Given keyslot %d doesn't contain the given old password for erase operation", slot)
		}
	}
	h := v.now.Load()
	if !force && !h.slots[slot].active {
		return invalid("Given keyslot %d is already erased (inactive) ", slot)
	}
	if !force && h.active() == 1 {
		return blockgraph.Errorf(syscall.EINVAL, "Attempt to erase the only active keyslot %d which will erase all the data in the image irreversibly - refusing operation", slot)
	}
	return v.erase(context.WithoutCancel(ctx), slot)
}

// erasePassword erases all slots that have the password.
func (v *access) erasePassword(ctx context.Context, password string, force bool) error {
	has, err := v.slotsWith(ctx, password, -1)
	if err != nil {
		return err
	}
	if len(has) == 0 {
		return invalid("No keyslots match given (old) password for erase operation")
	}
	if !force && len(has) == v.now.Load().active() {
		return invalid("All the active keyslots match the (old) password that was given and erasing them will erase all the data in the image irreversibly - refusing operation")
	}
	for _, i := range has {
		if err := v.erase(context.WithoutCancel(ctx), i); err != nil {
			return err
		}
	}
	return nil
}
