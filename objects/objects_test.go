package objects

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"encoding/base64"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"blockd/clock"
	"blockd/qapi"
	"blockd/tlscreds/tlstest"
)

func add(t testing.TB, r *Registry, option string) {
	t.Helper()
	if err := r.AddOption(t.Context(), option); err != nil {
		t.Fatalf("%s: %v", option, err)
	}
}

func wantError(t testing.TB, err error, want string) {
	t.Helper()
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestObjectInUseIsKept(t *testing.T) {
	r := New(clock.NewVirtual())
	add(t, r, "iothread,id=io")
	_, first, ok := Acquire[*IOThread](r, "io")
	if !ok {
		t.Fatal("not found")
	}
	_, second, _ := Acquire[*IOThread](r, "io")
	first()
	first() // counts once
	wantError(t, r.Delete("io"), "object 'io' is in use, can not be deleted")
	second()
	if err := r.Delete("io"); err != nil {
		t.Fatal(err)
	}
	if _, ok := Lookup[*IOThread](r, "io"); ok {
		t.Fatal("still there")
	}
}

func TestLookupsTellTypesApart(t *testing.T) {
	r := New(clock.NewVirtual())
	add(t, r, "throttle-group,id=tg")
	if _, ok := Lookup[*Secret](r, "tg"); ok {
		t.Error("a throttle group passes for a secret")
	}
	if _, ok := Lookup[*IOThread](r, "tg"); ok {
		t.Error("a throttle group passes for a thread")
	}
	if _, _, ok := Acquire[*Secret](r, "tg"); ok {
		t.Error("acquired as something else")
	}
	if _, _, ok := Acquire[*Secret](r, "zz"); ok {
		t.Error("acquired nothing")
	}
	if err := r.Delete("tg"); err != nil {
		t.Error("a look-up that failed keeps the object: ", err)
	}
}

func TestRefusedThreadPoolLeavesSettings(t *testing.T) {
	r := New(clock.NewVirtual())
	add(t, r, "iothread,id=io")
	wantError(t, r.Set("io", "thread-pool-min", int64(100)), "bad thread-pool-min/thread-pool-max values")
	if v, err := r.Get("io", "thread-pool-min"); v != int64(0) || err != nil {
		t.Fatal(v, err)
	}
}

func TestListGetGivesValuesOfEveryProperty(t *testing.T) {
	r := New(clock.NewVirtual())
	add(t, r, "secret,id=s,data=x")
	add(t, r, "main-loop,id=m,aio-max-batch=3")
	c := dial(t, r)
	got := c.ask(`{"execute": "qom-list-get", "arguments": {"paths": ["/objects/s", "m", "/"]}}`)
	const want = `{"return": [{"properties": [{"name": "type", "value": "secret", "type": "string"}, {"name": "iv", "value": "", "type": "string"}, ` +
		`{"name": "keyid", "value": "", "type": "string"}, {"name": "loaded", "value": true, "type": "bool"}, {"name": "format", "value": "raw", "type": "QCryptoSecretFormat"}, ` +
		`{"name": "file", "value": "", "type": "string"}, {"name": "data", "value": "x", "type": "string"}]}, ` +
		`{"properties": [{"name": "type", "value": "main-loop", "type": "string"}, {"name": "thread-pool-min", "value": 0, "type": "int"}, ` +
		`{"name": "aio-max-batch", "value": 3, "type": "int"}, {"name": "thread-pool-max", "value": 64, "type": "int"}]}, ` +
		`{"properties": [{"name": "type", "value": "container", "type": "string"}, {"name": "objects", "value": "/objects", "type": "child<container>"}]}]}`
	if got != want {
		t.Errorf("\n got %s\nwant %s", got, want)
	}
	if got := c.ask(`{"execute": "qom-list-get", "arguments": {"paths": ["m", "/zz"]}}`); got != `{"error": {"class": "DeviceNotFound", "desc": "Device '/zz' not found"}}` {
		t.Error(got)
	}
}

func TestEveryPropertyCanBeRead(t *testing.T) {
	r := New(clock.NewVirtual())
	creds := tlstest.NewAuthority(t, nil).Dir("host", nil)
	list := filepath.Join(t.TempDir(), "list")
	if err := os.WriteFile(list, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, o := range []string{"secret,id=secret,data=x", "main-loop,id=main-loop", "iothread,id=iothread", "throttle-group,id=throttle-group",
		"tls-creds-x509,id=tls-creds-x509,endpoint=server,sanity-check=off,dir=" + creds, "authz-simple,id=authz-simple,identity=x",
		"authz-list,id=authz-list,rules.0.match=a,rules.0.policy=allow", "authz-listfile,id=authz-listfile,filename=" + list} {
		add(t, r, o)
	}
	for _, id := range qapi.ObjectType("").QAPIEnum() {
		if id == string(qapi.ObjectTypeTLSCredsPsk) {
			continue // refused
		}
		list, err := r.List(id)
		if err != nil {
			t.Fatal(err)
		}
		if all, err := ListProperties(id); err != nil || len(all) != len(list) {
			t.Errorf("%s: %v %v", id, all, err)
		}
		for _, p := range list {
			if v, err := r.Get(id, p.Name); v == nil || err != nil {
				t.Errorf("%s.%s: %v %v", id, p.Name, v, err)
			}
		}
	}
}

func encrypt(t *testing.T, key, iv, plain []byte) []byte {
	t.Helper()
	b, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	n := aes.BlockSize - len(plain)%aes.BlockSize
	padded := append(bytes.Clone(plain), bytes.Repeat([]byte{byte(n)}, n)...)
	cipher.NewCBCEncrypter(b, iv).CryptBlocks(padded, padded)
	return padded
}

func TestSecretsAreDecoded(t *testing.T) {
	key := []byte("0123456789abcdef0123456789ABCDEF")
	iv := []byte("an initial value")
	b64 := base64.StdEncoding.EncodeToString
	dir := t.TempDir()
	inFile := func(b []byte) *string {
		name := filepath.Join(dir, b64(b)[:4])
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return &name
	}
	r := New(clock.NewVirtual())
	base := qapi.QCryptoSecretFormatBase64
	for _, c := range []struct {
		id   string
		p    qapi.SecretProperties
		want []byte
	}{
		{"key", qapi.SecretProperties{Format: &base, Data: new(b64(key))}, key},
		{"raw", qapi.SecretProperties{Data: new("wørd\n")}, []byte("wørd\n")},
		{"empty", qapi.SecretProperties{Data: new("")}, nil},
		{"file", qapi.SecretProperties{File: inFile([]byte("\x00\xff in a file\n"))}, []byte("\x00\xff in a file\n")},
		{"b64file", qapi.SecretProperties{Format: &base, File: inFile([]byte(b64([]byte("text")) + "\n"))}, []byte("text")},
		{"wrapped", qapi.SecretProperties{Format: &base, KeyID: new("key"), IV: new(b64(iv)), Data: new(b64(encrypt(t, key, iv, []byte("sixteen bytes or"))))}, []byte("sixteen bytes or")},
		{"short", qapi.SecretProperties{Format: &base, KeyID: new("key"), IV: new(b64(iv)), Data: new(b64(encrypt(t, key, iv, nil)))}, nil},
		{"wrappedfile", qapi.SecretProperties{KeyID: new("key"), IV: new(b64(iv)), File: inFile(encrypt(t, key, iv, []byte("x")))}, []byte("x")},
	} {
		if err := r.Add(t.Context(), &qapi.ObjectOptions{QOMType: qapi.ObjectTypeSecret, ID: c.id, Secret: &c.p}); err != nil {
			t.Errorf("%s: %v", c.id, err)
			continue
		}
		if got, err := r.SecretData(c.id); err != nil || !bytes.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q (%v)", c.id, got, c.want, err)
		}
	}
	if s, err := r.SecretText("raw"); s != "wørd\n" || err != nil {
		t.Error(s, err)
	}
	_, err := r.SecretText("file")
	wantError(t, err, "Data from secret file is not valid UTF-8")
	_, err = r.SecretData("zz")
	wantError(t, err, "No secret with id 'zz'")
	add(t, r, "iothread,id=io")
	_, err = r.SecretData("io")
	wantError(t, err, "Object with id 'io' is not a secret")
	if err := r.Set("raw", "data", "other"); err != nil {
		t.Fatal(err)
	}
	if got, _ := r.SecretData("raw"); string(got) != "wørd\n" {
		t.Errorf("the value follows the property: %q", got)
	}
}

// TestOpenSSLWrapsSecrets takes the documented way to wrap a secret.
func TestOpenSSLWrapsSecrets(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("needs openssl")
	}
	key, iv := "30313233343536373839303132333435363738393031323334353637383930ff", "000102030405060708090a0b0c0d0e0f"
	cmd := exec.Command("openssl", "enc", "-aes-256-cbc", "-a", "-A", "-K", key, "-iv", iv)
	cmd.Stdin = strings.NewReader("letmein")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	r := New(clock.NewVirtual())
	add(t, r, `secret,id=master,format=base64,data=MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MP8=`)
	add(t, r, `secret,id=s,format=base64,keyid=master,iv=AAECAwQFBgcICQoLDA0ODw==,data=`+string(out))
	if got, err := r.SecretText("s"); got != "letmein" || err != nil {
		t.Fatal(got, err)
	}
}

