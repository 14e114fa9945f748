package luks

import (
	"context"
	"crypto/rand"
)

// Changing key slots so that a crash leaves the old or the new keys in force.
// A sector reaches the disk whole or not at all, and a slot's state lies in one
// sector of the header:
//
//   - a slot becomes active by the write of that sector, after its key material
//     (and, of slot 6, the part that lies in the next sector) is durable;
//   - a slot becomes inactive by the write of that sector; its key material is
//     overwritten when that is durable;
//   - an active slot is replaced by way of a free one, which has the new key
//     meanwhile. Only with all eight in use the slot is inactive for a while,
//     and the keys of the other seven are what a crash leaves.

// wipePasses is how often the key material of an erased slot is overwritten,
// as by cryptsetup and the field.
const wipePasses = 40

// filledSlot is what a slot gets with a key: the same in whatever slot.
type filledSlot struct {
	salt       [saltSize]byte
	iterations uint32
	material   []byte // encrypted
}

// fill makes a slot's content for a password.
func (v *Volume) fill(ctx context.Context, password string, key []byte, iterTime int64) (*filledSlot, error) {
	h := v.now.Load()
	newHash := hashes[h.spec.keyHash]
	n, err := calibrate(ctx, newHash, h.keyBytes, iterTime, 1)
	if err != nil {
		return nil, err
	}
	f := &filledSlot{iterations: max(n, minSlotIterations)}
	rand.Read(f.salt[:])
	slotKey, err := derive(ctx, newHash, []byte(password), f.salt[:], f.iterations, h.keyBytes)
	if err != nil {
		return nil, err
	}
	defer clear(slotKey)
	c, err := newCipher(&h.spec, slotKey)
	if err != nil {
		return nil, err
	}
	f.material = make([]byte, materialSize(h.keyBytes))
	split := afSplit(newHash(), key)
	copy(f.material, split)
	clear(split)
	c.Encrypt(f.material, 0)
	return f, nil
}

// install puts a key into an inactive slot.
func (v *access) install(ctx context.Context, i int, f *filledSlot) error {
	h := v.now.Load()
	next := h.with(i, func(s *keySlot) { s.active, s.salt, s.iterations = true, f.salt, f.iterations })
	if err := v.store.WriteAt(ctx, int64(h.slots[i].offset)*SectorSize, f.material); err != nil {
		return err
	}
	first := stateSector(i)
	if last := (fieldSlots + (i+1)*slotSize - 1) / SectorSize; last != first {
		if err := v.writeSector(ctx, next, last); err != nil {
			return err
		}
	}
	if err := v.store.Flush(ctx); err != nil {
		return err
	}
	if err := v.writeSector(ctx, next, first); err != nil {
		return err
	}
	if err := v.store.Flush(ctx); err != nil {
		return err
	}
	v.now.Store(next)
	return nil
}

func (v *access) writeSector(ctx context.Context, h *header, i int) error {
	return v.store.WriteAt(ctx, int64(i)*SectorSize, h.sectorOf(i))
}

// disable makes a slot inactive, durably.
func (v *access) disable(ctx context.Context, i int) error {
	next := v.now.Load().with(i, func(s *keySlot) { *s = keySlot{offset: s.offset} })
	// What of slot 6 lies in the other sector means nothing any more, and
	// follows with the next write of it.
	if err := v.writeSector(ctx, next, stateSector(i)); err != nil {
		return err
	}
	if err := v.store.Flush(ctx); err != nil {
		return err
	}
	v.now.Store(next)
	return nil
}

// erase makes a slot inactive and its key material unreadable.
func (v *access) erase(ctx context.Context, i int) error {
	if err := v.disable(ctx, i); err != nil {
		return err
	}
	h := v.now.Load()
	if last := (fieldSlots + (i+1)*slotSize - 1) / SectorSize; last != stateSector(i) {
		if err := v.writeSector(ctx, h, last); err != nil {
			return err
		}
	}
	garbage := make([]byte, materialSize(h.keyBytes))
	for range wipePasses {
		rand.Read(garbage)
		if err := v.store.WriteAt(ctx, int64(h.slots[i].offset)*SectorSize, garbage); err != nil {
			return err
		}
		// Without it only the last pass would reach the disk.
		if err := v.store.Flush(ctx); err != nil {
			return err
		}
	}
	return nil
}

// replace puts a key into slot i, whatever is there.
func (v *access) replace(ctx context.Context, i int, f *filledSlot) error {
	h := v.now.Load()
	if !h.slots[i].active {
		return v.install(ctx, i, f)
	}
	spare := h.free(i)
	if spare >= 0 {
		if err := v.install(ctx, spare, f); err != nil {
			return err
		}
	}
	if err := v.disable(ctx, i); err != nil {
		return err
	}
	if err := v.install(ctx, i, f); err != nil || spare < 0 {
		return err
	}
	return v.erase(ctx, spare)
}
