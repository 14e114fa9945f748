package web

import (
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
)

// guard lets requests through that name the address by itself and come from no
// page of another one.
//
// A page that a browser of this machine shows may send requests to loopback
// addresses. It cannot read the answers, unless a name of its own leads here
// (DNS rebinding), which Host shows; but a WebSocket it may open and read, which
// Origin shows. A browser does not reach unix sockets, and clients of these put
// any name into Host; a foreign Origin is refused all the same.
type guard struct {
	unix bool
	next http.Handler
}

// ServeHTTP is http.Handler's.
func (g *guard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !g.unix && !local(r.Host) {
		http.Error(w, "the address is to be named by a loopback address or localhost", http.StatusMisdirectedRequest)
		return
	}
	if !sameOrigin(r) {
		http.Error(w, "requests from pages of other addresses are refused", http.StatusForbidden)
		return
	}
	h := w.Header()
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	h.Set("Cache-Control", "no-store")
	g.next.ServeHTTP(w, r)
}

// local tells whether a Host is a loopback address, or localhost, which browsers
// and resolvers lead nowhere else.
func local(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	if strings.EqualFold(name, "localhost") {
		return true
	}
	a, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(name, "["), "]"))
	return err == nil && a.IsLoopback()
}

// sameOrigin tells whether a request comes from no page, or from one of this
// address.
//
//blockd:io
func sameOrigin(r *http.Request) bool {
	if site := r.Header.Get("Sec-Fetch-Site"); site == "cross-site" || site == "same-site" {
		return false
	}
	origins := r.Header.Values("Origin")
	if len(origins) == 0 {
		return true
	}
	u, err := url.Parse(origins[0])
	return len(origins) == 1 && err == nil && u.Scheme == "http" && strings.EqualFold(u.Host, r.Host)
}
