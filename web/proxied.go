package web

import (
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
)

// A proxy before the address has a name of its own, which it may pass on in Host,
// and which browsers have in Origin. These are told by options; each allows one
// more, nothing else. What says where a request came from before the proxy
// (X-Forwarded-For and the like) is not looked at: anybody may write it.

// hostForm is a name of DNS.
var hostForm = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9])?$`)

// isHost tells whether a text is a name or an address, without a port.
//
//blockd:io
func isHost(text string) bool {
	if _, err := netip.ParseAddr(text); err == nil {
		return true
	}
	return hostForm.MatchString(text)
}

// originOf is an origin as browsers write it, in small letters and without the
// port that its scheme has anyway; "" for what is none.
//
//blockd:io
func originOf(text string) string {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.User != nil {
		return ""
	}
	port := map[string]string{"http": "80", "https": "443"}[u.Scheme]
	if port == "" || !strings.EqualFold(text, u.Scheme+"://"+u.Host) || !isHost(u.Hostname()) || strings.HasSuffix(u.Host, ":") {
		return ""
	}
	host := strings.ToLower(u.Hostname())
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if p := u.Port(); p != "" && p != port {
		host = net.JoinHostPort(strings.Trim(host, "[]"), p)
	}
	return u.Scheme + "://" + host
}

// proxied is what the options allow beyond the address's own; "": nothing.
type proxied struct{ host, origin string }

func newProxied(o *Options) proxied {
	var p proxied
	if o.Host != nil {
		p.host = *o.Host
	}
	if o.Origin != nil {
		p.origin = originOf(*o.Origin)
	}
	return p
}

// names tells whether the name in Host, without its port, is the proxy's.
func (p proxied) names(name string) bool { return p.host != "" && strings.EqualFold(name, p.host) }

// admits tells whether a request comes from no page, from one of this address, or
// from one of the proxy's.
//
//blockd:io
func (p proxied) admits(r *http.Request) bool {
	if origins := r.Header.Values("Origin"); p.origin != "" && len(origins) == 1 && originOf(origins[0]) == p.origin {
		return true
	}
	return sameOrigin(r)
}
