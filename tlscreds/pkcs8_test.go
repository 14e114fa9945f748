package tlscreds

import (
	"bytes"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"blockd/tlscreds/tlstest"
)

// encryptedKeys are keys that OpenSSL and GnuTLS have encrypted: by arguments of
// theirs that make the other choices in the file.
var encryptedKeys = map[string][]string{
	"openssl":        {"openssl", "pkcs8", "-topk8", "-passout", "pass:word", "-in", "IN", "-out", "OUT"},
	"openssl aes128": {"openssl", "pkcs8", "-topk8", "-v2", "aes-128-cbc", "-passout", "pass:word", "-in", "IN", "-out", "OUT"},
	"openssl aes192": {"openssl", "pkcs8", "-topk8", "-v2", "aes-192-cbc", "-v2prf", "hmacWithSHA512", "-passout", "pass:word", "-in", "IN", "-out", "OUT"},
	"openssl 3des":   {"openssl", "pkcs8", "-topk8", "-v2", "des3", "-v2prf", "hmacWithSHA1", "-passout", "pass:word", "-in", "IN", "-out", "OUT"},
	"gnutls":         {"certtool", "--to-p8", "--pkcs-cipher", "aes-256", "--password", "word", "--load-privkey", "IN", "--outfile", "OUT"},
	"gnutls 3des":    {"certtool", "--to-p8", "--pkcs-cipher", "3des", "--password", "word", "--load-privkey", "IN", "--outfile", "OUT"},
}

func TestKeysEncryptedByPKCS8(t *testing.T) {
	for name, command := range encryptedKeys {
		// GnuTLS derives its keys by 600,000 iterations.
		if command[0] == "certtool" && os.Getenv("BLOCKD_TEST_ALL") != "1" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			if _, err := exec.LookPath(command[0]); err != nil {
				t.Skip("needs " + command[0])
			}
			dir := tlstest.NewAuthority(t, nil).Dir("host", nil)
			path := filepath.Join(dir, serverKey)
			var list []string
			for _, a := range command[1:] {
				switch a {
				case "IN":
					a = path
				case "OUT":
					a = path + ".locked"
				}
				list = append(list, a)
			}
			if out, err := exec.Command(command[0], list...).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			if err := os.Rename(path+".locked", path); err != nil {
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
		})
	}
}

// FuzzPKCS8 has any bytes read as an encrypted key, none of which may take long.
func FuzzPKCS8(f *testing.F) {
	block, _ := pem.Decode([]byte(lockedKey))
	f.Add(block.Bytes, []byte("word"))
	f.Add([]byte{0x30, 0}, []byte{})
	f.Fuzz(func(t *testing.T, der, password []byte) {
		if plain, err := decryptPKCS8(der, password); err == nil && len(plain) >= len(der) {
			t.Errorf("%d bytes out of %d", len(plain), len(der))
		}
	})
}

func TestPKCS8KeyOfAnotherDay(t *testing.T) {
	block, _ := pem.Decode([]byte(lockedKey))
	if _, err := decryptPKCS8(block.Bytes, []byte("word")); err != nil {
		t.Error(err)
	}
	for i := range block.Bytes {
		b := bytes.Clone(block.Bytes)
		b[i] ^= 0x40
		_, _ = decryptPKCS8(b, []byte("word")) // no panic
	}
	if _, err := decryptPKCS8(block.Bytes, []byte("other")); err == nil {
		t.Error("another password opens it")
	}
}

// lockedKey was made by openssl pkcs8 -topk8 -iter 16, of a key for nothing else.
const lockedKey = `-----BEGIN ENCRYPTED PRIVATE KEY-----
MIHrMFYGCSqGSIb3DQEFDTBJMCgGCSqGSIb3DQEFDDAbBAh7yjLlmDUkZgIBEDAM
BggqhkiG9w0CCQUAMB0GCWCGSAFlAwQBKgQQB3ufaV77BQPpmJq9bnZrWgSBkB8a
nFFB9YipdhpDG+pVS5nTDTchicTB2pWsiQXjTRkS+YIm6dwjcWSfVYBPNiM6CYxJ
tajbSa85GZB1Exfop0yf3SgzMGWqYYsVCbeQPid2xZ/FchszLPcwfVSntkgjTIeA
/lNbZW8tbvJ4r7jT+CkcaakjqSnUZyzyNqGHP+auruFG0tmzMJl+Cz/DqZhkaQ==
-----END ENCRYPTED PRIVATE KEY-----
`
