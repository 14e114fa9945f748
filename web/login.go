package web

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"log/slog"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/gorilla/websocket"

	"blockd/qapi"
	"blockd/tlscreds"
)

// Programs show their token in Authorization. A page cannot set that header for
// a WebSocket; it offers the token as a subprotocol, beside the one that is
// meant. A cookie would be worse: browsers send it unasked, and to every port of
// the host, which other users of the machine may listen at. An address is worse,
// too: it ends up in logs and histories, so tokens there are refused.

const (
	// subprotocol is what a client of /qmp may name, and is then answered.
	subprotocol = "blockd.qmp"
	// tokenPrefix begins the subprotocol that carries a token, in base64 for
	// addresses, without padding. It is never answered.
	tokenPrefix = "blockd.token."
	// realm names the place that a token is for.
	realm = `Bearer realm="blockd"`
)

var (
	// requestRate is that of one client's requests.
	requestRate = rate{time.Second / 50, 200}
	// failureRate is that of one client's wrong tokens.
	failureRate = rate{10 * time.Second, 5}
)

// login decides who may come.
type login struct {
	tokens   *tokens          // nil: nobody needs one
	refresh  func()           // looks whether they have changed
	role     qapi.SessionRole // without tokens
	requests *rates
	failures *rates
}

// grantKey finds the grant in a request's context.
type grantKey struct{}

// need returns a handler that next gets its requests from, once their sender
// has shown to have the role.
func (l *login) need(role qapi.SessionRole, next http.Handler) http.Handler {
	return &gate{l, role, next}
}

// gate is what need returns.
type gate struct {
	login *login
	role  qapi.SessionRole
	next  http.Handler
}

// ServeHTTP is http.Handler's.
func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	has, ok := g.login.admit(w, r)
	if !ok {
		return
	}
	if g.role == qapi.SessionRoleControl && has.role != g.role {
		http.Error(w, "this needs the role control", http.StatusForbidden)
		return
	}
	g.next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), grantKey{}, has)))
}

func grantFrom(ctx context.Context) grant {
	g, _ := ctx.Value(grantKey{}).(grant)
	return g
}

// admit finds out what a request's sender may do, or answers it.
func (l *login) admit(w http.ResponseWriter, r *http.Request) (grant, bool) {
	p := peerFrom(r.Context())
	if l.tokens == nil {
		return grant{role: l.role, name: certificateName(r)}, true
	}
	if wait := l.failures.full(p.client); wait > 0 {
		tooMany(w, wait)
		return grant{}, false
	}
	token, shown, err := shownToken(r)
	if err != "" {
		http.Error(w, err, http.StatusBadRequest)
		return grant{}, false
	}
	why := "a token is needed"
	if shown {
		l.refresh()
		if g, ok := l.tokens.find(sha256.Sum256([]byte(token))); ok {
			return g, true
		}
		why = "the token is wrong"
		l.failures.take(p.client)
		slog.Warn("a client has shown a wrong token", "peer", p.text, "path", r.URL.Path)
	}
	w.Header().Set("WWW-Authenticate", realm)
	http.Error(w, why, http.StatusUnauthorized)
	return grant{}, false
}

// shownToken returns the token of a request, and what is wrong with the way it
// was shown.
func shownToken(r *http.Request) (token string, shown bool, wrong string) {
	if values := r.Header.Values("Authorization"); len(values) > 0 {
		scheme, token, ok := strings.Cut(values[0], " ")
		if len(values) > 1 || !ok || !strings.EqualFold(scheme, "Bearer") {
			return "", false, "Authorization is to be: Bearer TOKEN"
		}
		return strings.TrimSpace(token), true, ""
	}
	for _, p := range websocket.Subprotocols(r) {
		coded, ok := strings.CutPrefix(p, tokenPrefix)
		if !ok {
			continue
		}
		text, err := base64.RawURLEncoding.DecodeString(coded)
		if err != nil || shown {
			return "", false, "one token is expected, in base64 for addresses, without padding"
		}
		token, shown = string(text), true
	}
	return token, shown, ""
}

// addressTells tells whether a request's address has a token, or what may be
// one.
func addressTells(r *http.Request) bool {
	for key := range r.URL.Query() {
		switch strings.ToLower(key) {
		case "token", "access_token", "bearer", "authorization", "auth":
			return true
		}
	}
	return r.URL.User != nil
}

// tooMany answers a client that has to wait.
func tooMany(w http.ResponseWriter, wait time.Duration) {
	w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(wait.Seconds()))))
	http.Error(w, "too many requests", http.StatusTooManyRequests)
}

// certificateName is the name of a client's certificate, "" without one. It was
// verified when the connection began.
func certificateName(r *http.Request) string {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return ""
	}
	return tlscreds.DistinguishedName(r.TLS.PeerCertificates[0].RawSubject)
}
