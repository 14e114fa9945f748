package luks

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"syscall"

	"blockd/blockgraph"
)

// The header (specification: "PHDR layout"). All integers are big endian.

const (
	magic   = "LUKS\xba\xbe"
	version = 1

	// headerSize is the length of the header on disk, in bytes. It spans two
	// sectors, of which each reaches the disk whole or not at all.
	headerSize = 592
	// Slots is the number of key slots.
	Slots = 8
	// SectorSize is the unit of encryption, in bytes.
	SectorSize = 512

	// keySlotOffset is where key material may begin, in bytes; slots begin at
	// multiples of it.
	keySlotOffset = 4096
	stripes       = 4000
	saltSize      = 32
	digestSize    = 20

	slotDisabled = 0x0000dead
	slotEnabled  = 0x00ac71f3

	// Least iterations of PBKDF2, for a slot and for the digest of the master
	// key.
	minSlotIterations   = 1000
	minMasterIterations = 1000
)

// Offsets of fields, in bytes.
const (
	fieldVersion        = 6
	fieldCipherName     = 8
	fieldCipherMode     = 40
	fieldHashSpec       = 72
	fieldPayloadOffset  = 104
	fieldKeyBytes       = 108
	fieldDigest         = 112
	fieldDigestSalt     = 132
	fieldDigestIter     = 164
	fieldUUID           = 168
	fieldSlots          = 208
	slotSize            = 48
	slotFieldIterations = 4
	slotFieldSalt       = 8
	slotFieldOffset     = 40
	slotFieldStripes    = 44
)

// keySlot is one of a header's key slots.
type keySlot struct {
	active     bool
	iterations uint32
	salt       [saltSize]byte
	offset     uint32 // of the key material, in sectors
}

// header is a checked header. One that others may see is not changed any more.
type header struct {
	raw              [headerSize]byte // as on disk
	payloadOffset    uint32           // sectors, in the file that has the data
	detached         bool             // which is not the header's
	keyBytes         int              // of the master key
	digest           [digestSize]byte
	digestSalt       [saltSize]byte
	digestIterations uint32
	uuid             string
	slots            [Slots]keySlot
	spec             spec
}

func invalid(format string, args ...any) error {
	return blockgraph.Errorf(syscall.EINVAL, format, args...)
}

// Probe returns a score for the first bytes of a file, 100 for LUKS version 1.
func Probe(head []byte) int {
	if len(head) >= fieldCipherName && string(head[:len(magic)]) == magic && binary.BigEndian.Uint16(head[fieldVersion:]) == version {
		return 100
	}
	return 0
}

// parseHeader decodes and checks what is on disk, headerSize bytes. Where the data
// of a detached one begins says nothing about the header itself.
func parseHeader(raw []byte, detached bool) (*header, error) {
	h := &header{detached: detached}
	copy(h.raw[:], raw)
	be := binary.BigEndian
	if string(raw[:len(magic)]) != magic {
		return nil, invalid("Volume is not in LUKS format")
	}
	if v := be.Uint16(raw[fieldVersion:]); v != version {
		return nil, invalid("LUKS version %d is not supported", v)
	}
	names := [3]string{}
	for i, f := range []struct {
		name       string
		start, end int
	}{
		{"cipher name", fieldCipherName, fieldCipherMode},
		{"cipher mode", fieldCipherMode, fieldHashSpec},
		{"hash spec", fieldHashSpec, fieldPayloadOffset},
	} {
		text, _, ended := bytes.Cut(raw[f.start:f.end], []byte{0})
		if !ended {
			return nil, invalid("LUKS header %s is not NUL terminated", f.name)
		}
		names[i] = string(text)
	}
	h.payloadOffset = be.Uint32(raw[fieldPayloadOffset:])
	keyBytes := be.Uint32(raw[fieldKeyBytes:])
	copy(h.digest[:], raw[fieldDigest:])
	copy(h.digestSalt[:], raw[fieldDigestSalt:])
	h.digestIterations = be.Uint32(raw[fieldDigestIter:])
	uuid, _, _ := bytes.Cut(raw[fieldUUID:fieldSlots], []byte{0})
	h.uuid = string(uuid)
	if !detached && h.payloadOffset < keySlotOffset/SectorSize {
		return nil, invalid("LUKS payload is overlapping with the header")
	}
	if h.digestIterations == 0 {
		return nil, invalid("LUKS key iteration count is zero")
	}
	if err := h.parseSlots(keyBytes); err != nil {
		return nil, err
	}
	s, err := parseSpec(names[0], names[1], names[2], keyBytes)
	if err != nil {
		return nil, err
	}
	h.spec, h.keyBytes = *s, int(keyBytes)
	return h, nil
}