func TestSecretOfAPipeIsReadToItsEnd(t *testing.T) {
	pipe, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	go func() {
		io.WriteString(w, "in two ")
		io.WriteString(w, "pieces")
		w.Close()
	}()
	r := New(clock.NewVirtual(), WithOpener(func(name string) (io.ReadCloser, error) {
		if name != "the-pipe" {
			return nil, &os.PathError{Op: "open", Path: name, Err: syscall.EPERM}
		}
		return pipe, nil
	}))
	add(t, r, "secret,id=s,file=the-pipe")
	if got, err := r.SecretText("s"); got != "in two pieces" || err != nil {
		t.Fatal(got, err)
	}
	wantError(t, r.AddOption(t.Context(), "secret,id=s2,file=/etc/passwd"), "Unable to read /etc/passwd: Failed to open file “/etc/passwd”: Operation not permitted")
}

func TestEndlessSecretIsRefused(t *testing.T) {
	r := New(clock.NewVirtual())
	wantError(t, r.AddOption(t.Context(), "secret,id=s,file=/dev/zero"), "Unable to read /dev/zero: File “/dev/zero” is too large")
	if _, ok := Lookup[Object](r, "s"); ok {
		t.Fatal("it is there all the same")
	}
}

func TestNothingToDecryptIsRefused(t *testing.T) {
	r := New(clock.NewVirtual())
	add(t, r, "secret,id=key,data=01234567890123456789012345678901")
	wantError(t, r.AddOption(t.Context(), "secret,id=s,data=,keyid=key,iv=MDEyMzQ1Njc4OTAxMjM0NQ=="),
		"Incorrect number of padding bytes (0) found on decrypted data")
}

