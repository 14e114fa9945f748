package aesxts

import (
	"encoding/binary"
	"math/bits"

	"golang.org/x/sys/cpu"
)

//go:noescape
func encryptGroups(schedule *uint32, rounds int, tweak, p *byte, groups int)

//go:noescape
func decryptGroups(schedule *uint32, rounds int, tweak, p *byte, groups int)

// subWord replaces each byte by the S-box, without a table.
//
//go:noescape
func subWord(x uint32) uint32

// invMixColumns changes one round key in place.
//
//go:noescape
func invMixColumns(key *uint32)

func available() bool { return cpu.X86.HasAES && cpu.X86.HasSSE41 }

// expand makes the round keys (FIPS 197, 5.2). Words hold their first byte in the
// low bits.
func (s *schedule) expand(key []byte) {
	nk := len(key) / 4
	s.rounds = nk + 6
	for i := range nk {
		s.words[i] = binary.LittleEndian.Uint32(key[4*i:])
	}
	rcon := uint32(1)
	for i := nk; i < 4*(s.rounds+1); i++ {
		t := s.words[i-1]
		switch {
		case i%nk == 0:
			t = subWord(bits.RotateLeft32(t, -8)) ^ rcon
			if rcon <<= 1; rcon > 0xff {
				rcon ^= 0x11b
			}
		case nk > 6 && i%nk == 4:
			t = subWord(t)
		}
		s.words[i] = s.words[i-nk] ^ t
	}
}

// invert makes the round keys for decryption (FIPS 197, 5.3.5).
func (s *schedule) invert(of *schedule) {
	s.rounds = of.rounds
	for r := range of.rounds + 1 {
		to, from := s.words[4*r:4*r+4], of.words[4*(of.rounds-r):]
		copy(to, from)
		if r > 0 && r < of.rounds {
			invMixColumns(&to[0])
		}
	}
}
