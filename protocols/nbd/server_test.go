package nbd

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"path/filepath"
	"testing"

	"blockd/blockgraph"
	"blockd/clock"
	"blockd/nbdproto"
	"blockd/qapi"
)

// fake is an NBD server that answers as a test tells it to.
type fake struct {
	t    testing.TB
	l    net.Listener
	path string
	// extended has it take the option, and framing is then that of requests.
	extended bool
}

func listenFake(t testing.TB, path string) *fake {
	t.Helper()
	if path == "" {
		path = filepath.Join(t.TempDir(), "s")
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return &fake{t: t, l: l, path: path}
}

const (
	fakeSize  = 1 << 20
	fakeFlags = nbdproto.HasFlags | nbdproto.SendFlush | nbdproto.SendFUA | nbdproto.SendTrim | nbdproto.SendWriteZeroes
	fakeMeta  = 7
)

// accept takes a client through the handshake; nil when there is none.
func (f *fake) accept() *fakeConn {
	c, err := f.l.Accept()
	if err != nil {
		return nil
	}
	f.t.Cleanup(func() { c.Close() })
	fc := &fakeConn{Conn: c}
	fc.send(nbdproto.AppendGreeting(nil, nbdproto.FixedNewstyle|nbdproto.NoZeroes))
	fc.recv(nbdproto.ClientFlagsSize)
	for {
		b := fc.recv(nbdproto.OptionHeaderSize)
		if b == nil {
			return nil
		}
		h, err := nbdproto.ParseOptionHeader(b)
		if err != nil {
			f.t.Error(err)
			return nil
		}
		fc.recv(int(h.Length))
		reply := func(t nbdproto.RepType, payload []byte) {
			fc.send(append(nbdproto.OptionReplyHeader{Option: h.Option, Type: t, Length: uint32(len(payload))}.Append(nil), payload...))
		}
		switch h.Option {
		case nbdproto.OptExtendedHeaders:
			if !f.extended {
				reply(nbdproto.RepErrUnsup, nil)
				continue
			}
			fc.framing = nbdproto.Extended
		case nbdproto.OptSetMetaContext:
			reply(nbdproto.RepMetaContext, nbdproto.MetaContext{ID: fakeMeta, Name: baseAllocation}.Append(nil))
		case nbdproto.OptGo:
			reply(nbdproto.RepInfo, nbdproto.ExportInfo{Size: fakeSize, Flags: fakeFlags}.Append(nbdproto.AppendInfo(nil, nbdproto.InfoExport)))
			reply(nbdproto.RepAck, nil)
			return fc
		}
		reply(nbdproto.RepAck, nil)
	}
}

type fakeConn struct {
	net.Conn
	framing nbdproto.Framing
}

func (c *fakeConn) send(b []byte) { _, _ = c.Write(b) }

func (c *fakeConn) recv(n int) []byte {
	b := make([]byte, n)
	if _, err := io.ReadFull(c, b); err != nil {
		return nil
	}
	return b
}

// request reads one request with its payload; nil at the end.
func (c *fakeConn) request() (*nbdproto.Request, []byte) {
	b := c.recv(c.framing.RequestSize())
	if b == nil {
		return nil, nil
	}
	r := &nbdproto.Request{}
	if r.Parse(b, c.framing) != nil || r.Type == nbdproto.CmdDisc {
		return nil, nil
	}
	return r, c.recv(int(r.PayloadLen(c.framing)))
}

// data is a chunk with the pattern of its offset.
func data(r *nbdproto.Request, last bool, off uint64, n int) []byte {
	return dataIn(nbdproto.Reply{Cookie: r.Cookie}, last, off, n)
}

func dataIn(form nbdproto.Reply, last bool, off uint64, n int) []byte {
	b := form.AppendOffsetData(nil, last, off, n)
	for i := range n {
		b = append(b, pattern(off+uint64(i)))
	}
	return b
}

func pattern(off uint64) byte { return byte(off>>9 + off) }

// serve answers everything as a device that holds the pattern.
func (c *fakeConn) serve() {
	for {
		r, _ := c.request()
		if r == nil {
			return
		}
		c.answer(r)
	}
}

func (c *fakeConn) answer(r *nbdproto.Request) {
	form := nbdproto.Reply{Framing: c.framing, Cookie: r.Cookie, Offset: r.Offset}
	switch r.Type {
	case nbdproto.CmdRead:
		c.send(dataIn(form, true, r.Offset, int(r.Length)))
	case nbdproto.CmdBlockStatus:
		b := form.AppendBlockStatus(nil, true, fakeMeta, 1)
		c.send(c.framing.AppendExtent(b, r.Length, nbdproto.StateHole|nbdproto.StateZero))
	default:
		c.send(form.AppendNone(nil))
	}
}

func unixOptions(path string) *qapi.BlockdevOptionsNbd {
	return &qapi.BlockdevOptionsNbd{Server: unixServer(path)}
}

func openAt(ctx context.Context, clk clock.Clock, o *qapi.BlockdevOptionsNbd) (*Driver, error) {
	d, err := open(ctx, &blockgraph.OpenRequest{Options: &qapi.BlockdevOptions{Driver: "nbd", NBD: o}}, &Config{Clock: clk})
	if err != nil {
		return nil, err
	}
	return d.(*Driver), nil
}

// openFake opens a node on a fake server and returns the server's side.
func openFake(t testing.TB) (*Driver, *fakeConn) {
	t.Helper()
	f := listenFake(t, "")
	d, c := f.open(t, clock.Real(), unixOptions(f.path))
	f.l.Close()
	return d, c
}

func (f *fake) open(t testing.TB, clk clock.Clock, o *qapi.BlockdevOptionsNbd) (*Driver, *fakeConn) {
	t.Helper()
	conns := make(chan *fakeConn, 1)
	go func() { conns <- f.accept() }()
	d, err := openAt(t.Context(), clk, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close(context.Background()) })
	c := <-conns
	if c == nil {
		t.Fatal("no client")
	}
	return d, c
}

func read(ctx context.Context, d *Driver, off int64, n int) ([]byte, error) {
	b := make([]byte, n)
	for i := range b {
		b[i] = 0xee
	}
	return b, d.ReadV(ctx, off, blockgraph.MakeIOVec(b[:n/3], b[n/3:]), 0)
}

func checkPattern(t *testing.T, b []byte, off uint64) {
	t.Helper()
	for i := range b {
		if b[i] != pattern(off+uint64(i)) {
			t.Fatalf("byte %d is %#x", i, b[i])
		}
	}
}

// rawChunk is a chunk of any shape.
func rawChunk(cookie uint64, kind nbdproto.ChunkType, last bool, payload ...byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, 0x668e33ef)
	var flags uint16
	if last {
		flags = nbdproto.ChunkDone
	}
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint16(b, uint16(kind))
	b = binary.BigEndian.AppendUint64(b, cookie)
	b = binary.BigEndian.AppendUint32(b, uint32(len(payload)))
	return append(b, payload...)
}
