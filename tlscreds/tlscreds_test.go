package tlscreds

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"blockd/tlscreds/tlstest"
)

func now() time.Time { return time.Unix(1_800_000_000, 0) }

func load(t *testing.T, dir string, server bool) *Credentials {
	t.Helper()
	c, err := Load(Options{Dir: dir, Server: server, VerifyPeer: true, SanityCheck: true, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// shake has a client and a server talk; the errors are theirs.
func shake(t *testing.T, server *Credentials, authorise Authorise, client *Credentials, host string) (serverErr, clientErr error) {
	t.Helper()
	sc, err := server.ServerConfig(authorise)
	if err != nil {
		t.Fatal(err)
	}
	cc, err := client.ClientConfig(host)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	b, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	a, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		c := tls.Server(a, sc)
		err := c.Handshake()
		if err == nil {
			_, err = c.Write([]byte("x"))
		}
		a.Close()
		done <- err
	}()
	c := tls.Client(b, cc)
	if clientErr = c.Handshake(); clientErr == nil {
		_, clientErr = c.Read(make([]byte, 1))
	}
	b.Close()
	return <-done, clientErr
}

func TestPeersOfOneAuthorityTalk(t *testing.T) {
	a := tlstest.NewAuthority(t, nil)
	server, client := load(t, a.Dir("host.example", nil), true), load(t, a.Dir("me", nil), false)
	asked := ""
	s, c := shake(t, server, func(name string) (bool, error) { asked = name; return true, nil }, client, "host.example")
	if s != nil || c != nil {
		t.Error(s, c)
	}
	if asked != "CN=me" {
		t.Errorf("asked about %q", asked)
	}
}

func TestRefusedPeers(t *testing.T) {
	a, other := tlstest.NewAuthority(t, nil), tlstest.NewAuthority(t, nil)
	dir := a.Dir("host", nil)
	server, client := load(t, dir, true), load(t, a.Dir("me", nil), false)
	alone := a.Dir("me", nil)
	for _, f := range []string{clientFile, clientKey} {
		if err := os.Remove(filepath.Join(alone, f)); err != nil {
			t.Fatal(err)
		}
	}
	revoking := a.Dir("host", nil)
	victim := a.Dir("me", nil)
	a.Revoke(revoking, a.Serial())
	named := func(c *x509.Certificate) {
		c.DNSNames, c.IPAddresses = []string{"other"}, []net.IP{net.IPv4(127, 0, 0, 1)}
	}
	for _, tc := range []struct {
		name           string
		server, client *Credentials
		host           string
		authorise      Authorise
		want           string // of whoever refuses
	}{
		{"another authority's client", server, load(t, other.Dir("me", nil), false), "host", nil, "known issuer"},
		{"host", server, client, "elsewhere", nil, "Certificate does not match the hostname elsewhere"},
		{"no host", server, client, "", nil, "No hostname for certificate validation"},
		{"common name beside others", load(t, a.Dir("host", named), true), client, "host", nil, "Certificate does not match the hostname host"},
		{"without a certificate", server, load(t, alone, false), "host", nil, "client didn't provide a certificate"},
		{"not allowed", server, client, "host", func(string) (bool, error) { return false, nil }, "TLS x509 authz check for CN=me is denied"},
		{"revoked", load(t, revoking, true), load(t, victim, false), "host", nil, "The certificate has been revoked"},
	} {
		s, c := shake(t, tc.server, tc.authorise, tc.client, tc.host)
		if s == nil {
			s = c
		}
		if (s == nil || !strings.Contains(s.Error(), tc.want)) && (c == nil || !strings.Contains(c.Error(), tc.want)) {
			t.Errorf("%s: server %v, client %v", tc.name, s, c)
		}
	}
	if s, c := shake(t, load(t, a.Dir("host", named), true), nil, client, "127.0.0.1"); s != nil || c != nil {
		t.Error("by address:", s, c)
	}
	// A list that revokes somebody else.
	fine := a.Dir("host", nil)
	a.Revoke(fine, 4711)
	if s, c := shake(t, load(t, fine, true), nil, client, "host"); s != nil || c != nil {
		t.Error("revocation list:", s, c)
	}
}

// The field's recipe gives its authority the right to sign certificates, and says
// nothing of revocation lists.
func TestRevocationListOfAnAuthorityWithoutThatUsage(t *testing.T) {
	a := tlstest.NewAuthority(t, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCertSign })
	dir := a.Dir("host", nil)
	victim := load(t, a.Dir("me", nil), false)
	a.Revoke(dir, a.Serial())
	if err := load(t, dir, true).verifyPeer([]*x509.Certificate{victim.own.Leaf}, false); err == nil || err.Error() != "The certificate has been revoked" {
		t.Error(err)
	}
}

// The authority's roots are those of the file alone: a client of the system's
// roots has no say, and a server's certificate does not make an authority.
func TestServerCertificateSignsNobody(t *testing.T) {
	a := tlstest.NewAuthority(t, nil)
	dir := a.Dir("host", nil)
	c := load(t, dir, true)
	leaf := c.own.Leaf
	forged, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: leaf.SerialNumber, Subject: pkix.Name{CommonName: "x"},
		NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter}, leaf, leaf.PublicKey, c.own.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(forged)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.verifyPeer([]*x509.Certificate{cert, leaf}, false); err == nil {
		t.Error("a chain through a certificate that is no authority's was accepted")
	}
}

