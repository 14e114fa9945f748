package qapi

// Properties of the objects for TLS and for authorisation.

// QCryptoTLSCredsEndpoint is the side that credentials are for.
type QCryptoTLSCredsEndpoint string

// Values of QCryptoTLSCredsEndpoint.
const (
	QCryptoTLSCredsEndpointClient QCryptoTLSCredsEndpoint = "client"
	QCryptoTLSCredsEndpointServer QCryptoTLSCredsEndpoint = "server"
)

// QAPIEnum lists the values that blockd accepts.
func (QCryptoTLSCredsEndpoint) QAPIEnum() []string { return []string{"client", "server"} }

// TLSCredsProperties are shared by all TLS credentials.
type TLSCredsProperties struct {
	// Verify the peer. Default true.
	VerifyPeer *bool `qapi:"verify-peer"`
	// Directory of the files.
	Dir *string `qapi:"dir"`
	// Default client.
	Endpoint *QCryptoTLSCredsEndpoint `qapi:"endpoint"`
	// Algorithms, in GnuTLS' notation.
	Priority *string `qapi:"priority"`
}

// TLSCredsX509Properties are those of tls-creds-x509.
type TLSCredsX509Properties struct {
	TLSCredsProperties
	// Check our own files when they are loaded. Default true.
	SanityCheck *bool `qapi:"sanity-check"`
	// Id of the secret that opens the key.
	PasswordID *string `qapi:"passwordid"`
}

// TLSCredsPskProperties are those of tls-creds-psk.
type TLSCredsPskProperties struct {
	TLSCredsProperties
	// Default qemu.
	Username *string `qapi:"username"`
}

// QAuthZListPolicy is a decision.
type QAuthZListPolicy string

// Values of QAuthZListPolicy.
const (
	QAuthZListPolicyDeny  QAuthZListPolicy = "deny"
	QAuthZListPolicyAllow QAuthZListPolicy = "allow"
)

// QAPIEnum lists the values that blockd accepts.
func (QAuthZListPolicy) QAPIEnum() []string { return []string{"deny", "allow"} }

// QAuthZListFormat is how a rule's text is compared.
type QAuthZListFormat string

// Values of QAuthZListFormat.
const (
	QAuthZListFormatExact QAuthZListFormat = "exact"
	QAuthZListFormatGlob  QAuthZListFormat = "glob"
)

// QAPIEnum lists the values that blockd accepts.
func (QAuthZListFormat) QAPIEnum() []string { return []string{"exact", "glob"} }

// QAuthZListRule is one rule.
type QAuthZListRule struct {
	Match  string           `qapi:"match"`
	Policy QAuthZListPolicy `qapi:"policy"`
	// Default exact.
	Format *QAuthZListFormat `qapi:"format"`
}

// AuthZListProperties are those of authz-list.
type AuthZListProperties struct {
	// For whom no rule matches. Default deny.
	Policy *QAuthZListPolicy `qapi:"policy"`
	Rules  []QAuthZListRule  `qapi:"rules,optional"`
}

// AuthZListFileProperties are those of authz-listfile.
type AuthZListFileProperties struct {
	Filename string `qapi:"filename"`
	// Read the file again when it has changed. Default true.
	Refresh *bool `qapi:"refresh"`
}

// AuthZSimpleProperties are those of authz-simple.
type AuthZSimpleProperties struct {
	Identity string `qapi:"identity"`
}
