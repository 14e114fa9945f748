package logs

import (
	"regexp"
	"strings"
	"unicode/utf8"
)

// This file blacks out what must not be in a log: keys, tokens and passwords,
// also where they are part of a file name (json:{...}, URLs) in an error's text.

const (
	blackedOut = "***"
	// maxText is the longest text in a line, in bytes; a panic's stack fits.
	maxText = 16 << 10
	maxKey  = 128
	cut     = "..."
)

// strong are words that stand for secrets wherever a value follows; weak ones do
// so only as names of members or options: "data": "x", data=x.
const (
	strong = `password|passwd|passphrase|passcode|secret|token|cookie|credentials?|authorization|private[-_]?key|api[-_]?key|master[-_]?key`
	weak   = `key|data`
	// value is one, quoted or up to the next separator. What was cut has no end.
	value = `(\\"(?:[^"\\]|\\\\.)*(?:\\"|$)|"(?:[^"\\]|\\.)*(?:"|$)|'(?:[^'\\]|\\.)*(?:'|$)|(?:basic|bearer)\s+[^\s,;}"']+|[^\s,;}"']+)`
	// before is what a name may begin with.
	before = `(?:^|[^a-z0-9])(?:[a-z0-9]+[-_.])*`
)

var (
	secretKey = regexp.MustCompile(`(?i)(?:` + strong + `)|^(?:` + weak + `)$`)
	// secretWhere are ends of names that say where a secret is kept.
	secretWhere = regexp.MustCompile(`(?i)[-_](?:secret|secret-id|id|file|path)$`)

	secretMember = regexp.MustCompile(`(?i)(` + before + `(?:(?:` + strong + `)\\?["']?\s*[:=]|(?:` + weak + `)(?:=|\\?["']\s*:))\s*)` + value)
	// bearer is a token as HTTP has it.
	bearer = regexp.MustCompile(`(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{4,}`)
	// userInfo is a user with a password within a URL.
	userInfo = regexp.MustCompile(`([a-zA-Z][a-zA-Z0-9+.-]*://)[^/\s@"']*@`)
	// pem is a private key.
	pem = regexp.MustCompile(`(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)`)
)

// secretName tells whether an attribute's value must not be shown.
func secretName(name string) bool {
	return secretKey.MatchString(name) && !secretWhere.MatchString(name)
}

// scrub returns a text without secrets, of at most so many bytes, valid UTF-8.
func scrub(s string, most int) string {
	if len(s) > most {
		s = s[:most-len(cut)] + cut
	}
	if !utf8.ValidString(s) {
		s = strings.ToValidUTF8(s, "\uFFFD")
	}
	if !strings.ContainsAny(s, ":= -") {
		return s // one word
	}
	s = pem.ReplaceAllString(s, blackedOut)
	s = userInfo.ReplaceAllString(s, "${1}"+blackedOut+"@")
	s = secretMember.ReplaceAllString(s, "${1}"+blackedOut)
	return bearer.ReplaceAllString(s, "${1} "+blackedOut)
}
