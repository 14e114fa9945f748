package luks

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"sync"

	"golang.org/x/crypto/xts"

	"blockd/qapi"
)

// Cipher encrypts and decrypts sectors. It may be used by any number of
// goroutines at a time and allocates nothing.
type Cipher struct {
	xts *xts.Cipher // nil: cbc

	cbc     cipher.Block
	essiv   cipher.Block // nil: the vector is the number itself
	narrow  bool         // plain: numbers of 32 bits
	scratch sync.Pool    // *chain
}

// locked tells that there is no key: the zero Cipher.
func (c *Cipher) locked() bool { return c.xts == nil && c.cbc == nil }

// chain is what cbc needs for a sector.
type chain struct {
	enc, dec chainMode
	iv       [aes.BlockSize]byte
}

// chainMode is a block mode that can begin anew.
type chainMode interface {
	cipher.BlockMode
	SetIV(iv []byte)
}

// newCipher makes the cipher of a spec, for a key of its length.
func newCipher(s *spec, key []byte) (*Cipher, error) {
	c := &Cipher{narrow: s.ivgen == qapi.QCryptoIVGenAlgorithmPlain}
	if s.ivgen == qapi.QCryptoIVGenAlgorithmEssiv {
		h := hashes[s.ivHash]()
		h.Write(key)
		var err error
		if c.essiv, err = aes.NewCipher(h.Sum(nil)); err != nil {
			return nil, err
		}
	}
	if s.mode == qapi.QCryptoCipherModeCBC {
		return c, c.useCBC(key)
	}
	second := false
	x, err := xts.NewCipher(func(key []byte) (cipher.Block, error) {
		b, err := aes.NewCipher(key)
		if second && c.essiv != nil && err == nil {
			return essivTweak{b, c.essiv}, nil
		}
		second = true
		return b, err
	}, key)
	c.xts = x
	return c, err
}

// essivTweak is the second key of xts with essiv: the tweak is the encrypted
// vector, and the vector the encrypted number, which xts hands in.
type essivTweak struct {
	cipher.Block
	essiv cipher.Block
}

func (e essivTweak) Encrypt(dst, src []byte) {
	e.essiv.Encrypt(dst, src)
	e.Block.Encrypt(dst, dst)
}

func (c *Cipher) useCBC(key []byte) error {
	b, err := aes.NewCipher(key)
	if err != nil {
		return err
	}
	c.cbc = b
	c.scratch.New = func() any {
		var zero [aes.BlockSize]byte
		return &chain{
			enc: cipher.NewCBCEncrypter(b, zero[:]).(chainMode),
			dec: cipher.NewCBCDecrypter(b, zero[:]).(chainMode),
		}
	}
	return nil
}

// NewQCowCipher returns the cipher of qcow2's older encryption (specification of
// qcow2: "crypt_method" 1): AES-128 in cbc mode by the first 16 bytes of the
// password.
func NewQCowCipher(password string) (*Cipher, error) {
	var key [16]byte
	copy(key[:], password)
	return newCipher(&spec{
		cipher: qapi.QCryptoCipherAlgorithmAES128, mode: qapi.QCryptoCipherModeCBC, ivgen: qapi.QCryptoIVGenAlgorithmPlain64,
	}, key[:])
}

// Encrypt encrypts p in place: whole sectors, of which the first has the given
// number.
func (c *Cipher) Encrypt(p []byte, sector uint64) {
	if c.xts == nil {
		s := c.scratch.Get().(*chain)
		c.chain(p, sector, s, s.enc)
		c.scratch.Put(s)
		return
	}
	for ; len(p) > 0; p = p[SectorSize:] {
		c.xts.Encrypt(p[:SectorSize], p[:SectorSize], c.number(sector))
		sector++
	}
}

// Decrypt decrypts p in place: whole sectors, of which the first has the given
// number.
func (c *Cipher) Decrypt(p []byte, sector uint64) {
	if c.xts == nil {
		s := c.scratch.Get().(*chain)
		c.chain(p, sector, s, s.dec)
		c.scratch.Put(s)
		return
	}
	for ; len(p) > 0; p = p[SectorSize:] {
		c.xts.Decrypt(p[:SectorSize], p[:SectorSize], c.number(sector))
		sector++
	}
}

func (c *Cipher) number(sector uint64) uint64 {
	if c.narrow {
		return uint64(uint32(sector))
	}
	return sector
}

// chain takes the sectors of p through a mode of cbc.
func (c *Cipher) chain(p []byte, sector uint64, s *chain, m chainMode) {
	for ; len(p) > 0; p = p[SectorSize:] {
		clear(s.iv[:])
		binary.LittleEndian.PutUint64(s.iv[:], c.number(sector))
		if c.essiv != nil {
			c.essiv.Encrypt(s.iv[:], s.iv[:])
		}
		m.SetIV(s.iv[:])
		m.CryptBlocks(p[:SectorSize], p[:SectorSize])
		sector++
	}
}
