package web

import (
	"crypto/subtle"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"

	"blockd/qapi"
	"blockd/sockets"
)

// The token file is read again when it has changed. A token that is no longer
// there lets nobody in any more, and ends the sessions that came by it; a file
// that cannot be read, or has a mistake, lets nobody in.
//
// A file that is rewritten where it is (truncated, then written) lacks tokens for
// a moment that nobody took away. So what such a change adds counts at once, and
// what it takes away when two looks of the watcher in a row have found the same.
// Another file under the name, its absence, its rights, and what the operator
// says to read (SIGHUP) count at once.

// tokens are those of a file.
type tokens struct {
	path string
	read func(path string) reading // readTokens, but in tests

	mu sync.Mutex
	// +checklocks:mu
	begun uint64 // readings so far
	// settled is what counts whatever follows, latest what was read last, looked
	// what the watcher's last look has found.
	settled, latest, looked reading // +checklocks:mu
	// list is what counts: settled and latest together.
	list []grant // +checklocks:mu
}

// reading is what the file was found to be.
type reading struct {
	number uint64 // by when it began
	state  fileState
	list   []grant // none with an error
	err    error
	// whole: it is no moment of the file's being written.
	whole bool
}

// same tells whether two readings found the same.
func (r *reading) same(o *reading) bool {
	return r.state == o.state && (r.err == nil) == (o.err == nil) && slices.Equal(r.list, o.list)
}

// fileState tells one content of a file from the next.
type fileState struct {
	dev, ino         uint64
	size             int64
	modified, change syscall.Timespec
	failed           bool // there is none
}

// absent is the state of a file that cannot be opened.
var absent = fileState{failed: true}

func stateOf(st *syscall.Stat_t) fileState {
	return fileState{dev: uint64(st.Dev), ino: st.Ino, size: st.Size, modified: st.Mtim, change: st.Ctim}
}

// stateOfFile is that of the file with a name.
func stateOfFile(path string) fileState {
	var st syscall.Stat_t
	if syscall.Stat(path, &st) != nil {
		return absent
	}
	return stateOf(&st)
}

// asked is why the file is looked at.
type asked int

const (
	// byClient: a token was shown.
	byClient asked = iota
	// byWatcher: it is time.
	byWatcher
	// byOperator: it is read in any case, and counts.
	byOperator
)

// loadTokens reads a file for the first time. Errors are *qapi.Error.
func loadTokens(path string) (*tokens, error) {
	r := readTokens(path)
	if r.err != nil {
		return nil, r.err
	}
	if len(r.list) == 0 {
		return nil, tokenError(path, 0, "it has no token")
	}
	t := &tokens{path: path, read: readTokens, settled: r, latest: r, list: r.list}
	if abs, err := filepath.Abs(path); err == nil {
		t.path = abs // the daemon may change its directory meanwhile
	}
	return t, nil
}

// refresh reads the file again if there may be something new in it; true: the
// tokens may be others now. What is there when it begins counts when it returns,
// as said above.
func (t *tokens) refresh(why asked) bool {
	t.mu.Lock()
	t.begun++
	number := t.begun
	known := t.latest.state
	settled := t.settled.number == t.latest.number
	t.mu.Unlock()
	if why == byClient || why == byWatcher && settled {
		if stateOfFile(t.path) == known {
			return false
		}
	}
	r := t.read(t.path)
	r.number = number
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.take(r, why)
}

// take makes a reading count, unless one that began later does already.
//
// +checklocks:t.mu
func (t *tokens) take(r reading, why asked) bool {
	if r.number < t.latest.number {
		if why != byOperator {
			return false
		}
		r = t.latest // began after the operator's word
	}
	agrees := why == byWatcher && r.same(&t.looked)
	if why == byWatcher {
		t.looked = r
	}
	news := !r.same(&t.latest)
	t.latest = r
	s := &t.settled.state
	if r.whole || why == byOperator || agrees || r.state.dev != s.dev || r.state.ino != s.ino {
		t.settled = r
	}
	t.list = union(t.latest.list, t.settled.list)
	switch {
	case r.err == nil && news:
		slog.Info("the token file was read again", "path", t.path, "entries", len(r.list))
	case r.err != nil && t.settled.number == r.number:
		slog.Error("nobody is let in with a token", "error", r.err)
	case r.err != nil && news:
		slog.Warn("the token file has changed, and lets nobody in if it stays so", "error", r.err)
	}
	return true
}

// union are the tokens of both lists, each with the role that is more.
func union(now, before []grant) []grant {
	at := map[tokenHash]int{}
	for i, g := range now {
		at[g.token] = i
	}
	all := slices.Clone(now)
	for _, g := range before {
		i, there := at[g.token]
		switch {
		case !there:
			all = append(all, g)
		case g.role == qapi.SessionRoleControl:
			all[i].role = g.role
		}
	}
	return all
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

// readTokens reads a file. After an error the state is still that of the file,
// so that it is read again when that has changed.
func readTokens(path string) reading {
	refused := func(state fileState, why string) reading {
		return reading{state: state, err: tokenError(path, 0, why), whole: true}
	}
	// A FIFO is not waited for.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return refused(absent, sockets.Reason(err))
	}
	defer f.Close()
	var st syscall.Stat_t
	if err := syscall.Fstat(int(f.Fd()), &st); err != nil {
		return refused(absent, sockets.Reason(err))
	}
	state := stateOf(&st)
	switch {
	case st.Mode&syscall.S_IFMT != syscall.S_IFREG:
		return refused(state, "it is no regular file")
	case st.Mode&0o007 != 0:
		return refused(state, "others than its owner and group may use it: chmod o= it")
	case st.Mode&0o020 != 0:
		return refused(state, "its group may write it: chmod g-w it")
	case st.Uid != 0 && st.Uid != uint32(os.Geteuid()):
		return refused(state, "it belongs to another user")
	}
	text, err := io.ReadAll(io.LimitReader(f, maxTokenFile+1))
	if err != nil {
		return refused(state, sockets.Reason(err))
	}
	if len(text) > maxTokenFile {
		return refused(state, "it is too long")
	}
	list, err := parseTokens(path, text)
	return reading{state: state, list: list, err: err}
}
