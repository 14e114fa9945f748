package web

import (
	"strings"
	"testing"
)

func TestProfilesAreForThoseWhoControlAndAskedForThem(t *testing.T) {
	path, on := tokenFile(t, usual()...), true
	with := startWith(t, Options{Addr: "127.0.0.1:0", TokenFile: &path, Pprof: &on}, Config{QMP: idle}).Addr().String()
	without := startWith(t, Options{Addr: "127.0.0.1:0", TokenFile: &path}, Config{QMP: idle}).Addr().String()
	for _, c := range []struct {
		addr, path, token string
		want              int
	}{
		{with, "/debug/pprof/", controlToken, 200},
		{with, "/debug/pprof/heap?debug=1", controlToken, 200},
		{with, "/debug/pprof/cmdline", controlToken, 404},
		{with, "/debug/pprof/heap", readerToken, 403},
		{with, "/debug/pprof/profile?seconds=1", readerToken, 403},
		{with, "/debug/pprof/heap", wrongToken, 401},
		{without, "/debug/pprof/", controlToken, 404},
		{without, "/debug/pprof/heap", controlToken, 404},
	} {
		got, body := ask(t, "tcp", c.addr, "GET "+c.path+" HTTP/1.1\r\nHost: "+c.addr+"\r\nAuthorization: Bearer "+c.token+"\r\n\r\n")
		if got != c.want || got == 200 && !strings.Contains(body, "heap") {
			t.Errorf("%s: status %d, want %d", c.path, got, c.want)
		}
	}
}
