package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"sync/atomic"
	"testing"

	"blockd/blockgraph"
	"blockd/nbdproto"
)

// extended negotiates extended headers in place of structured replies.
func (c *client) extended() *client {
	c.t.Helper()
	if got := last(c.option(nbdproto.OptExtendedHeaders, nil)); got != nbdproto.RepAck {
		c.t.Fatalf("extended headers: %#x", got)
	}
	c.framing = nbdproto.Extended
	return c
}

// connectExtended makes a client of the export "n" with two contexts.
func connectExtended(t testing.TB, path string) *client {
	t.Helper()
	c := dial(t, path).greet(both).extended()
	c.setMeta("n", "base:allocation", "qemu:allocation-depth")
	if got := last(c.goExport(nbdproto.OptGo, "n")); got != nbdproto.RepAck {
		t.Fatalf("go: %#x", got)
	}
	return c
}

func TestExtendedHeadersAreNegotiated(t *testing.T) {
	s, path := server(t, Config{})
	add(t, s, newRAM(1<<20, 4096), ExportConfig{Writable: true, AllocationDepth: true})
	c := dial(t, path).greet(both)
	if got := last(c.option(nbdproto.OptExtendedHeaders, []byte{1})); got != nbdproto.RepErrInvalid {
		t.Errorf("with a payload: %#x", got)
	}
	c.structured().extended()
	if got := last(c.option(nbdproto.OptExtendedHeaders, nil)); got != nbdproto.RepErrInvalid {
		t.Errorf("twice: %#x", got)
	}
	if got := last(c.option(nbdproto.OptStructuredReply, nil)); got != nbdproto.RepErrExtHeaderReqd {
		t.Errorf("back to structured replies: %#x", got)
	}
	c.goExport(nbdproto.OptInfo, "n")
	if c.info.Flags&nbdproto.BlockStatusPay != 0 || c.info.Flags&nbdproto.SendDF == 0 {
		t.Errorf("flags without a context: %#x", c.info.Flags)
	}
	c.setMeta("n", "base:allocation")
	if c.goExport(nbdproto.OptGo, "n"); c.info.Flags&nbdproto.BlockStatusPay == 0 {
		t.Errorf("flags with a context: %#x", c.info.Flags)
	}
	c = dial(t, path).greet(both).extended()
	c.write(append(nbdproto.OptionHeader{Option: nbdproto.OptExportName, Length: 1}.Append(nil), 'n'))
	c.hungUp()
	c = connect(t, path, true)
	if c.info.Flags&nbdproto.BlockStatusPay != 0 {
		t.Error("a client without extended headers is told of what needs them")
	}
}

func TestEveryReplyIsExtended(t *testing.T) {
	s, path := server(t, Config{})
	add(t, s, newRAM(4<<20, 64<<10), ExportConfig{Writable: true, AllocationDepth: true})
	c := connectExtended(t, path)
	data := bytes.Repeat([]byte{0x5a}, 300<<10)
	w := nbdproto.Request{Type: nbdproto.CmdWrite, Flags: nbdproto.FlagPayloadLen, Cookie: 9, Offset: 128 << 10, Length: uint64(len(data))}
	c.send(w, data...)
	if k := c.chunk(0); k.Error != nbdproto.OK || k.Type != nbdproto.ChunkNone || !k.Done || k.Offset != w.Offset || k.Cookie != 9 {
		t.Errorf("write: %+v", k)
	}
	w.Flags = 0 // as the field, a write is known by its type
	if got := c.do(w, data...); got != nbdproto.OK {
		t.Errorf("write without the flag: %d", got)
	}
	want := make([]byte, 1<<20)
	copy(want[w.Offset:], data)
	if got, kinds := c.readData(0, 1<<20, 0); !bytes.Equal(got, want) || len(kinds) < 2 {
		t.Errorf("read in %v", kinds)
	}
	if got, _ := c.readData(1<<17, 512, 0); !bytes.Equal(got, data[:512]) {
		t.Error("a small read")
	}
	for _, cmd := range []nbdproto.Command{nbdproto.CmdFlush, nbdproto.CmdTrim, nbdproto.CmdWriteZeroes, nbdproto.CmdCache} {
		if got := c.do(nbdproto.Request{Type: cmd, Cookie: 3, Length: 4096}); got != nbdproto.OK {
			t.Errorf("%s: %d", cmd, got)
		}
	}
	if got := c.do(nbdproto.Request{Type: nbdproto.CmdRead, Offset: 4 << 20, Length: 1}); got != nbdproto.EINVAL {
		t.Errorf("past the end: %d", got)
	}
}

// endless is a backend of any size that only tells of the ranges it got, how many
// with FUA, and how often it was flushed.
type endless struct {
	ranges       chan [2]int64
	fua, flushes atomic.Int64
}

