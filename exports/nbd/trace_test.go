package nbd

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"blockd/nbdproto"
)

// traced keeps what is logged, a line each: the message and some attributes.
type traced struct {
	mu    sync.Mutex
	lines []string
	gone  chan struct{} // has a token for each client that is gone
}

func (h *traced) Enabled(context.Context, slog.Level) bool { return true }
func (h *traced) WithAttrs([]slog.Attr) slog.Handler       { return h }
func (h *traced) WithGroup(string) slog.Handler            { return h }

func (h *traced) Handle(_ context.Context, r slog.Record) error {
	var b bytes.Buffer
	b.WriteString(r.Message)
	r.Attrs(func(a slog.Attr) bool {
		if a.Key != "peer" {
			fmt.Fprintf(&b, " %s=%v", a.Key, a.Value)
		}
		return true
	})
	h.mu.Lock()
	h.lines = append(h.lines, b.String())
	h.mu.Unlock()
	if r.Message == "nbd_client_gone" {
		h.gone <- struct{}{}
	}
	return nil
}

// TestClientsAreTraced follows a client from its connection to its end, one that
// never chooses an export, one that vanishes, and one that the server sends away.
func TestClientsAreTraced(t *testing.T) {
	h := traced{gone: make(chan struct{}, 4)}
	s, path := server(t, Config{Log: slog.New(&h)})
	add(t, s, newRAM(1<<20, 4096), ExportConfig{})
	c := connect(t, path, true)
	if got := c.do(nbdproto.Request{Type: nbdproto.CmdFlush}); got != nbdproto.OK {
		t.Fatal(got)
	}
	if got := c.do(nbdproto.Request{Type: nbdproto.CmdWrite, Offset: 4096, Length: 512}, make([]byte, 512)...); got != nbdproto.EPERM && got != nbdproto.EINVAL {
		t.Fatal(got)
	}
	c.send(nbdproto.Request{Type: nbdproto.CmdDisc})
	c.hungUp()
	other := dial(t, path).greet(nbdproto.FixedNewstyle | nbdproto.NoZeroes)
	other.option(nbdproto.OptAbort, nil)
	other.hungUp()
	<-h.gone
	<-h.gone
	connect(t, path, true).Close()
	<-h.gone
	connect(t, path, false)
	s.Close() // has waited for all
	h.mu.Lock()
	defer h.mu.Unlock()
	want := []string{
		"nbd_client client=1",
		"nbd_negotiated client=1 export=n tls=false structured=true extended=false contexts=[base:allocation]",
		"nbd_request_failed client=1 export=n type=write offset=4096 length=512 what=Export is read-only error=invalid argument",
		"nbd_client_gone client=1 export=n reason=it said so",
		"nbd_client client=2",
		"nbd_client_gone client=2 export= reason=it said so",
		"nbd_client client=3",
		"nbd_negotiated client=3 export=n tls=false structured=true extended=false contexts=[base:allocation]",
		"nbd_client_gone client=3 export=n reason=without a word",
		"nbd_client client=4",
		"nbd_negotiated client=4 export=n tls=false structured=false extended=false contexts=[]",
		"nbd_client_gone client=4 export=n reason=the server has closed the connection",
	}
	if got := strings.Join(h.lines, "\n"); got != strings.Join(want, "\n") {
		t.Errorf("got\n%s", got)
	}
}
