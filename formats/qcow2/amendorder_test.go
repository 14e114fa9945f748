package qcow2

import (
	"encoding/binary"
	"fmt"
	"testing"

	"blockd/blockgraph/graphtest"
	"blockd/qapi"
)

// The order of writes of x-blockdev-amend: what it changes of an image is the keys.

// Of a LUKS header (specification: LUKS1 on-disk format).
const (
	luksSlots     = 208 // of the eight slots
	luksSlotSize  = 48
	luksSlotState = 0
	luksSlotPlace = 40
	luksActive    = 0x00ac71f3
)

func amended(o qapi.QCryptoBlockAmendOptionsLUKS) func(*testing.T, *Driver) {
	return func(t *testing.T, d *Driver) {
		e := &qapi.QCryptoBlockAmendOptions{Format: qapi.QCryptoBlockFormatLUKS, LUKS: &o}
		err := d.Amend(ctxb, free, &qapi.BlockdevAmendOptions{Driver: "qcow2", Qcow2: &qapi.BlockdevAmendOptionsQcow2{Encrypt: e}}, false)
		if err != nil {
			t.Fatal(err)
		}
	}
}

var (
	addKey   = qapi.QCryptoBlockAmendOptionsLUKS{State: qapi.QCryptoBlockLUKSKeyslotStateActive, NewSecret: ptr("n"), IterTime: ptr(int64(0))}
	eraseKey = qapi.QCryptoBlockAmendOptionsLUKS{State: qapi.QCryptoBlockLUKSKeyslotStateInactive, OldSecret: ptr("s")}

	amendOrders = []writeOrder{
		{name: "amend-add-key", about: "a second key: its slot becomes active when its material is durable", opts: append([]imageOption{encrypted}, small...), run: amended(addKey)},
		{name: "amend-erase-key", about: "the first of two keys goes: its material is overwritten when its slot is inactive, durably", opts: append([]imageOption{encrypted}, small...), start: amended(addKey), run: amended(eraseKey)},
	}
)

// nameKeys names what belongs to a LUKS header.
func (l *layout) nameKeys(b []byte, x cryptoExt) {
	if !x.present {
		return
	}
	l.keys = int64(x.offset)
	l.name(l.keys, l.cs, "LUKS header")
	const slots = 8
	for i := range int64(slots) {
		place := func(i int64) int64 {
			return int64(binary.BigEndian.Uint32(b[l.keys+luksSlots+i*luksSlotSize+luksSlotPlace:])) * sector
		}
		end := int64(x.length)
		if i+1 < slots {
			end = place(i + 1)
		}
		l.name(l.keys+place(i), end-place(i), fmt.Sprint("key material of slot ", i))
	}
}

// keyChanges says which key slots a write of the LUKS header changes.
func (w *writeNames) keyChanges(op *graphtest.CrashOp) (list []string) {
	be := binary.BigEndian
	for i := range int64(8) {
		at := w.after.keys + luksSlots + i*luksSlotSize
		if at < op.Off || at+luksSlotSize > op.Off+int64(len(op.Data)) {
			continue
		}
		was, now := be.Uint32(w.b[at+luksSlotState:]) == luksActive, be.Uint32(op.Data[at-op.Off+luksSlotState:]) == luksActive
		switch {
		case now && !was:
			list = append(list, fmt.Sprintf("slot %d becomes active", i))
		case was && !now:
			list = append(list, fmt.Sprintf("slot %d becomes inactive", i))
		}
	}
	return list
}
