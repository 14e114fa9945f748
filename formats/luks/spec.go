package luks

import (
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"hash"
	"strings"

	"golang.org/x/crypto/ripemd160" //lint:ignore SA1019 volumes whose keys are derived with it

	"blockd/qapi"
)

// What a header calls its cipher, mode, generator of initialisation vectors and
// hashes, and what of that exists here.

// spec says how a volume is encrypted. mode is xts or cbc.
type spec struct {
	cipher  qapi.QCryptoCipherAlgorithm
	mode    qapi.QCryptoCipherMode
	ivgen   qapi.QCryptoIVGenAlgorithm
	ivHash  qapi.QCryptoHashAlgorithm // empty: none is named
	keyHash qapi.QCryptoHashAlgorithm
}

// hashes makes the known hash functions.
var hashes = map[qapi.QCryptoHashAlgorithm]func() hash.Hash{
	qapi.QCryptoHashAlgorithmMD5:       md5.New,
	qapi.QCryptoHashAlgorithmSHA1:      sha1.New,
	qapi.QCryptoHashAlgorithmSHA224:    sha256.New224,
	qapi.QCryptoHashAlgorithmSHA256:    sha256.New,
	qapi.QCryptoHashAlgorithmSHA384:    sha512.New384,
	qapi.QCryptoHashAlgorithmSHA512:    sha512.New,
	qapi.QCryptoHashAlgorithmRIPEMD160: ripemd160.New,
}

// ciphers are those that exist here, with the length of their keys in bytes.
var ciphers = map[qapi.QCryptoCipherAlgorithm]struct {
	family   string // as a header names it
	keyBytes int
}{
	qapi.QCryptoCipherAlgorithmAES128:     {"aes", 16},
	qapi.QCryptoCipherAlgorithmAES192:     {"aes", 24},
	qapi.QCryptoCipherAlgorithmAES256:     {"aes", 32},
	qapi.QCryptoCipherAlgorithmCast5128:   {"cast5", 16},
	qapi.QCryptoCipherAlgorithmTwofish128: {"twofish", 16},
	qapi.QCryptoCipherAlgorithmTwofish192: {"twofish", 24},
	qapi.QCryptoCipherAlgorithmTwofish256: {"twofish", 32},
}

// keyBytes is the length of the master key: xts has a second key.
func (s *spec) keyBytes() int {
	n := ciphers[s.cipher].keyBytes
	if s.mode == qapi.QCryptoCipherModeXTS {
		n *= 2
	}
	return n
}

// names returns what a header says: cipher, mode with the generator of
// initialisation vectors, hash.
func (s *spec) names() (cipher, mode, hash string) {
	mode = string(s.mode) + "-" + string(s.ivgen)
	if s.ivHash != "" {
		mode += ":" + string(s.ivHash)
	}
	return ciphers[s.cipher].family, mode, string(s.keyHash)
}

// parseSpec understands a header's names.
func parseSpec(name, mode, hashName string, keyBytes uint32) (*spec, error) {
	s := &spec{}
	cipherMode, ivgen, ok := strings.Cut(mode, "-")
	if !ok {
		return nil, invalid("Unexpected cipher mode string format '%s'", mode)
	}
	ivgen, ivHash, hasHash := strings.Cut(ivgen, ":")
	if hasHash {
		s.ivHash = qapi.QCryptoHashAlgorithm(ivHash)
		if hashes[s.ivHash] == nil {
			return nil, invalid("Hash algorithm '%s' not supported", ivHash)
		}
	}
	s.mode = qapi.QCryptoCipherMode(cipherMode)
	switch s.mode {
	case qapi.QCryptoCipherModeXTS:
		if keyBytes%2 != 0 {
			return nil, invalid("XTS cipher key length should be a multiple of 2")
		}
		keyBytes /= 2
	case qapi.QCryptoCipherModeCBC:
	default:
		return nil, invalid("Cipher mode '%s' not supported", cipherMode)
	}
	for alg, c := range ciphers {
		if c.family == name && uint32(c.keyBytes) == keyBytes {
			s.cipher = alg
		}
	}
	if s.cipher == "" {
		return nil, invalid("Algorithm '%s' with key size %d bytes not supported", name, keyBytes)
	}
	s.keyHash = qapi.QCryptoHashAlgorithm(hashName)
	if hashes[s.keyHash] == nil {
		return nil, invalid("Hash algorithm '%s' not supported", hashName)
	}
	s.ivgen = qapi.QCryptoIVGenAlgorithm(ivgen)
	switch s.ivgen {
	case qapi.QCryptoIVGenAlgorithmPlain, qapi.QCryptoIVGenAlgorithmPlain64:
	case qapi.QCryptoIVGenAlgorithmEssiv:
		if !hasHash {
			return nil, invalid("Missing IV generator hash specification")
		}
	default:
		return nil, invalid("IV generator '%s' not supported", ivgen)
	}
	return s, s.check()
}

// newSpec fills in what options leave out.
func newSpec(o *qapi.QCryptoBlockCreateOptionsLUKS) (*spec, error) {
	s := &spec{
		cipher:  or(o.CipherAlg, qapi.QCryptoCipherAlgorithmAES256),
		mode:    or(o.CipherMode, qapi.QCryptoCipherModeXTS),
		ivgen:   or(o.IVGenAlg, qapi.QCryptoIVGenAlgorithmPlain64),
		ivHash:  or(o.IVGenHashAlg, ""),
		keyHash: or(o.HashAlg, qapi.QCryptoHashAlgorithmSHA256),
	}
	if s.ivgen == qapi.QCryptoIVGenAlgorithmEssiv && s.ivHash == "" {
		s.ivHash = qapi.QCryptoHashAlgorithmSHA256
	}
	return s, s.check()
}

func or[T any](p *T, other T) T {
	if p == nil {
		return other
	}
	return *p
}

// check holds that the mode and the generator of vectors go with the cipher:
// xts wants blocks of 16 bytes, and essiv a hash whose whole digest is a key, as in
// dm-crypt.
func (s *spec) check() error {
	own := ciphers[s.cipher]
	if own.family == "cast5" && s.mode == qapi.QCryptoCipherModeXTS {
		return invalid("Unsupported cipher mode %s", s.mode)
	}
	if s.ivgen != qapi.QCryptoIVGenAlgorithmEssiv {
		return nil
	}
	n := hashes[s.ivHash]().Size()
	for _, c := range ciphers {
		if c.family == own.family && c.keyBytes == n {
			return nil
		}
	}
	switch own.family {
	case "aes":
		return invalid("No AES cipher with key size %d available", n)
	case "twofish":
		return invalid("No Twofish cipher with key size %d available", n)
	}
	return invalid("Cipher %s not supported with essiv", s.cipher)
}
