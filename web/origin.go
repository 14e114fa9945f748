package web

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"blockd/tlscreds"
)

// guard lets requests through that name the address by itself and come from no
// page of another one, at a bearable rate, and have no body.
//
// A page that a browser shows may send requests to addresses that this browser
// reaches. It cannot read the answers, unless a name of its own leads here (DNS
// rebinding), which Host shows; but a WebSocket it may open and read, which
// Origin shows. A browser does not reach unix sockets, and clients of these put
// any name into Host; a foreign Origin is refused all the same.
type guard struct {
	unix     bool
	own      func() *x509.Certificate // nil: no TLS
	stands   func(*tls.ConnectionState) bool
	proxied  proxied
	requests *rates
	next     http.Handler
}

// ServeHTTP is http.Handler's.
func (g *guard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-store")
	bodied := r.ContentLength != 0
	if bodied {
		// The library reads what is left of a body before it answers and after, for
		// as long as the client takes.
		h.Set("Connection", "close")
		_ = http.NewResponseController(w).SetReadDeadline(time.Unix(1, 0))
	}
	if wait := g.requests.take(peerFrom(r.Context()).client); wait > 0 {
		tooMany(w, wait)
		return
	}
	if bodied {
		http.Error(w, "a request has no body here", http.StatusRequestEntityTooLarge)
		return
	}
	if g.stands != nil && !g.stands(r.TLS) {
		h.Set("Connection", "close")
		http.Error(w, "the certificate is good no more", http.StatusForbidden)
		return
	}
	if !g.unix && !g.names(r) {
		http.Error(w, "the address is to be named by its number, by a name that its certificate is for, or on this machine by localhost", http.StatusMisdirectedRequest)
		return
	}
	if !g.proxied.admits(r) {
		http.Error(w, "requests from pages of other addresses are refused", http.StatusForbidden)
		return
	}
	if addressTells(r) {
		http.Error(w, "a token in the address ends up in logs: it is refused there", http.StatusBadRequest)
		return
	}
	g.next.ServeHTTP(w, r)
}

// names tells whether Host means this server.
func (g *guard) names(r *http.Request) bool {
	here, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if !ok {
		return false
	}
	ap, err := netip.ParseAddrPort(here.String())
	if err != nil {
		return false
	}
	name := hostName(r.Host)
	addr, err := netip.ParseAddr(name)
	switch {
	case ap.Addr().Unmap().IsLoopback() && local(r.Host), g.proxied.names(name):
		return true
	case err == nil:
		return addr.Unmap() == ap.Addr().WithZone("").Unmap()
	}
	return g.own != nil && tlscreds.Names(g.own(), name)
}

// hostName is a Host without its port.
func hostName(host string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		return h
	}
	return strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
}

// local tells whether a Host is a loopback address, or localhost, which browsers
// and resolvers lead nowhere else.
func local(host string) bool {
	name := hostName(host)
	if strings.EqualFold(name, "localhost") {
		return true
	}
	a, err := netip.ParseAddr(name)
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
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	u, err := url.Parse(origins[0])
	return len(origins) == 1 && err == nil && u.Scheme == scheme && strings.EqualFold(u.Host, r.Host)
}