// parseSlots decodes the slots and holds that none of them lies where
// something else does.
func (h *header) parseSlots(keyBytes uint32) error {
	be := binary.BigEndian
	n := materialSectors(uint64(keyBytes))
	for i := range h.slots {
		b := h.raw[fieldSlots+i*slotSize:]
		s := &h.slots[i]
		state := be.Uint32(b)
		s.active = state == slotEnabled
		s.iterations = be.Uint32(b[slotFieldIterations:])
		copy(s.salt[:], b[slotFieldSalt:])
		s.offset = be.Uint32(b[slotFieldOffset:])
		if k := be.Uint32(b[slotFieldStripes:]); k != stripes {
			return invalid("Keyslot %d is corrupted (stripes %d != %d)", i, int32(k), stripes)
		}
		if !s.active && state != slotDisabled {
			return invalid("Keyslot %d state (active/disable) is corrupted", i)
		}
		if s.active && s.iterations == 0 {
			return invalid("Keyslot %d iteration count is zero", i)
		}
		if s.offset < keySlotOffset/SectorSize {
			return invalid("Keyslot %d is overlapping with the LUKS header", i)
		}
		if !h.detached && uint64(s.offset)+n > uint64(h.payloadOffset) {
			return invalid("Keyslot %d is overlapping with the encrypted payload", i)
		}
	}
	for i := range h.slots {
		for k := i + 1; k < Slots; k++ {
			a, b := uint64(h.slots[i].offset), uint64(h.slots[k].offset)
			if a+n > b && b+n > a {
				return invalid("Keyslots %d and %d are overlapping in the header", i, k)
			}
		}
	}
	return nil
}

// materialSectors is the room of a slot's key material, in sectors: like
// cryptsetup, and unlike the specification, rounded up to keySlotOffset.
func materialSectors(keyBytes uint64) uint64 {
	const unit = keySlotOffset / SectorSize
	n := (keyBytes*stripes + SectorSize - 1) / SectorSize
	return (n + unit - 1) / unit * unit
}

// newHeader lays out the header of a new volume without keys. The caller fills
// in salts and digest.
func newHeader(s *spec, uuid string, detached bool) *header {
	h := &header{spec: *s, keyBytes: s.keyBytes(), uuid: uuid, detached: detached}
	n := uint32(materialSectors(uint64(h.keyBytes)))
	for i := range h.slots {
		h.slots[i].offset = keySlotOffset/SectorSize + uint32(i)*n
	}
	if !detached {
		h.payloadOffset = uint32(h.room() / SectorSize)
	}
	return h
}

// room is what the header takes with all its key material, in bytes.
func (h *header) room() int64 {
	return keySlotOffset + Slots*int64(materialSectors(uint64(h.keyBytes)))*SectorSize
}

// encode brings raw up to date.
func (h *header) encode() {
	be := binary.BigEndian
	b := h.raw[:]
	copy(b, magic)
	be.PutUint16(b[fieldVersion:], version)
	name, mode, hash := h.spec.names()
	copy(b[fieldCipherName:fieldCipherMode], name)
	copy(b[fieldCipherMode:fieldHashSpec], mode)
	copy(b[fieldHashSpec:fieldPayloadOffset], hash)
	be.PutUint32(b[fieldPayloadOffset:], h.payloadOffset)
	be.PutUint32(b[fieldKeyBytes:], uint32(h.keyBytes))
	copy(b[fieldDigest:], h.digest[:])
	copy(b[fieldDigestSalt:], h.digestSalt[:])
	be.PutUint32(b[fieldDigestIter:], h.digestIterations)
	copy(b[fieldUUID:fieldSlots], h.uuid)
	for i := range h.slots {
		h.encodeSlot(i)
	}
}

func (h *header) encodeSlot(i int) {
	be := binary.BigEndian
	s, b := &h.slots[i], h.raw[fieldSlots+i*slotSize:]
	be.PutUint32(b, slotDisabled)
	if s.active {
		be.PutUint32(b, slotEnabled)
	}
	be.PutUint32(b[slotFieldIterations:], s.iterations)
	copy(b[slotFieldSalt:slotFieldOffset], s.salt[:])
	be.PutUint32(b[slotFieldOffset:], s.offset)
	be.PutUint32(b[slotFieldStripes:], stripes)
}

// with returns a copy in which slot i is what change makes of it.
func (h *header) with(i int, change func(s *keySlot)) *header {
	next := *h
	change(&next.slots[i])
	next.encodeSlot(i)
	return &next
}

// stateSector is the sector of the header in which a slot's state lies.
func stateSector(i int) int { return (fieldSlots + i*slotSize) / SectorSize }

// sectorOf returns the bytes of the header in one of its two sectors.
func (h *header) sectorOf(i int) []byte {
	return h.raw[i*SectorSize : min((i+1)*SectorSize, headerSize)]
}

// active counts the active slots.
func (h *header) active() int {
	n := 0
	for i := range h.slots {
		if h.slots[i].active {
			n++
		}
	}
	return n
}

// free returns the first inactive slot but one, or -1.
func (h *header) free(but int) int {
	for i := range h.slots {
		if !h.slots[i].active && i != but {
			return i
		}
	}
	return -1
}

func (h *header) String() string {
	name, mode, hash := h.spec.names()
	return fmt.Sprintf("%s-%s %s, %d keys", name, mode, hash, h.active())
}