func TestBadFiles(t *testing.T) {
	a := tlstest.NewAuthority(t, nil)
	dir := func(edit func(*x509.Certificate)) string { return a.Dir("host", edit) }
	authority := func(edit func(*x509.Certificate)) string { return tlstest.NewAuthority(t, edit).Dir("host", nil) }
	broken := func(name, content string) string {
		d := dir(nil)
		if err := os.WriteFile(filepath.Join(d, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return d
	}
	foreign := dir(nil)
	b, err := os.ReadFile(filepath.Join(tlstest.NewAuthority(t, nil).Dir("x", nil), caFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(foreign, caFile), b, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ dir, want string }{
		{"", "Missing 'dir' property value"},
		{"/nonexistent", "Unable to access credentials /nonexistent/ca-cert.pem: no such file or directory"},
		{broken(caFile, "nonsense"), "Unable to import CA certificate list DIR/ca-cert.pem"},
		{broken(serverKey, "nonsense"), "Cannot load certificate 'DIR/server-cert.pem' & key 'DIR/server-key.pem'"},
		{broken(RevocationFile, "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"), "Cannot load CRL 'DIR/ca-crl.pem'"},
		{broken(RevocationFile, ""), "Cannot load CRL 'DIR/ca-crl.pem': Base64 decoding error."},
		{broken(RevocationFile, "nonsense\n"), "Cannot load CRL 'DIR/ca-crl.pem': Base64 decoding error."},
		{broken(RevocationFile, "-----BEGIN X509 CRL-----\nMIIB"), "Cannot load CRL 'DIR/ca-crl.pem': Base64 decoding error."},
		{broken(serverKey, "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n"), "Decryption has failed."},
		{authority(func(c *x509.Certificate) { c.NotAfter = c.NotBefore.Add(time.Hour) }), "The CA certificate DIR/ca-cert.pem has expired"},
		{authority(func(c *x509.Certificate) { c.NotBefore = now().Add(time.Hour) }), "The CA certificate DIR/ca-cert.pem is not yet active"},
		{authority(func(c *x509.Certificate) { c.BasicConstraintsValid = false }), "The certificate DIR/ca-cert.pem is missing basic constraints for a CA"},
		{authority(func(c *x509.Certificate) { c.IsCA = false }), "The certificate DIR/ca-cert.pem basic constraints do not show a CA"},
		{authority(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature }), "Certificate DIR/ca-cert.pem usage does not permit certificate signing"},
		{dir(func(c *x509.Certificate) { c.NotAfter = c.NotBefore.Add(time.Hour) }), "The server certificate DIR/server-cert.pem has expired"},
		{dir(func(c *x509.Certificate) { c.BasicConstraintsValid, c.IsCA = true, true }), "The certificate DIR/server-cert.pem basic constraints show a CA, but we need one for a server"},
		{dir(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }), "Certificate DIR/server-cert.pem usage does not permit digital signature"},
		{dir(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }), "Certificate DIR/server-cert.pem purpose does not allow use with a TLS server"},
		{foreign, "Our own certificate DIR/server-cert.pem failed validation against DIR/ca-cert.pem: The certificate hasn't got a known issuer"},
	} {
		_, err := Load(Options{Dir: tc.dir, Server: true, VerifyPeer: true, SanityCheck: true, Now: now})
		got := ""
		if err != nil {
			got = err.Error()
			if tc.dir != "" && tc.dir != "/nonexistent" {
				got = strings.ReplaceAll(got, tc.dir, "DIR")
			}
		}
		if !strings.HasPrefix(got, tc.want) && !strings.HasSuffix(got, tc.want) {
			t.Errorf("%q, want %q", got, tc.want)
		}
	}
}

