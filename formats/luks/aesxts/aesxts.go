// Package aesxts encrypts disks by AES in xts mode (IEEE 1619), sector by sector,
// with the instructions that a processor has for AES. golang.org/x/crypto/xts
// takes one block after the other through a cipher.Block, each a call that waits
// for the last; here eight blocks are under way at a time, which is several times
// as fast. Where the instructions are missing there is nothing (New returns nil),
// and the caller falls back.
//
// A sector's first tweak is its number, encrypted by the second key, and with
// essiv by a third one before. The tweaks of eight sectors are made at a time.
//
// A Cipher is immutable: any number of goroutines may use it, nothing blocks and
// nothing is allocated. It imports nothing of this module.
//
//blockd:io
package aesxts

import "encoding/binary"

const (
	// SectorSize is the unit of encryption, in bytes.
	SectorSize = 512
	blockSize  = 16
	// lanes is how many blocks are under way at a time.
	lanes = 8
	group = lanes * blockSize
)

// Cipher encrypts and decrypts sectors.
type Cipher struct {
	encrypt, decrypt, tweak schedule
	essiv                   *schedule // nil: the vector is the number itself
	mask                    uint64    // of sector numbers
}

// schedule is an expanded key.
type schedule struct {
	words  [60]uint32 // as many as AES-256 needs
	rounds int
}

// Options are what a Cipher depends on.
type Options struct {
	// Key is two keys of AES, each of 16, 24 or 32 bytes.
	Key []byte
	// Essiv is a key of AES that encrypts sector numbers; nil: they are the
	// vectors.
	Essiv []byte
	// Narrow: only the low 32 bits of sector numbers count.
	Narrow bool
}

// New returns a cipher, or nil where this processor has no instructions for it.
// The lengths of the keys are the caller's to check.
func New(o Options) *Cipher {
	if !available() {
		return nil
	}
	c := &Cipher{mask: 1<<64 - 1}
	if o.Narrow {
		c.mask = 1<<32 - 1
	}
	n := len(o.Key) / 2
	c.encrypt.expand(o.Key[:n])
	c.decrypt.invert(&c.encrypt)
	c.tweak.expand(o.Key[n:])
	if o.Essiv != nil {
		c.essiv = &schedule{}
		c.essiv.expand(o.Essiv)
	}
	return c
}

// Encrypt encrypts p in place: whole sectors, of which the first has the given
// number.
func (c *Cipher) Encrypt(p []byte, sector uint64) {
	var tweaks [lanes][blockSize]byte
	for i := 0; len(p) > 0; i, p = (i+1)%lanes, p[SectorSize:] {
		if i == 0 {
			sector = c.tweaks(&tweaks, sector)
		}
		encryptGroups(&c.encrypt.words[0], c.encrypt.rounds, &tweaks[i][0], &p[:SectorSize][0], SectorSize/group)
	}
}

// Decrypt decrypts p in place: whole sectors, of which the first has the given
// number.
func (c *Cipher) Decrypt(p []byte, sector uint64) {
	var tweaks [lanes][blockSize]byte
	for i := 0; len(p) > 0; i, p = (i+1)%lanes, p[SectorSize:] {
		if i == 0 {
			sector = c.tweaks(&tweaks, sector)
		}
		decryptGroups(&c.decrypt.words[0], c.decrypt.rounds, &tweaks[i][0], &p[:SectorSize][0], SectorSize/group)
	}
}

// tweaks makes the first tweaks of eight sectors from the given one on, and
// returns the number of the one behind them.
func (c *Cipher) tweaks(t *[lanes][blockSize]byte, sector uint64) uint64 {
	for i := range t {
		binary.LittleEndian.PutUint64(t[i][:], sector&c.mask)
		binary.LittleEndian.PutUint64(t[i][8:], 0)
		sector++
	}
	// A tweak of zeroes stays one, and blocks are then encrypted as they are.
	var none [blockSize]byte
	if c.essiv != nil {
		encryptGroups(&c.essiv.words[0], c.essiv.rounds, &none[0], &t[0][0], 1)
	}
	encryptGroups(&c.tweak.words[0], c.tweak.rounds, &none[0], &t[0][0], 1)
	return sector
}
