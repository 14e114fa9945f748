package luks

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"sync"
	"syscall"

	"golang.org/x/crypto/cast5"   //lint:ignore SA1019 volumes that are encrypted with it
	"golang.org/x/crypto/twofish" //lint:ignore SA1019 as above
	"golang.org/x/crypto/xts"

	"blockd/blockgraph"
	"blockd/formats/luks/aesxts"
	"blockd/qapi"
)

// Cipher encrypts and decrypts sectors. It may be used by any number of
// goroutines at a time and allocates nothing. The zero Cipher has no key.
type Cipher struct {
	fast *aesxts.Cipher // nil: not this cipher, or not on this processor
	xts  *xts.Cipher    // nil: cbc

	cbc     cipher.Block
	essiv   cipher.Block // nil: the vector is the number itself
	narrow  bool         // plain: numbers of 32 bits
	scratch sync.Pool    // *chain
}

// newBlock makes the block ciphers of the families that headers name.
var newBlock = map[string]func(key []byte) (cipher.Block, error){
	"aes":     aes.NewCipher,
	"cast5":   func(key []byte) (cipher.Block, error) { return cast5.NewCipher(key) },
	"twofish": func(key []byte) (cipher.Block, error) { return twofish.NewCipher(key) },
}

// locked tells that there is no key.
func (c *Cipher) locked() bool { return c.fast == nil && c.xts == nil && c.cbc == nil }

// errLocked: the volume was opened without its key.
var errLocked = blockgraph.Errorf(syscall.EACCES, "The image was opened without its key")

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
	family := ciphers[s.cipher].family
	c := &Cipher{narrow: s.ivgen == qapi.QCryptoIVGenAlgorithmPlain}
	var essivKey []byte
	if s.ivgen == qapi.QCryptoIVGenAlgorithmEssiv {
		h := hashes[s.ivHash]()
		h.Write(key)
		essivKey = h.Sum(nil)
		var err error
		if c.essiv, err = newBlock[family](essivKey); err != nil {
			return nil, err
		}
	}
	if s.mode == qapi.QCryptoCipherModeCBC {
		return c, c.useCBC(family, key)
	}
	if family == "aes" {
		if c.fast = aesxts.New(aesxts.Options{Key: key, Essiv: essivKey, Narrow: c.narrow}); c.fast != nil {
			return c, nil
		}
	}
	return c, c.useXTS(family, key)
}

func (c *Cipher) useXTS(family string, key []byte) (err error) {
	second := false
	c.xts, err = xts.NewCipher(func(key []byte) (cipher.Block, error) {
		b, err := newBlock[family](key)
		if second && c.essiv != nil && err == nil {
			return essivTweak{b, c.essiv}, nil
		}
		second = true
		return b, err
	}, key)
	return err
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

func (c *Cipher) useCBC(family string, key []byte) error {
	b, err := newBlock[family](key)
	if err != nil {
		return err
	}
	c.cbc = b
	c.scratch.New = func() any {
		var zero [aes.BlockSize]byte
		iv := zero[:b.BlockSize()]
		return &chain{
			enc: cipher.NewCBCEncrypter(b, iv).(chainMode),
			dec: cipher.NewCBCDecrypter(b, iv).(chainMode),
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
	if c.fast != nil {
		c.fast.Encrypt(p, sector)
		return
	}
	c.sectors(p, sector, true)
}

// Decrypt decrypts p in place: whole sectors, of which the first has the given
// number.
func (c *Cipher) Decrypt(p []byte, sector uint64) {
	if c.fast != nil {
		c.fast.Decrypt(p, sector)
		return
	}
	c.sectors(p, sector, false)
}

// sectors takes p through the mode, sector by sector.
func (c *Cipher) sectors(p []byte, sector uint64, encrypt bool) {
	var s *chain
	if c.cbc != nil {
		s = c.scratch.Get().(*chain)
		defer c.scratch.Put(s)
	}
	for ; len(p) > 0; p = p[SectorSize:] {
		n := sector
		if c.narrow {
			n = uint64(uint32(n))
		}
		switch b := p[:SectorSize]; {
		case s != nil && encrypt:
			c.chain(s, s.enc, b, n)
		case s != nil:
			c.chain(s, s.dec, b, n)
		case encrypt:
			c.xts.Encrypt(b, b, n)
		default:
			c.xts.Decrypt(b, b, n)
		}
		sector++
	}
}

// chain takes one sector through a mode of cbc.
func (c *Cipher) chain(s *chain, m chainMode, b []byte, number uint64) {
	clear(s.iv[:])
	binary.LittleEndian.PutUint64(s.iv[:], number)
	if c.essiv != nil {
		c.essiv.Encrypt(s.iv[:], s.iv[:])
	}
	m.SetIV(s.iv[:c.cbc.BlockSize()])
	m.CryptBlocks(b, b)
}
