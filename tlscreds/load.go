package tlscreds

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"blockd/qapi"
)

// Options say what to load.
type Options struct {
	Dir    string
	Server bool
	// VerifyPeer has a server ask for and verify client certificates; a client
	// always verifies, unless this is false.
	VerifyPeer bool
	// SanityCheck has our own files verified at once.
	SanityCheck bool
	// Password opens an encrypted key; nil: none was given.
	Password []byte
	Now      func() time.Time
}

// Credentials are loaded files.
type Credentials struct {
	server, verify bool
	ca             []*x509.Certificate
	crls           []*x509.RevocationList
	own            *tls.Certificate // nil: none, as a client may
	now            func() time.Time
}

// maxFile is the longest file in bytes that is read.
const maxFile = 1 << 20

// RevocationFile is the list of what was revoked, in a directory.
const RevocationFile = "ca-crl.pem"

// Names of the other files.
const (
	caFile     = "ca-cert.pem"
	serverFile = "server-cert.pem"
	serverKey  = "server-key.pem"
	clientFile = "client-cert.pem"
	clientKey  = "client-key.pem"
)

// Load reads credentials. Errors have the field's texts.
func Load(o Options) (*Credentials, error) {
	if o.Dir == "" {
		return nil, qapi.Errorf("Missing 'dir' property value")
	}
	c := &Credentials{server: o.Server, verify: o.VerifyPeer, now: o.Now}
	ca, err := o.read(caFile, true)
	if err != nil {
		return nil, err
	}
	if c.ca, err = certificates(ca); err != nil || len(c.ca) == 0 {
		return nil, qapi.Errorf("Unable to import CA certificate list %s", o.path(caFile))
	}
	cert, key := clientFile, clientKey
	if o.Server {
		cert, key = serverFile, serverKey
	}
	certPEM, err := o.read(cert, o.Server)
	if err != nil {
		return nil, err
	}
	keyPEM, err := o.read(key, o.Server)
	if err != nil {
		return nil, err
	}
	if certPEM != nil && keyPEM != nil {
		if keyPEM, err = decrypt(keyPEM, o.Password); err == nil {
			var pair tls.Certificate
			if pair, err = tls.X509KeyPair(certPEM, keyPEM); err == nil {
				c.own = &pair
			}
		}
		if err != nil {
			return nil, qapi.Errorf("Cannot load certificate '%s' & key '%s': %s", o.path(cert), o.path(key), err)
		}
	}
	if err := o.readCRL(c); err != nil {
		return nil, err
	}
	if o.SanityCheck {
		if err := c.sane(o.path(caFile), o.path(cert)); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func (o *Options) path(name string) string { return filepath.Join(o.Dir, name) }

// read returns a file's content; nil when one that is not required is absent.
func (o *Options) read(name string, required bool) ([]byte, error) {
	path := o.path(name)
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) && !required {
		return nil, nil
	}
	var b []byte
	if err == nil {
		defer f.Close()
		if b, err = io.ReadAll(io.LimitReader(f, maxFile+1)); err == nil && len(b) > maxFile {
			err = syscall.EFBIG
		}
	}
	if err != nil {
		var errno syscall.Errno
		if !errors.As(err, &errno) {
			errno = syscall.EIO
		}
		return nil, &AccessError{Path: path, Errno: errno}
	}
	return b, nil
}

// AccessError is a file that cannot be read. Its text ends with the system's
// error, which the caller spells as the field does.
type AccessError struct {
	Path  string
	Errno syscall.Errno
}

func (e *AccessError) Error() string {
	return fmt.Sprintf("Unable to access credentials %s: %v", e.Path, e.Errno)
}

// Unwrap gives errors.Is and errors.As the errno.
func (e *AccessError) Unwrap() error { return e.Errno }

func certificates(b []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			return certs, nil
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		certs = append(certs, c)
	}
}

// decrypt opens a key that is encrypted, by PKCS #8 or in the older way, in its
// PEM headers.
func decrypt(b, password []byte) ([]byte, error) {
	block, _ := pem.Decode(b)
	switch {
	case block == nil:
		return b, nil
	case block.Type == "ENCRYPTED PRIVATE KEY":
		if password == nil {
			return nil, errDecrypt
		}
		der, err := decryptPKCS8(block.Bytes, password)
		if err != nil {
			return nil, err
		}
		return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
	//lint:ignore SA1019 what is weak is the file, which is the user's
	case !x509.IsEncryptedPEMBlock(block):
		return b, nil
	case password == nil:
		return nil, errDecrypt
	}
	//lint:ignore SA1019 as above
	der, err := x509.DecryptPEMBlock(block, password)
	if err != nil {
		return nil, errDecrypt
	}
	return pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: der}), nil
}

func (o *Options) readCRL(c *Credentials) error {
	b, err := o.read(RevocationFile, false)
	there := b != nil
	for err == nil && there {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			// One that is empty or cut off, perhaps since it is being written, would
			// let in whom it names.
			if len(c.crls) == 0 || bytes.Contains(b, []byte("-----BEGIN")) {
				//lint:ignore ST1005 the field's text
				err = errors.New("Base64 decoding error.")
			}
			break
		}
		var l *x509.RevocationList
		if l, err = x509.ParseRevocationList(block.Bytes); err == nil {
			c.crls = append(c.crls, l)
		}
	}
	var access *AccessError
	if err == nil || errors.As(err, &access) {
		return err
	}
	return qapi.Errorf("Cannot load CRL '%s': %s", o.path(RevocationFile), err)
}
