package logs

import (
	"errors"
	"log/slog"
	"strings"
	"testing"
)

// canary stands for a secret.
const canary = "CANARY-5ecre7"

func TestSecretsAreBlackedOut(t *testing.T) {
	for _, text := range []string{
		`Could not open 'json:{"driver": "curl", "password": "CANARY-5ecre7", "url": "x"}'`,
		`json:{"server.token":"CANARY-5ecre7"}`,
		`json:{\"proxy-password\": \"CANARY-5ecre7\"}`,
		`json:{'password':'CANARY-5ecre7'}`,
		`json:{"password": "a\"CANARY-5ecre7"}`,
		`{"qom-type":"secret","id":"s","data":"CANARY-5ecre7"}`,
		"secret,id=s,data=CANARY-5ecre7,format=raw",
		"Password: CANARY-5ecre7",
		"cookie=CANARY-5ecre7; x",
		"Authorization: Bearer CANARY-5ecre7",
		"the header was bearer CANARY-5ecre7",
		"Basic CANARY-5ecre7==",
		"cannot reach nbd://user:CANARY-5ecre7@host/x",
		"https://CANARY-5ecre7@host:8080/a?b",
		"https://h/?token=CANARY-5ecre7&x=1",
		"-----BEGIN RSA PRIVATE KEY-----\nCANARY-5ecre7\n-----END RSA PRIVATE KEY-----",
		strings.Repeat("x", maxText-40) + ` "password": "CANARY-5ecre7CANARY-5ecre7`,
	} {
		l := New(1)
		slog.New(l.Handler()).Info(text, "error", errors.New(text))
		line := l.Since(0, 1, anyLine).Lines[0]
		for _, got := range []string{line.Message, line.Attrs[0].Value.String()} {
			if strings.Contains(got, "CANARY") {
				t.Errorf("%s\nis shown as\n%s", text, got)
			}
		}
	}
	for _, name := range []string{"password", "token", "authToken", "proxy-password", "key", "data", "Authorization", "private_key"} {
		l := New(1)
		slog.New(l.Handler()).With(name, canary).Info("x", name, canary, slog.Group("g", name, []string{canary}))
		for _, a := range l.Since(0, 1, anyLine).Lines[0].Attrs {
			if strings.Contains(a.Value.String(), canary) {
				t.Errorf("%s=%s", a.Key, a.Value)
			}
		}
	}
}

func TestWhatIsNoSecretStays(t *testing.T) {
	for _, text := range []string{
		"Failed to write data: No space left on device",
		"No secret with id 'sec0'",
		"Could not open '/images/token.qcow2': Permission denied",
		"Invalid password, cannot unlock any keyslot",
		"metadata: 5",
		`json:{"driver": "qcow2", "file": {"driver": "file", "filename": "a b"}}`,
		"https://host:8080/a@b",
		"a graph change waits for requests in flight",
		"x=1 y=2",
	} {
		if got := scrub(text, maxText); got != text {
			t.Errorf("%s\nbecame\n%s", text, got)
		}
	}
	for _, name := range []string{"key-secret", "password-file", "node", "database", "keyslot"} {
		if secretName(name) {
			t.Errorf("%s is taken for a secret", name)
		}
	}
}
