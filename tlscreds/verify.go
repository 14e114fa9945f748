package tlscreds

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"strings"

	"blockd/qapi"
)

// Authorise decides whether a client with that distinguished name may connect.
type Authorise func(name string) (bool, error)

// ServerConfig returns the configuration of a server, which asks authorise, if
// not nil, about every client. It fails for credentials of a client.
func (c *Credentials) ServerConfig(authorise Authorise) (*tls.Config, error) {
	if !c.server {
		return nil, qapi.Errorf("Expected TLS credentials for a server endpoint")
	}
	cfg := c.config()
	if !c.verify {
		return cfg, nil
	}
	cfg.ClientAuth = tls.RequireAnyClientCert
	cfg.VerifyConnection = func(s tls.ConnectionState) error {
		if err := c.verifyPeer(s.PeerCertificates, false); err != nil {
			return err
		}
		if authorise == nil {
			return nil
		}
		name := DistinguishedName(s.PeerCertificates[0].RawSubject)
		ok, err := authorise(name)
		if err == nil && !ok {
			err = qapi.Errorf("TLS x509 authz check for %s is denied", name)
		}
		return err
	}
	return cfg, nil
}

// ClientConfig returns the configuration of a client that means to talk to
// hostname. It fails for credentials of a server.
func (c *Credentials) ClientConfig(hostname string) (*tls.Config, error) {
	if c.server {
		return nil, qapi.Errorf("Expected TLS credentials for a client endpoint")
	}
	cfg := c.config()
	if net.ParseIP(hostname) == nil {
		cfg.ServerName = hostname // for the server; the check is ours
	}
	if c.verify {
		cfg.VerifyConnection = func(s tls.ConnectionState) error {
			if err := c.verifyPeer(s.PeerCertificates, true); err != nil {
				return err
			}
			if hostname == "" {
				return qapi.Errorf("No hostname for certificate validation")
			}
			if !Names(s.PeerCertificates[0], hostname) {
				return qapi.Errorf("Certificate does not match the hostname %s", hostname)
			}
			return nil
		}
	}
	return cfg, nil
}

func (c *Credentials) config() *tls.Config {
	cfg := &tls.Config{
		MinVersion: tls.VersionTLS12,
		Time:       c.now,
		// VerifyConnection does it: the library refuses certificates whose only
		// name is the common name, which is what the field's recipe makes.
		InsecureSkipVerify: true,
		// A resumed session would outlive a revocation and an authorisation.
		SessionTicketsDisabled: true,
	}
	if c.own != nil {
		cfg.Certificates = []tls.Certificate{*c.own}
	}
	return cfg
}

func parseChain(raw [][]byte) ([]*x509.Certificate, error) {
	var chain []*x509.Certificate
	for _, der := range raw {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		chain = append(chain, cert)
	}
	return chain, nil
}

func (c *Credentials) verifyPeer(chain []*x509.Certificate, server bool) error {
	if len(chain) == 0 {
		return qapi.Errorf("No certificate was found")
	}
	return c.verifyChain(chain, server)
}

// verifyChain checks that a chain leads to our CA.
func (c *Credentials) verifyChain(chain []*x509.Certificate, server bool) error {
	o := x509.VerifyOptions{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), CurrentTime: c.now()}
	o.KeyUsages = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if server {
		o.KeyUsages = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	}
	for _, ca := range c.ca {
		o.Roots.AddCert(ca)
	}
	for _, cert := range chain[1:] {
		o.Intermediates.AddCert(cert)
	}
	chains, err := chain[0].Verify(o)
	var invalid x509.CertificateInvalidError
	var unknown x509.UnknownAuthorityError
	switch {
	case errors.As(err, &unknown):
		return qapi.Errorf("The certificate hasn't got a known issuer")
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired && c.now().Before(invalid.Cert.NotBefore):
		return qapi.Errorf("The certificate is not yet activated")
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return qapi.Errorf("The certificate has expired")
	case err != nil:
		return qapi.Errorf("The certificate is not trusted: %s", err)
	}
	// One good way to the CA is enough.
	for _, way := range chains {
		if !c.revoked(way) {
			return nil
		}
	}
	return qapi.Errorf("The certificate has been revoked")
}

// revoked tells whether a CRL of ours lists a certificate of the chain. A CRL is
// found by its issuer's name; like the CA's file it is trusted for where it is.
// That its signature checks out is not asked: the library takes no signature on
// a CRL from a CA without that key usage, which the field's own recipe leaves
// out, and a CRL that counted for nothing would let the revoked in.
func (c *Credentials) revoked(chain []*x509.Certificate) bool {
	for i, cert := range chain[:len(chain)-1] {
		issuer := chain[i+1]
		for _, l := range c.crls {
			if string(l.RawIssuer) != string(issuer.RawSubject) {
				continue
			}
			for _, e := range l.RevokedCertificateEntries {
				if e.SerialNumber.Cmp(cert.SerialNumber) == 0 {
					return true
				}
			}
		}
	}
	return false
}

// Names tells whether a certificate is for a host: by its alternative names or,
// when it has none for hosts, by its common name.
func Names(cert *x509.Certificate, host string) bool {
	if len(cert.DNSNames)+len(cert.IPAddresses) > 0 {
		return cert.VerifyHostname(host) == nil
	}
	cn := cert.Subject.CommonName
	if strings.EqualFold(cn, host) {
		return true
	}
	if suffix, ok := strings.CutPrefix(cn, "*."); ok && net.ParseIP(host) == nil {
		label, rest, found := strings.Cut(host, ".")
		return found && label != "" && strings.Contains(suffix, ".") && strings.EqualFold(rest, suffix)
	}
	return false
}