func (*endless) ReadV(context.Context, int64, *blockgraph.IOVec, blockgraph.Flags) error  { return nil }
func (*endless) WriteV(context.Context, int64, *blockgraph.IOVec, blockgraph.Flags) error { return nil }
func (e *endless) WriteZeroes(_ context.Context, off, n int64, flags blockgraph.Flags) error {
	if flags&blockgraph.FUA != 0 {
		e.fua.Add(1)
	}
	e.ranges <- [2]int64{off, n}
	return nil
}
func (e *endless) Discard(ctx context.Context, off, n int64) error {
	return e.WriteZeroes(ctx, off, n, 0)
}
func (e *endless) Flush(context.Context) error { e.flushes.Add(1); return nil }
func (*endless) Inactive() bool                { return false }
func (*endless) BlockStatus(_ context.Context, _, n int64, _ blockgraph.StatusMode) (blockgraph.Status, int, error) {
	return blockgraph.Status{Flags: blockgraph.StatusZero, N: n}, 0, nil
}

func TestLengthsBeyond32Bits(t *testing.T) {
	s, path := server(t, Config{})
	e := &endless{ranges: make(chan [2]int64, 1<<14)}
	if _, err := s.AddExport(&ExportConfig{Name: "n", Backend: e, Size: 1 << 50, Writable: true}); err != nil {
		t.Fatal(err)
	}
	c := dial(t, path).greet(both).extended()
	c.setMeta("n", "base:allocation")
	c.goExport(nbdproto.OptGo, "n")
	const off, n = 1 << 20, 1<<45 + 512
	for _, cmd := range []nbdproto.Command{nbdproto.CmdWriteZeroes, nbdproto.CmdTrim} {
		if got := c.do(nbdproto.Request{Type: cmd, Offset: off, Length: n}); got != nbdproto.OK {
			t.Fatalf("%s: %d", cmd, got)
		}
		// In pieces that a change of the graph can wait for.
		at := int64(off)
		for len(e.ranges) > 0 {
			r := <-e.ranges
			if r[0] != at || r[1] > blockgraph.Piece {
				t.Fatalf("%s: %d after %d", cmd, r, at)
			}
			if at += r[1]; at%blockgraph.Piece != 0 && at != off+n {
				t.Fatalf("%s: a piece ends at %d", cmd, at)
			}
		}
		if at != off+n {
			t.Errorf("%s: ends at %d", cmd, at)
		}
	}
	// One flush stands for the FUA of many pieces, none is needed for that of one.
	for _, n := range []uint64{blockgraph.Piece + 1, blockgraph.Piece} {
		fua, flushes := e.fua.Load(), e.flushes.Load()
		if got := c.do(nbdproto.Request{Type: nbdproto.CmdWriteZeroes, Length: n, Flags: nbdproto.FlagFUA}); got != nbdproto.OK {
			t.Fatal(got)
		}
		var want [2]int64 // pieces with FUA, flushes
		if n > blockgraph.Piece {
			want[1] = 1
		} else {
			want[0] = 1
		}
		if got := [2]int64{e.fua.Load() - fua, e.flushes.Load() - flushes}; got != want {
			t.Errorf("%d bytes with FUA: %d, want %d", n, got, want)
		}
		for len(e.ranges) > 0 {
			<-e.ranges
		}
	}
	// What a compact header can ask for is one piece, wherever it lies.
	if got := c.do(nbdproto.Request{Type: nbdproto.CmdTrim, Offset: blockgraph.Piece - 1, Length: blockgraph.Piece - 1}); got != nbdproto.OK || len(e.ranges) != 1 {
		t.Errorf("%d, %d pieces", got, len(e.ranges))
	}
	if got := c.status(off, n, 0)["base:allocation"]; len(got) != 1 || got[0].length != n || got[0].flags != 3 {
		t.Errorf("status: %+v", got)
	}
	if got := c.do(nbdproto.Request{Type: nbdproto.CmdTrim, Offset: 1 << 49, Length: 1 << 63}); got != nbdproto.EINVAL {
		t.Errorf("past the end: %d", got)
	}
	if got := c.do(nbdproto.Request{Type: nbdproto.CmdRead, Length: 1 << 40}); got != nbdproto.EINVAL {
		t.Errorf("a read of a TiB: %d", got)
	}
}

