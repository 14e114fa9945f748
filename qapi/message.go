package qapi

import (
	"errors"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"
)

// message parses the tokens of one value. Nesting is bounded by the collector,
// so recursion is too.
type message struct {
	tokens []token
	text   []byte
	next   int
}

func parseError(format string, args ...any) *Error {
	return Errorf("JSON parse error, "+format, args...)
}

var errPrematureEnd = parseError("premature EOI")

func (m *message) pop() (token, bool) {
	if m.next >= len(m.tokens) {
		return token{}, false
	}
	t := m.tokens[m.next]
	m.next++
	return t, true
}

func (m *message) peek(kind tokenKind) bool {
	return m.next < len(m.tokens) && m.tokens[m.next].kind == kind
}

func (m *message) bytes(t token) []byte { return m.text[t.start:t.end] }

func (m *message) value() (any, error) {
	t, ok := m.pop()
	if !ok {
		return nil, errPrematureEnd
	}
	switch t.kind {
	case tokLBrace:
		return m.object()
	case tokLBracket:
		return m.array()
	case tokString:
		s, err := parseString(m.bytes(t))
		if err != nil {
			return nil, err
		}
		return s, nil
	case tokInteger:
		return parseInteger(string(m.bytes(t))), nil
	case tokFloat:
		return parseFloat(string(m.bytes(t))), nil
	case tokKeyword:
		switch string(m.bytes(t)) {
		case "true":
			return true, nil
		case "false":
			return false, nil
		case "null":
			return nil, nil
		}
		return nil, parseError("invalid keyword '%s'", m.bytes(t))
	}
	return nil, parseError("expecting value")
}

func (m *message) object() (any, error) {
	o := &Object{}
	if m.peek(tokRBrace) {
		m.next++
		return o, nil
	}
	for {
		if err := m.pair(o); err != nil {
			return nil, err
		}
		t, ok := m.pop()
		switch {
		case !ok:
			return nil, errPrematureEnd
		case t.kind == tokRBrace:
			return o, nil
		case t.kind != tokComma:
			return nil, parseError("expected separator in dict")
		}
	}
}

func (m *message) pair(o *Object) error {
	key, err := m.key()
	if err != nil {
		return err
	}
	t, ok := m.pop()
	if !ok {
		return errPrematureEnd
	}
	if t.kind != tokColon {
		return parseError("missing : in object pair")
	}
	v, err := m.value()
	if err != nil {
		return err
	}
	if o.Has(key) {
		return parseError("duplicate key")
	}
	o.Set(key, v)
	return nil
}

// key reads a member's name. A value of another type is read to its end first:
// a mistake within it is the one to report.
func (m *message) key() (string, error) {
	if m.peek(tokString) {
		t, _ := m.pop()
		return parseString(m.bytes(t))
	}
	if _, err := m.value(); err != nil {
		return "", err
	}
	return "", parseError("key is not a string in object")
}

func (m *message) array() (any, error) {
	list := []any{}
	if m.peek(tokRBracket) {
		m.next++
		return list, nil
	}
	for {
		v, err := m.value()
		if err != nil {
			return nil, err
		}
		list = append(list, v)
		t, ok := m.pop()
		switch {
		case !ok:
			return nil, errPrematureEnd
		case t.kind == tokRBracket:
			return list, nil
		case t.kind != tokComma:
			return nil, parseError("expected separator in list")
		}
	}
}

// parseInteger keeps 64 bits exactly; what does not fit becomes a double.
func parseInteger(s string) any {
	if i, err := strconv.ParseInt(s, 10, 64); err == nil {
		return i
	}
	if u, err := strconv.ParseUint(s, 10, 64); err == nil {
		return u
	}
	return parseFloat(s)
}

func parseFloat(s string) float64 {
	f, err := strconv.ParseFloat(s, 64)
	if err != nil && !errors.Is(err, strconv.ErrRange) {
		return math.NaN() // unreachable: the lexer lets numbers only through
	}
	return f
}

// parseString removes quotes and escapes from a string token.
func parseString(tok []byte) (string, error) {
	body := tok[1 : len(tok)-1]
	plain := true
	for _, c := range body {
		if c == '\\' || c >= utf8.RuneSelf {
			plain = false
			break
		}
	}
	if plain {
		return string(body), nil
	}
	var sb strings.Builder
	sb.Grow(len(body))
	for i := 0; i < len(body); {
		c := body[i]
		switch {
		case c == '\\':
			// The escapes of \u may look past the closing quote in an error text.
			n, err := unescape(&sb, tok[1+i:], len(body)-i)
			if err != nil {
				return "", err
			}
			i += n
		case c < utf8.RuneSelf:
			sb.WriteByte(c)
			i++
		case c == 0xC0 && i+1 < len(body) && body[i+1] == 0x80:
			sb.WriteByte(0) // modified UTF-8 spells U+0000 in two bytes
			i += 2
		default:
			r, size := utf8.DecodeRune(body[i:])
			if r == utf8.RuneError && size <= 1 || isNonCharacter(r) {
				return "", parseError("invalid UTF-8 sequence in string")
			}
			sb.WriteRune(r)
			i += size
		}
	}
	return sb.String(), nil
}

// isNonCharacter tells whether Unicode reserves r as no character at all.
func isNonCharacter(r rune) bool {
	return r >= 0xFDD0 && r <= 0xFDEF || r&0xFFFE == 0xFFFE
}

var simpleEscapes = [256]byte{
	'b': '\b', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t',
	'"': '"', '\'': '\'', '\\': '\\', '/': '/',
}

// unescape decodes the escape at the start of s, of which the first limit bytes
// belong to the string and one closing quote follows; it returns the length.
func unescape(sb *strings.Builder, s []byte, limit int) (int, error) {
	c := s[1] // the lexer guarantees a byte after the backslash
	if b := simpleEscapes[c]; b != 0 {
		sb.WriteByte(b)
		return 2, nil
	}
	if c != 'u' {
		return 0, parseError("invalid escape sequence in string")
	}
	n := 6
	bad := func() error {
		return parseError("%s is not a valid Unicode character", s[:min(n, len(s))])
	}
	r, ok := hex4(s[2:limit])
	if !ok {
		return 0, bad()
	}
	if r >= 0xD800 && r <= 0xDBFF && limit >= 12 && s[6] == '\\' && s[7] == 'u' {
		if low, ok := hex4(s[8:limit]); ok && low >= 0xDC00 && low <= 0xDFFF {
			r = 0x10000 + (r&0x3FF)<<10 + low&0x3FF
			n = 12
		}
	}
	if r >= 0xD800 && r <= 0xDFFF || isNonCharacter(r) {
		return 0, bad()
	}
	sb.WriteRune(r)
	return n, nil
}

func hex4(s []byte) (rune, bool) {
	if len(s) < 4 {
		return 0, false
	}
	var r rune
	for _, c := range s[:4] {
		switch {
		case isDigit(c):
			r = r<<4 + rune(c-'0')
		case c >= 'a' && c <= 'f':
			r = r<<4 + rune(c-'a'+10)
		case c >= 'A' && c <= 'F':
			r = r<<4 + rune(c-'A'+10)
		default:
			return 0, false
		}
	}
	return r, true
}