func TestOneOfManyAddsOfAnIDWins(t *testing.T) {
	r := New(clock.NewVirtual())
	var wg sync.WaitGroup
	var mu sync.Mutex
	added, loops := 0, 0
	for range 16 {
		wg.Go(func() {
			err := r.AddOption(context.Background(), "secret,id=s,data=x")
			loop := r.AddOption(context.Background(), "main-loop,id=m")
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				added++
			} else if err.Error() != "attempt to add duplicate property 's' to object (type 'container')" {
				t.Error(err)
			}
			if loop == nil {
				loops++
			}
		})
	}
	wg.Wait()
	if added != 1 || loops != 1 {
		t.Fatalf("%d and %d were added", added, loops)
	}
}

func TestMainLoopIsThereOnce(t *testing.T) {
	r := New(clock.NewVirtual())
	add(t, r, "main-loop,id=a")
	wantError(t, r.AddOption(t.Context(), "main-loop,id=b"), "only one main-loop instance allowed")
	wantError(t, r.Delete("a"), "object 'a' is in use, can not be deleted")
}

// The texts are those of qemu-storage-daemon 7.2.
func TestObjectOption(t *testing.T) {
	for _, c := range [][2]string{
		{"throttle-group,id=a,limits.iops-total=10,x-bps-read=0x10", ""},
		{"qom-type=iothread,id=a", ""},
		{`{"qom-type":"throttle-group","id":"a","limits":{"iops-total":1}}`, ""},
		{"zz,id=a", "Parameter 'qom-type' does not accept value 'zz'"},
		{"throttle-group", "Parameter 'id' is missing"},
		{"throttle-group,id=1", "Parameter 'id' expects an identifier"},
		{`{"qom-type":"throttle-group","id":"a","limits":{"iops-total":"1"}}`, "Invalid parameter type for 'limits.iops-total', expected: integer"},
		{`{"qom-type":"throttle-group","id":"a","limits":{"iops-total":-1}}`, "bps/iops/max values must be within [0, 1000000000000000]"},
		{"secret,id=a,file=/zz", "Unable to read /zz: Failed to open file “/zz”: No such file or directory"},
		{"", "Parameter 'qom-type' is missing"},
		{"id=a", "Parameter 'qom-type' is missing"},
		{"qom-type=secret", "Parameter 'id' is missing"},
		{"secret,id=s,data=a,bogus=1", "Parameter 'bogus' is unexpected"},
		{"secret,id=s,data=a,keyid=zz,iv=a", "No secret with id 'zz'"},
	} {
		err := New(clock.NewVirtual()).AddOption(t.Context(), c[0])
		got := ""
		if err != nil {
			got = err.Error()
		}
		if got != c[1] {
			t.Errorf("%s: %q, want %q", c[0], got, c[1])
		}
	}
}

