package nbdproto

import (
	"bytes"
	"testing"
)

// Each target holds that what was accepted encodes to the bytes that were
// read, so that no byte is overlooked.

func FuzzInfoRequest(f *testing.F) {
	f.Add((&InfoRequest{Name: "n", Requests: []InfoType{3}}).Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ParseInfoRequest(b)
		if err == nil && !bytes.Equal(r.Append(nil), b) {
			t.Errorf("%q became %+v", b, r)
		}
		if err == nil && len(r.Name) > MaxString {
			t.Error("name beyond the limit")
		}
	})
}

func FuzzMetaRequest(f *testing.F) {
	f.Add((&MetaRequest{Name: "n", Queries: []string{"base:allocation", ""}}).Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, _, err := ParseMetaRequest(b)
		if err != nil {
			return
		}
		again := r.Append(nil)
		if len(again) == len(b) && !bytes.Equal(again, b) || len(again) > len(b) {
			t.Errorf("%q became %+v", b, r)
		}
	})
}

func FuzzRequest(f *testing.F) {
	r := Request{Type: CmdWrite, Cookie: 1, Offset: 2, Length: 3}
	f.Add(r.Append(nil, Compact))
	f.Add(r.Append(nil, Extended))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, framing := range []Framing{Compact, Extended} {
			var r Request
			if r.Parse(b, framing) == nil && !bytes.Equal(r.Append(nil, framing), b[:framing.RequestSize()]) {
				t.Errorf("%q became %+v", b, r)
			}
		}
	})
}

// FuzzReply walks through what a server may send to a client.
func FuzzReply(f *testing.F) {
	f.Add(AppendSimpleReply(nil, 1, EIO))
	f.Add(Reply{Cookie: 1}.AppendError(nil, EIO, "no"))
	f.Add(Reply{Cookie: 1}.AppendErrorOffset(nil, EIO, "no", 5))
	f.Add(Reply{Cookie: 1}.AppendOffsetHole(nil, true, 5, 6))
	f.Add(Compact.AppendExtent(Reply{Cookie: 1}.AppendBlockStatus(nil, true, 0, 1), 512, 3))
	x := Reply{Framing: Extended, Cookie: 1, Offset: 5}
	f.Add(x.AppendNone(nil))
	f.Add(Extended.AppendExtent(x.AppendBlockStatus(nil, true, 0, 1), 1<<40, 3))
	f.Add(append(Reply{Cookie: 1}.AppendOffsetData(nil, true, 5, 2), 1, 2))
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := ReplySize(b)
		if err != nil || len(b) < n {
			return
		}
		var h ReplyHeader
		if h.Parse(b) != nil || !h.Structured {
			return
		}
		p := b[n:]
		if int64(len(p)) > int64(h.Length) {
			p = p[:h.Length]
		}
		switch {
		case h.Type.IsError():
			if e, err := ParseErrorChunk(h.Type, p); err == nil && len(e.Message) > len(p) {
				t.Error("a message out of nothing")
			}
		case h.Type == ChunkOffsetHole:
			_, _ = ParseHole(p)
		case h.Type == ChunkBlockStatus, h.Type == ChunkBlockStatusExt:
			framing, head := Compact, 4
			if h.Type == ChunkBlockStatusExt {
				framing, head = Extended, 8
			}
			count := 0
			if _, err := ParseExtents(p, framing, func(l, _ uint64) {
				if l == 0 {
					t.Error("an empty extent")
				}
				count++
			}); err == nil && count*framing.ExtentSize()+head != len(p) {
				t.Errorf("%d extents in %d bytes", count, len(p))
			}
		}
	})
}

// FuzzOptionReply walks through a server's half of the handshake.
func FuzzOptionReply(f *testing.F) {
	f.Add(AppendGreeting(nil, FixedNewstyle))
	add := func(t RepType, p []byte) {
		f.Add(append(OptionReplyHeader{OptGo, t, uint32(len(p))}.Append(nil), p...))
	}
	add(RepServer, ServerEntry{"n", "d"}.Append(nil))
	add(RepMetaContext, MetaContext{1, "base:allocation"}.Append(nil))
	add(RepInfo, ExportInfo{512, HasFlags}.Append(AppendInfo(nil, InfoExport)))
	add(RepInfo, BlockSizes{1, 2, 3}.Append(AppendInfo(nil, InfoBlockSize)))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = ParseGreeting(b)
		_, _, _ = ParseClientFlags(b)
		_, _ = ParseExportName(b)
		if h, err := ParseOptionHeader(b); err == nil && !bytes.Equal(h.Append(nil), b[:OptionHeaderSize]) {
			t.Errorf("%q became %+v", b, h)
		}
		h, err := ParseOptionReplyHeader(b)
		if err != nil {
			return
		}
		p := b[OptionReplyHeaderSize:]
		switch h.Type {
		case RepServer:
			if e, err := ParseServerEntry(p); err == nil && !bytes.Equal(e.Append(nil), p) {
				t.Errorf("%q became %+v", p, e)
			}
		case RepMetaContext:
			if m, err := ParseMetaContext(p); err == nil && !bytes.Equal(m.Append(nil), p) {
				t.Errorf("%q became %+v", p, m)
			}
		case RepInfo:
			_, rest, err := ParseInfo(p)
			if err != nil {
				return
			}
			_, _ = ParseExportInfo(rest)
			_, _ = ParseBlockSizes(rest)
		}
	})
}

// FuzzStatusPayload reads what a client may ask of a block status.
func FuzzStatusPayload(f *testing.F) {
	f.Add((&StatusPayload{Length: 512, Contexts: []uint32{0, 7}}).Append(nil))
	f.Add([]byte{1, 2, 3})
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, err := ParseStatusPayload(b); err == nil && !bytes.Equal(p.Append(nil), b) {
			t.Errorf("%q became %+v", b, p)
		}
	})
}
