package tlscreds

import (
	"crypto/x509"
	"slices"

	"blockd/qapi"
)

// Checks of our own files, with the field's texts: a mistake in them shows when
// they are loaded and not when a peer fails to connect.

func (c *Credentials) sane(caPath, ownPath string) error {
	for _, ca := range c.ca {
		if err := c.checkOne(ca, caPath, true); err != nil {
			return err
		}
	}
	if c.own == nil {
		return nil
	}
	if err := c.checkOne(c.own.Leaf, ownPath, false); err != nil {
		return err
	}
	chain, err := parseChain(c.own.Certificate)
	if err == nil {
		err = c.verifyChain(chain, c.server)
	}
	if err != nil {
		return qapi.Errorf("Our own certificate %s failed validation against %s: %s", ownPath, caPath, err)
	}
	return nil
}

func (c *Credentials) checkOne(cert *x509.Certificate, path string, ca bool) error {
	role, purpose := "client", x509.ExtKeyUsageClientAuth
	if c.server {
		role, purpose = "server", x509.ExtKeyUsageServerAuth
	}
	kind := role
	if ca {
		kind = "CA"
	}
	now := c.now()
	switch {
	case cert.NotAfter.Before(now):
		return qapi.Errorf("The %s certificate %s has expired", kind, path)
	case cert.NotBefore.After(now):
		return qapi.Errorf("The %s certificate %s is not yet active", kind, path)
	case ca && !cert.BasicConstraintsValid:
		return qapi.Errorf("The certificate %s is missing basic constraints for a CA", path)
	case ca && !cert.IsCA:
		return qapi.Errorf("The certificate %s basic constraints do not show a CA", path)
	case !ca && cert.BasicConstraintsValid && cert.IsCA:
		return qapi.Errorf("The certificate %s basic constraints show a CA, but we need one for a %s", path, role)
	}
	// Without the extension everything is allowed.
	if use := cert.KeyUsage; use != 0 {
		switch {
		case ca && use&x509.KeyUsageCertSign == 0:
			return qapi.Errorf("Certificate %s usage does not permit certificate signing", path)
		case !ca && use&x509.KeyUsageDigitalSignature == 0:
			return qapi.Errorf("Certificate %s usage does not permit digital signature", path)
		}
	}
	if ca || len(cert.ExtKeyUsage)+len(cert.UnknownExtKeyUsage) == 0 ||
		slices.Contains(cert.ExtKeyUsage, purpose) || slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageAny) {
		return nil
	}
	return qapi.Errorf("Certificate %s purpose does not allow use with a TLS %s", path, role)
}
