package objects

import (
	"crypto/aes"
	"crypto/cipher"
	"io"
	"strings"
	"syscall"
	"unicode/utf8"

	"blockd/blockgraph"
	"blockd/qapi"
)

// MaxSecret is the longest secret in a file, in bytes, encoding included.
const MaxSecret = 16 << 20

// Secret is an object of type secret: a password or key that others refer to
// by its id. The value is worked out once, at object-add; the properties only
// say from what.
type Secret struct {
	value []byte // immutable

	// Guarded by Registry.mu.
	format     qapi.QCryptoSecretFormat
	keyID, iv  *string
	data, file *string
}

// QOMType implements Object.
func (*Secret) QOMType() qapi.ObjectType { return qapi.ObjectTypeSecret }

func newSecret(p *qapi.SecretProperties) *Secret {
	s := &Secret{format: qapi.QCryptoSecretFormatRaw}
	if p == nil {
		return s
	}
	if p.Format != nil {
		s.format = *p.Format
	}
	s.keyID, s.iv, s.data, s.file = p.KeyID, p.IV, p.Data, p.File
	return s
}

// load works the value out. The secret is not in the registry yet.
func (s *Secret) load(r *Registry) error {
	raw, err := s.source(r)
	switch {
	case err != nil:
		return err
	case s.keyID != nil:
		raw, err = s.decrypt(r, raw)
	case s.format == qapi.QCryptoSecretFormatBase64:
		raw, err = decodeBase64(raw)
	}
	s.value = raw
	return err
}

func (s *Secret) source(r *Registry) ([]byte, error) {
	switch {
	case s.file != nil && s.data != nil:
		return nil, qapi.Errorf("'file' and 'data' are mutually exclusive")
	case s.file != nil:
		return r.readSecretFile(*s.file)
	case s.data != nil:
		return []byte(*s.data), nil
	}
	return nil, qapi.Errorf("Either 'file' or 'data' must be provided")
}

// readSecretFile reads a file to its end, which may be a pipe. The texts are
// those of the field's library.
func (r *Registry) readSecretFile(name string) ([]byte, error) {
	fail := func(what string, err error) ([]byte, error) {
		return nil, qapi.Errorf("Unable to read %s: %s “%s”: %s", name, what, name, blockgraph.Strerror(err))
	}
	if strings.ContainsRune(name, 0) {
		return fail("Failed to open file", syscall.ENOENT)
	}
	f, err := r.open(name)
	if err != nil {
		return fail("Failed to open file", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, MaxSecret+1))
	if err != nil {
		return fail("Error reading file", err)
	}
	if len(b) > MaxSecret {
		return nil, qapi.Errorf("Unable to read %s: File “%s” is too large", name, name)
	}
	return b, nil
}

const (
	secretKeySize = 32 // bytes: AES-256
	paddingMax    = aes.BlockSize
)

// decrypt takes AES-256 in CBC mode off, with PKCS #7 padding.
func (s *Secret) decrypt(r *Registry, b []byte) ([]byte, error) {
	key, err := r.SecretData(*s.keyID)
	if err != nil {
		return nil, err
	}
	if len(key) != secretKeySize {
		return nil, qapi.Errorf("Key should be 32 bytes in length")
	}
	if s.iv == nil {
		return nil, qapi.Errorf("IV is required to decrypt secret")
	}
	iv, err := decodeBase64([]byte(*s.iv))
	if err != nil {
		return nil, err
	}
	if len(iv) != aes.BlockSize {
		return nil, qapi.Errorf("IV should be 16 bytes in length not %d", len(iv))
	}
	if s.format == qapi.QCryptoSecretFormatBase64 {
		if b, err = decodeBase64(b); err != nil {
			return nil, err
		}
	}
	if len(b)%aes.BlockSize != 0 {
		return nil, qapi.Errorf("Length %d must be a multiple of block size %d", len(b), aes.BlockSize)
	}
	if len(b) == 0 { // not even padding
		return nil, errPadding(0)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	plain := make([]byte, len(b))
	cipher.NewCBCDecrypter(block, iv).CryptBlocks(plain, b)
	pad := int(plain[len(plain)-1])
	if pad > paddingMax || pad > len(plain) {
		return nil, errPadding(pad)
	}
	return plain[:len(plain)-pad], nil
}

func errPadding(n int) error {
	return qapi.Errorf("Incorrect number of padding bytes (%d) found on decrypted data", n)
}

// SecretData returns a secret's value. The caller does not change it. Errors
// are *qapi.Error.
func (r *Registry) SecretData(id string) ([]byte, error) {
	o, ok := Lookup[Object](r, id)
	if !ok {
		return nil, qapi.Errorf("No secret with id '%s'", id)
	}
	s, ok := o.(*Secret)
	if !ok {
		return nil, qapi.Errorf("Object with id '%s' is not a secret", id)
	}
	return s.value, nil
}

// SecretText returns a secret that must be UTF-8: a password. Errors are
// *qapi.Error.
func (r *Registry) SecretText(id string) (string, error) {
	b, err := r.SecretData(id)
	if err != nil {
		return "", err
	}
	// The field's strings end at their first zero byte.
	if !utf8.Valid(b) || strings.IndexByte(string(b), 0) >= 0 {
		return "", qapi.Errorf("Data from secret %s is not valid UTF-8", id)
	}
	return string(b), nil
}

func stringProperty(name string, at func(*Secret) **string) property {
	return property{
		name: name, typ: "string",
		get: func(o Object) any {
			if p := *at(o.(*Secret)); p != nil {
				return *p
			}
			return ""
		},
		set: func(o Object, value any) error {
			s, ok := value.(string)
			if !ok {
				return wrongType(name, "string")
			}
			*at(o.(*Secret)) = &s
			return nil
		},
	}
}

// The order is the field's.
var secretCommonProperties = []property{
	stringProperty("iv", func(s *Secret) **string { return &s.iv }),
	stringProperty("keyid", func(s *Secret) **string { return &s.keyID }),
	{name: "loaded", typ: "bool", get: func(Object) any { return true }},
	{
		name: "format", typ: "QCryptoSecretFormat",
		get: func(o Object) any { return string(o.(*Secret).format) },
		set: func(o Object, value any) error {
			var a struct {
				Format qapi.QCryptoSecretFormat `qapi:"format"`
			}
			if err := qapi.Decode(qapi.NewObject("format", value), &a); err != nil {
				return err
			}
			o.(*Secret).format = a.Format
			return nil
		},
	},
}

var secretProperties = []property{
	stringProperty("file", func(s *Secret) **string { return &s.file }),
	stringProperty("data", func(s *Secret) **string { return &s.data }),
}