func TestObjectHelpIsTheRivals(t *testing.T) {
	const program = "qemu-storage-daemon"
	_, lookErr := exec.LookPath(program)
	for _, o := range []string{"throttle-group,help", "secret,help", "iothread,?", "id=x,qom-type=main-loop,help", "help", "zz,help"} {
		_, err := ParseOption(o)
		help, ok := errors.AsType[*Help](err)
		if !ok {
			t.Fatalf("%s: %v", o, err)
		}
		if strings.HasPrefix(o, "help") || strings.HasPrefix(o, "zz") {
			if want := "List of user creatable objects:\n  authz-list\n  authz-listfile\n  authz-simple\n  iothread\n  main-loop\n  secret\n  throttle-group\n  tls-creds-psk\n  tls-creds-x509\n"; help.Text != want {
				t.Errorf("%s: %q", o, help.Text)
			}
			continue
		}
		if lookErr != nil {
			t.Skip("needs " + program)
		}
		out, err := exec.Command(program, "--object", o).Output()
		if err != nil {
			t.Fatal(err)
		}
		if help.Text != string(out) {
			t.Errorf("%s: %q, rival %q", o, help.Text, out)
		}
	}
}

func TestLimitsChangeAtRunTime(t *testing.T) {
	r := New(clock.NewVirtual())
	add(t, r, "throttle-group,id=tg,x-iops-total=10")
	g, ok := Lookup[*ThrottleGroup](r, "tg")
	if !ok {
		t.Fatal("not found")
	}
	if err := r.Set("tg", "limits", qapi.NewObject("iops-total", int64(20), "bps-read", int64(5))); err != nil {
		t.Fatal(err)
	}
	c := g.Group().Config()
	if l := c.Limits(); *l.IOPSTotal != 20 || *l.BPSRead != 5 {
		t.Fatal(*l.IOPSTotal, *l.BPSRead)
	}
	if v, err := r.Get("tg", "x-iops-total"); v != int64(20) || err != nil {
		t.Fatal(v, err)
	}
}

func FuzzParseOption(f *testing.F) {
	for _, s := range []string{"throttle-group,id=a,limits.iops-total=10", "secret,help", "help,?,=", `{"qom-type":"secret"}`, "secret,id=s,data=a,,b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if o, err := ParseOption(s); (o == nil) == (err == nil) {
			t.Fatal(o, err)
		}
	})
}

func FuzzDecodeBase64(f *testing.F) {
	f.Add([]byte("QUJD"))
	f.Add([]byte("QUI=\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := decodeBase64(b)
		want, strict := base64.StdEncoding.DecodeString(string(b))
		if strict == nil && !bytes.ContainsRune(b, '\r') && (err != nil || !bytes.Equal(got, want)) {
			t.Fatalf("%q: %q %v, want %q", b, got, err, want)
		}
	})
}
