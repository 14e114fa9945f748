package web

import (
	"context"
	"crypto/sha256"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gorilla/websocket"

	"blockd/clock"
	"blockd/qapi"
)

// roleOf is what a token grants; "": nothing.
func roleOf(tok *tokens, token string) qapi.SessionRole {
	g, _ := tok.find(sha256.Sum256([]byte(token)))
	return g.role
}

func TestATokenFileInPlaceOfAnotherOfItsLengthIsReadAgain(t *testing.T) {
	path := tokenFile(t, "control "+controlToken)
	tokens, err := loadTokens(path)
	if err != nil {
		t.Fatal(err)
	}
	if tokens.refresh(byClient) {
		t.Error("it is read again though it is the same")
	}
	const other = "another-token-0123456789"
	replaceTokens(t, path, "control "+other)
	if len(other) != len(controlToken) || !tokens.refresh(byClient) {
		t.Error("it is not read again")
	}
	_, old := tokens.find(sha256.Sum256([]byte(controlToken)))
	_, now := tokens.find(sha256.Sum256([]byte(other)))
	if old || !now {
		t.Errorf("the old token is good: %v, the new one: %v", old, now)
	}
}

func TestARelativeFileIsFoundAgain(t *testing.T) {
	t.Chdir(filepath.Dir(tokenFile(t, usual()...)))
	tok, err := loadTokens("tokens")
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(t.TempDir())
	tok.refresh(byOperator)
	if _, ok := tok.find(sha256.Sum256([]byte(controlToken))); !ok {
		t.Error("the tokens are lost when the daemon changes its directory")
	}
}

func TestTheFileIsWatched(t *testing.T) {
	path := tokenFile(t, usual()...)
	clk := clock.NewVirtual()
	s := open(t, Options{Addr: "127.0.0.1:0", TokenFile: &path}, Config{Clock: clk, QMP: idle})
	s.Serve()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	look := func() {
		t.Helper()
		if err := clk.WaitForTimers(ctx, 1); err != nil {
			t.Fatal(err)
		}
		clk.Step(watchTime)
		if err := clk.WaitForTimers(ctx, 1); err != nil { // it has looked, and waits again
			t.Fatal(err)
		}
	}
	writeTokens(t, path, "control "+wrongToken)
	look()
	if roleOf(s.login.tokens, wrongToken) == "" {
		t.Error("the new token is not known")
	}
	if roleOf(s.login.tokens, controlToken) == "" {
		t.Error("one look takes tokens away")
	}
	look()
	if roleOf(s.login.tokens, controlToken) != "" {
		t.Error("two looks take nothing away")
	}
}

// TestAFileThatIsRewrittenInPlace has every moment of it looked at, and counts
// nothing as taken away that comes back.
func TestAFileThatIsRewrittenInPlace(t *testing.T) {
	path := tokenFile(t, usual()...)
	tok, err := loadTokens(path)
	if err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const added = "added-token-0123456789"
	whole = append(whole, "control "+added+"\n"...)
	for n := range whole {
		if err := os.WriteFile(path, whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		tok.refresh([]asked{byClient, byWatcher}[n%2])
		for token, role := range map[string]qapi.SessionRole{controlToken: "control", readerToken: "read-only", hashedToken: "control"} {
			if got := roleOf(tok, token); got != role {
				t.Fatalf("with %d bytes written %s has the role %q", n, token, got)
			}
		}
	}
	// What is added counts at once, but half of a token does not outlive its writing.
	half := added[:len(added)-1]
	for _, c := range []struct {
		cut          int
		added, halve qapi.SessionRole
	}{{2, "", "control"}, {0, "control", ""}} {
		if err := os.WriteFile(path, whole[:len(whole)-c.cut], 0o600); err != nil {
			t.Fatal(err)
		}
		tok.refresh(byClient)
		if roleOf(tok, added) != c.added || roleOf(tok, half) != c.halve {
			t.Errorf("without the last %d bytes the token has the role %q, half of it %q", c.cut, roleOf(tok, added), roleOf(tok, half))
		}
	}
}

func TestWhatIsTakenAwayInPlaceCountsAfterTwoLooks(t *testing.T) {
	for name, c := range map[string]struct {
		lines []string
		left  qapi.SessionRole
	}{
		"removed":   {[]string{"read-only " + readerToken}, ""},
		"lowered":   {[]string{"read-only " + controlToken, "read-only " + readerToken}, "read-only"},
		"a mistake": {[]string{"control short"}, ""},
		"empty":     {nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			path := tokenFile(t, usual()...)
			tok, err := loadTokens(path)
			if err != nil {
				t.Fatal(err)
			}
			writeTokens(t, path, c.lines...)
			for i, why := range []asked{byClient, byClient, byWatcher, byClient} {
				if tok.refresh(why); roleOf(tok, controlToken) != "control" {
					t.Fatalf("look %d takes it away", i)
				}
			}
			if tok.refresh(byWatcher); roleOf(tok, controlToken) != c.left {
				t.Errorf("it has the role %q", roleOf(tok, controlToken))
			}
			if tok.refresh(byWatcher) {
				t.Error("it is read again though it is the same")
			}
		})
	}
}

