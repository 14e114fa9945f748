package objects

import (
	"os"
	"path/filepath"
	"testing"

	"blockd/clock"
	"blockd/tlscreds/tlstest"
)

func TestAuthorisation(t *testing.T) {
	r := New(clock.NewVirtual())
	file := filepath.Join(t.TempDir(), "list")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(`{"policy": "allow"}`)
	add(t, r, "authz-simple,id=simple,identity=CN=me")
	add(t, r, "authz-list,id=list,policy=deny,rules.0.match=CN=evil*,rules.0.policy=deny,rules.0.format=glob,"+
		"rules.1.match=CN=*,,O=us,rules.1.policy=allow,rules.1.format=glob,rules.2.match=CN=*,rules.2.policy=allow")
	add(t, r, "authz-list,id=open,policy=allow")
	add(t, r, "authz-listfile,id=file,filename="+file)
	add(t, r, "authz-listfile,id=once,refresh=off,filename="+file)
	write(`{"policy": "deny", "rules": [{"match": "a", "policy": "allow"}]}`)
	add(t, r, "iothread,id=thread")
	for _, tc := range []struct {
		id, identity string
		want         bool
	}{
		{"simple", "CN=me", true}, {"simple", "CN=me,O=x", false}, {"simple", "", false},
		{"list", "CN=evil1,O=us", false}, {"list", "CN=good,O=us", true}, {"list", "CN=good,O=them", false}, {"list", "CN=*", true},
		{"open", "anybody", true}, {"file", "a", true}, {"file", "b", false}, {"once", "b", true},
	} {
		if got, err := r.Authorised(tc.id, tc.identity); got != tc.want || err != nil {
			t.Errorf("%s, %s: %v %v", tc.id, tc.identity, got, err)
		}
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]string{
		"none": "Cannot find QAuthZ object ID none", "thread": "Object 'thread' is not a QAuthZ subclass",
		"file": "Unable to read '" + file + "': No such file or directory",
	} {
		if ok, err := r.Authorised(id, "a"); ok || err == nil || err.Error() != want {
			t.Errorf("%s: %v %v", id, ok, err)
		}
	}
}

func TestGlob(t *testing.T) {
	for _, tc := range []struct {
		pattern, text string
		want          bool
	}{{"", "", true}, {"", "a", false}, {"*", "", true}, {"a*c*e", "abcde", true}, {"a*c*e", "abcd", false}, {"?", "a", true}, {"?", "", false},
		{"*a", "baab", false}, {"*ab", "aabab", true}, {"a?c", "abc", true}, {"**a**", "xax", true}} {
		if got := glob(tc.pattern, tc.text); got != tc.want {
			t.Errorf("%q %q: %v", tc.pattern, tc.text, got)
		}
	}
}

func TestBadObjectsForTLS(t *testing.T) {
	dir := tlstest.NewAuthority(t, nil).Dir("host", nil)
	r := New(clock.NewVirtual())
	for option, want := range map[string]string{
		"tls-creds-x509,id=t,endpoint=server":                      "Missing 'dir' property value",
		"tls-creds-x509,id=t,dir=/nonexistent":                     "Unable to access credentials /nonexistent/ca-cert.pem: No such file or directory",
		"tls-creds-x509,id=t,dir=" + dir + ",passwordid=s":         "No secret with id 's'",
		"tls-creds-x509,id=t,dir=" + dir + ",priority=NORMAL":      "TLS priority strings of GnuTLS are not supported",
		"tls-creds-psk,id=t,dir=/x":                                "TLS credentials of type 'tls-creds-psk' are not supported, use 'tls-creds-x509'",
		"authz-listfile,id=t,filename=/nonexistent":                "Unable to read '/nonexistent': No such file or directory",
		"authz-listfile,id=t,filename=x":                           "Filename must be an absolute path",
		"authz-listfile,id=t,filename=" + dir + "/server-cert.pem": "JSON parse error, stray '--'",
	} {
		if err := r.AddOption(t.Context(), option); err == nil || err.Error() != want {
			t.Errorf("%s: %v", option, err)
		}
	}
	add(t, r, "tls-creds-x509,id=client,dir="+dir)
	add(t, r, "iothread,id=thread")
	for id, want := range map[string]string{
		"none": "No TLS credentials with id 'none'", "thread": "Object with id 'thread' is not TLS credentials",
		"client": "Expected TLS credentials for a server endpoint",
	} {
		if _, err := r.TLSServer(id, ""); err == nil || err.Error() != want {
			t.Errorf("%s: %v", id, err)
		}
	}
}
