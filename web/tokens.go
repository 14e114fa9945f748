package web

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"regexp"
	"strings"
	"unicode"

	"blockd/qapi"
)

// A token file has a line for each token: its role, the token or its SHA-256
// after "sha256:", and a name for the log. Empty lines and those that begin with
// # say nothing. When it changes and how is in watched.go.

const (
	// maxTokenFile is the longest token file in bytes.
	maxTokenFile = 1 << 20
	// maxTokens is the most that it may have.
	maxTokens = 4096
	// maxTokenName is the longest name of one, in bytes.
	maxTokenName = 64
)

// tokenForm is what a token consists of: what may stand in a header, and no less
// than cannot be guessed.
var tokenForm = regexp.MustCompile(`^[A-Za-z0-9._~+/-]{20,256}=*$`)

// tokenHash is the SHA-256 of a token.
type tokenHash [sha256.Size]byte

// grant is what somebody was let in with.
type grant struct {
	role  qapi.SessionRole
	name  string    // "": none
	token tokenHash // zero: without a token
}

// tokenError names the file and, unless 0, the line.
func tokenError(path string, line int, why string) error {
	if line == 0 {
		return qapi.Errorf("Token file '%s': %s", path, why)
	}
	return qapi.Errorf("Token file '%s', line %d: %s", path, line, why)
}

// parseTokens reads the lines. Errors never show a token.
func parseTokens(path string, text []byte) ([]grant, error) {
	var list []grant
	seen := map[tokenHash]bool{}
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, maxTokenFile+1)
	for n := 1; lines.Scan(); n++ {
		fail := func(why string) ([]grant, error) { return nil, tokenError(path, n, why) }
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		words := strings.Fields(line)
		if len(words) < 2 || len(words) > 3 {
			return fail("expected: ROLE TOKEN [NAME]")
		}
		g := grant{role: qapi.SessionRole(words[0])}
		if g.role != qapi.SessionRoleReadOnly && g.role != qapi.SessionRoleControl {
			return fail("the role is neither 'read-only' nor 'control'")
		}
		if sum, ok := strings.CutPrefix(words[1], "sha256:"); ok {
			b, err := hex.DecodeString(sum)
			if err != nil || len(b) != sha256.Size {
				return fail("64 hexadecimal digits are expected after 'sha256:'")
			}
			g.token = tokenHash(b)
		} else if tokenForm.MatchString(words[1]) {
			g.token = sha256.Sum256([]byte(words[1]))
		} else {
			return fail("a token has 20 to 256 characters, which are letters, digits and any of ._~+/-, and perhaps = at its end")
		}
		if len(words) == 3 {
			g.name = words[2]
			if len(g.name) > maxTokenName || strings.ContainsFunc(g.name, func(r rune) bool { return !unicode.IsPrint(r) }) {
				return fail("the name is too long, or does not print")
			}
		}
		if seen[g.token] {
			return fail("the token is there twice")
		}
		seen[g.token] = true
		if list = append(list, g); len(list) > maxTokens {
			return fail("there are too many tokens")
		}
	}
	if err := lines.Err(); err != nil {
		return nil, tokenError(path, 0, err.Error())
	}
	return list, nil
}