// TestWhatCountsAtOnce is what no writing of the file looks like, and SIGHUP.
func TestWhatCountsAtOnce(t *testing.T) {
	for name, c := range map[string]struct {
		change func(t *testing.T, path string) error
		why    asked
	}{
		"another file":       {func(t *testing.T, path string) error { replaceTokens(t, path, "read-only "+readerToken); return nil }, byClient},
		"none":               {func(_ *testing.T, path string) error { return os.Remove(path) }, byClient},
		"others may read it": {func(_ *testing.T, path string) error { return os.Chmod(path, 0o604) }, byClient},
		"said by SIGHUP":     {func(t *testing.T, path string) error { writeTokens(t, path, "read-only "+readerToken); return nil }, byOperator},
	} {
		t.Run(name, func(t *testing.T) {
			path := tokenFile(t, usual()...)
			tok, err := loadTokens(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := c.change(t, path); err != nil {
				t.Fatal(err)
			}
			if tok.refresh(c.why); roleOf(tok, controlToken) != "" {
				t.Error("the token is still good")
			}
		})
	}
}

// TestTheFileIsReadWithoutTheLock has a read hang: tokens are found meanwhile,
// and what it returns in the end does not replace what was read later.
func TestTheFileIsReadWithoutTheLock(t *testing.T) {
	tok, err := loadTokens(tokenFile(t, "control "+controlToken))
	if err != nil {
		t.Fatal(err)
	}
	old := reading{state: fileState{ino: 1}, list: []grant{{role: "control", token: sha256.Sum256([]byte(hashedToken))}}}
	now := reading{state: fileState{ino: 2}, list: []grant{{role: "control", token: sha256.Sum256([]byte(readerToken))}}}
	begun, let := make(chan struct{}), make(chan struct{})
	tok.read = func(string) reading {
		close(begun)
		<-let
		return old
	}
	over := make(chan bool)
	go func() { over <- tok.refresh(byOperator) }()
	<-begun
	if roleOf(tok, controlToken) == "" {
		t.Error("the token is lost while the file is read")
	}
	tok.mu.Lock()
	tok.begun++
	now.number = tok.begun
	tok.take(now, byClient)
	tok.mu.Unlock()
	close(let)
	<-over
	if roleOf(tok, hashedToken) != "" || roleOf(tok, readerToken) == "" {
		t.Error("what was read earlier replaces what was read later")
	}
}

// TestTheOperatorsWordIsNotLost: a reading that began after it counts as it does.
func TestTheOperatorsWordIsNotLost(t *testing.T) {
	path := tokenFile(t, usual()...)
	tok, err := loadTokens(path)
	if err != nil {
		t.Fatal(err)
	}
	writeTokens(t, path, "read-only "+readerToken)
	read := tok.read
	tok.read = func(path string) reading {
		tok.read = read
		r := read(path)
		tok.refresh(byClient)
		return r
	}
	if tok.refresh(byOperator); roleOf(tok, controlToken) != "" {
		t.Error("the token is still good")
	}
}

// TestRewritingEndsNoSession is the same over the wire.
func TestRewritingEndsNoSession(t *testing.T) {
	path := tokenFile(t, usual()...)
	s := startWith(t, Options{Addr: "127.0.0.1:0", TokenFile: &path}, Config{Clock: clock.NewVirtual(), QMP: idle})
	c, _, err := websocket.DefaultDialer.Dial("ws://"+s.Addr().String()+"/qmp", http.Header{"Authorization": {"Bearer " + controlToken}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetReadDeadline(clock.Real().Now().Add(patience))
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	s.reread(byWatcher)
	answersPing(t, c)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	s.reread(byWatcher)
	if _, _, err := c.ReadMessage(); err == nil || strings.Contains(err.Error(), "timeout") {
		t.Errorf("the session goes on: %v", err)
	}
}

// answersPing holds that a session goes on.
func answersPing(t *testing.T, c *websocket.Conn) {
	t.Helper()
	pong := errors.New("pong")
	c.SetPongHandler(func(string) error { return pong })
	if err := c.WriteControl(websocket.PingMessage, nil, clock.Real().Now().Add(patience)); err != nil {
		t.Error(err)
	}
	if _, _, err := c.ReadMessage(); err != pong {
		t.Errorf("the session has ended: %v", err)
	}
}
