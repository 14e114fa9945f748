package luks

import (
	"bytes"
	"encoding/binary"
	"os"
	"testing"
)

// fuzzImage is a small image from which the corpus is made: its key material is
// the shortest there is.
func fuzzImage(t testing.TB) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/header.luks")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// FuzzHeader holds for any 592 bytes: no panic, and what is accepted lies where
// nothing else does and is written back as it was.
func FuzzHeader(f *testing.F) {
	good := fuzzImage(f)
	f.Add(good)
	for off, value := range map[int]uint32{
		fieldPayloadOffset: 1<<32 - 1, fieldKeyBytes: 1<<32 - 1, fieldDigestIter: 0,
		fieldSlots: 7, fieldSlots + slotFieldOffset: 1<<32 - 1, fieldSlots + slotFieldStripes: 1<<32 - 1,
		fieldSlots + slotSize + slotFieldOffset: 8, fieldCipherName: 0x73657270, fieldCipherMode: 0x78787878,
	} {
		b := bytes.Clone(good)
		binary.BigEndian.PutUint32(b[off:], value)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		Probe(b)
		raw := make([]byte, headerSize)
		copy(raw, b)
		h, err := parseHeader(raw, false)
		if err != nil {
			return
		}
		if h.keyBytes > 64 || materialSize(h.keyBytes) > 64*stripes {
			t.Fatalf("a key of %d bytes", h.keyBytes)
		}
		if h.keyBytes != h.spec.keyBytes() {
			t.Fatalf("a key of %d bytes for %v", h.keyBytes, h)
		}
		end := uint64(h.payloadOffset) * SectorSize
		for i := range h.slots {
			from := uint64(h.slots[i].offset) * SectorSize
			if from < headerSize || from+uint64(materialSize(h.keyBytes)) > end {
				t.Fatalf("slot %d at %d, payload at %d", i, from, end)
			}
		}
		if _, err := newCipher(&h.spec, make([]byte, h.keyBytes)); err != nil {
			t.Fatalf("%v: %v", h, err)
		}
		next := h.with(0, func(*keySlot) {})
		if next.raw != h.raw {
			t.Fatal("a slot is written otherwise than it was read")
		}
	})
}

func TestHostileHeadersAreRefusedInTheFieldsWords(t *testing.T) {
	good := fuzzImage(t)
	for _, c := range []struct {
		off   int
		value string
		want  string
	}{
		{0, "LUKs", "Volume is not in LUKS format"},
		{fieldVersion, "\x00\x02", "LUKS version 2 is not supported"},
		{fieldCipherName, "0123456789abcdef0123456789abcdef", "LUKS header cipher name is not NUL terminated"},
		{fieldCipherMode, "0123456789abcdef0123456789abcdef", "LUKS header cipher mode is not NUL terminated"},
		{fieldHashSpec, "0123456789abcdef0123456789abcdef", "LUKS header hash spec is not NUL terminated"},
		{fieldPayloadOffset, "\x00\x00\x00\x07", "LUKS payload is overlapping with the header"},
		{fieldDigestIter, "\x00\x00\x00\x00", "LUKS key iteration count is zero"},
		{fieldSlots + slotFieldStripes, "\xff\xff\xff\xff", "Keyslot 0 is corrupted (stripes -1 != 4000)"},
		{fieldSlots, "\x00\x00\x00\x00", "Keyslot 0 state (active/disable) is corrupted"},
		{fieldSlots + slotFieldIterations, "\x00\x00\x00\x00", "Keyslot 0 iteration count is zero"},
		{fieldSlots + slotSize + slotFieldOffset, "\x00\x00\x00\x07", "Keyslot 1 is overlapping with the LUKS header"},
		{fieldSlots + slotFieldOffset, "\xff\xff\xff\xff", "Keyslot 0 is overlapping with the encrypted payload"},
		{fieldKeyBytes, "\xff\xff\xff\xff", "Keyslot 0 is overlapping with the encrypted payload"},
		{fieldSlots + slotSize + slotFieldOffset, "\x00\x00\x00\x08", "Keyslots 0 and 1 are overlapping in the header"},
		{fieldCipherMode, "plain\x00", "Unexpected cipher mode string format 'plain'"},
		{fieldCipherMode, "ctr-plain64\x00", "Cipher mode 'ctr' not supported"},
		{fieldCipherMode, "cbc-essiv\x00", "Missing IV generator hash specification"},
		{fieldCipherMode, "cbc-essiv:sm3\x00", "Hash algorithm 'sm3' not supported"},
		{fieldCipherMode, "cbc-essiv:sha1\x00", "No AES cipher with key size 20 available"},
		{fieldCipherMode, "cbc-benbi\x00", "IV generator 'benbi' not supported"},
		{fieldCipherName, "serpent\x00", "Algorithm 'serpent' with key size 16 bytes not supported"},
		{fieldKeyBytes, "\x00\x00\x00\x0f", "Algorithm 'aes' with key size 15 bytes not supported"},
		{fieldHashSpec, "whirlpool\x00", "Hash algorithm 'whirlpool' not supported"},
	} {
		b := bytes.Clone(good)
		copy(b[c.off:], c.value)
		_, err := parseHeader(b, false)
		expectError(t, err, c.want)
	}
	_, err := parseSpec("aes", "xts-plain64", "sha256", 65)
	expectError(t, err, "XTS cipher key length should be a multiple of 2")
	if _, err := parseHeader(good, false); err != nil {
		t.Error(err)
	}
}
