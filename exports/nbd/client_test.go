package nbd

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	"blockd/clock"
	"blockd/nbdproto"
	"blockd/qapi"
	"blockd/sockets"
)

// server starts a server on a unix socket; it is closed with the test.
func server(t testing.TB, cfg Config) (*Server, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	if cfg.Clock == nil {
		cfg.Clock = clock.Real()
	}
	ls, err := Listen(t.Context(), &qapi.SocketAddress{Type: "unix", Unix: &qapi.UnixSocketAddress{Path: path}}, sockets.Access{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(cfg, ls...)
	t.Cleanup(s.Close)
	return s, path
}

// add offers an export; cfg's empty members get defaults.
func add(t testing.TB, s *Server, b *ram, cfg ExportConfig) *Export {
	t.Helper()
	if cfg.Name == "" {
		cfg.Name = "n"
	}
	cfg.Backend, cfg.Size = b, int64(len(b.data))
	e, err := s.AddExport(&cfg)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// client speaks the protocol byte by byte.
type client struct {
	t testing.TB
	net.Conn
	contexts map[uint32]string
	info     nbdproto.ExportInfo
	sizes    nbdproto.BlockSizes
	desc     string
	asked    string
	framing  nbdproto.Framing
}

// patience is how long a test waits for what must come.
const patience = 2 * time.Minute

func dial(t testing.TB, path string) *client {
	t.Helper()
	nc, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	if err := nc.SetDeadline(clock.Real().Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return &client{t: t, Conn: nc}
}

func (c *client) read(n int) []byte {
	c.t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(c.Conn, b); err != nil {
		c.t.Fatalf("reading %d bytes: %v", n, err)
	}
	return b
}

func (c *client) write(b []byte) {
	c.t.Helper()
	if _, err := c.Conn.Write(b); err != nil {
		c.t.Fatal(err)
	}
}

// hungUp waits for the end of the connection.
func (c *client) hungUp() {
	c.t.Helper()
	if n, err := io.Copy(io.Discard, c.Conn); err != nil && !sockets.Vanished(err) {
		c.t.Fatalf("the connection is still there (%d bytes, %v)", n, err)
	}
}

func (c *client) greet(f nbdproto.HandshakeFlags) *client {
	c.t.Helper()
	got, err := nbdproto.ParseGreeting(c.read(nbdproto.GreetingSize))
	if err != nil || got != nbdproto.FixedNewstyle|nbdproto.NoZeroes {
		c.t.Fatalf("greeting: %v %v", got, err)
	}
	c.write(nbdproto.AppendClientFlags(nil, f))
	return c
}

type optionReply struct {
	typ     nbdproto.RepType
	payload []byte
}

func (c *client) option(o nbdproto.Option, payload []byte) []optionReply {
	c.t.Helper()
	c.write(append(nbdproto.OptionHeader{Option: o, Length: uint32(len(payload))}.Append(nil), payload...))
	return c.replies(o)
}

func (c *client) replies(o nbdproto.Option) (all []optionReply) {
	c.t.Helper()
	for {
		h, err := nbdproto.ParseOptionReplyHeader(c.read(nbdproto.OptionReplyHeaderSize))
		if err != nil || h.Option != o {
			c.t.Fatalf("reply: %+v %v", h, err)
		}
		all = append(all, optionReply{h.Type, c.read(int(h.Length))})
		if h.Type == nbdproto.RepAck || h.Type.IsError() {
			return all
		}
	}
}

// last is the final reply's type.
func last(all []optionReply) nbdproto.RepType { return all[len(all)-1].typ }

func (c *client) structured() *client {
	c.t.Helper()
	if got := last(c.option(nbdproto.OptStructuredReply, nil)); got != nbdproto.RepAck {
		c.t.Fatalf("structured reply: %#x", got)
	}
	return c
}

func (c *client) setMeta(export string, queries ...string) []optionReply {
	c.t.Helper()
	all := c.option(nbdproto.OptSetMetaContext, (&nbdproto.MetaRequest{Name: export, Queries: queries}).Append(nil))
	c.contexts = map[uint32]string{}
	for _, r := range all {
		if r.typ == nbdproto.RepMetaContext {
			m, err := nbdproto.ParseMetaContext(r.payload)
			if err != nil {
				c.t.Fatal(err)
			}
			c.contexts[m.ID] = m.Name
		}
	}
	return all
}

func (c *client) goExport(o nbdproto.Option, export string, asks ...nbdproto.InfoType) []optionReply {
	c.t.Helper()
	all := c.option(o, (&nbdproto.InfoRequest{Name: export, Requests: asks}).Append(nil))
	for _, r := range all {
		if r.typ != nbdproto.RepInfo {
			continue
		}
		typ, rest, err := nbdproto.ParseInfo(r.payload)
		switch typ {
		case nbdproto.InfoExport:
			c.info, err = nbdproto.ParseExportInfo(rest)
		case nbdproto.InfoBlockSize:
			c.sizes, err = nbdproto.ParseBlockSizes(rest)
		case nbdproto.InfoDescription:
			c.desc = string(rest)
		case nbdproto.InfoName:
			c.asked = string(rest)
		}
		if err != nil {
			c.t.Fatal(err)
		}
	}
	return all
}

// connect makes a client of the export "n", with structured replies and
// base:allocation if asked for.
func connect(t testing.TB, path string, structured bool) *client {
	t.Helper()
	c := dial(t, path).greet(nbdproto.FixedNewstyle | nbdproto.NoZeroes)
	if structured {
		c.structured().setMeta("n", "base:allocation", "qemu:allocation-depth")
	}
	if got := last(c.goExport(nbdproto.OptGo, "n")); got != nbdproto.RepAck {
		t.Fatalf("go: %#x", got)
	}
	return c
}

func (c *client) send(r nbdproto.Request, data ...byte) {
	c.t.Helper()
	c.write(append(r.Append(nil, c.framing), data...))
}

type chunk struct {
	nbdproto.ReplyHeader
	payload []byte
}

// chunk reads one reply or chunk; a simple reply to a read has n bytes of data.
func (c *client) chunk(n int) chunk {
	c.t.Helper()
	b := c.read(4)
	size, err := nbdproto.ReplySize(b)
	if err != nil {
		c.t.Fatalf("% x: %v", b, err)
	}
	b = append(b, c.read(size-4)...)
	var k chunk
	if err := k.Parse(b); err != nil {
		c.t.Fatal(err)
	}
	if k.Extended != (c.framing == nbdproto.Extended) {
		c.t.Fatalf("%+v of another framing", k.ReplyHeader)
	}
	if k.Structured {
		k.payload = c.read(int(k.Length))
		if k.Type.IsError() {
			e, err := nbdproto.ParseErrorChunk(k.Type, k.payload)
			if err != nil {
				c.t.Fatal(err)
			}
			k.Error = e.Error
			k.payload = []byte(e.Message)
		}
	} else if k.Error == nbdproto.OK {
		k.payload = c.read(n)
	}
	return k
}

// do sends a request and returns the error of its reply.
func (c *client) do(r nbdproto.Request, data ...byte) nbdproto.Errno {
	c.t.Helper()
	c.send(r, data...)
	k := c.chunk(0)
	if k.Cookie != r.Cookie {
		c.t.Fatalf("cookie %d, want %d", k.Cookie, r.Cookie)
	}
	return k.Error
}

// readData reads through either kind of reply and returns data and the number
// of chunks.
func (c *client) readData(off uint64, n int, flags nbdproto.CmdFlags) ([]byte, []nbdproto.ChunkType) {
	c.t.Helper()
	c.send(nbdproto.Request{Type: nbdproto.CmdRead, Offset: off, Length: uint64(n), Cookie: off, Flags: flags})
	out := bytes.Repeat([]byte{0xee}, n) // a chunk that is missing shows
	var types []nbdproto.ChunkType
	for {
		k := c.chunk(n)
		if k.Error != nbdproto.OK {
			c.t.Fatalf("read: %d %s", k.Error, k.payload)
		}
		if !k.Structured {
			copy(out, k.payload)
			return out, nil
		}
		types = append(types, k.Type)
		switch k.Type {
		case nbdproto.ChunkOffsetData:
			copy(out[binary.BigEndian.Uint64(k.payload)-off:], k.payload[8:])
		case nbdproto.ChunkOffsetHole:
			h, err := nbdproto.ParseHole(k.payload)
			if err != nil {
				c.t.Fatal(err)
			}
			clear(out[h.Offset-off:][:h.Length])
		}
		if k.Done {
			return out, types
		}
	}
}

type extent struct{ length, flags uint64 }

// status returns the extents by context name.
func (c *client) status(off, n uint64, flags nbdproto.CmdFlags) map[string][]extent {
	c.t.Helper()
	c.send(nbdproto.Request{Type: nbdproto.CmdBlockStatus, Offset: off, Length: n, Flags: flags})
	all := map[string][]extent{}
	for {
		k := c.chunk(0)
		if k.Error != nbdproto.OK {
			c.t.Fatalf("status: %d %s", k.Error, k.payload)
		}
		var list []extent
		id, err := nbdproto.ParseExtents(k.payload, c.framing, func(l, f uint64) { list = append(list, extent{l, f}) })
		if err != nil {
			c.t.Fatal(err)
		}
		all[c.contexts[id]] = list
		if k.Done {
			return all
		}
	}
}

// noDeadline lifts the deadline of a connection.
var noDeadline time.Time

// anyReply reads one whole reply of one chunk; sizes has the data length of
// reads by cookie.
func (c *client) anyReply(sizes map[uint64]int) (nbdproto.ReplyHeader, error) {
	var h nbdproto.ReplyHeader
	b := make([]byte, nbdproto.ChunkHeaderSize)
	if _, err := io.ReadFull(c.Conn, b[:nbdproto.SimpleReplySize]); err != nil {
		return h, err
	}
	size, err := nbdproto.ReplySize(b)
	if err != nil {
		return h, err
	}
	if _, err := io.ReadFull(c.Conn, b[nbdproto.SimpleReplySize:size]); err != nil {
		return h, err
	}
	if err := h.Parse(b[:size]); err != nil {
		return h, err
	}
	n := int64(h.Length)
	if !h.Structured && h.Error == nbdproto.OK {
		n = int64(sizes[h.Cookie])
	}
	_, err = io.CopyN(io.Discard, c.Conn, n)
	return h, err
}
