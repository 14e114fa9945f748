package tlscreds

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/des"
	"crypto/pbkdf2"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"crypto/x509/pkix"
	"encoding/asn1"
	"hash"

	"blockd/qapi"
)

// Encrypted PKCS #8 keys (RFC 5958, section 3), with the one scheme that OpenSSL
// and GnuTLS write today: PBES2 (RFC 8018, section 6.2), a key by PBKDF2 and a
// block cipher in CBC mode. Everything but the frame is the standard library's;
// the libraries that there are for it bring older schemes and ciphers along.

// errDecrypt is the field's text, for a wrong password and for a scheme that is
// not known alike.
var errDecrypt = qapi.Errorf("Decryption has failed.")

// maxIterations bounds the work that a file can ask for: some seconds.
const maxIterations = 10_000_000

// encryptedKey is EncryptedPrivateKeyInfo.
type encryptedKey struct {
	Algorithm pkix.AlgorithmIdentifier
	Data      []byte
}

// pbes2 is PBES2-params, pbkdf2Params PBKDF2-params.
type pbes2 struct {
	Derivation, Cipher pkix.AlgorithmIdentifier
}

type pbkdf2Params struct {
	Salt       []byte
	Iterations int
	KeyLength  int                      `asn1:"optional"`
	PRF        pkix.AlgorithmIdentifier `asn1:"optional"`
}

var (
	oidPBES2  = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 13}
	oidPBKDF2 = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 12}

	// prfs are the hashes of the HMAC; the first is the default.
	prfs = []struct {
		oid asn1.ObjectIdentifier
		new func() hash.Hash
	}{
		{asn1.ObjectIdentifier{1, 2, 840, 113549, 2, 7}, sha1.New},
		{asn1.ObjectIdentifier{1, 2, 840, 113549, 2, 9}, sha256.New},
		{asn1.ObjectIdentifier{1, 2, 840, 113549, 2, 10}, sha512.New384},
		{asn1.ObjectIdentifier{1, 2, 840, 113549, 2, 11}, sha512.New},
	}

	// ciphers in CBC mode, whose parameter is the initial vector.
	ciphers = []struct {
		oid       asn1.ObjectIdentifier
		keyLength int
		new       func(key []byte) (cipher.Block, error)
	}{
		{asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 2}, 16, aes.NewCipher},
		{asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 22}, 24, aes.NewCipher},
		{asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 42}, 32, aes.NewCipher},
		{asn1.ObjectIdentifier{1, 2, 840, 113549, 3, 7}, 24, des.NewTripleDESCipher},
	}
)

// decryptPKCS8 returns the DER of the private key within der.
func decryptPKCS8(der, password []byte) ([]byte, error) {
	var info encryptedKey
	var scheme pbes2
	var derive pbkdf2Params
	if err := unmarshal(der, &info); err != nil || !info.Algorithm.Algorithm.Equal(oidPBES2) {
		return nil, errDecrypt
	}
	if err := unmarshal(info.Algorithm.Parameters.FullBytes, &scheme); err != nil || !scheme.Derivation.Algorithm.Equal(oidPBKDF2) {
		return nil, errDecrypt
	}
	if err := unmarshal(scheme.Derivation.Parameters.FullBytes, &derive); err != nil || derive.Iterations < 1 || derive.Iterations > maxIterations {
		return nil, errDecrypt
	}
	var iv []byte
	if err := unmarshal(scheme.Cipher.Parameters.FullBytes, &iv); err != nil {
		return nil, errDecrypt
	}
	prf := prfs[0].new
	if derive.PRF.Algorithm != nil {
		prf = nil
		for _, p := range prfs {
			if p.oid.Equal(derive.PRF.Algorithm) {
				prf = p.new
			}
		}
	}
	for _, c := range ciphers {
		if prf == nil || !c.oid.Equal(scheme.Cipher.Algorithm) || derive.KeyLength != 0 && derive.KeyLength != c.keyLength {
			continue
		}
		key, err := pbkdf2.Key(prf, string(password), derive.Salt, derive.Iterations, c.keyLength)
		if err != nil {
			return nil, errDecrypt
		}
		block, err := c.new(key)
		if err != nil {
			return nil, errDecrypt
		}
		return decryptCBC(block, iv, info.Data)
	}
	return nil, errDecrypt
}

// unmarshal reads a value that is all there is.
func unmarshal(der []byte, to any) error {
	rest, err := asn1.Unmarshal(der, to)
	if err == nil && len(rest) > 0 {
		err = errDecrypt
	}
	return err
}

// decryptCBC decrypts, and takes the padding off.
func decryptCBC(block cipher.Block, iv, data []byte) ([]byte, error) {
	size := block.BlockSize()
	if len(iv) != size || len(data) == 0 || len(data)%size != 0 {
		return nil, errDecrypt
	}
	plain := make([]byte, len(data))
	cipher.NewCBCDecrypter(block, iv).CryptBlocks(plain, data)
	n := int(plain[len(plain)-1])
	if n < 1 || n > size {
		return nil, errDecrypt
	}
	good := 1
	for _, b := range plain[len(plain)-n:] {
		good &= subtle.ConstantTimeByteEq(b, byte(n))
	}
	if good != 1 {
		return nil, errDecrypt
	}
	return plain[:len(plain)-n], nil
}
