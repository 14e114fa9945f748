// Package tlscreds loads X.509 credentials for TLS as the field lays them out:
// a directory with ca-cert.pem, and for a server server-cert.pem and
// server-key.pem, for a client optionally client-cert.pem and client-key.pem,
// and perhaps ca-crl.pem. It makes configurations of crypto/tls of them.
//
// A peer is verified by our own check: the chain must lead to the CA file, no
// other root counts, and the CRL is heeded. A server's name is that of its
// certificate's subjectAltName or, as the field's own recipe makes certificates
// without one, its common name. Authorisation sees the distinguished name as
// GnuTLS prints it.
//
// No locks; credentials are immutable. Load reads files. It imports qapi of
// this module.
package tlscreds
