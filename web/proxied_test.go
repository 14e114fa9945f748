package web

import (
	"strings"
	"testing"

	"blockd/chardev"
	"blockd/clock"
	"blockd/qapi"
)

// TestProxiesNameAndOrigin has requests come as a proxy passes them on, and as
// others forge them.
func TestProxiesNameAndOrigin(t *testing.T) {
	path := tokenFile(t, usual()...)
	host, origin := "disks.example", "https://disks.example"
	serve := func(o Options) string {
		o.Addr, o.TokenFile = "127.0.0.1:0", &path
		return startWith(t, o, Config{QMP: func(c chardev.Conn, _ qapi.SessionInfo) error { return c.Close() }}).Addr().String()
	}
	neither, named, both := serve(Options{}), serve(Options{Host: &host}), serve(Options{Host: &host, Origin: &origin})
	fetched := func(site string) string { return "Sec-Fetch-Site: " + site + "\r\n" }
	for _, c := range []struct {
		name, addr, host, header string
		want                     int
	}{
		{"a name that was not told", neither, host, "", 421},
		{"an origin that was not told", neither, "", "Origin: " + origin, 403},
		{"the name", named, host, "", 101},
		{"the name with a port", named, host + ":8443", "", 101},
		{"the name in capitals", named, "DISKS.EXAMPLE", "", 101},
		{"the address's own name is still one", named, "", "", 101},
		{"a name below it", named, "evil." + host, "", 421},
		{"a name that ends as it", named, "evil" + host, "", 421},
		{"a name that begins as it", named, host + ".evil.example", "", 421},
		{"the name with a dot", named, host + ".", "", 421},
		{"a list of names", named, host + ",evil.example", "", 421},
		{"a name that a header forwards", named, "evil.example", "X-Forwarded-Host: " + host, 421},
		{"the name without the origin", named, host, "Origin: " + origin, 403},
		{"both", both, host, "Origin: " + origin, 101},
		{"the origin, with its port", both, host, "Origin: https://disks.example:443", 101},
		{"the origin, for the address's own name", both, "", "Origin: " + origin, 101},
		{"the origin, as browsers send it", both, host, fetched("same-origin") + "Origin: " + origin, 101},
		{"the address's own origin is still one", both, "", "Origin: http://ADDR", 101},
		{"the origin without encryption", both, "", "Origin: http://disks.example", 403},
		{"the origin at another port", both, host, "Origin: https://disks.example:8443", 403},
		{"an origin below it", both, host, "Origin: https://evil.disks.example", 403},
		{"an origin that begins as it", both, host, "Origin: https://disks.example.evil.example", 403},
		{"a user of that name", both, host, "Origin: https://disks.example@evil.example", 403},
		{"a path of that name", both, host, "Origin: https://evil.example/https://disks.example", 403},
		{"the origin with a path", both, host, "Origin: https://disks.example/", 403},
		{"no origin that can be told", both, host, "Origin: null", 403},
		{"an empty origin", both, host, "Origin: ", 403},
		{"two origins", both, host, "Origin: " + origin + "\r\nOrigin: https://evil.example", 403},
		{"two origins in one", both, host, "Origin: " + origin + " https://evil.example", 403},
		{"a page of elsewhere without an origin", both, host, strings.TrimSuffix(fetched("cross-site"), "\r\n"), 403},
		{"a page of elsewhere", both, host, fetched("cross-site") + "Origin: https://evil.example", 403},
	} {
		name := c.host
		if name == "" {
			name = c.addr
		}
		header := strings.ReplaceAll(c.header, "ADDR", c.addr)
		if header != "" {
			header += "\r\n"
		}
		got, _ := ask(t, "tcp", c.addr, "GET /qmp HTTP/1.1\r\nHost: "+name+"\r\nAuthorization: Bearer "+controlToken+"\r\n"+upgrade+"\r\n"+header+"\r\n")
		if got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
	if got, _ := ask(t, "tcp", both, "GET /qmp HTTP/1.1\r\nHost: "+host+"\r\nOrigin: "+origin+"\r\n"+upgrade+"\r\n\r\n"); got != 401 {
		t.Errorf("without a token: %d", got)
	}
}

func TestProxiesOptionsThatAreRefused(t *testing.T) {
	path := tokenFile(t, usual()...)
	const wrongHost, wrongOrigin = "Parameter 'host' expects a name or an address, without a port", "Parameter 'origin' expects http://NAME[:PORT] or https://NAME[:PORT]"
	const unproven = "Parameters 'host' and 'origin' require that clients show tokens or certificates"
	tokens := ",token-file=" + path
	for arg, want := range map[string]string{
		"host=disks.example":                                unproven,
		"origin=https://disks.example":                      unproven,
		"host=" + tokens:                                    wrongHost,
		"host=*" + tokens:                                   wrongHost,
		"host=*.example" + tokens:                           wrongHost,
		"host=disks.example:443" + tokens:                   wrongHost,
		"host=https://disks.example" + tokens:               wrongHost,
		"origin=" + tokens:                                  wrongOrigin,
		"origin=*" + tokens:                                 wrongOrigin,
		"origin=null" + tokens:                              wrongOrigin,
		"origin=disks.example" + tokens:                     wrongOrigin,
		"origin=https://*.example" + tokens:                 wrongOrigin,
		"origin=https://" + tokens:                          wrongOrigin,
		"origin=https://disks.example/" + tokens:            wrongOrigin,
		"origin=https://disks.example?" + tokens:            wrongOrigin,
		"origin=https://u@disks.example" + tokens:           wrongOrigin,
		"origin=file://disks.example" + tokens:              wrongOrigin,
		"host=disks.example" + tokens:                       "",
		"host=::1,origin=http://[::1]:8080" + tokens:        "",
		"host=disks.example,origin=HTTPS://A.b:44" + tokens: "",
		`{"addr": "127.0.0.1:0", "host": ["a", "b"]}`:       "Invalid parameter type for 'host', expected: string",
	} {
		if arg[0] != '{' {
			arg = "127.0.0.1:0," + arg
		}
		o, err := ParseOption(arg)
		if err == nil {
			var s *Server
			if s, err = Listen(t.Context(), o, Config{Clock: clock.Real(), Metrics: metrics}); err == nil {
				s.Close(t.Context())
			}
		}
		if got := ""; err != nil && err.Error() != want || err == nil && want != got {
			t.Errorf("%s: %v, want %q", arg, err, want)
		}
	}
}
