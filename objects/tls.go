package objects

import (
	"crypto/tls"
	"errors"

	"blockd/blockgraph"
	"blockd/clock"
	"blockd/qapi"
	"blockd/tlscreds"
)

// TLSCreds is an object of type tls-creds-x509. Its files are read once, at
// object-add.
type TLSCreds struct {
	loaded *tlscreds.Credentials // immutable

	// As given; they never change.
	endpoint                qapi.QCryptoTLSCredsEndpoint
	dir, priority, password string
	verifyPeer, sanityCheck bool
}

// QOMType implements Object.
func (*TLSCreds) QOMType() qapi.ObjectType { return qapi.ObjectTypeTLSCredsX509 }

func newTLSCreds(p *qapi.TLSCredsX509Properties) *TLSCreds {
	c := &TLSCreds{endpoint: qapi.QCryptoTLSCredsEndpointClient, verifyPeer: true, sanityCheck: true}
	if p == nil {
		return c
	}
	take(&c.endpoint, p.Endpoint)
	take(&c.dir, p.Dir)
	take(&c.priority, p.Priority)
	take(&c.password, p.PasswordID)
	take(&c.verifyPeer, p.VerifyPeer)
	take(&c.sanityCheck, p.SanityCheck)
	return c
}

//blockd:io
func take[T any](to *T, from *T) {
	if from != nil {
		*to = *from
	}
}

// load reads the files. The object is not in the registry yet.
func (c *TLSCreds) load(r *Registry) error {
	if c.priority != "" {
		return qapi.Errorf("TLS priority strings of GnuTLS are not supported")
	}
	o := tlscreds.Options{
		Dir: c.dir, Server: c.endpoint == qapi.QCryptoTLSCredsEndpointServer,
		VerifyPeer: c.verifyPeer, SanityCheck: c.sanityCheck, Now: clock.Real().Now,
	}
	if c.password != "" {
		text, err := r.SecretText(c.password)
		if err != nil {
			return err
		}
		o.Password = []byte(text)
	}
	loaded, err := tlscreds.Load(o)
	var access *tlscreds.AccessError
	if errors.As(err, &access) {
		return qapi.Errorf("Unable to access credentials %s: %s", access.Path, blockgraph.Strerror(access))
	}
	c.loaded = loaded
	return err
}

//blockd:io
func (r *Registry) tlsCreds(id string) (*tlscreds.Credentials, error) {
	o, ok := Lookup[Object](r, id)
	if !ok {
		return nil, qapi.Errorf("No TLS credentials with id '%s'", id)
	}
	c, ok := o.(*TLSCreds)
	if !ok {
		return nil, qapi.Errorf("Object with id '%s' is not TLS credentials", id)
	}
	return c.loaded, nil
}

// TLSServer returns the configuration of a server that uses the credentials
// with an id, and asks the object authz, unless "", about every client. Errors
// are *qapi.Error.
func (r *Registry) TLSServer(creds, authz string) (*tls.Config, error) {
	c, err := r.tlsCreds(creds)
	if err != nil {
		return nil, err
	}
	if authz == "" {
		return c.ServerConfig(nil)
	}
	return c.ServerConfig(func(name string) (bool, error) { return r.Authorised(authz, name) })
}

// TLSClient returns the configuration of a client that uses the credentials
// with an id, towards a server with that name. Errors are *qapi.Error.
//
//blockd:io
func (r *Registry) TLSClient(creds, hostname string) (*tls.Config, error) {
	c, err := r.tlsCreds(creds)
	if err != nil {
		return nil, err
	}
	return c.ClientConfig(hostname)
}

// fixed is a property that is shown and cannot be changed.
func fixed[O Object](name, typ string, get func(O) any) property {
	return property{name: name, typ: typ, get: func(o Object) any { return get(o.(O)) }}
}

// The order is the field's.
var (
	tlsCredsProperties = []property{
		fixed("endpoint", "QCryptoTLSCredsEndpoint", func(c *TLSCreds) any { return string(c.endpoint) }),
		fixed("dir", "string", func(c *TLSCreds) any { return c.dir }),
		fixed("verify-peer", "bool", func(c *TLSCreds) any { return c.verifyPeer }),
		fixed("priority", "string", func(c *TLSCreds) any { return c.priority }),
	}
	tlsCredsX509Properties = []property{
		fixed("sanity-check", "bool", func(c *TLSCreds) any { return c.sanityCheck }),
		fixed("passwordid", "string", func(c *TLSCreds) any { return c.password }),
		fixed("loaded", "bool", func(*TLSCreds) any { return true }),
	}
)
