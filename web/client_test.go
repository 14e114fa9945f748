package web

import (
	"crypto/tls"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"blockd/qapi"
	"blockd/qmpclient"
)

// TestOwnClient has the client of the subcommands talk to the server.
func TestOwnClient(t *testing.T) {
	q := server(t, 0)
	path, dir := tokenFile(t, usual()...), authority(t).Dir("localhost", nil)
	sock := filepath.Join(t.TempDir(), "s")
	open := startWith(t, Options{Addr: "127.0.0.1:0"}, Config{QMP: q.ServeConn})
	startWith(t, Options{Addr: "unix:" + sock, TokenFile: &path}, Config{QMP: q.ServeConn})
	secure := startWith(t, Options{Addr: "127.0.0.1:0", TokenFile: &path, TLSDir: &dir}, Config{QMP: q.ServeConn})
	_, port, _ := strings.Cut(secure.Addr().String(), ":")
	trust := func(string) (*tls.Config, error) { return clientConfig(t, dir), nil }
	for _, c := range []struct {
		address string
		o       qmpclient.Options
		role    qapi.SessionRole
	}{
		{"ws://" + open.Addr().String(), qmpclient.Options{}, qapi.SessionRoleControl},
		{"ws://" + open.Addr().String() + "/qmp", qmpclient.Options{Token: "is not asked for"}, qapi.SessionRoleControl},
		{"ws+unix:" + sock, qmpclient.Options{Token: readerToken}, qapi.SessionRoleReadOnly},
		{"wss://localhost:" + port, qmpclient.Options{Token: controlToken, TLS: trust}, qapi.SessionRoleControl},
	} {
		client, err := qmpclient.Dial(t.Context(), c.address, c.o)
		if err != nil {
			t.Errorf("%s: %v", c.address, err)
			continue
		}
		answer, err := client.Execute(t.Context(), "x-query-session", nil)
		var info qapi.SessionInfo
		if err == nil {
			err = qapi.Decode(answer, &info)
		}
		if err != nil || info.Role != c.role || info.TLS != strings.HasPrefix(c.address, "wss") {
			t.Errorf("%s: %+v, %v", c.address, info, err)
		}
		_, err = client.Execute(t.Context(), "quit", nil)
		if refused := (*qapi.Error)(nil); errors.As(err, &refused) != (c.role == qapi.SessionRoleReadOnly) {
			t.Errorf("%s: %v", c.address, err)
		}
		client.Close()
	}
	for _, c := range []struct {
		address string
		o       qmpclient.Options
		want    string
	}{
		{"ws+unix:" + sock, qmpclient.Options{}, "401 Unauthorized: a token is needed"},
		{"ws+unix:" + sock, qmpclient.Options{Token: wrongToken}, "401 Unauthorized: the token is wrong"},
		{"ws://192.0.2.1:1", qmpclient.Options{Token: controlToken}, "a token goes to other machines over wss only"},
		{"ws://localhost:1/qmp?token=x", qmpclient.Options{}, "a token does not belong in the address"},
		{"ws://u:p@localhost:1", qmpclient.Options{}, "a token does not belong in the address"},
		{"ws://", qmpclient.Options{}, "is expected"},
		{"wss://localhost:" + port, qmpclient.Options{Token: controlToken}, "certificate"}, // of an authority that the system does not know
	} {
		client, err := qmpclient.Dial(t.Context(), c.address, c.o)
		if err == nil {
			client.Close()
		}
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "-token-") {
			t.Errorf("%s: %v, want %s", c.address, err, c.want)
		}
	}
}
