package web

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"unicode"

	"blockd/qapi"
	"blockd/sockets"
)

// A token file has a line for each token: its role, the token or its SHA-256
// after "sha256:", and a name for the log. Empty lines and those that begin with
// # say nothing. The file is read again when it has changed: a token that is no
// longer there lets nobody in any more, and ends the sessions that came by it. A
// file that cannot be read, or has a mistake, lets nobody in.

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

// tokens are those of a file.
type tokens struct {
	path string

	mu    sync.Mutex
	state fileState // +checklocks:mu
	list  []grant   // +checklocks:mu
}

// fileState tells one content of a file from the next.
type fileState struct {
	dev, ino         uint64
	size             int64
	modified, change syscall.Timespec
	failed           bool // it could not be read
}

// loadTokens reads a file for the first time. Errors are *qapi.Error.
func loadTokens(path string) (*tokens, error) {
	t := &tokens{path: path}
	list, state, err := readTokens(path)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, tokenError(path, 0, "it has no token")
	}
	t.list, t.state = list, state
	if abs, err := filepath.Abs(path); err == nil {
		t.path = abs // the daemon may change its directory meanwhile
	}
	return t, nil
}

// tokenError names the file and, unless 0, the line.
func tokenError(path string, line int, why string) error {
	if line == 0 {
		return qapi.Errorf("Token file '%s': %s", path, why)
	}
	return qapi.Errorf("Token file '%s', line %d: %s", path, line, why)
}

// refresh reads the file again if it has changed, or if always is set; true:
// the tokens may be others now.
func (t *tokens) refresh(always bool) bool {
	var st syscall.Stat_t
	state := fileState{failed: true}
	if err := syscall.Stat(t.path, &st); err == nil {
		state = stateOf(&st)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if state == t.state && !always {
		return false
	}
	list, state, err := readTokens(t.path)
	if err != nil {
		slog.Error("nobody is let in with a token", "error", err)
	} else {
		slog.Info("the token file was read again", "path", t.path, "entries", len(list))
	}
	t.list, t.state = list, state
	return true
}

// find returns what a token grants; false: nothing. Its time does not tell
// which token of the file comes near.
func (t *tokens) find(h tokenHash) (grant, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var found grant
	ok := false
	for i := range t.list {
		if subtle.ConstantTimeCompare(t.list[i].token[:], h[:]) == 1 {
			found, ok = t.list[i], true
		}
	}
	return found, ok
}

func stateOf(st *syscall.Stat_t) fileState {
	return fileState{dev: uint64(st.Dev), ino: st.Ino, size: st.Size, modified: st.Mtim, change: st.Ctim}
}

// readTokens reads a file. After an error the state is still that of the file,
// so that it is read again when that has changed.
func readTokens(path string) (list []grant, state fileState, err error) {
	state.failed = true
	// A FIFO is not waited for.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, state, tokenError(path, 0, sockets.Reason(err))
	}
	defer f.Close()
	var st syscall.Stat_t
	if err := syscall.Fstat(int(f.Fd()), &st); err != nil {
		return nil, state, tokenError(path, 0, sockets.Reason(err))
	}
	state = stateOf(&st)
	switch {
	case st.Mode&syscall.S_IFMT != syscall.S_IFREG:
		return nil, state, tokenError(path, 0, "it is no regular file")
	case st.Mode&0o007 != 0:
		return nil, state, tokenError(path, 0, "others than its owner and group may use it: chmod o= it")
	case st.Mode&0o020 != 0:
		return nil, state, tokenError(path, 0, "its group may write it: chmod g-w it")
	case st.Uid != 0 && st.Uid != uint32(os.Geteuid()):
		return nil, state, tokenError(path, 0, "it belongs to another user")
	}
	text, err := io.ReadAll(io.LimitReader(f, maxTokenFile+1))
	if err != nil {
		return nil, state, tokenError(path, 0, sockets.Reason(err))
	}
	if len(text) > maxTokenFile {
		return nil, state, tokenError(path, 0, "it is too long")
	}
	list, err = parseTokens(path, text)
	return list, state, err
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