func TestKeyWithAPassword(t *testing.T) {
	dir := tlstest.NewAuthority(t, nil).Dir("host", nil)
	path := filepath.Join(dir, serverKey)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(b)
	//lint:ignore SA1019 what is tested is that such files are read
	locked, err := x509.EncryptPEMBlock(rand.Reader, block.Type, block.Bytes, []byte("word"), x509.PEMCipherAES256)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, pem.EncodeToMemory(locked), 0o600); err != nil {
		t.Fatal(err)
	}
	for password, ok := range map[string]bool{"word": true, "other": false, "": false} {
		o := Options{Dir: dir, Server: true, VerifyPeer: true, Now: now}
		if password != "" {
			o.Password = []byte(password)
		}
		if _, err := Load(o); (err == nil) != ok {
			t.Errorf("%q: %v", password, err)
		}
	}
}

// The texts on the right are what certtool prints for the same names.
func TestDistinguishedNames(t *testing.T) {
	for _, tc := range []struct {
		name pkix.RDNSequence
		want string
	}{
		{pkix.Name{Country: []string{"South Pacific"}, Locality: []string{"R'lyeh"}, Organization: []string{"Cthulhu Dark Lord Enterprises client1"}, CommonName: "localhost"}.ToRDNSequence(),
			"CN=localhost,O=Cthulhu Dark Lord Enterprises client1,L=R'lyeh,C=South Pacific"},
		{pkix.Name{CommonName: `a,b+c"d\e<f>g;h#i `, OrganizationalUnit: []string{"#x", " y"}}.ToRDNSequence(), `CN=a\,b\+c\"d\\e\<f\>g\;h#i\ ,OU=\#x+OU=\ y`},
		{pkix.RDNSequence{{{Type: []int{1, 2, 3, 4}, Value: "v"}}}, "1.2.3.4=#130176"},
		{pkix.RDNSequence{{{Type: []int{1, 2, 840, 113549, 1, 9, 1}, Value: asn1.RawValue{Tag: asn1.TagIA5String, Bytes: []byte("a@b")}}}, {{Type: []int{0, 9, 2342, 19200300, 100, 1, 25}, Value: "x"}}}, "DC=#130178,EMAIL=a@b"},
		{pkix.RDNSequence{{{Type: []int{2, 5, 4, 4}, Value: "s"}}, {{Type: []int{2, 5, 4, 5}, Value: "12"}}}, "serialNumber=12,surName=s"},
	} {
		der, err := asn1.Marshal(tc.name)
		if err != nil {
			t.Fatal(err)
		}
		if got := DistinguishedName(der); got != tc.want {
			t.Errorf("%s, want %s", got, tc.want)
		}
	}
	if got := DistinguishedName([]byte("nonsense")); got != "" {
		t.Errorf("%q", got)
	}
}

func TestNames(t *testing.T) {
	for _, tc := range []struct {
		cn, host string
		want     bool
	}{
		{"host.example", "HOST.example", true}, {"host.example", "host.example.org", false}, {"*.example.org", "a.example.org", true},
		{"*.example.org", "a.b.example.org", false}, {"*.example.org", ".example.org", false}, {"*.org", "example.org", false},
		{"*", "host", false}, {"127.0.0.1", "127.0.0.1", true}, {"*.0.0.1", "127.0.0.1", false},
	} {
		c := &x509.Certificate{Subject: pkix.Name{CommonName: tc.cn}}
		if got := Names(c, tc.host); got != tc.want {
			t.Errorf("%q for %q: %v", tc.cn, tc.host, got)
		}
	}
}
