package nbd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"syscall"
	"testing"

	"blockd/blockgraph"
	"blockd/clock"
	"blockd/nbdproto"
)

// openExtended opens a node on a fake server that takes extended headers.
func openExtended(t *testing.T) (*Driver, *fakeConn) {
	t.Helper()
	f := listenFake(t, "")
	f.extended = true
	d, c := f.open(t, clock.Real(), unixOptions(f.path))
	f.l.Close()
	return d, c
}

func TestExtendedHeadersAreUsedWhereTheServerHasThem(t *testing.T) {
	d, c := openExtended(t)
	if l := d.Limits(); l.MaxZero != 0 || l.MaxDiscard != 0 || l.MaxTransfer != nbdproto.MaxPayload {
		t.Errorf("%+v", l)
	}
	seen := make(chan *nbdproto.Request, 8)
	go func() {
		for {
			r, _ := c.request()
			if r == nil {
				return
			}
			seen <- r
			c.answer(r)
		}
	}()
	b, err := read(t.Context(), d, 4096, 8192)
	if err != nil {
		t.Fatal(err)
	}
	checkPattern(t, b, 4096)
	<-seen
	if err := d.WriteV(t.Context(), 512, blockgraph.MakeIOVec(make([]byte, 1024)), 0); err != nil {
		t.Fatal(err)
	}
	if r := <-seen; r.Flags != nbdproto.FlagPayloadLen || r.Length != 1024 {
		t.Errorf("%+v", r)
	}
	for _, f := range []func() error{
		func() error { return d.WriteZeroes(t.Context(), 0, fakeSize, 0) },
		func() error { return d.Discard(t.Context(), 0, fakeSize) },
	} {
		if err := f(); err != nil {
			t.Fatal(err)
		}
		if r := <-seen; r.Length != fakeSize || r.Flags&nbdproto.FlagPayloadLen != 0 {
			t.Errorf("%+v", r)
		}
	}
	st, err := d.BlockStatus(t.Context(), 0, fakeSize, blockgraph.StatusPrecise)
	if err != nil || st.N != fakeSize || st.Flags&blockgraph.StatusZero == 0 {
		t.Errorf("%+v %v", st, err)
	}
}

// A link that has extended headers takes nothing else, and no reply that belongs
// to another request.
func TestWrongExtendedRepliesEndTheLink(t *testing.T) {
	form := func(r *nbdproto.Request) nbdproto.Reply {
		return nbdproto.Reply{Framing: nbdproto.Extended, Cookie: r.Cookie, Offset: r.Offset}
	}
	for name, reply := range map[string]func(r *nbdproto.Request) []byte{
		"structured": func(r *nbdproto.Request) []byte { return data(r, true, r.Offset, int(r.Length)) },
		"simple":     func(r *nbdproto.Request) []byte { return nbdproto.AppendSimpleReply(nil, r.Cookie, nbdproto.EIO) },
		"other offset": func(r *nbdproto.Request) []byte {
			x := form(r)
			x.Offset++
			return dataIn(x, true, r.Offset, int(r.Length))
		},
		"long": func(r *nbdproto.Request) []byte {
			b := dataIn(form(r), true, r.Offset, int(r.Length))
			binary.BigEndian.PutUint64(b[24:], 1<<40)
			return b
		},
		"status": func(r *nbdproto.Request) []byte {
			return nbdproto.Extended.AppendExtent(form(r).AppendBlockStatus(nil, true, fakeMeta, 1), r.Length, 0)
		},
	} {
		d, c := openExtended(t)
		go func() {
			if r, _ := c.request(); r != nil {
				c.send(reply(r))
			}
			for r, _ := c.request(); r != nil; r, _ = c.request() {
			}
		}()
		if b, err := read(t.Context(), d, 4096, 512); !errors.Is(err, syscall.EIO) {
			t.Errorf("%s: %v, % x", name, err, bytes.Trim(b, "\xee"))
		}
	}
}

// A block status that names more than was asked for says no more than that.
func TestExtentsBeyondTheRequestAreCut(t *testing.T) {
	d, c := openExtended(t)
	go func() {
		for r, _ := c.request(); r != nil; r, _ = c.request() {
			x := nbdproto.Reply{Framing: nbdproto.Extended, Cookie: r.Cookie, Offset: r.Offset}
			c.send(nbdproto.Extended.AppendExtent(x.AppendBlockStatus(nil, true, fakeMeta, 1), 1<<64-512, nbdproto.StateZero))
		}
	}()
	st, err := d.BlockStatus(t.Context(), 4096, 8192, blockgraph.StatusPrecise)
	if err != nil || st.N != 8192 || st.Flags&blockgraph.StatusZero == 0 {
		t.Errorf("%+v %v", st, err)
	}
}
