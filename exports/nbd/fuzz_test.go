package nbd

import (
	"bytes"
	"io"
	"log/slog"
	"net"
	"testing"
	"time"

	"blockd/clock"
	"blockd/ioengine"
	"blockd/nbdproto"
)

// pipeListener hands out connections that are no sockets, which is how TLS
// will come.
type pipeListener struct {
	conns chan net.Conn
	done  chan struct{}
}

func newPipeListener() *pipeListener {
	return &pipeListener{conns: make(chan net.Conn), done: make(chan struct{})}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error   { close(l.done); return nil }
func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Net: "unix", Name: "pipe"} }

func (l *pipeListener) dial(t testing.TB) *client {
	t.Helper()
	a, b := net.Pipe()
	t.Cleanup(func() { a.Close() })
	l.conns <- b
	if err := a.SetDeadline(clock.Real().Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return &client{t: t, Conn: a}
}

func TestStreamsThatAreNoSocketsWork(t *testing.T) {
	l := newPipeListener()
	s := NewServer(Config{Clock: clock.Real()}, l)
	t.Cleanup(s.Close)
	m := newRAM(4<<20, 64<<10)
	add(t, s, m, ExportConfig{Writable: true})
	c := l.dial(t).greet(both).structured()
	c.goExport(nbdproto.OptGo, "n")
	data := bytes.Repeat([]byte("0123456789"), 100_000)
	if got := c.do(nbdproto.Request{Type: nbdproto.CmdWrite, Offset: 5, Length: uint64(len(data))}, data...); got != nbdproto.OK {
		t.Fatalf("write: %d", got)
	}
	if got, _ := c.readData(5, len(data), 0); !bytes.Equal(got, data) {
		t.Error("read back wrong")
	}
}

// FuzzServer lets a client say anything, in the handshake or after it. The
// server must end the connection when the client does, and keep nothing.
func FuzzServer(f *testing.F) {
	option := func(o nbdproto.Option, p []byte) []byte {
		return append(nbdproto.OptionHeader{Option: o, Length: uint32(len(p))}.Append(nil), p...)
	}
	goN := (&nbdproto.InfoRequest{Name: "n"}).Append(nil)
	hello := nbdproto.AppendClientFlags(nil, both)
	f.Add(append(bytes.Clone(hello), option(nbdproto.OptList, nil)...), false)
	f.Add(append(bytes.Clone(hello), option(nbdproto.OptGo, goN)...), false)
	f.Add(append(bytes.Clone(hello), option(nbdproto.OptListMetaContext, (&nbdproto.MetaRequest{Name: "n", Queries: []string{"base:"}}).Append(nil))...), false)
	var burst []byte
	for i, cmd := range []nbdproto.Command{0, 1, 3, 4, 5, 6, 7, 2} {
		r := nbdproto.Request{Type: cmd, Cookie: uint64(i), Offset: 512, Length: 1024}
		burst = r.Append(burst, nbdproto.Compact)
		if cmd == nbdproto.CmdWrite {
			burst = append(burst, make([]byte, 1024)...)
		}
	}
	f.Add(burst, true)
	wide := append(bytes.Clone(hello), option(nbdproto.OptExtendedHeaders, nil)...)
	wide = append(wide, option(nbdproto.OptSetMetaContext, (&nbdproto.MetaRequest{Name: "n", Queries: []string{"base:allocation"}}).Append(nil))...)
	wide = append(wide, option(nbdproto.OptGo, goN)...)
	ask := (&nbdproto.StatusPayload{Length: 1024, Contexts: []uint32{0}}).Append(nil)
	for _, r := range []nbdproto.Request{
		{Type: nbdproto.CmdRead, Length: 512},
		{Type: nbdproto.CmdBlockStatus, Flags: nbdproto.FlagPayloadLen, Length: uint64(len(ask))},
		{Type: nbdproto.CmdWriteZeroes, Length: 1 << 20},
		{Type: nbdproto.CmdTrim, Flags: nbdproto.FlagPayloadLen, Length: 12},
		{Type: nbdproto.CmdDisc},
	} {
		wide = r.Append(wide, nbdproto.Extended)
		if r.Flags != 0 {
			wide = append(wide, ask...)
		}
	}
	f.Add(wide, false)
	quiet := slog.New(slog.NewTextHandler(io.Discard, nil))
	l := newPipeListener()
	s := NewServer(Config{Clock: clock.Real(), Log: quiet, HandshakeMax: 5 * time.Second}, l)
	f.Cleanup(s.Close)
	e := add(f, s, newRAM(1<<20, 4096), ExportConfig{Writable: true})
	f.Fuzz(func(t *testing.T, b []byte, transmission bool) {
		c := l.dial(t)
		if transmission {
			c.greet(both).structured().setMeta("n", "base:allocation")
			c.goExport(nbdproto.OptGo, "n")
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = io.Copy(io.Discard, c.Conn)
		}()
		_, _ = c.Conn.Write(b)
		c.Close()
		<-done
		until(t, "the client is gone", func() bool { return e.Clients() == 0 && ioengine.InUse() == 0 })
	})
}
