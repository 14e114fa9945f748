// Package tlstest makes certificates for tests, in the directories that
// tlscreds reads.
package tlstest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Authority signs certificates.
type Authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  crypto.Signer
	next int64
}

// NewAuthority returns an authority with a certificate of its own. edit, if not
// nil, changes the certificate before it is signed.
func NewAuthority(t testing.TB, edit func(*x509.Certificate)) *Authority {
	t.Helper()
	a := &Authority{t: t, next: 1, key: newKey(t)}
	c := template(1, "Test authority")
	c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign
	if edit != nil {
		edit(c)
	}
	a.cert = a.sign(c, c, a.key)
	return a
}

func newKey(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func template(serial int64, name string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Unix(1_500_000_000, 0), NotAfter: time.Unix(4_000_000_000, 0),
	}
}

func (a *Authority) sign(c, parent *x509.Certificate, key crypto.Signer) *x509.Certificate {
	a.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert
}

// Dir returns a directory with credentials: the authority's certificate, and
// one for a server and one for a client, each with only a common name, as the
// field's recipe makes them. edit, if not nil, changes both before they are
// signed.
func (a *Authority) Dir(name string, edit func(*x509.Certificate)) string {
	a.t.Helper()
	dir := a.t.TempDir()
	a.write(dir, "ca-cert.pem", "CERTIFICATE", a.cert.Raw)
	for _, role := range []string{"server", "client"} {
		a.next++
		key := newKey(a.t)
		c := template(a.next, name)
		c.KeyUsage = x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		if role == "client" {
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		}
		if edit != nil {
			edit(c)
		}
		a.write(dir, role+"-cert.pem", "CERTIFICATE", a.sign(c, a.cert, key).Raw)
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			a.t.Fatal(err)
		}
		a.write(dir, role+"-key.pem", "PRIVATE KEY", der)
	}
	return dir
}

// Revoke puts a list into dir that revokes the certificates with the serial
// numbers.
func (a *Authority) Revoke(dir string, serials ...int64) {
	a.t.Helper()
	l := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: a.cert.NotBefore, NextUpdate: a.cert.NotAfter}
	for _, s := range serials {
		l.RevokedCertificateEntries = append(l.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: big.NewInt(s), RevocationTime: a.cert.NotBefore})
	}
	signer := *a.cert // the library wants a usage that the field's recipe leaves out
	signer.KeyUsage |= x509.KeyUsageCRLSign
	der, err := x509.CreateRevocationList(rand.Reader, l, &signer, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	a.write(dir, "ca-crl.pem", "X509 CRL", der)
}

// Serial is the number of the certificate that was signed last; the one before
// it is the server's.
func (a *Authority) Serial() int64 { return a.next }

func (a *Authority) write(dir, name, kind string, der []byte) {
	a.t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		a.t.Fatal(err)
	}
}