func TestBlockStatusOfSomeContexts(t *testing.T) {
	s, path := server(t, Config{})
	add(t, s, newRAM(1<<20, 4096), ExportConfig{AllocationDepth: true})
	c := connectExtended(t, path)
	ask := func(n uint64, ids ...uint32) []byte {
		return (&nbdproto.StatusPayload{Length: n, Contexts: ids}).Append(nil)
	}
	send := func(p []byte) {
		c.send(nbdproto.Request{Type: nbdproto.CmdBlockStatus, Flags: nbdproto.FlagPayloadLen, Cookie: 5, Offset: 4096, Length: uint64(len(p))}, p...)
	}
	for _, ids := range [][]uint32{{0}, {1}, {0, 1}, {1, 0}, {}} {
		send(ask(8192, ids...))
		for i, id := range ids {
			k := c.chunk(0)
			var sum uint64
			got, err := nbdproto.ParseExtents(k.payload, nbdproto.Extended, func(l, _ uint64) { sum += l })
			if err != nil || k.Type != nbdproto.ChunkBlockStatusExt || got != id || sum != 8192 || k.Done != (i == len(ids)-1) || k.Offset != 4096 {
				t.Fatalf("%v: %+v: context %d, %d bytes, %v", ids, k.ReplyHeader, got, sum, err)
			}
		}
		if len(ids) == 0 {
			if k := c.chunk(0); k.Type != nbdproto.ChunkNone || k.Error != nbdproto.OK {
				t.Fatalf("no context: %+v", k)
			}
		}
	}
	for name, p := range map[string][]byte{
		"empty": {}, "short": {1, 2, 3}, "odd": append(ask(512, 0), 1), "unknown": ask(512, 77), "twice": ask(512, 0, 0),
		"nothing": ask(0, 0), "too far": ask(1<<20, 0), "overflow": ask(1<<64-1, 0), "too many": make([]byte, nbdproto.MaxStatusPayload+4),
	} {
		send(p)
		if k := c.chunk(0); k.Error != nbdproto.EINVAL || k.Cookie != 5 {
			t.Errorf("%s: %+v", name, k)
		}
	}
	if got := c.status(0, 512, 0); len(got) != 2 {
		t.Errorf("all contexts after that: %v", got)
	}
}

func TestPayloadsThatNobodyAskedForArePassedOver(t *testing.T) {
	s, path := server(t, Config{})
	add(t, s, newRAM(1<<20, 4096), ExportConfig{Writable: true, AllocationDepth: true})
	c := connectExtended(t, path)
	for _, cmd := range []nbdproto.Command{nbdproto.CmdRead, nbdproto.CmdTrim, nbdproto.CmdFlush, nbdproto.CmdWriteZeroes, 77} {
		if got := c.do(nbdproto.Request{Type: cmd, Flags: nbdproto.FlagPayloadLen, Length: 1000}, make([]byte, 1000)...); got != nbdproto.EINVAL {
			t.Errorf("%s: %d", cmd, got)
		}
	}
	if got := c.do(nbdproto.Request{Type: nbdproto.CmdFlush}); got != nbdproto.OK {
		t.Errorf("flush: %d", got)
	}
	// A payload that is too long for any server is the end.
	c.send(nbdproto.Request{Type: nbdproto.CmdBlockStatus, Flags: nbdproto.FlagPayloadLen, Length: 1 << 40})
	if k := c.chunk(0); k.Error != nbdproto.EINVAL {
		t.Errorf("%+v", k)
	}
	c.hungUp()
	// So is a header of the other framing.
	c = connectExtended(t, path)
	b := (&nbdproto.Request{Type: nbdproto.CmdFlush, Cookie: 1}).Append(nil, nbdproto.Extended)
	binary.BigEndian.PutUint32(b, 0x25609513)
	c.write(b)
	if k := c.chunk(0); k.Error != nbdproto.EINVAL {
		t.Errorf("%+v", k)
	}
	c.hungUp()
}

// untilLost is a backend whose discards go on until their client is lost.
type untilLost struct {
	endless
	begun chan int64 // offsets
}

func (u *untilLost) Discard(ctx context.Context, off, _ int64) error {
	u.begun <- off
	<-ctx.Done()
	return nil
}

// What a lost client has asked for beyond a piece is not begun.
func TestALongRequestEndsWithItsClient(t *testing.T) {
	s, path := server(t, Config{})
	u := &untilLost{begun: make(chan int64, 16)}
	if _, err := s.AddExport(&ExportConfig{Name: "n", Backend: u, Size: 1 << 50, Writable: true}); err != nil {
		t.Fatal(err)
	}
	c := dial(t, path).greet(both).extended()
	c.goExport(nbdproto.OptGo, "n")
	c.send(nbdproto.Request{Type: nbdproto.CmdTrim, Length: 8 * blockgraph.Piece})
	if off := <-u.begun; off != 0 {
		t.Errorf("it begins at %d", off)
	}
	s.Close()
	if n := len(u.begun); n != 0 {
		t.Errorf("%d pieces more", n)
	}
}
